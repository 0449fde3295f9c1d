"""How the `sdar` command tells about an error: one message, and an exit code."""

import os
import re
import sys
import traceback

from sdar.errors import SdarError


def fail(code: int, error: BaseException, key: str = "", trace: bool | None = None) -> int:
    """Write one message about `error`, and return `code`; SdarErrors speak for themselves, others come with their type.

    Args:
        key: The setting that is meant, where the message does not say so itself.
        trace: Whether the traceback comes first; by default if SDAR_TRACEBACK is 1.
    """
    if trace if trace is not None else os.environ.get("SDAR_TRACEBACK") == "1":
        traceback.print_exception(error)
    message = str(error)
    if not (isinstance(error, SdarError) or type(error).__name__ == "MisconfigurationException"):  # Lightning's, of any module
        message = f"{type(error).__name__}: {message}"
    named = re.match(r"(model|data|trainer|checkpoint)[.: ]", message)  # it says itself which setting is meant
    sys.stderr.write(f"error: {key}: {message}\n" if key and not named else f"error: {message}\n")
    return code

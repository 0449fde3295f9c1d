"""How the `sdar` command speaks: a text, or one message about an error and an exit code."""

import os
import re
import sys
import traceback
from dataclasses import dataclass

from sdar.errors import SdarError

HEADS = ("model", "data", "trainer", "checkpoint", "alarms")
"""Keys that are always the same: a message that begins with one says itself which setting is meant."""


@dataclass(frozen=True)
class Origin:
    """Where an error arose.

    Attributes:
        key: Of the part in whose code it was raised, or the empty string.
        message: What it says, with the user's keys.
    """

    key: str
    message: str


def fail(code: int, error: BaseException, origin: Origin | None = None, trace: bool | None = None) -> int:
    """Write one message about `error`, and return `code`; SdarErrors speak for themselves, others come with their type.

    Args:
        origin: Which setting is meant, where that is known.
        trace: Whether the traceback comes first; by default if SDAR_TRACEBACK is 1.
    """
    if trace if trace is not None else os.environ.get("SDAR_TRACEBACK") == "1":
        traceback.print_exception(error)
    key, message = (origin.key, origin.message) if origin else ("", str(error))
    if not (isinstance(error, SdarError) or type(error).__name__ == "MisconfigurationException"):  # Lightning's, of any module
        message = f"{type(error).__name__}: {message}"
    named = re.match(rf"({'|'.join(HEADS)})[.: ]", message)
    sys.stderr.write(f"error: {key}: {message}\n" if key and not named else f"error: {message}\n")
    return code


def say(text: str) -> None:
    """Print a text to whoever may have stopped reading."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, as in `sdar list | head`; Python would flush again as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

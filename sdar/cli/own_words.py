"""How commands that need no model read the words behind their name."""

import argparse
import textwrap
from typing import Any


def parser_of(command: str, text: str, **options: Any) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of `text`, which show commands; options are not abbreviated unless `options` say so.

    Args:
        command: Its name, behind ``sdar``.
        options: Further ones of `argparse.ArgumentParser`.
    """
    return argparse.ArgumentParser(
        prog=f"sdar {command}",
        description=textwrap.dedent(text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **{"allow_abbrev": False} | options,
    )

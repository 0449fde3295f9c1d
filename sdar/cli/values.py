"""Values as the parser reads and checks them, one at a time."""

from typing import Any

from jsonargparse import ArgumentParser

from sdar.cli.words import Text
from sdar.cli.yaml_values import RefusedYAML, read_value


def value_of(written: Text) -> Any:
    """The value that the parser makes of a text; one that is no YAML is itself."""
    try:
        return read_value(written.text)
    except RefusedYAML:
        return written.text


def plain(written: Any) -> Any:
    """What was written, with the values of its texts."""
    if isinstance(written, Text):
        return value_of(written)
    if isinstance(written, dict):
        return {key: plain(value) for key, value in written.items()}
    return [plain(value) for value in written] if isinstance(written, list) else written


def fits(hint: Any, written: Any) -> bool:
    """Whether the parser takes a value (a `Text` or plain data) for this annotation."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # an annotation that says nothing to it
        return True
    try:
        if isinstance(written, Text):
            parser.parse_args([f"--value={written.text}"])
        else:
            parser.parse_object({"value": plain(written)})
    except Exception:
        return False
    return True

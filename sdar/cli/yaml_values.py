"""The parser reads and writes YAML as `sdar.reading` does, in files and in the words of a command line."""

import enum
import re
from typing import Any

import yaml
from jsonargparse import set_dumper, set_loader

from sdar.reading import Dumper, parse_yaml, yaml_text


class RefusedYAML(yaml.YAMLError):
    """A text that `sdar.reading` refuses. Where the parser asks what a value is, it is then no YAML."""


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{,200}")
_MEANING = frozenset(["true", "false", "yes", "no", "on", "off", "null"])
"""Words that are values; every other one is a text. Reading each as a YAML document of its own would take its time."""


def read_value(text: str) -> Any:
    """The value of a YAML text within limits; ``{a, b}`` and ``a:``, which name no values, are texts."""
    if _WORD.fullmatch(text) and text.lower() not in _MEANING:
        return text
    value = parse_yaml(text, "this value", RefusedYAML)
    if isinstance(value, dict) and value and all(v is None for v in value.values()):
        written = set(text.strip(" {}").replace(" ", "").split(","))
        if written == {*map(str, value)} or text.strip() == f"{next(iter(value))}:":
            return text
    return value


Dumper.add_multi_representer(  # defaults of Lightning's callbacks, e.g. of Timer.interval
    enum.Enum, lambda dumper, member: dumper.represent_data(member.value)
)
set_loader("yaml", read_value, exceptions=(yaml.YAMLError,))
set_dumper("yaml", yaml_text)

"""Where an error of a part was configured: its message with the key that the user wrote, not with the word that a part has for itself.

A part does not know where it stands: its messages begin with the usual key of its kind (``gate.beta is 0``), and it may be a default, an
item of a list, or made by another part from an argument of another name. The frames of the traceback tell which configured part it
was, and which of its arguments had the value.
"""

import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from sdar.cli.failure import HEADS, Origin
from sdar.cli.signatures import defaults, locate
from sdar.errors import SdarError


@dataclass
class Configured:
    """A part of a configuration."""

    key: str
    cls: type
    given: Mapping[str, Any]


def configured(node: Any, key: str = "") -> Iterator[Configured]:
    """Every part of a parsed configuration."""
    if isinstance(node, Namespace):
        node = node.as_dict()
    if isinstance(node, dict):
        if "class_path" in node and (cls := locate(str(node["class_path"]))):
            yield Configured(key, cls, node.get("init_args") or {})
        for name, value in node.items():
            yield from configured(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from configured(item, f"{key}[{number}]")


def origin(error: BaseException, settings: Any) -> Origin:
    """Where an error arose in a run of `settings`, a parsed configuration."""
    known, inner = list(configured(settings)), list[Mapping[str, Any]]()
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        if found := [part for part in known if part.cls is type(owner)]:
            own = [f.f_locals for f, _ in traceback.walk_tb(error.__traceback__) if f.f_locals.get("self") is owner]
            values = {name: value for local in reversed(own) for name, value in local.items()}
            found = [part for part in found if _made_of(part, values)] or found
            message = str(error)
            if isinstance(error, SdarError):
                message = _with_keys(message, found, values, [local for local in inner if local.get("self") is not owner])
            return Origin(" or ".join(part.key for part in found), message)
        inner.append(frame.f_locals)
    return Origin("", str(error))


def _made_of(part: Configured, values: Mapping[str, Any]) -> bool:
    """Whether a constructor's values are those of a configured part: there may be several of its class."""
    plain = {name: value for name, value in part.given.items() if isinstance(value, (bool, int, float, str))}
    return all(values[name] == value for name, value in plain.items() if name in values)


def _with_keys(message: str, found: list[Configured], values: Mapping[str, Any], inner: list[Mapping[str, Any]]) -> str:
    """A message in which the words for a part's arguments are the keys of a configuration."""
    takes = defaults(found[0].cls)
    head = re.match(r"(?:([A-Z]\w*): )?(?:(\w+)\.)?(\w+)\b", message)
    if head is None or head[2] in HEADS or not (head[1] or head[2] or head[3] in takes):
        return message

    def key(name: str) -> str | None:
        argument = _argument(name, takes, values, inner)
        return argument and " or ".join(f"{part.key}.{argument}" for part in found)

    first = key(head[3])
    if first is None:
        return message
    rest = message[head.end() :]
    if head[2]:
        rest = re.sub(rf"(?<![\w.]){head[2]}\.(\w+)", lambda word: key(word[1]) or word[0], rest)
    return first + rest


def _argument(name: str, takes: Mapping[str, Any], values: Mapping[str, Any], inner: list[Mapping[str, Any]]) -> str | None:
    """The argument of a configured part that an error about `name` is about: its own, or the one that it handed to a part within."""
    handed = next((local[name] for local in inner if name in local), None)
    if handed is None:
        return name if name in takes else None
    same = [
        a for a in takes if a in values and (values[a] is handed or (type(values[a]) is type(handed) and values[a] == handed))
    ]
    alike = [a for a in same if a == name] or [a for a in same if name in a.split("_")] or same
    return alike[0] if len(alike) == 1 else name if name in takes else None

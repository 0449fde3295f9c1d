"""The settings of a command as one tree of parts and values, made before the parser sees them: names are looked up here.

Files and words are put into the tree one after the other, as the parser merges them: a later class keeps the arguments that it
takes. A name or key that is wrong, and an argument that is missing, is told with its place; what is not understood is left to
the parser, so that nothing valid is refused. Values are the parser's: it says which one does not fit.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from sdar.cli import mistakes
from sdar.cli.mistakes import SPEC_KEYS, Place
from sdar.cli.signatures import Argument, Expected, Signature, is_certain, known_names, named, signature
from sdar.cli.values import fits, plain, value_of
from sdar.cli.words import Source, Text
from sdar.errors import ConfigError
from sdar.registry import reads_sources


@dataclass
class Value:
    """What stands at a key that holds no part."""

    written: Any
    file: Path | None = None


@dataclass
class Part:
    """A class with what is written for its arguments."""

    signature: Signature | None
    """None: something that only the parser can tell more about, e.g. a function; then nothing is checked below."""
    named: bool = False
    """The configuration names the class, which is not the default at its place."""
    filled: int = 0
    arguments: "dict[str, Node]" = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    """Arguments that the constructor hands on (``dict_kwargs``)."""

    def takes(self) -> Mapping[str, Argument]:
        if self.signature is None:
            return {}
        return dict([*self.signature.arguments.items()][self.filled :])


Node = Value | Part | list["Node"] | dict[str, "Node"]


class Settings:
    """The tree of a command's settings.

    Attributes:
        notes: What the user should know about settings that were dropped, a line each.
    """

    def __init__(self, command: Signature) -> None:
        self.root = Part(command)
        self.notes: list[str] = []

    def read(self, sources: Iterable[Source]) -> None:
        """Put what was written into the tree.

        Raises:
            ConfigError: a name that nothing has, or a key that nothing takes.
        """
        for source in sources:
            place = Place(file=source.file, words=source.key)
            self._fill(self.root, _nested(source.content), place)

    def check_missing(self) -> None:
        """
        Raises:
            ConfigError: an argument that a named part needs is not given.
        """
        for key, part in parts(self.root):
            usual = part.takes()
            missing = [n for n, a in usual.items() if a.required and n not in part.arguments and n not in part.others]
            if missing and (part.named or part is self.root):
                raise ConfigError(mistakes.missing(key, missing, part.signature))

    def wrong_value(self) -> str | None:
        """The first value that does not fit its argument, told to a person; None: all do."""
        for key, argument, node in _values(self.root):
            if not fits(argument.hint, node.written):
                return mistakes.wrong_value(Place(key, node.file), argument, node.written)
        return None

    def _fill(self, part: Part, written: Mapping[str, Any], place: Place) -> None:
        """Put values at the arguments of a part."""
        if part.signature is None:
            return
        takes = part.takes()
        for name, value in written.items():
            if name in takes:
                part.arguments[name] = self._put(part.arguments.get(name), takes[name], value, place.below(name))
            elif name not in part.others:
                raise ConfigError(
                    mistakes.unknown_key(place, name, part is self.root, part.signature, takes, self.places(name))
                )

    def _put(self, now: Node | None, argument: Argument, written: Any, place: Place) -> Node:
        """What stands at an argument after `written` was given, where `now` stood there."""
        expected = argument.expected
        append = isinstance(written, Text) and written.append
        value = value_of(written) if isinstance(written, Text) and expected.has_parts else written
        if append and (expected.listed or not expected.has_parts):
            before = now if isinstance(now, list) else []
            items = value if isinstance(value, list) and expected.has_parts else [value]
            return [*before, *(self._item(None, expected, item, place, len(before) + n) for n, item in enumerate(items))]
        if isinstance(value, str) and expected.parts:
            return self._put_name(now, argument, value, place)
        if isinstance(value, list) and expected.listed:
            same = now if isinstance(now, list) and len(now) == len(value) else [None] * len(value)
            return [
                self._item(before, expected, item, place, n) for n, (before, item) in enumerate(zip(same, value, strict=True))
            ]
        if isinstance(value, dict) and expected.has_parts:
            return self._put_mapping(now, argument, value, place)
        if not (expected.texts or expected.plain or expected.group or value is None or expected.listed or expected.mapped):
            raise ConfigError(mistakes.no_part(place, expected.parts, value))
        return Value(written, place.file)

    def _item(self, now: Node | None, expected: Expected, item: Any, place: Place, number: int) -> Node:
        if not expected.listed:
            return Value(item, place.file)
        return self._put(now, Argument("", expected=expected.listed), item, place.item(number))

    def _put_name(self, now: Node | None, argument: Argument, name: str, place: Place) -> Node:
        expected = argument.expected
        if _is_file(name, place) or not all(map(is_certain, expected.parts)):
            return Part(None)
        found = named(name, expected.parts) if "." not in name else mistakes.find_path(name, expected, place)
        if found is None and "." not in name and not expected.texts:
            raise ConfigError(mistakes.unknown_name(place, name, expected.parts))
        if found is None:
            return Value(name, place.file) if expected.texts else Part(None)
        if inspect.isabstract(found):
            raise ConfigError(mistakes.abstract(place, found, expected.parts))
        return self._choose(now, argument, found)

    def _choose(self, now: Node | None, argument: Argument, cls: type) -> Part:
        """A part of a class in the place of `now`, of which it keeps the arguments that it takes."""
        chosen = Part(signature(cls), argument.usual_class is not cls, argument.expected.filled)
        if not isinstance(now, Part) or now.signature is None:
            return chosen
        if now.signature.cls is cls:
            now.named |= chosen.named
            return now
        takes = chosen.takes()
        chosen.arguments = {name: node for name, node in now.arguments.items() if name in takes and _keeps(takes[name], node)}
        usual = now.takes()
        dropped = [
            name for name, node in now.arguments.items() if name not in chosen.arguments and not is_usual(usual[name], node)
        ]
        if dropped:
            self.notes.append(mistakes.dropped(now.signature, chosen.signature, dropped))
        return chosen

    def _put_mapping(self, now: Node | None, argument: Argument, written: dict[str, Any], place: Place) -> Node:
        expected = argument.expected
        if expected.group:
            part = now if isinstance(now, Part) else Part(signature(expected.group))
            self._fill(part, written, place)
            return part
        mistakes.check_spec(place, written)
        if isinstance(now, list) and expected.listed and place.words:  # a word below a list is for its last item
            last = self._item(now[-1] if now else None, expected, written, place, len(now) - 1)
            return [*now[:-1], last]
        if expected.mapped and not expected.parts:
            before = now if isinstance(now, dict) and place.words else {}
            if isinstance(now, dict) and not place.words and (gone := [name for name in now if name not in written]):
                self.notes.append(mistakes.left_out(place, gone))
            one = Argument("", expected=expected.mapped)
            return before | {k: self._put(before.get(k), one, v, place.below(str(k))) for k, v in written.items()}
        path = written.get("class_path")
        path = value_of(path) if isinstance(path, Text) else path
        node = self._put_name(now, argument, path, place) if isinstance(path, str) and expected.parts else now
        if not isinstance(node, Part):
            usual = argument.usual_class
            if usual is None or not expected.parts or not (written or now is not None or argument.usual is not None):
                return self._unchosen(argument, written, place)
            node = Part(signature(usual), filled=expected.filled)
        spec = any(key in SPEC_KEYS for key in written)
        node.others |= (
            {*written.get("dict_kwargs", {})} if spec and isinstance(written.get("dict_kwargs", {}), dict) else set()
        )
        inner = written.get("init_args", {}) if spec else written
        inner = value_of(inner) if isinstance(inner, Text) else inner
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{place}: init_args is {inner!r}, but it holds arguments by name. Leave it out where there are none."
            )
        self._fill(node, _nested(inner), place)
        return node

    def _unchosen(self, argument: Argument, written: dict[str, Any], place: Place) -> Node:
        expected = argument.expected
        bases = expected.parts or (expected.listed.parts if expected.listed else ())
        left = expected.texts or not bases or "class_path" in written or (expected.listed and not place.words)
        if left or not all(map(is_certain, bases)):
            return Value(written, place.file)
        key = next(iter(written.get("init_args", written) or [""]), "")
        taking = [cls.__name__ for cls in known_names(bases).values() if key and (s := signature(cls)) and key in s.arguments]
        raise ConfigError(mistakes.not_chosen(place, bases, written, key, taking))

    def places(self, name: str) -> list[str]:
        """Keys at which a part of this configuration takes an argument of this name."""
        return [f"{key}.{name}".lstrip(".") for key, part in parts(self.root, usual=True) if name in part.takes()]


def parts(part: Part, key: str = "", usual: bool = False, deep: int = 4) -> Iterator[tuple[str, Part]]:
    """Every part of a tree with its key; with `usual` also those that stand where the configuration says nothing."""
    yield key, part
    for name, argument in part.takes().items() if deep else ():
        here = f"{key}.{name}".lstrip(".")
        node = part.arguments.get(name)
        if node is None and usual:
            cls = argument.expected.group or argument.usual_class
            node = Part(signature(cls)) if cls else None
        for where, inner in _inner(node, here):
            yield from parts(inner, where, usual, deep - usual)


def _inner(node: Node | None, key: str) -> Iterator[tuple[str, Part]]:
    if isinstance(node, Part):
        yield key, node
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from _inner(item, f"{key}[{number}]")
    elif isinstance(node, dict):
        for name, item in node.items():
            yield from _inner(item, f"{key}.{name}")


def _values(root: Part) -> Iterator[tuple[str, Argument, Value]]:
    for key, part in parts(root):
        takes = part.takes()
        for name, node in part.arguments.items():
            if isinstance(node, Value):
                yield f"{key}.{name}".lstrip("."), takes[name], node
            elif isinstance(node, list) and node and not any(isinstance(item, (Part, dict)) for item in node):
                file = next((item.file for item in node if isinstance(item, Value)), None)
                written = [plain(item.written) for item in node if isinstance(item, Value)]
                yield f"{key}.{name}".lstrip("."), takes[name], Value(written, file)


def _nested(written: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping in which keys with dots (``trainer.max_steps: 3``) are mappings."""
    nested: dict[str, Any] = {}
    for key, value in written.items():
        head, _, rest = str(key).partition(".")
        if rest:
            inner = nested.get(head)
            nested[head] = {**(inner if isinstance(inner, dict) else {}), **_nested({rest: value})}
        else:
            nested[head] = value
    return nested


def _is_file(name: str, place: Place) -> bool:
    folders = [Path()] + ([place.file.parent] if place.file else [])
    return any((folder / name).is_file() for folder in folders)


def _keeps(argument: Argument, node: Node) -> bool:
    """Whether what was written for another class's argument of the same name fits this one."""
    if isinstance(node, Value):
        return reads_sources() or fits(argument.hint, node.written)
    if isinstance(node, Part) and node.signature and node.signature.cls and argument.expected.parts:
        return issubclass(node.signature.cls, argument.expected.parts)
    return argument.expected.has_parts


def is_usual(argument: Argument, node: Node) -> bool:
    """Whether exactly the default of an argument was written for it."""
    if isinstance(node, Value):
        return bool(plain(node.written) == argument.usual)
    if not isinstance(node, Part) or not isinstance(argument.usual, Namespace) or not node.signature:
        return False
    if node.signature.cls is not argument.usual_class:
        return False
    takes = node.takes()
    usual = vars(argument.usual.get("init_args") or Namespace())
    given = {
        name: is_usual(replace(a, usual=usual.get(name, a.usual)), n)
        for name, n in node.arguments.items()
        if (a := takes[name])
    }
    return all(given.values()) and all(name in given or takes[name].usual == value for name, value in usual.items())

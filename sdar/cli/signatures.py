"""What a class, a function or a command takes from a configuration: its arguments, and what may stand at each of them."""

import collections.abc
import dataclasses
import enum
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from sdar import outline, registry
from sdar.registry import kinds, names

EMPTY = inspect.Parameter.empty
LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.MutableSequence)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Expected:
    """What an annotation lets stand at a key."""

    parts: tuple[type, ...] = ()
    """A part of one of these classes."""
    listed: "Expected | None" = None
    """A list of parts: what each item is."""
    mapped: "Expected | None" = None
    """Parts by names of the user's own: what each is."""
    filled: int = 0
    """Of a part that is made later: so many of its first arguments are given then (an optimizer's parameters)."""
    texts: bool = False
    """A text or a mapping that names no part may stand here, too."""
    plain: bool = False
    """A number, a truth value or null may stand here, too."""
    group: type | None = None
    """The keys of this class stand here without a class_path: nobody chooses another."""

    @property
    def has_parts(self) -> bool:
        return bool(self.parts or self.listed or self.mapped or self.group)


FREE = Expected(texts=True, plain=True)
"""Whatever the parser accepts."""


@dataclass(frozen=True)
class Argument:
    name: str
    hint: Any = Any
    required: bool = False
    usual: Any = None
    """The default, as a configuration would hold it."""
    expected: Expected = FREE

    @property
    def usual_class(self) -> "type | None":
        """The class of the part that stands here where a configuration names none."""
        if isinstance(self.usual, Namespace) and "class_path" in self.usual:
            return locate(self.usual["class_path"])
        bases = self.expected.parts
        return bases[0] if len(bases) == 1 and not inspect.isabstract(bases[0]) and not self.expected.filled else None


@dataclass
class Signature:
    """The arguments of a class (or of something else that a configuration gives arguments to)."""

    name: str
    cls: type | None = None
    given: Mapping[str, Argument] = field(default_factory=dict)

    @cached_property
    def arguments(self) -> Mapping[str, Argument]:
        return self.given if self.cls is None else _arguments(self.cls)


@cache
def signature(cls: type) -> Signature | None:
    """None: a library's class of which only the source was read, which does not tell for sure what it takes."""
    return Signature(cls.__name__, cls) if is_certain(cls) else None


def is_certain(cls: type) -> bool:
    """Whether all that a configuration may give to a class, and all classes below it, are known."""
    return not outline.is_outline(cls) or outline.tells_arguments(cls)


def function_arguments(function: Callable[..., Any] | outline.Function, skipped: Iterable[str] = ()) -> dict[str, Argument]:
    """The arguments of a function that a command line gives."""
    if isinstance(function, outline.Function):
        found = outline.arguments(function).items()
        return {name: replace(_outlined(p), usual=None) for name, p in found if name not in skipped}
    hints = _hints(function)
    declared = inspect.signature(function).parameters
    return {
        name: Argument(name, hint := hints.get(name, Any), p.default is EMPTY, None, expected(hint))
        for name, p in declared.items()
        if name not in ("self", *skipped) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def expected(hint: Any) -> Expected:
    """What an annotation allows, as far as parts are concerned; what is not understood is left to the parser."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return _joined(map(expected, inner))
    if origin is typing.Annotated:
        return expected(inner[0])
    if hint in (None, type(None), bool, int, float, complex):
        return Expected(plain=True)
    if origin is typing.Literal:
        return Expected(texts=any(isinstance(choice, str) for choice in inner), plain=True)
    if origin in LISTS and len(inner) == 1 and (item := expected(inner[0])).parts:
        return Expected(listed=item)
    if origin in MAPPINGS and len(inner) == 2 and (item := expected(inner[1])).parts:
        return Expected(mapped=item)
    if origin is collections.abc.Callable and inner and isinstance(inner[0], list) and (parts := expected(inner[1]).parts):
        return Expected(parts, filled=len(inner[0]))
    if isinstance(hint, type) and origin is None and _is_part(hint):
        return Expected((hint,))
    return FREE


def defaults(cls: type | None) -> dict[str, Any]:
    """Every argument that a configuration may give to a class, with its default as a configuration would hold it."""
    return {} if cls is None else dict(_defaults(cls))


def arguments(cls: type) -> dict[str, str]:
    """Argument name -> ``name: type = default`` of a part, inherited arguments included."""
    lines = {}
    for name, default in defaults(cls).items():
        declared = _declared(cls, name)
        annotation = EMPTY if declared is None else declared.annotation
        required = declared is not None and declared.default is EMPTY
        lines[name] = f"{name}: {type_name(annotation)}" + (" (required)" if required else f" = {_shown(default)}")
    return lines


@cache
def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Named parameters of the constructor that a class itself declares."""
    if "__init__" not in vars(cls):
        return {}
    declared = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return {p.name: p for p in declared if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def annotated(owner: type, argument: str) -> list[type]:
    """The classes that the annotation of an argument names."""
    leaves = _leaves(_hint(owner, argument))
    return list(dict.fromkeys(t for t in leaves if isinstance(t, type) and t.__module__ != "builtins"))


def known_names(bases: Iterable[type]) -> dict[str, type]:
    """Every name that may stand where one of `bases` is expected: registered parts, and any other imported class."""
    bases = [*bases]
    found = {name: cls for base in bases for name, cls in registered(base).items()}
    for cls in (cls for base in bases for cls in (base, *_subclasses(base))):
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and _is_nameable(cls):
            found.setdefault(cls.__name__, cls)
    return found


def registered(base: type) -> dict[str, type]:
    """Short and class names of the registered parts of one kind."""
    return {name: cls for name, cls in names(base).items() if issubclass(cls, base)}


def named(name: str, bases: Iterable[type]) -> type | None:
    """The class that a name without a dot stands for where one of `bases` is expected, abstract ones included."""
    bases = [*bases]
    for base in bases:
        if cls := registered(base).get(name):
            return cls
    below = (cls for base in bases for cls in (base, *_subclasses(base)))
    found = next((cls for cls in below if cls.__name__ == name and _is_nameable(cls)), None)
    if found is None and name not in names() and any(map(outline.is_outline, bases)) and outline.mentions_class(name):
        raise outline.UnreadableError(f"{name} may be a part without a registered name")
    return found


def kind_of(bases: Iterable[type]) -> str:
    """What a user calls such a part."""
    strategies = kinds().get("strategies")
    called = {"TaskSource": "data module"} | ({strategies.__name__: "strategy"} if strategies else {})
    return " or ".join(called.get(base.__name__, base.__name__) for base in bases) or "class"


def imported(path: str) -> Any:
    """What a dotted path names.

    Raises:
        ModuleNotFoundError, AttributeError: it does not exist. Whatever else a module's import raises.
        UnreadableError: names are told from the sources, which do not say it.
    """
    if registry.reads_sources():
        if (found := registry.locate(path)) is None:
            raise outline.UnreadableError(path)
        return found
    module, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        if "." not in module:
            raise
        above, _, within = module.rpartition(".")
        try:
            owner = getattr(importlib.import_module(above), within)  # a class in a class
        except AttributeError:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module) from None
    return getattr(owner, name)


def locate(path: str) -> type | None:
    found = registry.locate(path)
    return found if isinstance(found, type) else None


def type_name(annotation: Any) -> str:
    """An annotation without the modules."""
    if annotation is EMPTY:
        return "any"
    if annotation in (None, type(None)):
        return "null"
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in UNIONS:
        return " | ".join(map(type_name, typing.get_args(annotation)))
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)


@cache
def _defaults(cls: type) -> dict[str, Any]:
    if outline.is_outline(cls):
        return {name: None if p.required else _as_configured(p.default) for name, p in outline.arguments(cls).items()}
    parser = ArgumentParser(exit_on_error=False)
    accepted = parser.add_class_arguments(cls, "part", fail_untyped=False)
    values = parser.get_defaults(skip_validation=True)
    return {key.removeprefix("part."): values.get(key) for key in accepted}


def _as_configured(default: Any) -> Any:
    """A default that was read from the source, as the parser holds it."""
    if isinstance(default, outline.Spec):
        given = {name: _as_configured(value) for name, value in default.given.items()}
        return Namespace(class_path=f"{default.cls.__module__}.{default.cls.__qualname__}", init_args=Namespace(**given))
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return Namespace(**dataclasses.asdict(default))
    return default


def _arguments(cls: type) -> dict[str, Argument]:
    if outline.is_outline(cls):
        return {name: _outlined(p) for name, p in outline.arguments(cls).items()}
    found = {}
    for name, usual in _defaults(cls).items():
        declared, hint = _declared(cls, name), _hint(cls, name)
        required = declared is not None and declared.default is EMPTY
        found[name] = Argument(name, hint, required, usual, expected(hint))
    return found


def _outlined(p: outline.Parameter) -> Argument:
    """An argument as the source tells it; one that it does not tell is the parser's."""
    try:
        return Argument(
            p.name, p.annotation, p.required, None if p.required else _as_configured(p.default), expected(p.annotation)
        )
    except outline.UnreadableError:
        return Argument(p.name, required=p.required)


def _declared(cls: type, name: str) -> inspect.Parameter | None:
    return next((p[name] for p in map(parameters, cls.__mro__) if name in p), None)


def _hint(cls: type, name: str) -> Any:
    owner = next((owner for owner in cls.__mro__ if name in parameters(owner)), None)
    return Any if owner is None else _hints(vars(owner)["__init__"]).get(name, Any)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # a name that is imported for type checkers only
        return {}


def _joined(all_expected: Iterable[Expected]) -> Expected:
    found = list(all_expected)
    return Expected(
        tuple({cls: None for e in found for cls in e.parts}),
        next((e.listed for e in found if e.listed), None),
        next((e.mapped for e in found if e.mapped), None),
        max(e.filled for e in found),
        any(e.texts for e in found),
        any(e.plain for e in found),
    )


def _is_part(cls: type) -> bool:
    """Whether a configuration names a class for such an argument; a date, a path or a member of an enumeration it writes as a text, and
    nobody writes a tensor."""
    written = (str, int, float, dict, list, tuple, enum.Enum)
    return (
        cls.__module__.partition(".")[0] not in sys.stdlib_module_names
        and cls.__module__ != "torch"
        and not issubclass(cls, written)
    )


def _is_nameable(cls: type) -> bool:
    made_up = cls.__name__.startswith("LazyInstance_") or "jsonargparse" in cls.__module__
    return not made_up and "<locals>" not in cls.__qualname__


def _subclasses(base: type) -> Iterator[type]:
    cls: type
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _leaves(hint: Any) -> Iterator[Any]:
    inner = typing.get_args(hint)
    if not inner:
        yield hint
    for argument in inner:
        yield from _leaves(argument)


def _shown(default: Any) -> str:
    """A default as YAML would say it, with a part as ``Name(argument=value)`` where the value is not its usual one."""
    if isinstance(default, Namespace) and "class_path" in default:
        given = vars(default.get("init_args") or Namespace())
        usual = defaults(locate(default["class_path"])) if given else {}
        inner = ", ".join(f"{key}={_shown(value)}" for key, value in given.items() if value != usual.get(key))
        return default["class_path"].rpartition(".")[2] + (f"({inner})" if inner else "")
    if isinstance(default, bool) or default is None:
        return {None: "null", True: "true", False: "false"}[default]
    return repr(default)

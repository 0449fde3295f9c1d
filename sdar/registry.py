"""Short names for parts: what `sdar list` prints, what YAML may say, and what a misspelling is compared with.

A part needs no registration to be used (a dotted ``class_path`` does); ``@register("gap")`` adds the short name ``gap`` beside
the class name. LightningCLI resolves names of *imported* subclasses, so the short name is a real, empty subclass that is
put into the part's own module: public behaviour of jsonargparse and of Python, nothing patched.
"""

import difflib
import importlib
import inspect
import os
import pydoc
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from sdar.arguments import checked
from sdar.errors import ConfigError, DuplicatePartError, UnknownPartError
from sdar.plugins import GROUP, follow

T = TypeVar("T", bound=type)

# `lazy_instance` looks up the module of every frame below it. For those of the import system Python finds none, after a look at
# all that are imported: without this line that is half of what a start costs.
inspect.modulesbyfile |= {
    f"<frozen {name}>": name for name in ("importlib._bootstrap", "importlib._bootstrap_external", "runpy")
}

PART_MODULES = (
    "sdar.samplers",
    "sdar.serving",
    "sdar.search",
    "sdar.sandbox",
    "sdar.envs",
    "sdar.data.worlds",
    "sdar.teachers",
    "sdar.policies",
    "sdar.lora",
    "sdar.credit",
    "sdar.policy_losses",
    "sdar.corrections",
    "sdar.shaping",
    "sdar.turn_weights",
    "sdar.filters",
    "sdar.metrics.tasks",
    "sdar.metrics.tools",
    "sdar.alarms.policy",
    "sdar.alarms.teacher",
    "sdar.curricula",
    "sdar.divergences",
    "sdar.schedules",
    "sdar.gates",
    "sdar.retrievers",
    "sdar.judges",
    "sdar.strategies",
)
"""Packages whose import registers the parts that come with sdar: the first plugins."""

_warned: set[str] = set()
_kinds: dict[str, type] = {}
_parts: dict[str, dict[str, type]] = {}
_reads_sources = False


def read_sources(plugins: Iterable[str] = ()) -> bool:
    """Let kinds and parts be told from here on as the sources of this package and of plugins say them (`sdar.outline`), which takes
    a tenth of a second, until something is imported. False: parts were imported already, or a plugin has to be, to know its parts."""
    global _reads_sources
    _find_modules_here()
    _reads_sources = not _kinds and follow(plugins)
    return _reads_sources


def _find_modules_here() -> None:
    """A console script has no working directory on its path; last, so that no file in it stands before an installed package."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def reads_sources() -> bool:
    """Whether kinds and parts are told from the sources now."""
    return _reads_sources


def locate(path: str) -> Any:
    """What a dotted path names, where kinds and parts are told from; None: nothing."""
    if _reads_sources:
        from sdar import outline

        return outline.locate(path)
    return pydoc.locate(path)


def _told() -> tuple[dict[str, type], dict[str, dict[str, type]]]:
    if _reads_sources:
        from sdar import outline

        return outline.registered()
    return _kinds, _parts


def part_kind(plural: str) -> Callable[[T], T]:
    """Declare a base class as a kind of part, listed under `plural` (``sdar list gates``)."""

    def declare(base: T) -> T:
        global _reads_sources
        _reads_sources = False
        _kinds[plural] = base
        _parts[plural] = {}
        return checked(base)

    return declare


def register(name: str) -> Callable[[T], T]:
    """Give a part a short name.

    Raises:
        ConfigError: the name is no identifier, or the class has none of the part bases.
        DuplicatePartError: the name is taken, also when one file was imported under two module names.
    """
    if not name.isidentifier():
        raise ConfigError(f"part name {name!r} is not an identifier: YAML names resolve as Python names. Use e.g. 'my_gate'.")

    def add(cls: T) -> T:
        kinds = [plural for plural, base in _kinds.items() if base in cls.__mro__]
        if not kinds:
            raise ConfigError(
                f"{cls.__module__}.{cls.__qualname__} has none of the part bases ({', '.join(b.__name__ for b in _kinds.values())}): "
                "inherit from one of them, so that YAML knows where the part fits."
            )
        for plural in kinds:
            taken = _parts[plural].get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise DuplicatePartError(
                    f"{plural} name {name!r} is taken by {taken.__module__}.{taken.__qualname__} and asked for again by "
                    f"{cls.__module__}.{cls.__qualname__}: choose another name, or import the file under one module name only."
                )
            _parts[plural][name] = cls
        for owner in cls.__mro__:
            if any(issubclass(owner, _kinds[plural]) for plural in kinds):
                checked(owner)
        if name != cls.__name__:
            module = sys.modules[cls.__module__]
            if getattr(getattr(module, name, None), "__base__", None if hasattr(module, name) else cls) is not cls:
                raise ConfigError(
                    f"part name {name!r} of {cls.__module__}.{cls.__qualname__} is already something else in that file: the short name "
                    "becomes a name of the file. Choose another."
                )
            alias = type(name, (cls,), {"__module__": cls.__module__, "__qualname__": name, "__doc__": cls.__doc__})
            setattr(sys.modules[cls.__module__], name, alias)
        return cls

    return add


def kinds() -> dict[str, type]:
    """Plural name -> base class, for every kind of part."""
    return dict(_told()[0])


def parts(plural: str) -> dict[str, type]:
    """Short name -> class of every registered part of one kind, sorted by name."""
    known, found = _told()
    if plural not in known:
        raise UnknownPartError(
            f"{plural!r} is no kind of part.{did_you_mean(plural, known)} Kinds: {', '.join(sorted(known))}."
        )
    return dict(sorted(found[plural].items()))


def names(base: type | None = None) -> dict[str, type]:
    """Every name, short or class name, that YAML may use for a part below `base` (all parts by default)."""
    found: dict[str, type] = {}
    bases, registered = _told()
    for plural, kind in bases.items():
        if base is None or issubclass(kind, base) or issubclass(base, kind):
            for short, cls in registered[plural].items():
                found[short] = cls
                found[cls.__name__] = cls
    return found


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`` Did you mean 'gap'?`` or the empty string."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(wrong.lower(), lowered, 3, 0.6)
    if not close:
        return ""
    nearest = max(close, key=lambda name: sorted(name) == sorted(wrong.lower()))  # letters that changed places, else the first
    return f" Did you mean {lowered[nearest]!r}?"


def part_name(part: object) -> str:
    """What an error calls a part: its class, also where the part is a default that was not made yet."""
    return type(part).__name__.removeprefix("LazyInstance_")


def described(part: object) -> dict[str, Any]:
    """A part as plain data: its class, and those of its public attributes that are single values."""
    plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | None) and not k.startswith("_")}
    return {"part": part_name(part)} | plain


def summary(cls: type) -> str:
    """First sentence of a part's docstring, or, if none ends with a line, its first paragraph."""
    lines = (inspect.getdoc(cls) or "").partition("\n\n")[0].splitlines()
    end = next((n for n, line in enumerate(lines, 1) if line.endswith(".")), len(lines))
    return " ".join(line.strip() for line in lines[:end])


def load_parts(plugins: Iterable[str] = ()) -> None:
    """Import everything that registers parts: our shelves, installed entry points, then `plugins` by module name."""
    for module in PART_MODULES:
        importlib.import_module(module)
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # somebody else's package: this command may need nothing of it
            whose = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
            message = (
                f"warning: the plugin {point.value} of {whose} cannot be imported ({type(error).__name__}: {error}): its parts are "
                f"missing. Mend or uninstall {point.dist.name if point.dist else 'it'}.\n"
            )
            if message not in _warned:
                _warned.add(message)
                sys.stderr.write(message)
    _find_modules_here()
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            if error.name != plugin.partition(".")[0] and error.name != plugin:
                raise
            raise ConfigError(
                f"--plugin {plugin}: no module of that name on the Python path (working directory {os.getcwd()}). "
                "Install the package, or start sdar in the folder that holds it."
            ) from error

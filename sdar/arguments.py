"""Numbers that constructors are given are numbers: NaN passes every check of the form ``value < least``, and infinity most.

`checked` stands around the constructor of every registered part, so that no part has to remember it. Where no bound is wanted an
argument takes None, never infinity.
"""

import functools
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sdar.errors import ConfigError, SdarError

T = TypeVar("T", bound=type)


def checked(cls: T) -> T:
    """A class whose constructor raises ConfigError for NaN and infinity, and for None where a number is needed."""
    if "__init__" not in vars(cls) or hasattr(vars(cls)["__init__"], "checks_numbers"):
        return cls
    construct = vars(cls)["__init__"]
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except SdarError:  # the part says it better
            raise
        except Exception:
            _check(self, signature, args, kwargs)
            raise
        _check(self, signature, args, kwargs)

    __init__.checks_numbers = True  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def _check(part: Any, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        given = signature.bind_partial(part, *args, **kwargs).arguments
    except TypeError:  # the constructor has said so
        given = {}
    handed_on = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
    for name, value in ({name: value for name, value in given.items() if name not in handed_on} | kwargs).items():
        if value is not part:
            _check_number(type(part), name, value)


def _check_number(cls: type, name: str, value: Any) -> None:
    if value is None:
        kinds = _annotated(cls, name)
        if kinds & {int, float} and type(None) not in kinds:
            raise ConfigError(f"{_called(cls)}: {name} is null, but it must be a number. Leave it out for the default.")
    for number in _numbers(value):
        if not math.isfinite(number):
            raise ConfigError(
                f"{_called(cls)}: {name} is {number}, but it must be a finite number. Where there shall be no bound, say so by null if "
                "the argument takes it."
            )


def _called(cls: type) -> str:
    return cls.__name__.removeprefix("LazyInstance_")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))


@functools.cache
def _annotated(cls: type, name: str) -> frozenset[Any]:
    """The types that the annotation of a constructor's argument allows; empty where it has none."""
    for owner in cls.__mro__:
        construct = vars(owner).get("__init__")
        declared = inspect.signature(construct).parameters if inspect.isfunction(construct) else {}
        if name in declared and declared[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            hint = declared[name].annotation
            if isinstance(hint, str):
                try:
                    hint = typing.get_type_hints(construct)[name]
                except NameError:  # imported for type checkers only
                    return frozenset()
            return frozenset(typing.get_args(hint) or (hint,)) if typing.get_origin(hint) in _UNIONS else frozenset([hint])
    return frozenset()


_UNIONS = (typing.Union, type(int | None))

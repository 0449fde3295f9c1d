"""What a part is given, looked at the first time that it is called: what is about the same tokens, rows or turns has one shape.

The names of the axes stand in the annotations of the base class and of what it is given, as jaxtyping has them; a part whose author
wrote some into its method is held to these too.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, get_args

from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

from sdar.errors import PartError
from sdar.registry import part_name

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Axes, and by which argument and of which shape they were first met."""


def first_call(part: Any, method: Callable[..., Any], promised: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raise PartError unless the arguments have the shapes that the method of the base class takes, and that the part's own takes."""
    seen = vars(part).setdefault("_calls_looked_at", set())
    if method.__qualname__ in seen:
        return
    met: Shapes = {}
    with jaxtyped("context"):
        for declared in (promised, method):
            signature = _signature(declared)
            try:
                given = signature.bind(part, *args, **kwargs).arguments
            except TypeError:  # Python says it better, at the call
                return
            for name, value in given.items():
                hint = signature.parameters[name].annotation
                if declared is promised or _shapes(hint):
                    for where, tensor, options in _tensors(name, value, hint):
                        _look(part, where, tensor, options, met)
    seen.add(method.__qualname__)


@cache
def _signature(method: Callable[..., Any]) -> inspect.Signature:
    """With its annotations read, where they can be."""
    try:
        return inspect.signature(method, eval_str=True)
    except Exception:  # of somebody else: names that exist for a type checker only, say
        return inspect.signature(method)


def _tensors(where: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """The value, or the fields that it has, each with the shapes that it may have."""
    if options := _shapes(hint):
        yield where, value, options
    elif any(map(_shapes, (fields := _fields(type(value))).values())):  # type: ignore[arg-type]
        for name, inner in fields.items():
            if name in vars(value):
                yield from _tensors(f"{where}.{name}", vars(value)[name], inner)


def _shapes(hint: Any) -> tuple[Any, ...]:
    return tuple(h for h in get_args(hint) or (hint,) if isinstance(h, type) and issubclass(h, AbstractArray))


@cache
def _fields(cls: type) -> dict[str, Any]:
    return {name: hint for owner in reversed(cls.__mro__) for name, hint in inspect.get_annotations(owner).items()}


def _look(part: Any, where: str, value: Any, options: tuple[Any, ...], met: Shapes) -> None:
    if not any(isinstance(value, option) for option in options):
        found = repr(value) if not isinstance(value, Tensor) else f"of shape {tuple(value.shape)} and type {value.dtype}"
        raise PartError(
            f"{part_name(part)} was given `{where}` {found}: it takes {' or '.join(_wanted(option, met) for option in options)}. "
            "Correct the call, or the annotation that says so."
        )
    for option in options:
        met.setdefault(option.dim_str, (where, tuple(value.shape)))


def _wanted(option: Any, met: Shapes) -> str:
    """The kind of tensor with its axes, and where their sizes are known from."""
    rank = len(met["*tokens"][1]) if "*tokens" in met else 2
    kind = {"Float": "a floating point tensor", "Int": "a tensor of integers", "Bool": "a bool tensor"}
    text = f"{kind.get(option.dtype.__name__, 'a tensor')} of shape {axes(option.dim_str, rank)}"
    if option.dim_str in met:
        where, shape = met[option.dim_str]
        return f"{text} = {shape}, as `{where}` is"
    known = [dims for dims in met if set(dims.split()) & set(option.dim_str.split())]
    return text + "".join(f", where `{met[dims][0]}` is {axes(dims, rank)} = {met[dims][1]}" for dims in known[:1])


def axes(names: str, rank: int = 2) -> str:
    """``[batch, time]`` of ``*tokens``; ``[tokens]`` where these are a chunk of `rank` 1."""
    return f"[{', '.join(names.replace('*tokens', 'batch time' if rank == 2 else 'tokens').split())}]"

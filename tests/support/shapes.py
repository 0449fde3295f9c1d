"""Imports `sdar.functional` with its shapes checked, of every call and what it returns, by the names in its annotations.

Before anything else of the package: what is imported already stays as it is. A run has no such checks.
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args

import jaxtyping
import pytest
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook


def leaves(hint: Any) -> Iterator[Any]:
    """What a hint is made of."""
    inner = get_args(hint)
    for part in inner:
        yield from leaves(part)
    if not inner:
        yield hint


def is_shape(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tensors alone: numbers and words a function refuses itself, and of a list beartype would draw an item to look at from `random`,
    so that a test had other draws than a run."""
    function.__annotations__ = {name: h for name, h in function.__annotations__.items() if any(map(is_shape, leaves(h)))}
    return beartype(function)


jaxtyped = jaxtyping.jaxtyped


def jaxtyped_where_shapes(**kwargs: Any) -> Callable[[Any], Any]:
    """As jaxtyping's, which would check every call of a function that has no shapes, too: four of five, in the loops over tiles."""

    def decorate(thing: Any) -> Any:
        hints = getattr(thing, "__annotations__", {}).values()
        return jaxtyped(thing, **kwargs) if any(is_shape(leaf) for hint in hints for leaf in leaves(hint)) else thing

    return decorate


with pytest.MonkeyPatch.context() as patched:
    patched.setattr(jaxtyping, "jaxtyped", jaxtyped_where_shapes)
    with install_import_hook("sdar.functional", "shapes.checked"):
        import sdar.functional  # noqa: F401

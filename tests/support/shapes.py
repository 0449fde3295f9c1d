"""Imports `sdar.functional` with its shapes checked, of every call and what it returns, by the names in its annotations.

Before anything else of the package: what is imported already stays as it is. A run has no such checks.
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args

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


with install_import_hook("sdar.functional", "shapes.checked"):
    import sdar.functional  # noqa: F401

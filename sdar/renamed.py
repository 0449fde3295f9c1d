"""What has got another name: the old one still answers, and says the new one."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from sdar.errors import ConfigError


class Renamed:
    """The attribute `new` under the name that it had."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        self._warn(instance)
        return getattr(instance, self.new)

    def __set__(self, instance: Any, value: Any) -> None:
        self._warn(instance)
        setattr(instance, self.new, value)

    def _warn(self, instance: Any) -> None:
        message = f"{type(instance).__name__}.{self.old} is called {self.new} now."
        warnings.warn(message, FutureWarning, stacklevel=3)


def refuse_old_names(cls: type) -> None:
    """Raises ConfigError where a class defines what has another name now: nobody would call it."""
    for base in cls.__mro__[1:]:
        for name, value in vars(base).items():
            if isinstance(value, Renamed) and name in vars(cls):
                raise ConfigError(
                    f"{cls.__name__}.{name} is called {value.new} now: under its old name it would never be asked. Rename it."
                )


class OldNames:
    """A class with `Renamed` attributes: one below it that defines an old name is refused."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_old_names(cls)


def old_names(module: str, **new: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` (PEP 562) that knows the old names of what stands in it."""

    def __getattr__(name: str) -> Any:
        if name not in new:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is called {new[name]} now.", FutureWarning, stacklevel=2)
        return getattr(sys.modules[module], new[name])

    return __getattr__

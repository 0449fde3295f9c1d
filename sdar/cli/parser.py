"""The argument parser of the `sdar` command: jsonargparse's, behind a look at the settings that tells wrong names first.

What `sdar.cli.roots.settings_of` lets pass is jsonargparse's, which judges values; where it refuses, `explained` finds the value that
it means.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

from jsonargparse import Namespace
from jsonargparse._actions import filter_non_parsing_actions
from jsonargparse._common import lenient_check
from jsonargparse._util import merge_config
from lightning.pytorch.cli import LightningArgumentParser

from sdar.cli.settings import Settings
from sdar.cli.yaml_values import read_value as read_value  # from here on jsonargparse reads YAML by it
from sdar.command_help import Ordered
from sdar.errors import ConfigError


class Refusal(Exception):
    """What jsonargparse refuses, in its words."""


class Parser(Ordered, LightningArgumentParser):
    """LightningCLI's parser, whose help begins with the training method and which raises `Refusal` instead of ending the process."""

    def parse_args(  # type: ignore[override]  # as jsonargparse says of its own
        self, args: Sequence[str] | None = None, *others: Any, **named: Any
    ) -> Any:
        if not self.exit_on_error and args:
            # jsonargparse (4.53) hands a part of a part its dotted setting as f"--{key}={value}", in which null reads None: refused
            # where a number is expected, and taken as that text where a text is.
            args = [f"{arg.removesuffix('=None')}=null" if arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *others, **named)

    def parse_object(  # type: ignore[override]
        self, obj: Any, namespace: Namespace | None = None, env: bool | None = None, defaults: bool = True, **named: Any
    ) -> Any:
        """What jsonargparse's own gives. Of a part that one (4.53) looks at the parts three times or four, and each time as often at
        theirs: here once."""
        known = isinstance(obj, Namespace) and not (named or env or self.default_env or hasattr(self, "_links_group"))
        if self.exit_on_error or not known or (defaults and not lenient_check.get()):
            return super().parse_object(obj, namespace=namespace, env=env, defaults=defaults, **named)
        try:
            if not lenient_check.get():  # the last check, of what has been parsed
                self.validate(obj)
                return obj
            found = self._usual.clone() if defaults else Namespace()
            if namespace and namespace != obj:
                found = self._apply_actions(merge_config(self, namespace, found))
            found = merge_config(self, self._apply_actions(obj, prev_cfg=found), found)
            if not all(key in self._takes for key in found.keys(branches=True, nested=False)):
                self.validate(found)  # values wait for the last check: this tells of names
            return found
        except (TypeError, KeyError) as problem:
            self.error(str(problem), problem)

    @cached_property
    def _takes(self) -> set[str]:
        return {action.dest for action in filter_non_parsing_actions(self._actions)}

    @cached_property
    def _usual(self) -> Namespace:
        """The defaults of a part, with those of the parts in them."""
        return self._apply_actions(self.get_defaults(skip_validation=True))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a nested part: the outermost one tells
            super().error(message, ex)
        raise Refusal(message) from ex


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """
    Raises:
        ConfigError: jsonargparse refuses the settings: which value, and what may stand there.
    """
    try:
        yield
    except Refusal as refusal:
        raise ConfigError(settings.wrong_value() or str(refusal)) from refusal

"""The argument parser of the `sdar` command: jsonargparse's, behind a look at the settings that tells wrong names first.

What `sdar.cli.roots.settings_of` lets pass is jsonargparse's, which judges values; where it refuses, `explained` finds the value that
it means.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

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

"""The argument parser of the `sdar` command: jsonargparse's, behind a look at the settings that tells every mistake first.

`settings_of_run` and `settings_of_tool` read files and words into a tree and refuse names that do not exist. What passes is
jsonargparse's, which judges values; where it refuses, `explained` finds the value that it means.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from sdar.checkpoints import RunCheckpoint
from sdar.cli.settings import Settings
from sdar.cli.signatures import Argument, Expected, Signature, function_arguments
from sdar.cli.trainer import AgentTrainer
from sdar.cli.words import Source, asks_for_help, sources
from sdar.cli.yaml_values import read_value as read_value  # from here on jsonargparse reads YAML by it
from sdar.command_help import TITLES
from sdar.data import TaskModule
from sdar.errors import ConfigError
from sdar.module import AgentModule


class Refusal(Exception):
    """What jsonargparse refuses, in its words."""


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose help begins with the training method and which raises `Refusal` instead of ending the process."""

    def format_help(self) -> str:
        groups = self._action_groups
        for group in groups:
            group.title = TITLES.get(str(group.title).removesuffix(":"), group.title)
        first = [*TITLES.values()]
        self._action_groups = sorted(groups, key=lambda g: first.index(g.title) if g.title in first else -1)
        try:
            return super().format_help()
        finally:
            self._action_groups = groups

    def parse_args(self, args: list[str] | None = None, *others: Any, **named: Any) -> Any:
        if not self.exit_on_error and args:
            # jsonargparse (4.53) hands a part of a part its dotted setting as f"--{key}={value}", in which null reads None: refused
            # where a number is expected, and taken as that text where a text is.
            args = [f"{arg.removesuffix('=None')}=null" if arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *others, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a nested part: the outermost one tells
            super().error(message, ex)
        raise Refusal(message) from ex


def settings_of_run(command: str, words: list[str], skipped: Iterable[str]) -> Settings:
    """The settings of a command that makes a model, the world and a Trainer.

    Args:
        words: The command line.
        skipped: Arguments of the Trainer's method of this name that no user gives.

    Raises:
        ConfigError: a name that nothing has, a key that nothing takes, an argument that is missing.
    """
    world = Namespace(class_path=f"{TaskModule.__module__}.{TaskModule.__qualname__}")
    given = [
        Argument("model", AgentModule | None, True, None, Expected((AgentModule,))),
        Argument("data", TaskModule, False, world, Expected((LightningDataModule,))),
        Argument("trainer", expected=Expected(group=AgentTrainer)),
        Argument("checkpoint", expected=Expected(group=RunCheckpoint)),
        Argument("seed_everything", bool | int),
        *(Argument(name) for name in ("config", "plugin", "print_config")),
        *function_arguments(getattr(AgentTrainer, command), skipped).values(),
    ]
    behind = words.index(command)
    before = [Source(_level(s.content, command), s.file) for s in sources(words[:behind])]
    return _read(given, [*before, *sources(words[behind + 1 :])], words)


def settings_of_tool(tool: Callable[..., Any], words: list[str]) -> Settings:
    """The settings of a command that is a function; raises like `settings_of_run`."""
    given = [*(Argument(name) for name in ("config", "print_config")), *function_arguments(tool).values()]
    return _read(given, sources(words), words)


@contextmanager
def explained(settings: Settings | None) -> Iterator[None]:
    """
    Raises:
        ConfigError: jsonargparse refuses the settings: which value, and what may stand there.
    """
    try:
        yield
    except Refusal as refusal:
        raise ConfigError((settings and settings.wrong_value()) or str(refusal)) from refusal


def _read(arguments: Iterable[Argument], written: Iterable[Source], words: list[str]) -> Settings:
    settings = Settings(Signature("this command", given={argument.name: argument for argument in arguments}))
    if not asks_for_help(words):
        settings.read(written)
        if not any(word.startswith("--print_config") for word in words):
            settings.check_missing()
    return settings


def _level(content: dict[str, Any], command: str) -> dict[str, Any]:
    """What a file before the command says of it."""
    inner = content.get(command)
    return inner if isinstance(inner, dict) else {}

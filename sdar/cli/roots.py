"""The settings of each command: what stands at the head of its keys, and the tree that words and files make of it.

Classes are told by `registry.locate`: as imported, or as their sources say, so that a misspelt word is told before torch is imported.
"""

from typing import Any

from jsonargparse import Namespace

from sdar import registry
from sdar.cli.commands import COMMANDS, GIVEN_BY_US
from sdar.cli.settings import Settings
from sdar.cli.signatures import Argument, Expected, Signature, function_arguments
from sdar.cli.words import Source, asks_for_help, find_command, sources

TASKS = "sdar.data.TaskModule"
"""What stands at ``data`` where a configuration names nothing."""
SOURCE = "sdar.data.TaskSource"
"""What may stand there."""
SOURCES = (TASKS, "sdar.data.MultiTaskModule", "sdar.data.ChatModule")
"""Those that come with sdar."""

TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "max_epochs": -1,  # max_steps decides
    "use_distributed_sampler": False,  # tasks are divided by TaskModule
    "log_every_n_steps": 1,  # an iteration is long
    "num_sanity_val_steps": 0,  # a validation is long, too
}
"""Defaults that differ from Lightning's."""


def settings_of(words: list[str]) -> Settings:
    """The settings of a command line.

    Raises:
        ConfigError: a name that nothing has, a key that nothing takes.
        UnreadableError: classes are told from their sources, which do not say enough.
    """
    command = COMMANDS[find_command(words)]
    behind = words.index(command.name)
    if command.tool:
        arguments, read = function_arguments(registry.locate(command.tool)), []
    else:
        arguments, read = _of_run(command.name), [Source(_level(s, command.name), s.file) for s in sources(words[:behind])]
    given = [*arguments.values(), *(Argument(name) for name in ("config", "plugin", "print_config"))]
    settings = Settings(Signature("this command", given={argument.name: argument for argument in given}))
    if not asks_for_help(words):
        settings.read([*read, *sources(words[behind + 1 :])])
    return settings


def checked_settings(words: list[str]) -> Settings:
    """`settings_of` a command line that is to be run, not only shown: what is needed is given.

    Raises:
        ConfigError: as `settings_of`; an argument is missing.
    """
    settings = settings_of(words)
    if not asks_for_help(words) and not any(word.startswith("--print_config") for word in words):
        settings.check_missing()
    return settings


def _of_run(command: str) -> dict[str, Argument]:
    """The arguments of a command that makes a model, the world and a Trainer."""
    strategy, source = registry.kinds()["strategies"], registry.locate(SOURCE)
    for name in SOURCES:  # whose short names are known from here on
        registry.locate(name)
    trainer = registry.locate("sdar.cli.trainer.AgentTrainer")
    given = [
        Argument("model", strategy | None, command != "play", None, Expected((strategy,))),  # a person needs none
        Argument("data", source, False, Namespace(class_path=TASKS), Expected((source,))),
        Argument("trainer", expected=Expected(group=trainer)),
        Argument("checkpoint", expected=Expected(group=registry.locate("sdar.training.checkpoints.RunCheckpoint"))),
        Argument("alarms", expected=Expected(group=registry.locate("sdar.alarms.watch.Alarms"))),
        Argument("seed_everything", bool | int),
    ]
    own = function_arguments(getattr(trainer, command), GIVEN_BY_US)
    return {argument.name: argument for argument in given} | own


def _level(source: Source, command: str) -> dict[str, Any]:
    """What a file before the command says of it."""
    inner = source.content.get(command)
    return inner if isinstance(inner, dict) else {}

"""The door of the `sdar` command: what can be answered without torch is answered here, everything else is `sdar.cli.run`'s.

Order of `main`: plugins are imported, configuration files are looked at, everything is parsed and checked, and only then is
a model built. A mistake ends with exit code 2 and one message before that; a failure while running ends with 1.
"""

import re
import sys
from contextlib import suppress
from importlib import import_module
from itertools import pairwise

import sdar
from sdar import registry
from sdar.cli import garbage
from sdar.cli.commands import COMMANDS, HELP, USAGE, no_command, unknown_command
from sdar.cli.failure import fail, say
from sdar.errors import ConfigError, SdarError
from sdar.outline import UnreadableError


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (the process's by default) and return the exit code."""
    try:
        args, plugins = split_plugins(sys.argv[1:] if args is None else list(args))
        if args and args[0] in COMMANDS:
            args = [args[0], *COMMANDS[args[0]].in_full(args[1:])]
        asks_for_help = bool({"-h", "--help"} & {*args})
        if args[:1] == ["--version"]:
            say(f"sdar {sdar.__version__}")
        elif args[:1] in (["-h"], ["--help"]) or (args[:1] == ["list"] and asks_for_help):
            say(f"usage: {USAGE}\n\n{HELP}")
        elif args[:1] == ["completion"]:
            from sdar.cli.completion import complete

            say(complete(args[1:]))
        elif args and args[0] in COMMANDS and COMMANDS[args[0]].reads(args[1:]):
            module, _, function = COMMANDS[args[0]].words.rpartition(".")
            return int(getattr(import_module(module), function)(args[1:]))
        elif not args:
            raise ConfigError(no_command())
        elif not args[0].startswith("-") and args[0] not in COMMANDS:
            raise ConfigError(unknown_command(args[0]))
        else:
            return _run(args, plugins)
    except SdarError as error:  # a bank, a file of episodes: what a command without a model reads is as wrong as its words
        return fail(2, error)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _run(args: list[str], plugins: list[str]) -> int:
    if not registry.read_sources(plugins):
        load(plugins)
    try:
        told = _told(args)
    except UnreadableError:
        load(plugins)
        told = _told(args)
    if told:
        say(told)
        return 0
    command = COMMANDS.get(args[0])
    if command and command.needs_settings and len(args) == 1:
        raise ConfigError(f"{args[0]} needs a configuration: give a file, e.g. sdar {args[0]} -c conf/quickstart/sdar.yaml.")
    if registry.reads_sources():
        _look(args)
    load(plugins)
    from sdar.cli.run import run, use_tool

    garbage.begin()
    return use_tool(*args) if command and command.tool else run(args)


def _look(args: list[str]) -> None:
    """
    Raises:
        ConfigError: a misspelt or missing word of a command line or its files, as far as the sources tell for sure.
    """
    from sdar.cli.roots import checked_settings
    from sdar.cli.words import find_config_files

    with suppress(UnreadableError):  # told when it is imported
        checked_settings(find_config_files(args))


def _told(args: list[str]) -> str | None:
    """What is known of parts, if that is what a command line asks for."""
    if (
        args[0] in COMMANDS
        and COMMANDS[args[0]].needs_settings
        and args[1:] in (["-h"], ["--help"])
        and registry.reads_sources()
    ):
        from sdar.cli.run_help import help_of_run

        return help_of_run(args[0]).rstrip("\n")
    if args[0] != "list":
        return help_of_part(args)
    from sdar.listing import listing

    return "\n\n".join(listing(args[1:]))


def help_of_part(args: list[str]) -> str | None:
    """What ``--KEY.help NAME`` of a command line without a configuration asks for; with one, the parser knows more."""
    if {"-c", "--config", "--model"} & {word.partition("=")[0] for word in args}:
        return None
    for word, name in pairwise(args):
        if word.startswith("--") and word.endswith(".help") and word not in ("--model.help", "--data.help"):
            from sdar.listing import help_of

            return help_of(word.removeprefix("--").removesuffix(".help"), name)
    return None


def split_plugins(args: list[str]) -> tuple[list[str], list[str]]:
    """The words without ``--plugin NAME``, and the names."""
    rest: list[str] = []
    plugins: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--plugin":
            name = next(words, "")
        elif word.startswith("--plugin="):
            name = word.partition("=")[2]
        else:
            rest.append(word)
            continue
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
            raise ConfigError(f"--plugin {name}: give the name of a module to import, e.g. --plugin my_package.")
        plugins.append(name)
    return rest, plugins


def load(plugins: list[str]) -> None:
    """Import every part, those of `plugins` last."""
    registry.load_parts()
    for plugin in plugins:
        try:
            registry.load_parts([plugin])
        except SdarError as error:
            raise ConfigError(str(error) if "--plugin" in str(error) else f"--plugin {plugin}: {error}") from error
        except Exception as error:
            raise ConfigError(f"--plugin {plugin}: importing it failed with {type(error).__name__}: {error}") from error

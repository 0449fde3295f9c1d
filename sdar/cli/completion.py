"""Completion of commands, parts, keys and values in a shell: a script that asks `sdar completion --line` what may come next.

It reads sources (`sdar.outline`), those of plugins, too, and the configuration files on the line, and imports nothing that takes long;
parts of a plugin that has to be imported are not known to it.
"""

import shlex
import typing
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdar import outline
from sdar.cli.commands import COMMANDS, GIVEN_BY_US
from sdar.errors import ConfigError
from sdar.paths import installed_settings, resolve
from sdar.plugins import follow
from sdar.reading import read_yaml
from sdar.registry import did_you_mean

SCRIPTS = {
    "bash": r"""_sdar() {
    local IFS=$'\n'
    COMPREPLY=($("$1" completion --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *. ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _sdar sdar""",
    "zsh": r"""#compdef sdar
_sdar() {
    local -a found
    found=(${(f)"$(${words[1]} completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
    compset -P '*='
    compadd -- $found || _files
}
compdef _sdar sdar""",
}

GROUPS = {
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
    "checkpoint": ("sdar", "RunCheckpoint"),
    "alarms": ("sdar.alarms.watch", "Alarms"),
}
"""Keys below which the arguments of one class stand, which nobody chooses."""

OTHERS = ["--config", "--plugin", "--print_config", "--seed_everything", "--ckpt_path", "--help"]


def complete(words: list[str]) -> str:
    """What `sdar completion` prints: a shell's script, or the words that may end a line.

    Raises:
        ConfigError: no such shell.
    """
    if words[:1] == ["--line"]:
        return "\n".join(candidates(" ".join(words[1:])))
    if words and words[0] in SCRIPTS:
        return SCRIPTS[words[0]]
    near = did_you_mean(words[0], SCRIPTS) if words else ""
    raise ConfigError(
        f"completion needs the shell's name, {' or '.join(SCRIPTS)}.{near} Put its words where the shell starts, e.g. "
        "sdar completion bash >> ~/.bashrc"
    )


def candidates(line: str) -> list[str]:
    """What may stand for the last word of a command line, which may be empty."""
    try:
        _, *words = shlex.split(line)
    except ValueError:  # an open quote
        return []
    if line[-1:].isspace():
        words.append("")
    if not words:
        return []
    *before, last = words
    follow(name for word, name in pairwise(before) if word == "--plugin")
    if not before:
        return _fitting(last, [*COMMANDS, "--help", "--version", "--plugin"])
    if before[0] == "list":
        kinds, parts = outline.registered()
        return _fitting(last, [*kinds, *(name for kind in kinds for name in _names(parts[kind]))])
    if before[0] == "completion":
        return _fitting(last, SCRIPTS)
    key, equals, value = last.partition("=")
    if equals:
        return _fitting(value, _values(key.lstrip("-").split("."), before))
    if before[-1] in ("-c", "--config"):
        return _fitting(last, _files())
    if before[-1].startswith("--") and not last.startswith("-"):
        return _fitting(last, _values(before[-1].lstrip("-").split("."), before))
    return _fitting(last, _keys(last, before)) if last.startswith("-") else []


def _keys(last: str, before: list[str]) -> Iterator[str]:
    *keys, _ = last.lstrip("-").split(".")
    if keys:
        yield from (f"--{'.'.join([*keys, name])}" for name in _arguments(_chosen(keys, before)))
    elif tool := _tool(before):
        yield from (f"--{name}" for name in _arguments(tool))
    elif before[0] in COMMANDS and COMMANDS[before[0]].needs_settings:
        own = (f"--{name}" for name in _own(before))
        yield from dict.fromkeys(("--model", "--model.", "--data.", "--trainer.", "--checkpoint.", *OTHERS, *own))


def _values(keys: list[str], before: list[str]) -> Iterator[str]:
    """What may be given to a setting: parts of its kind, choices, truth values."""
    for hint in _hints(keys, before):
        if typing.get_origin(hint) is typing.Literal:
            yield from map(str, typing.get_args(hint))
        elif hint is bool:
            yield from ("true", "false")
        elif isinstance(hint, type) and outline.is_outline(hint):
            for parts in outline.registered()[1].values():
                yield from _names({name: cls for name, cls in parts.items() if issubclass(cls, hint)})


def _hints(keys: list[str], before: list[str]) -> Iterator[Any]:
    """The types that a setting may have."""
    if keys == ["model"] and not _tool(before):
        return iter([outline.registered()[0]["strategies"]])
    known = _arguments(_chosen(keys[:-1], before)) if keys[:-1] else _arguments(_tool(before)) or _own(before)
    parameter = known.get(keys[-1])
    return _leaves(parameter.annotation) if parameter else iter(())


def _tool(before: list[str]) -> Any:
    """The function that the line's command is; None: its settings are those of a run."""
    command = COMMANDS.get(before[0])
    return outline.locate(command.tool) if command and command.tool else None


def _own(before: list[str]) -> dict[str, outline.Parameter]:
    """The arguments of a command that runs a configuration, beside those of the configuration."""
    if before[0] not in COMMANDS or not COMMANDS[before[0]].needs_settings:
        return {}
    command = getattr(outline.locate("sdar.cli.trainer.AgentTrainer"), before[0], None)
    return {name: p for name, p in _arguments(command).items() if name not in GIVEN_BY_US}


def _chosen(keys: list[str], before: list[str]) -> Any:
    """The class whose arguments stand below a key: as words or files name it, or the default there."""
    tool = _tool(before)
    if not tool and keys[0] in GROUPS:
        return outline.find(*GROUPS[keys[0]]) if len(keys) == 1 else None
    if (name := _written(keys, before)) and (found := _named(name)):
        return found
    if not tool and keys == ["model"]:
        return outline.registered()[0]["strategies"]
    if not tool and keys == ["data"]:
        return outline.find("sdar", "TaskModule")
    parameter = _arguments(_chosen(keys[:-1], before) if keys[:-1] else tool).get(keys[-1])
    if parameter is None or isinstance(parameter.default, outline.Spec):
        return parameter and parameter.default.cls
    return next((hint for hint in _leaves(parameter.annotation) if isinstance(hint, type) and outline.is_outline(hint)), None)


def _written(keys: list[str], before: list[str]) -> str | None:
    """The name that the line, or else the last file on it, gives for the part at a key."""
    found: str | None = None
    for word, following in zip(before, [*before[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        value = value if equals else following
        if key in ("-c", "--config") and (node := _node(resolve(value), keys)):
            found = node
    for word, following in zip(before, [*before[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if key.removesuffix(".class_path") == f"--{'.'.join(keys)}":
            found = value if equals else following
    return found


def _node(path: Path, keys: list[str]) -> str | None:
    try:
        node: Any = read_yaml(path)
    except (OSError, ConfigError):
        return None
    for key in keys:
        inner = node.get("init_args", node) if isinstance(node, dict) else {}
        node = inner.get(key) if isinstance(inner, dict) else None
    node = node.get("class_path") if isinstance(node, dict) else node
    return node if isinstance(node, str) else None


def _named(name: str) -> type | None:
    parts = [part for kind in outline.registered()[1].values() for part in kind.items()]
    return next((cls for short, cls in parts if name in (short, cls.__name__)), None) or outline.locate(name)


def _arguments(owner: Any) -> dict[str, outline.Parameter]:
    return {} if owner is None else outline.arguments(owner)


def _leaves(hint: Any) -> Iterator[Any]:
    inner = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    if not inner:
        yield hint
    for argument in inner:
        yield from _leaves(argument)


def _files() -> list[str]:
    """Configuration files that come with the package, as a command names them."""
    conf = installed_settings()
    return sorted(str(Path("conf", path.relative_to(conf))) for path in conf.glob("**/*.yaml"))


def _fitting(last: str, words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(last)]


def _names(parts: dict[str, type]) -> Iterator[str]:
    for short, cls in parts.items():
        yield from (short, cls.__name__)

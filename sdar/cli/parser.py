"""The argument parser of the `sdar` command: jsonargparse's, with errors that name key, file and the nearest right word.

Only public hooks: the parser's ``error`` method is the one place where jsonargparse reports a mistake. Its report is a text in
which nested parts are indented, one line ``Parser key "gate":`` for each level; `findings` reads the innermost mistakes from
it, `explain` turns them into one message. A text of another shape is shown as it is.
"""

import ast
import difflib
import enum
import inspect
import logging
import os
import pydoc
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from sdar.cli.commands import COMMANDS, no_command, unknown_command
from sdar.command_help import TITLES
from sdar.errors import ConfigError
from sdar.paths import installed_settings, resolve
from sdar.reading import parse_yaml, read_yaml
from sdar.registry import did_you_mean, kinds, names

SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")


class RefusedYAML(yaml.YAMLError):
    """A text that `sdar.reading` refuses. Where jsonargparse asks what a value is, it is then no YAML."""


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{,200}")
"""Most values of settings: names and paths, within every limit. Reading each as a YAML document of its own takes its time."""


def limited(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A YAML loader of jsonargparse's that reads within the limits of `sdar.reading`."""

    def load_limited(text: str) -> Any:
        if not _WORD.fullmatch(text):
            parse_yaml(text, "this value", RefusedYAML)
        try:
            return load(text)
        except ValueError as error:  # a date that no calendar has
            raise RefusedYAML(str(error)) from error

    return load_limited


yaml.SafeDumper.add_multi_representer(  # defaults of Lightning's callbacks, e.g. of Timer.interval
    enum.Enum, lambda dumper, member: dumper.represent_data(member.value)
)
if getattr(get_loader("yaml"), "__name__", "") != "load_limited":
    set_loader("yaml", limited(get_loader("yaml")), exceptions=(yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """LightningCLI's parser with explained errors, and a help that begins with the training method."""

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
        if not self.exit_on_error:  # the parser of a nested part: the outermost one explains
            super().error(message, ex)
        known = (getattr(ex, "subcommand_parser", None) or self).get_defaults(skip_validation=True).keys()
        sys.stderr.write(f"error: {explain(message, config_files(getattr(self, 'args', None) or []), known)}\n")
        self.exit(2)


@dataclass
class Finding:
    """One innermost line of a report."""

    keys: tuple[str, ...]
    owner: type | None
    """The class whose argument is wrong; None at the top level."""
    text: str
    value: str | None = None
    """What the user wrote, where the report says so."""


_IGNORED = re.compile(r"(Does not validate|Subtypes: |Errors:|Given value type: |Subclass types expect|a class path|a dict )")
_KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")


def findings(report: str) -> list[Finding]:
    """The innermost lines of a jsonargparse report with the key path and the class that each belongs to."""
    found: list[Finding] = []
    nest: list[tuple[int, str | None, str | None]] = []  # indent, key, class path
    for raw in report.splitlines():
        indent = len(raw) - len(raw.lstrip())
        line = raw.strip().removeprefix("- ")
        if not line:
            continue
        while nest and nest[-1][0] >= indent:
            nest.pop()
        while line:
            if match := _KEY.match(line):
                nest.append((indent, match[1], None))
            elif match := _CLASS.match(line):
                nest.append((indent, None, match[1]))
            else:
                break
            line = line[match.end() :]
        if not line or _IGNORED.match(line):
            continue
        keys = tuple(part for _, key, _ in nest if key for part in key.split("."))
        if value := re.match(r"Given value: (.*)", line):
            for finding in found:
                if finding.keys == keys and finding.value is None and not value[1].startswith(("NestedArg(", "Namespace(")):
                    finding.value = value[1]
            continue
        owner = next((cls for _, _, cls in reversed(nest) if cls), None)
        text, _, value_text = line.partition(". Got value: ")
        if value_text.startswith("NestedArg("):
            value_text = ""
        found.append(Finding(keys, _locate(owner) if owner else None, text, value_text or None))
    return found


@dataclass
class Mistake(Finding):
    """A finding with what is needed to tell it to a person."""

    words: tuple[str, ...] = ()
    """What the rule's pattern caught in the text."""
    texts: tuple[str, ...] = ()
    """All texts of the report about the same key."""
    files: tuple[Path, ...] = ()
    known: tuple[str, ...] = ()
    """Every key of the command."""

    def at(self, value: str | None = None, keys: tuple[str, ...] | None = None) -> str:
        """``model.gate (in conf/x.yaml)``: key path, and the last file that sets it (to `value`)."""
        keys = self.keys if keys is None else keys
        for path in reversed(self.files):
            if path.is_file():
                for node in _nodes(read_yaml(path), keys):
                    if value is None or value in (str(node), node.get("class_path") if isinstance(node, dict) else None):
                        return f"{'.'.join(keys)} (in {path})"
        return ".".join(keys)


def explain(report: str, files: Iterable[Path] = (), known: Iterable[str] = ()) -> str:
    """One message for a jsonargparse report: key path, fact, nearest right word, file."""
    found = findings(report)
    if not found:
        return report
    chosen = max(found, key=lambda f: (len(f.keys), _weight(f.text)))
    same = [f for f in found if f.keys == chosen.keys]
    value = next((f.value for f in same if f.value is not None), None)
    for pattern, rule in _RULES:
        if match := re.match(pattern, chosen.text, re.DOTALL):
            texts = tuple(f.text for f in same)
            mistake = Mistake(chosen.keys, chosen.owner, chosen.text, value, match.groups(), texts, tuple(files), tuple(known))
            return rule(mistake)
    return report


def config_files(args: Iterable[str]) -> list[Path]:
    """What follows ``-c`` or ``--config`` in a command line, where it is a path and no inline YAML."""
    files: list[Path] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("-c", "--config"):
            value = next(rest, "")
        elif arg.startswith("--config="):
            value = arg.removeprefix("--config=")
        else:
            continue
        if value and not re.search(r"[{\n]|: ", value):
            files.append(Path(value))
    return files


def find_config_files(args: list[str]) -> list[str]:
    """The command line with configuration files that only the installed settings have (``conf/...``) named where they lie."""
    found = {str(path): str(resolve(path)) for path in config_files(args)}
    return [found.get(a) or (f"--config={found[a[9:]]}" if a[:9] == "--config=" and a[9:] in found else a) for a in args]


def check_config_files(args: Iterable[str]) -> None:
    """Mistakes in configuration files that jsonargparse reports without the file name, or takes for something else."""
    for path in config_files(args):
        if not path.is_file():
            raise ConfigError(f"configuration file {path} does not exist.{_nearest_file(path)}")
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping with keys such as model, data, trainer.")
        for keys, node in _specs(content):
            where = f"{'.'.join(keys)} (in {path})"
            extra = [key for key in node if key not in SPEC_KEYS]
            if "class_path" in node and extra:
                raise ConfigError(
                    f"{where}: {extra[0]!r} stands beside class_path.{did_you_mean(str(extra[0]), SPEC_KEYS)} "
                    "The arguments of a class go below init_args."
                )
            if "class_path" not in node and did_you_mean(str(extra[0]), ["class_path"]):
                raise ConfigError(f"{where}: {extra[0]!r} is no key of a part. Did you mean 'class_path'?")


class DroppedArguments(logging.Handler):
    """Tells which settings were dropped because another class was chosen; jsonargparse says so in its debug log only.

    Args:
        written: What the user wrote, command line and files: defaults that are dropped concern nobody.
    """

    def __init__(self, written: str) -> None:
        super().__init__(logging.DEBUG)
        self.written = set(re.findall(r"\w+", written))
        self.told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        pattern = r"Due to class_path change from '(.*?)' to '(.*?)', discarding init_args: (\{.*\})"
        match = re.match(pattern, str(record.msg), re.DOTALL)
        if not match:
            return
        old_class = _locate(match[1])
        if old_class in kinds().values():  # nobody chose it: jsonargparse begins with the base class
            return
        old, new = (path.rpartition(".")[2] for path in match.groups()[:2])
        usual = {name: repr(value) for name, value in defaults(old_class).items()}
        dropped = [k for k, value in _outer_items(match[3]).items() if k in self.written and value != usual.get(k)]
        message = f"note: {new} replaces {old}; settings of {old} that {new} does not take are dropped: {', '.join(dropped)}\n"
        if dropped and message not in self.told:
            self.told.add(message)
            sys.stderr.write(message)


def drop_logger(args: Iterable[str]) -> logging.Logger:
    """The logger for a parser that tells about dropped settings of the command line `args`."""
    args = list(args)
    logger = logging.getLogger("sdar.parser")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [DroppedArguments("\n".join([*args, *(path.read_text() for path in config_files(args))]))]
    return logger


def arguments(cls: type) -> dict[str, str]:
    """Argument name -> ``name: type = default`` of a part, inherited arguments included."""
    lines = {}
    for name, default in defaults(cls).items():
        declared = next((p[name] for p in map(parameters, cls.__mro__) if name in p), None)
        annotation = inspect.Parameter.empty if declared is None else declared.annotation
        required = declared is not None and declared.default is inspect.Parameter.empty
        lines[name] = f"{name}: {_type_name(annotation)}" + (" (required)" if required else f" = {_shown(default)}")
    return lines


def known_names(bases: Iterable[type]) -> dict[str, type]:
    """Every name that may stand where one of `bases` is expected: registered parts, and any other imported class."""
    found: dict[str, type] = {}
    for base in bases:
        for cls in _subclasses(base):
            if (
                not inspect.isabstract(cls)
                and not cls.__name__.startswith(("_", "LazyInstance_"))
                and "jsonargparse" not in cls.__module__
            ):
                found[cls.__name__] = cls
        found |= {name: cls for name, cls in names(base).items() if issubclass(cls, base)}
    return found


# The rules: how an innermost line of a report is told to a person.


def _unknown_name(m: Mistake) -> str:
    wrong = m.words[0]
    bases = _expected(m)
    right = known_names(bases)
    what = _kind_of(bases)
    other = names().get(wrong)
    if other is not None and wrong not in right:
        is_a = _kind_of(kind for kind in kinds().values() if issubclass(other, kind))
        fact = f"{wrong!r} is a {is_a} and does not fit here: a {what} is needed."
    else:
        same_case_last = sorted(right or names(), key=lambda name: name[:1].isupper() == wrong[:1].isupper())
        fact = f"there is no {what} {wrong!r}.{did_you_mean(wrong, same_case_last)}"
    lines = [f"{m.at(wrong)}: {fact}"]
    if registered := {name: cls for base in bases for name, cls in names(base).items() if issubclass(cls, base)}:
        lines.append(f"  known: {', '.join(_with_short_names(registered))}")
        lines.append("  A class of your own: its dotted path, or its name together with --plugin my_package.")
    return "\n".join(lines)


def _unknown_module(m: Mistake) -> str:
    module = m.words[0]
    near = did_you_mean(module, sys.modules if "." in module else {name.partition(".")[0] for name in sys.modules})
    return (
        f"{'.'.join(m.keys)}: no module named {module!r}.{near} Install the package, or start sdar in the folder that holds "
        f"it (now {os.getcwd()})."
    )


def _unknown_attribute(m: Mistake) -> str:
    module, attribute = m.words
    near = did_you_mean(attribute, [name for name in vars(sys.modules[module]) if not name.startswith("_")])
    return f"{m.at(f'{module}.{attribute}')}: module {module!r} has no class {attribute!r}.{near}"


def _unknown_argument(m: Mistake) -> str:
    if m.owner is None:
        return _unknown_key(m)
    wrong = re.split(r"[ =]", m.words[0].removeprefix("--"))[0].removeprefix("init_args.").split(".")
    accepted = list(defaults(m.owner))
    owner = m.owner.__name__
    return (
        f"{m.at(keys=(*m.keys, *wrong))}: {owner} takes no {wrong[0]!r}.{did_you_mean(wrong[0], accepted)}"
        f"\n  {owner} takes: {', '.join(accepted) or 'nothing'}"
    )


def _unknown_key(m: Mistake) -> str:
    words = m.words[0].split()
    option = next((word for word in words if word.startswith("-")), "")
    if not option and m.text.startswith("unrecognized"):
        return f"unexpected argument {words[0]!r}: commands come first, settings look like --trainer.max_steps 10."
    keys = tuple(key for key in (option or words[0]).lstrip("-").partition("=")[0].split(".") if key != "init_args")
    heads = {key.partition(".")[0] for key in m.known} | {"model", "data", "trainer", "config", "plugin", "print_config"}
    if keys[0] in COMMANDS:
        return (
            f"{m.at(keys=keys)}: a file given behind the command {keys[0]!r} starts with model, data, trainer; leave the "
            f"{keys[0]!r} level out."
        )
    if keys[0] not in heads:
        return f"{m.at(keys=keys[:1])}: there is no {keys[0]!r}.{did_you_mean(keys[0], heads)}"
    near = did_you_mean(".".join(keys[:2]), [".".join(key.split(".")[:2]) for key in m.known if key.startswith(keys[0])])
    return f"{m.at(keys=keys)}: {keys[0]!r} has no such setting.{near}"


def _wrong_value(m: Mistake) -> str:
    choices: list[Any] = []
    plain: list[str] = []
    for text in m.texts:
        if literal := re.match(r"Expected a (?:typing\.)?Literal(\[.*\])", text):
            choices += ast.literal_eval(literal[1])
        elif enum := re.match(r"Expected a member of .*?: \{(.*)\}", text):
            choices += enum[1].split(",")
        elif (other := re.match(r"Expected an? (.*)", text)) and not re.search(r"path|NoneType", other[1]):
            plain.append(_type_name(other[1]))
    allowed = [f"one of {', '.join(map(str, choices))}"] * bool(choices) + plain
    near = "" if m.value is None else did_you_mean(m.value, map(str, choices))
    got = "" if m.value is None else f", not {_quoted(m.value)}"
    return f"{m.at(m.value)}: must be {' or '.join(dict.fromkeys(allowed))}{got}.{near}"


def _too_long(m: Mistake) -> str:
    return f"{'.'.join(m.keys)}: an integer of {m.words[0]} digits. Give a smaller one."


def _no_part(m: Mistake) -> str:
    got = "" if m.value is None else f", not {_quoted(m.value)}"
    return f"{m.at(m.value)}: must be a {_kind_of(_expected(m))}, given by name or as class_path with init_args{got}."


def _missing(m: Mistake) -> str:
    missing = [re.sub(rf"^({'|'.join(COMMANDS)})\.", "", key) for key in m.words[0].split(", ")]
    if missing == ["model"]:
        return "model: this command needs a strategy, e.g. --model SDAR."
    needed = m.owner.__name__ if m.owner else "this command"
    policy = " A policy is a file of conf/policy, e.g. -c conf/policy/qwen2.5-3b.yaml." if "policy" in missing else ""
    return f"{', '.join('.'.join((*m.keys, key)) for key in missing)}: missing, {needed} needs it.{policy}"


def _abstract(m: Mistake) -> str:
    given = _locate(m.words[0]) or _named(m.words[0])
    if given is not None and given not in kinds().values() and (lacking := sorted(given.__abstractmethods__)):
        return f"{m.at()}: {given.__name__} has no {', '.join(lacking)}, which every {_kind_of(_expected(m))} has. Write it."
    choices = ", ".join(_with_short_names(known_names(_expected(m))))
    return f"{m.at()}: {m.words[0]} is a base class, not something to use. Choose one of: {choices}."


def _unknown_command(m: Mistake) -> str:
    return unknown_command(m.words[0])


def _no_command(m: Mistake) -> str:
    return no_command()


_RULES = (
    (r"Expected a dot import path string: (\S+)", _unknown_name),
    (r"Unexpected import path format: (\S+)", _unknown_name),
    (r"No module named '([^']+)'", _unknown_module),
    (r"module '([^']+)' has no attribute '([^']+)'", _unknown_attribute),
    (r"Option '([^']+)' is not accepted", _unknown_argument),
    (r"unrecognized arguments: (.+)", _unknown_argument),
    (r"(?:Subcommand|Group) '[^']+' does not accept option '([^']+)'", _unknown_key),
    (r"the following arguments are required: (.+)", _missing),
    (r"Expected an instantiatable class, but (\S+) is abstract", _abstract),
    (r"Not a valid subclass of ", _no_part),
    (r"argument subcommand: invalid choice: '([^']*)'", _unknown_command),
    (r'expected "subcommand" to be one of', _no_command),
    (r"Exceeds the limit .* has (\d+) digits", _too_long),
    (r"Expected an? (.+)", _wrong_value),
)


# Helpers.


def _weight(text: str) -> int:
    if "NoneType" in text or text.startswith(("Expected a path but", "Not a valid subclass")):
        return 0
    return 1 if re.match(r"Expected an? (<|typing|List|list|collections)", text) else 2


def _locate(path: str) -> type | None:
    found = pydoc.locate(path)
    return found if isinstance(found, type) else None


def _named(name: str) -> type | None:
    return next((cls for base in kinds().values() for cls in _subclasses(base) if cls.__name__ == name), None)


def _expected(wrong: Finding) -> list[type]:
    """The classes that the annotation of the wrong argument names."""
    if wrong.keys[:1] == ("trainer",) and wrong.owner is None:
        return annotated(Trainer, wrong.keys[-1])
    if wrong.keys == ("model",):
        return [kinds()["strategies"]]
    if wrong.keys == ("data",):
        return [LightningDataModule]
    return annotated(wrong.owner, wrong.keys[-1]) if wrong.owner and wrong.keys else []


def annotated(owner: type, argument: str) -> list[type]:
    for cls in owner.__mro__:
        if argument in parameters(cls):
            try:
                hint = typing.get_type_hints(vars(cls)["__init__"])[argument]
            except (NameError, KeyError):  # a name that is imported for type checkers only
                return []
            return list(dict.fromkeys(t for t in _leaves(hint) if isinstance(t, type) and t.__module__ != "builtins"))
    return []


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Named parameters of the constructor that a class itself declares."""
    if "__init__" not in vars(cls):
        return {}
    declared = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return {p.name: p for p in declared if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _leaves(hint: Any) -> Iterator[Any]:
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for argument in arguments:
        yield from _leaves(argument)


def _subclasses(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _kind_of(bases: Iterable[type]) -> str:
    words = [base.__name__ for base in bases]
    strategies = kinds().get("strategies")
    return " or ".join("strategy" if strategies and word == strategies.__name__ else word for word in words) or "class"


def _with_short_names(found: dict[str, type]) -> list[str]:
    shorts: dict[type, list[str]] = {}
    for name, cls in found.items():
        shorts.setdefault(cls, []).extend([name] * (name != cls.__name__))
    return sorted(cls.__name__ + (f" ({', '.join(short)})" if short else "") for cls, short in shorts.items())


@cache
def defaults(cls: type | None) -> dict[str, Any]:
    """Every argument that a configuration may give to a class, with its default as a configuration would hold it."""
    if cls is None:
        return {}
    parser = ArgumentParser(exit_on_error=False)
    accepted = parser.add_class_arguments(cls, "part", fail_untyped=False)
    values = parser.get_defaults(skip_validation=True)
    return {key.removeprefix("part."): values.get(key) for key in accepted}


def _type_name(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    if annotation in (None, type(None)):
        return "null"
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, typing.get_args(annotation)))
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)


def _shown(default: Any) -> str:
    """A default as YAML would say it, with a part as ``Name(argument=value)`` where the value is not its usual one."""
    if isinstance(default, Namespace) and "class_path" in default:
        given = vars(default.get("init_args") or Namespace())
        usual = defaults(_locate(default["class_path"])) if given else {}
        inner = ", ".join(f"{key}={_shown(value)}" for key, value in given.items() if value != usual.get(key))
        return default["class_path"].rpartition(".")[2] + (f"({inner})" if inner else "")
    if isinstance(default, bool) or default is None:
        return {None: "null", True: "true", False: "false"}[default]
    return repr(default)


def _quoted(value: str) -> str:
    value = value if len(value) <= 200 else f"{value[:200]}..."
    return value if value.startswith(("'", '"', "[", "{")) else repr(value)


def _nodes(node: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    if not keys:
        yield from node if isinstance(node, list) else [node]
    elif isinstance(node, list):
        for item in node:
            yield from _nodes(item, keys)
    elif isinstance(node, dict):
        if keys[0] in node:
            yield from _nodes(node[keys[0]], keys[1:])
        if isinstance(node.get("init_args"), dict):
            yield from _nodes(node["init_args"], keys)


def _specs(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping that looks like a part (class_path, init_args) and has a key that a part has not, with its path."""
    if isinstance(node, dict):
        if any(key in SPEC_KEYS for key in node) and any(key not in SPEC_KEYS for key in node):
            yield keys, node
        for key, value in node.items():
            yield from _specs(value, keys if key in SPEC_KEYS else (*keys, str(key)))
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from _specs(item, (*keys[:-1], f"{keys[-1]}[{number}]") if keys else keys)


def _nearest_file(path: Path) -> str:
    beside = [p for p in (path.parent if path.parent.is_dir() else Path()).iterdir() if p.suffix in (".yaml", ".yml", ".json")]
    conf = installed_settings()
    installed = [Path("conf", p.relative_to(conf)) for p in conf.glob("**/*.yaml")]
    known = {str(p) for p in [*beside, *installed]}
    close = difflib.get_close_matches(str(path), known, 1, 0.6)
    if not close:
        by_name = {Path(p).name: p for p in sorted(known)}
        close = [by_name[name] for name in difflib.get_close_matches(path.name, by_name, 1, 0.6)]
    return f" Did you mean {close[0]}?" if close else f" The working directory is {os.getcwd()}."


def _outer_items(mapping: str) -> dict[str, str]:
    """Keys and printed values of the outermost level of a printed dict; its values need not be literals."""
    items: dict[str, str] = {}
    key, start, depth = "", 0, 0
    for token in re.finditer(r"""'(?:[^'\\]|\\.)*'(: )?|"(?:[^"\\]|\\.)*"|[\[{(]|[\]})]|, """, mapping):
        if token[1] and depth == 1:
            key, start = token[0][1:-3], token.end()
        elif token[0] in ("[", "{", "("):
            depth += 1
        elif token[0] in ("]", "}", ")"):
            depth -= 1
        if key and (depth == 0 or (depth == 1 and token[0] == ", ")):
            items[key], key = mapping[start : token.start()], ""
    return items

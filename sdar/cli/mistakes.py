"""How a mistake in settings is told: its key, the file it stands in, the fact, the nearest right word."""

import enum
import os
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sdar.cli.commands import COMMANDS
from sdar.cli.signatures import UNIONS, Argument, Expected, Signature, imported, kind_of, known_names, registered, type_name
from sdar.cli.values import plain
from sdar.cli.words import Text
from sdar.errors import ConfigError
from sdar.outline import UnreadableError
from sdar.reading import MOST_DIGITS
from sdar.registry import did_you_mean, kinds, names

SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Place:
    """Where something was written; as a text, how an error begins."""

    key: str = ""
    file: Path | None = None
    words: str = ""
    """The whole key as a command line had it; empty in a file."""

    def below(self, name: str) -> "Place":
        return replace(self, key=f"{self.key}.{name}".lstrip("."))

    def item(self, number: int) -> "Place":
        return replace(self, key=f"{self.key}[{number}]")

    def __str__(self) -> str:
        return self.key + (f" (in {self.file})" if self.file else "")


def unknown_key(
    place: Place,
    name: str,
    outermost: bool,
    owner: Signature,
    takes: Mapping[str, Argument],
    places: list[str],
) -> str:
    """A key that nothing takes."""
    whole = place.below(name)
    rest = [word for word in place.words.split(".") if word not in ("init_args",)][len(whole.key.split(".")) :]
    whole = whole if "[" in whole.key else replace(whole, key=".".join([whole.key, *rest]))
    places = [key for key in places if key != place.below(name).key]
    elsewhere = f" Did you mean {' or '.join(map(repr, places[:3]))}?" if places else ""
    if outermost:
        if name in COMMANDS:
            return f"{whole}: a file given behind the command {name!r} starts with model, data, trainer; leave the {name!r} level out."
        return f"{replace(whole, key=name)}: there is no {name!r}.{elsewhere or did_you_mean(name, takes)}"
    if owner.cls is not None and place.key in GROUPS:
        near = elsewhere or did_you_mean(name, takes).replace(" '", f" '{place.key}.")
        return f"{whole}: {place.key!r} has no such setting.{near}"
    near = elsewhere or did_you_mean(name, takes)
    return f"{whole}: {owner.name} takes no {name!r}.{near}\n  {owner.name} takes: {', '.join(takes) or 'nothing'}"


def unknown_name(place: Place, wrong: str, bases: tuple[type, ...]) -> str:
    """A name that no class has which could stand here."""
    right, what = known_names(bases), kind_of(bases)
    other = names().get(wrong)
    if other is not None:
        return f"{place}: {_misplaced(wrong, other, what)}\n{_known(bases)}".rstrip()
    same_case_last = sorted(right or names(), key=lambda name: name[:1].isupper() == wrong[:1].isupper())
    return f"{place}: there is no {what} {wrong!r}.{did_you_mean(wrong, same_case_last)}\n{_known(bases)}".rstrip()


def find_path(path: str, expected: Expected, place: Place) -> type | None:
    """The class of a dotted path; None: what only the parser can judge.

    Raises:
        ConfigError: there is none, or it is no part of the expected kind.
        UnreadableError: names are told from the sources, which do not say it.
    """
    if not all(word.isidentifier() for word in path.split(".")):
        if expected.texts:
            return None
        raise ConfigError(unknown_name(place, path, expected.parts))
    module, _, name = path.rpartition(".")
    try:
        found = imported(path)
    except ModuleNotFoundError as error:
        if expected.texts:
            return None
        wrong = error.name or module
        near = did_you_mean(wrong, sys.modules if "." in wrong else {known.partition(".")[0] for known in sys.modules})
        raise ConfigError(
            f"{place}: no module named {wrong!r}.{near} Install the package, or start sdar in the folder that holds it "
            f"(now {os.getcwd()})."
        ) from error
    except AttributeError as error:
        near = did_you_mean(name, [known for known in vars(sys.modules.get(module, typing)) if not known.startswith("_")])
        raise ConfigError(f"{place}: module {module!r} has no class {name!r}.{near}") from error
    except UnreadableError:
        raise
    except Exception as error:
        raise ConfigError(f"{place}: importing {module} failed with {type(error).__name__}: {error}") from error
    if isinstance(found, type) and not issubclass(found, expected.parts):
        if expected.texts:
            return None
        raise ConfigError(f"{place}: {_misplaced(path, found, kind_of(expected.parts))}")
    return found if isinstance(found, type) else None


def check_spec(place: Place, written: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: a mapping that looks like a part (class_path, init_args) has a key that a part has not.
    """
    if not any(key in SPEC_KEYS for key in written):
        return
    extra = [str(key) for key in written if key not in SPEC_KEYS]
    if extra and "class_path" in written:
        raise ConfigError(
            f"{place}: {extra[0]!r} stands beside class_path.{did_you_mean(extra[0], SPEC_KEYS)} The arguments of a class go below "
            "init_args."
        )
    if extra and did_you_mean(extra[0], ["class_path"]):
        raise ConfigError(f"{place}: {extra[0]!r} is no key of a part. Did you mean 'class_path'?")


def abstract(place: Place, cls: type, bases: tuple[type, ...]) -> str:
    """A class from which nothing can be made."""
    if cls not in kinds().values() and cls not in bases and (lacking := sorted(cast(Any, cls).__abstractmethods__)):
        return f"{place}: {cls.__name__} has no {', '.join(lacking)}, which every {kind_of(bases)} has. Write it."
    choices = ", ".join(_with_short_names(known_names(bases)))
    return f"{place}: {cls.__name__} is a base class, not something to use. Choose one of: {choices}."


def no_part(place: Place, bases: tuple[type, ...], value: Any) -> str:
    return (
        f"{place}: must be {_a(kind_of(bases))}, given by name or as class_path with init_args, not {_quoted(plain(value))}."
    )


def not_chosen(place: Place, bases: tuple[type, ...], written: Mapping[str, Any], key: str, taking: list[str]) -> str:
    """A setting of a part where no part was named."""
    if not key:
        return no_part(place, bases, written)
    what, name = kind_of(bases), taking[0] if taking else "NAME"
    advice = (
        f"Name it there, e.g. class_path: {name}."
        if place.file
        else f"Name it before its settings, e.g. --{place.key} {name}."
    )
    fact = f"{place.below(key)}: no {what} is chosen yet. {advice}"
    if not taking:
        fact += f" Choose one of: {', '.join(_with_short_names(known_names(bases)))}."
    return fact


def missing(key: str, names: list[str], owner: Signature | None) -> str:
    """Arguments that have to be given."""
    if not key and names == ["model"]:
        return "model: this command needs a strategy, e.g. --model SDAR."
    needed = owner.name if owner and key else "this command"
    policy = " A policy is a file of conf/policy, e.g. -c conf/policy/qwen2.5-3b.yaml." if "policy" in names else ""
    return f"{', '.join(f'{key}.{name}'.lstrip('.') for name in names)}: missing, {needed} needs it.{policy}"


def left_out(place: Place, names: list[str]) -> str:
    """A note: a file names parts anew, and those of an earlier file that it does not name are gone."""
    return (
        f"note: {place}: {', '.join(names)} of an earlier file {'is' if len(names) == 1 else 'are'} left out, for a file that names some "
        f"names all. To change one setting of one: --{place.key}.NAME.KEY VALUE."
    )


def dropped(old: Signature, new: Signature | None, names: list[str]) -> str:
    chosen = new.name if new else ""
    return f"note: {chosen} replaces {old.name}; settings of {old.name} that {chosen} does not take are dropped: {', '.join(names)}"


def wrong_value(place: Place, argument: Argument, written: Any) -> str:
    """A value that does not fit the annotation of its argument."""
    value = written.text if isinstance(written, Text) else plain(written)
    digits = str(value).lstrip("+-") if isinstance(value, (str, int)) else ""
    if digits.isdigit() and len(digits) > MOST_DIGITS:
        return f"{place}: an integer of {len(digits)} digits. Give a smaller one."
    choices, others = [], []
    for hint in _alternatives(argument.hint):
        if typing.get_origin(hint) is typing.Literal:
            choices += [*map(str, typing.get_args(hint))]
        elif isinstance(hint, type) and issubclass(hint, enum.Enum):
            choices += [member.name for member in hint]
        elif hint not in (None, type(None)) and hint not in argument.expected.parts:
            others.append(type_name(hint))
    if argument.expected.parts and not argument.expected.filled:
        others.append(f"{_a(kind_of(argument.expected.parts))}, given by name or as class_path with init_args")
    allowed = [f"one of {', '.join(dict.fromkeys(choices))}"] * bool(choices) + others
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{place}: must be {' or '.join(dict.fromkeys(allowed)) or 'something else'}, not {_quoted(value)}.{near}"


GROUPS = ("trainer", "checkpoint", "alarms")
"""Keys that always hold the same class, which nobody writes."""


def _misplaced(name: str, cls: type, what: str) -> str:
    is_a = [kind for kind in kinds().values() if issubclass(cls, kind)]
    fact = f"{name!r} is {_a(kind_of(is_a))} and does not fit here" if is_a else f"{name!r} does not fit here"
    return f"{fact}: {_a(what)} is needed."


def _known(bases: Iterable[type]) -> str:
    found = {name: cls for base in bases for name, cls in registered(base).items()}
    if not found:
        return ""
    own = "  A class of your own: its dotted path, or its name together with --plugin my_package."
    return f"  known: {', '.join(_with_short_names(found))}\n{own}"


def _with_short_names(found: Mapping[str, type]) -> list[str]:
    shorts: dict[type, list[str]] = {}
    for name, cls in found.items():
        shorts.setdefault(cls, []).extend([name] * (name != cls.__name__))
    return sorted(cls.__name__ + (f" ({', '.join(short)})" if short else "") for cls, short in shorts.items())


def _alternatives(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in UNIONS:
        for inner in typing.get_args(hint):
            yield from _alternatives(inner)
    else:
        yield hint


def _a(what: str) -> str:
    return f"{'an' if what[:1].lower() in 'aeiou' else 'a'} {what}"


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if not isinstance(value, str) or re.match(r"['\"\[{]", text) else repr(text)

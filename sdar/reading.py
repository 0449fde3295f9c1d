"""JSON and YAML that somebody else wrote, read within limits.

Python's own readers take NaN for a number and ``1e999`` for infinity, end in `RecursionError` for a text of brackets, in a plain
`ValueError` for an integer of 5,000 digits, and a YAML file of nine lines can stand for millions of values. Here every text
gives either plain data or one error: of the caller's kind, with the place, and quoting no more than a few words of the text.
Lone surrogates, which occur in code and in web pages, stay as they are.

Numbers are finite and have at most `MOST_DIGITS` digits, so that ``float(number)`` never overflows.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import isinf
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import yaml

from sdar.errors import ConfigError

MOST_DIGITS = 300
"""Digits of an integer."""
MOST_DEEP = 100
"""Lists and objects within each other."""
MOST_ALIASES = 50
"""Aliases (``*name``) in a YAML text."""
MOST_REPEATED = 10_000
"""Values that the aliases of a YAML text stand for, together."""
LONGEST_NAME = 200
"""Characters of a name, see `read_name`."""

Refusal = Callable[[str], Exception]
"""An error class of `sdar.errors`, or a function that makes the error of a message."""

T = TypeVar("T")


def parse_json(
    text: str | bytes,
    what: str,
    error: Refusal = ConfigError,
    *,
    advice: str = "Correct it there.",
    unique: bool = False,
    strict: bool = True,
) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Args:
        what: Begins the error, e.g. ``corpus.jsonl, line 3``.
        error: Makes the exception from its message.
        advice: Ends the error: what to do.
        unique: Refuse an object that has one name twice. Otherwise the last one counts, as everywhere.
        strict: False: texts may hold line breaks and other control characters as they are.

    Raises:
        the given error: the text is no JSON, holds NaN, an infinity or an integer of more than `MOST_DIGITS` digits, or is
            nested deeper than `MOST_DEEP`.
    """
    try:
        value = json.loads(_decoded(text), strict=strict, **_HOOKS, object_pairs_hook=_unique if unique else None)
        return _bounded(value)
    except json.JSONDecodeError as bad:
        reason = f"no JSON (line {bad.lineno}, column {bad.colno}: {bad.msg})" if bad.lineno > 1 else f"no JSON ({bad.msg})"
    except RecursionError:
        reason = _TOO_DEEP
    except ValueError as bad:
        reason = str(bad)
    raise error(f"{what}: {reason}. {advice}".rstrip()) from None


def read_json(file: Path, error: Refusal = ConfigError, *, advice: str = "Correct it there.", unique: bool = False) -> Any:
    """`parse_json` of a file; one that cannot be read is the same error."""
    return parse_json(_content(file, error), str(file), error, advice=advice, unique=unique)


def read_json_lines(
    file: Path, error: Refusal = ConfigError, *, advice: str = "Each line holds one JSON object."
) -> Iterator[tuple[str, Any]]:
    """Place (``file, line 3``) and value of every line that is not blank, read as they are asked for; a file may end in .gz."""
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                    where = f"{file}, line {number}"
                    yield where, parse_json(line.strip(), where, error, advice=advice)
    except _BROKEN as bad:
        raise error(f"{file} cannot be read ({_why(bad)}). Check the file.") from None


class LimitedDecoder(json.JSONDecoder):
    """For a stream of JSON values (`raw_decode`): raises ValueError for what `parse_json` refuses."""

    def __init__(self) -> None:
        super().__init__(**_HOOKS)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            value, end = super().raw_decode(s, idx)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
        return _bounded(value), end


def parse_yaml(text: str | bytes, what: str, error: Refusal = ConfigError, *, advice: str = "Correct the YAML there.") -> Any:
    """The value of a YAML text, by safe tags only.

    It differs from YAML 1.1 in that a name may stand once in a mapping, dates and ``1:30`` are texts and ``1e-5`` is a number.

    Raises:
        the given error, with line and column: broken YAML; a name that stands twice; nesting deeper than `MOST_DEEP`; more than
            `MOST_ALIASES` aliases, or aliases that stand for more than `MOST_REPEATED` values or for what they are in; an
            integer of more than `MOST_DIGITS` digits; bytes that are no UTF-8.
    """
    place = ""
    try:
        text = _decoded(text)
        with suppress(Exception):  # Python's reader says better what is wrong, at an eighth of the speed
            return yaml.load(text, _FastLoader)
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as bad:
        reason = f"the character #x{int(bad.character):04x} cannot stand in YAML ({bad.reason})"
    except yaml.MarkedYAMLError as bad:
        mark = bad.problem_mark or bad.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = _short(bad.problem or bad.context or "it cannot be read")
    except RecursionError:
        reason = _TOO_DEEP
    except Exception as bad:  # what the scanner lets through, such as a character beyond Unicode
        reason = _short(str(bad) or type(bad).__name__)
    raise error(f"{what}{place}: {reason}. {advice}".rstrip()) from None


def read_yaml(file: Path, error: Refusal = ConfigError, *, advice: str = "Correct the YAML there.") -> Any:
    """`parse_yaml` of a file; one that cannot be read is the same error."""
    return parse_yaml(_content(file, error), str(file), error, advice=advice)


def yaml_text(value: Any, **style: Any) -> str:
    """Settings as a YAML text that `parse_yaml` reads as the same; by libyaml, where it is there. `style` is PyYAML's."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **style)


def read_record(
    file: Path, kind: type[T], error: Refusal = ConfigError, *, advice: str = "Correct it there.", unique: bool = False
) -> T:
    """`read_json` and `convert`."""
    return convert(read_json(file, error, advice=advice, unique=unique), kind, str(file), error, advice=advice)


def convert(value: Any, kind: type[T], what: str, error: Refusal = ConfigError, *, advice: str = "Correct it there.") -> T:
    """Plain data as a typed record (`msgspec.Struct`, or any type that msgspec knows); numbers and texts are never guessed.

    Raises:
        the given error: names the first place that is of another type, e.g. ``$.options[2]``.
    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError:
        reason = _TOO_DEEP
    except UnicodeEncodeError:  # of a name in an object; values may hold one
        reason = "a name holds half a surrogate pair"
    except ValueError as bad:
        reason = _short(str(bad))
    raise error(f"{what}: {reason}. {advice}".rstrip()) from None


def read_name(
    value: object, what: str, error: Refusal = ConfigError, *, file: bool = False, longest: int = LONGEST_NAME
) -> str:
    """A name out of a data file, for tables, metrics and messages.

    Args:
        file: It becomes the name of a file, too: it may hold no path.
        longest: Most characters.

    Raises:
        the given error: no text, an empty one, one that is too long, or one with characters that cannot
            be printed (line breaks, terminal sequences, half a surrogate pair).
    """
    if not isinstance(value, str) or not value.strip():
        raise error(f"{what} is {'empty' if isinstance(value, str) else type(value).__name__}; a name is one line of text.")
    if len(value) > longest:
        raise error(f"{what} has {len(value)} characters; at most {longest} are a name. Shorten it.")
    if not value.isprintable():
        odd = next(c for c in value if not c.isprintable())
        raise error(f"{what} holds the character U+{ord(odd):04X}, which cannot be printed. Take it out of the name.")
    if file and (value in (".", "..") or re.search(r"[/\\:]", value)):
        raise error(f"{what} is {value!r}, but files are named after it: it cannot hold '/', '\\' or ':'. Use a word.")
    return value


def excerpt(value: object, most: int = 80) -> str:
    """A value as an error shows it: printable, on one line, and no more than its beginning."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def is_written_list(text: str) -> bool:
    """Whether a text is a list of texts as Python or JSON writes it, which nobody means as an answer."""
    text = text.strip()
    return len(text) > 3 and text[:2] + text[-2:] in ("['']", '[""]')


def path_below(folder: Path, name: str, what: str, error: Refusal = ConfigError) -> Path:
    """The file `name` of a folder, where `name` was read from data: links are followed, and it lies below the folder.

    Raises:
        the given error: the file lies elsewhere.
    """
    try:
        path = folder / name
        path.exists()
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, links in a circle
        raise error(f"{what} names the file {excerpt(name)}, which no file can be called. Correct the name.") from None
    raise error(
        f"{what} names the file {excerpt(name)}, which lies outside of {folder}: data from elsewhere could read any file of "
        "this machine so. Put the file into the folder."
    )


# ---------------------------------------------------------------------------------------------------------------- the limits

_TOO_DEEP = f"nested more than {MOST_DEEP} deep"


def _short(text: str) -> str:
    """Few and printable characters of a message that may quote the text."""
    text = "".join(c if c.isprintable() else " " for c in text[:1000])
    return text if len(text) <= 200 else f"{text[:200]}..."


_BROKEN = (OSError, EOFError, zlib.error)
"""What reading a file raises, a compressed one included."""


def _opened(file: Path) -> IO[bytes]:
    """A file, or what is compressed in one that ends in .gz."""
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _content(file: Path, error: Refusal) -> bytes:
    try:
        with _opened(file) as content:
            return content.read()
    except _BROKEN as bad:
        raise error(f"{file} cannot be read ({_why(bad)}). Check the file.") from None


def _why(bad: Exception) -> str:
    return getattr(bad, "strerror", None) or str(bad)


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        raise ValueError(f"no UTF-8 text (byte {bad.start})") from None


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits, at most {MOST_DIGITS} are read")
    return int(digits)


def _finite(digits: str) -> float:
    if isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


_HOOKS: dict[str, Any] = {"parse_int": _whole, "parse_float": _finite, "parse_constant": _constant}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {excerpt(twice)} stands twice in one object; one of them would be lost")
    return found


def _bounded(value: Any) -> Any:
    """`value`, if it is not nested too deep."""
    level = [value]
    for _ in range(MOST_DEEP + 1):
        level = [v for c in level if isinstance(c, (list, dict)) for v in (c.values() if isinstance(c, dict) else c)]
        level = [v for v in level if isinstance(v, (list, dict))]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: Any):
        super().__init__(stream)
        self._begin()

    def _begin(self) -> None:
        self._deep, self._size, self._aliases, self._repeated = 0, 0, 0, 0
        self._sizes: dict[int, int] = {}  # values below a node that may be repeated

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            self._aliases += 1
            if self._aliases > MOST_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {MOST_ALIASES} aliases", problem_mark=mark)
            if id(node) not in self._sizes:
                raise yaml.MarkedYAMLError(problem="an alias stands for what it is in", problem_mark=mark)
            self._size += self._sizes[id(node)]
            self._repeated += self._sizes[id(node)]
            if self._repeated > MOST_REPEATED:
                problem = f"the aliases stand for more than {MOST_REPEATED} values"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            return node
        self._deep += 1
        if self._deep > MOST_DEEP:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=mark)
        before = self._size
        node = super().compose_node(parent, index)
        self._deep -= 1
        self._size += 1
        self._sizes[id(node)] = self._size - before
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as bad:
            problem = str(bad) if type(bad) is ValueError else f"it is no value of the type {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and (name := (key.tag, key.value)) in seen:
                problem = f"the name {excerpt(key.value)} stands here a second time"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            elif isinstance(key, yaml.ScalarNode):
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        digits = self.construct_scalar(node)
        return _whole(digits) if len(digits) > MOST_DIGITS else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        number: float = super().construct_yaml_float(node)
        if isinf(number) and "inf" not in node.value.lower():
            raise ValueError(f"the number {node.value[:20]} is too large")
        return number


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """YAML 1.1's without dates and base 60, and with ``1e-5``, which is a text there."""
    changed = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "int", "float")}
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in changed]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
    fraction = re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    )
    for first in "-+0123456789.":
        kept.setdefault(first, []).extend([("tag:yaml.org,2002:int", whole), ("tag:yaml.org,2002:float", fraction)])
    return kept


if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[import-untyped]

    class _FastLoader(_Loader, CParser):  # type: ignore[misc]
        """The same limits, where libyaml reads the text."""

        def __init__(self, stream: Any):
            CParser.__init__(self, stream)
            for part in (yaml.composer.Composer, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
                part.__init__(self)
            self._begin()

        check_event, peek_event, get_event = CParser.check_event, CParser.peek_event, CParser.get_event
        dispose = CParser.dispose

else:  # a PyYAML that was built without it
    _FastLoader = _Loader  # type: ignore[misc]


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes a text that would be read as something else, here or elsewhere: ``1e1`` is a number here and a text in YAML 1.1."""


_Loader.yaml_implicit_resolvers = _resolvers()
for _first, _rules in _resolvers().items():
    for _tag, _pattern in _rules:
        Dumper.add_implicit_resolver(_tag, _pattern, [_first])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)

"""Rows of LiveCodeBench (``livecodebench/code_generation`` and its lite form), and which of them are played."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sdar.envs.code_problems import CONTEST, CodeProblem, packed_tests, shown
from sdar.envs.code_published import CONTEST_S
from sdar.errors import ConfigError
from sdar.reading import convert, excerpt, parse_json

PLATFORMS = ("leetcode", "codeforces", "atcoder")
DIFFICULTIES = ("easy", "medium", "hard")
COLUMNS = ("question_content", "public_test_cases", "private_test_cases", "starter_code", "metadata", "platform", "difficulty")


@dataclass(frozen=True)
class Window:
    """Which rows of LiveCodeBench are played; rows of other files are not touched.

    Args:
        platforms: Where problems come from (leetcode, codeforces, atcoder); None: from anywhere.
        difficulties: How hard they are (easy, medium, hard); None: any.
        since: First day of the contests, as 2024-08-01; None: from the beginning.
        until: Last day of the contests; None: to the end.
    """

    platforms: Sequence[str] | None = None
    difficulties: Sequence[str] | None = None
    since: str | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("platforms", PLATFORMS), ("difficulties", DIFFICULTIES)):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()) or None)
            for one in getattr(self, name) or ():
                if one not in known:
                    raise ConfigError(f"env.{name} names {one!r}: it holds {', '.join(known)}.")
        since, until = self._day("since"), self._day("until")
        if since and until and since > until:
            raise ConfigError(f"env.since is {since} and env.until is {until}: no day lies between. Exchange them.")

    def _day(self, name: str) -> date | None:
        text = getattr(self, name)
        try:
            return None if text is None else date.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"env.{name} is {text!r}: a day is written as 2024-08-01.") from None

    def holds(self, row: Mapping[str, Any], where: str) -> bool:
        """Whether a row is played."""
        since, until = self._day("since"), self._day("until")
        day = _contest_day(row, where) if since or until else None
        return (
            (not self.platforms or _word(row, "platform", where, PLATFORMS) in self.platforms)
            and (not self.difficulties or _word(row, "difficulty", where, DIFFICULTIES) in self.difficulties)
            and (day is None or ((since is None or since <= day) and (until is None or day <= until)))
        )


def is_livecodebench_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has this form."""
    return "question_content" in row


def read_livecodebench_row(row: Mapping[str, Any], where: str) -> CodeProblem:
    """A row of LiveCodeBench; its private tests, which may be packed, are read once now and again when a program is judged.

    Raises:
        ConfigError: a column is missing, of another type, or does not hold what it has to.
    """
    for name in COLUMNS:
        if not isinstance(row.get(name), str):
            told = "missing" if row.get(name) is None else type(row[name]).__name__
            raise ConfigError(
                f"{where}: {name} is {told}; it has to be a text, as LiveCodeBench's files have it. Correct the row."
            )
    text = row["question_content"]
    if not text.strip():
        raise ConfigError(
            f"{where}: question_content is empty: nobody could know what to do. Correct the row, or leave it out."
        )
    metadata = convert(
        parse_json(row["metadata"] or "{}", f"{where}: metadata", ConfigError),
        dict[str, Any],
        f"{where}: metadata",
        ConfigError,
    )
    function = metadata.get("func_name")
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise ConfigError(
            f"{where}: metadata.func_name is {excerpt(function)}, which is no name of a function. Correct the row."
        )
    tests = {column: _tests(row[column], f"{where}: {column}", function is not None) for column in COLUMNS[1:3]}
    if not any(tests.values()):
        raise ConfigError(f"{where}: there is no test, public or private: any program would pass. Leave the row out.")
    difficulty = _word(row, "difficulty", where, DIFFICULTIES)
    _word(row, "platform", where, PLATFORMS)
    starter = row["starter_code"]
    return CodeProblem(
        text=text,
        family=f"livecodebench_{difficulty}",
        tests=tuple(tests["public_test_cases"]),
        packed=row["private_test_cases"],
        entry="" if function is None else f"Solution().{function}" if "class Solution" in starter else function,
        preamble=CONTEST,
        starter=starter,
        examples=shown(tests["public_test_cases"], text),
        time_s=CONTEST_S,
    )


def _tests(column: str, what: str, calls: bool) -> Sequence[Any]:
    try:
        return packed_tests.__wrapped__(column, calls)
    except ValueError as error:
        raise ConfigError(
            f"{what}: {error}. Tests are a JSON list of objects with input, output and testtype, or such a list packed as LiveCodeBench "
            "packs it (base64 of zlib of a pickled string); nothing else is read. Take the row as it was published."
        ) from None


def _word(row: Mapping[str, Any], name: str, where: str, known: Sequence[str]) -> str:
    if row.get(name) not in known:
        raise ConfigError(f"{where}: {name} is {excerpt(row.get(name))}; it is one of {', '.join(known)}. Correct the row.")
    return row[name]


def _contest_day(row: Mapping[str, Any], where: str) -> date:
    try:
        return date.fromisoformat(str(row["contest_date"])[:10])
    except (KeyError, ValueError):
        raise ConfigError(
            f"{where}: contest_date is {excerpt(row.get('contest_date'))}, which is no day like 2024-08-01: nobody knows whether it lies "
            "between env.since and env.until. Correct the row, or take these out."
        ) from None

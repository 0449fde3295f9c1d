"""Files of science questions: rows of GPQA, MMLU and its kin, and MegaScience, told apart by their columns."""

import multiprocessing
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import isfinite
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from sdar.envs.problem_rows import columns, file_rows
from sdar.envs.science_choices import LETTERS, Question, shuffled
from sdar.envs.worked_solutions import hint_of
from sdar.errors import ConfigError
from sdar.reading import excerpt, is_written_list, parse_json, read_name

STEMS = ("question", "problem")
OPTIONS = ("choices", "options")
GOLDS = ("answer", "answerkey")
FAMILY = ("high-level domain", "subdomain", "subject", "category", "type", "domain")
GPQA = ("correct answer", "incorrect answer 1", "incorrect answer 2", "incorrect answer 3")
SURELY_CHANCE = 10
"""Questions that may all have the same letter as their answer."""


@lru_cache(maxsize=16)
def file_questions(path: str, shuffle_seed: int | None) -> tuple[tuple[Question, ...], str]:
    """The questions of a file, their options in the order of a seed, and a digest of the file's content.

    Raises:
        ConfigError: the file, or a row of it, is none; the message names the row.
    """
    read, digest = rows_as_written(path)
    listed = [question.right for question in read if question.options]
    if shuffle_seed is None and len(listed) > SURELY_CHANCE and len(set(listed)) == 1:
        raise ConfigError(
            f"env.shuffle_seed is null, and the right option of all {len(listed)} questions of {path} is {LETTERS[listed[0]]}: a policy "
            "that always says so would be right. Give a number."
        )
    return tuple(shuffled(question, shuffle_seed) for question in read), digest


@lru_cache(maxsize=16)
def rows_as_written(path: str) -> tuple[tuple[Question, ...], str]:
    """`file_questions` with options as in the file."""
    rows, digest = file_rows(path)
    judged = [(where, row) for where, row in rows if not _unanswered(row)]
    if not judged:
        raise ConfigError(
            f"env.files: none of the {len(rows)} rows of {path} has a reference_answer. Give a file with answers."
        )
    if len(judged) < len(rows) and multiprocessing.parent_process() is None:  # workers read the same files
        rank_zero_warn(
            f"{path}: {len(rows) - len(judged)} of {len(rows)} rows have no reference_answer; they are left out, as no answer to them can "
            "be judged."
        )
    return tuple(replace(read_question(row, where), hint=hint_of(row, where), where=where) for where, row in judged), digest


def read_question(row: Any, where: str) -> Question:
    """The question of a row, its options as in the file.

    Raises:
        ConfigError: it has none, or not one right option.
    """
    if not isinstance(row, dict):
        raise ConfigError(
            f"{where}: {type(row).__name__} instead of an object with a question and its answer. Write the row as an object."
        )
    if isinstance(row.get("record id"), str):
        where = f"{where} ({excerpt(row['record id'], 40)})"
    stem = next((row[name] for name in STEMS if row.get(name) is not None), None)
    if not isinstance(stem, str) or not stem.strip():
        raise ConfigError(f"{where} has no question: a text in the column question. Its columns: {columns(row)}.")
    stem, family = stem.strip(), _family(row, where)
    if GPQA[0] in row:
        options = _texts([row.get(name) for name in GPQA], where)
        worked = row.get("explanation")
        if options[0] in options[1:]:
            raise ConfigError(f"{where}: the correct answer {excerpt(options[0])} is an incorrect one, too. Correct the row.")
        return Question(
            stem, options[0], family, options, 0, ordered=False, worked=worked.strip() if isinstance(worked, str) else ""
        )
    listed = _options(row, where)
    if listed is None:
        return _without_options(row, stem, family, where)
    labels, options = listed
    right = _right(row, labels, options, where)
    return Question(stem, options[right], family, options, right)


def _family(row: dict[str, Any], where: str) -> str:
    """Subject or domain, as words that metrics can be named after."""
    name = next((name for name in FAMILY if isinstance(row.get(name), str) and row[name].strip()), None)
    said = "" if name is None else read_name(row[name], f"{where}: {name}")
    return re.sub(r"\W+", "_", said.casefold()).strip("_") or "science"


def _options(row: dict[str, Any], where: str) -> tuple[Sequence[str], tuple[str, ...]] | None:
    """Labels and texts of the options; None: there are none."""
    given = next((row[name] for name in OPTIONS if row.get(name) is not None), None)
    if isinstance(given, str):  # in a CSV file
        given = parse_json(given, f"{where}: options", advice='Write them as a list of texts in JSON, as ["1 m", "2 m"].')
    if given is None:
        given = {letter: row[letter] for letter in LETTERS.lower() if row.get(letter) not in (None, "")}
        if not given:
            return None
    labels: Sequence[str] = LETTERS
    if isinstance(given, dict):
        if set(given) == {"text", "label"}:  # as ARC has them
            labels, given = map(_listed, (given["label"], given["text"]))
        else:  # a table has a column for every letter that occurs in it
            kept = {label: option for label, option in given.items() if option is not None}
            labels, given = list(kept), list(kept.values())
        labels = [str(label).strip().upper() for label in labels]
        if len(set(labels)) < len(labels) or len(labels) != len(given):
            raise ConfigError(f"{where}: the options are called {excerpt(labels)}. Give each a name of its own.")
    return labels, _texts(_listed(given), where)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _texts(options: Sequence[Any], where: str) -> tuple[str, ...]:
    """The options, each in one line."""
    if not 2 <= len(options) <= len(LETTERS):
        raise ConfigError(f"{where} has {len(options)} options; a question has 2 to {len(LETTERS)}. Correct the row.")
    for number, option in enumerate(options, 1):
        if not _is_number(option) and not (isinstance(option, str) and option.strip()):
            raise ConfigError(
                f"{where}: option {number} is {excerpt(option)} instead of a text. Correct the row, or leave it out."
            )
    return tuple(" ".join(str(option).split()) for option in options)


def _right(row: dict[str, Any], labels: Sequence[str], options: Sequence[str], where: str) -> int:
    """Which option the row says is right: by its place from 0, its letter or its text."""
    gold = next((row[name] for name in GOLDS if row.get(name) is not None), None)
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    advice = "Give the option's place from 0, its letter or its text."
    if isinstance(gold, int) and not isinstance(gold, bool):
        if 0 <= gold < len(options):
            return gold
        raise ConfigError(f"{where}: the answer is {gold}, but there are {len(options)} options, the first is 0. {advice}")
    said = " ".join(gold.split()) if isinstance(gold, str) else ""
    if not said:
        raise ConfigError(f"{where} has no answer in the column answer. {advice} Its columns: {columns(row)}.")
    letter = said.strip("().").upper()
    meant = {index for index, label in enumerate(labels[: len(options)]) if label == letter}
    meant |= {index for index, option in enumerate(options) if option == said}
    if not meant and said.isascii() and said.isdigit():  # in a CSV file
        meant = {index for index in range(len(options)) if str(index) == said}
    if len(meant) != 1:
        found = f"options {' and '.join(LETTERS[index] for index in sorted(meant))}" if meant else "no option"
        raise ConfigError(f"{where}: the answer {excerpt(gold)} means {found} of {excerpt(list(options), 200)}. {advice}")
    return meant.pop()


def _without_options(row: dict[str, Any], stem: str, family: str, where: str) -> Question:
    """MegaScience's row: the gold answer is the short one; `answer` works it out."""
    gold, worked = row.get("reference_answer"), row.get("answer")
    if not _is_number(gold) and not (isinstance(gold, str) and gold.strip() and not is_written_list(gold)):
        raise ConfigError(
            f"{where} has neither options (a list or an object in the column choices or options, or columns A, B, C, ...) nor a "
            f"reference_answer (a text or a number). Its columns: {columns(row)}. Write them, or leave the row out."
        )
    return Question(stem, str(gold).strip(), family, worked=worked.strip() if isinstance(worked, str) else "")


def _unanswered(row: Any) -> bool:
    """Whether it is one of MegaScience's rows that have a worked answer only."""
    if not isinstance(row, dict) or "reference_answer" not in row or any(row.get(name) is not None for name in OPTIONS):
        return False
    gold = row["reference_answer"]
    return gold is None or (isinstance(gold, str) and not gold.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)

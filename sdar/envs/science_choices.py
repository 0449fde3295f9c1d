r"""Questions of science: how one is told, in which order its options stand, and whether an answer is right.

An answer names an option by its letter (``B``, ``(b)``, ``\text{B}``, ``B) copper``) or by its text.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from sdar.envs.math_checking import LONGEST_ANSWER, is_correct, plain

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BY_LETTER, BY_VALUE = "Answer with the letter of the right option.", "Answer with the result alone."

_DRESS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|operatorname)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[*\s]*[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:]?[*\s]*")
_LETTER_AND_TEXT = re.compile(r"[*\s]*[(\[]?\s*([A-Za-z])\s*[)\].:]+[*\s]*(\S.*)", re.DOTALL)
_OTHERS = re.compile(r"\b(?:all|any|none|neither|either|both)\b.*\b(?:above|these|those)\b", re.IGNORECASE | re.DOTALL)
"""All of the above: an option that speaks of the others keeps its place."""
_NAMED = re.compile(r"\(?\b([A-Z])\b\)?,?\s*(?:and|or|nor|&)\s*\(?\b([A-Z])\b")
"""Both A and C: an option that names others by their letters; its question keeps its order."""
_WORDS = re.compile(r"[^\W\d_]{4,}(?:[ -][^\W\d_]+)*")


@dataclass(frozen=True)
class Question:
    """A question with options, of which one is right, or without: then `answer` is compared as text or number."""

    stem: str
    answer: str
    """The text of the right option, or the gold answer."""
    family: str
    options: tuple[str, ...] = ()
    right: int = -1
    """Which option is right, from 0; -1 without options."""
    ordered: bool = True
    """The options stand in an order that its author saw: one may speak of others."""
    worked: str = ""
    """How the answer is found, in words; empty where nobody wrote it."""
    program: str = ""
    """Prints what the answer says; empty where there is nothing to compute."""
    hint: str = ""
    where: str = field(default="", compare=False)
    """File and row, for errors."""

    @property
    def text(self) -> str:
        """What a policy is told."""
        if not self.options:
            return f"{self.stem}\n\n{BY_VALUE}"
        listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False))
        return f"{self.stem}\n\n{listed}\n\n{BY_LETTER}"

    @property
    def content(self) -> str:
        """What stays the same when options change places."""
        return "\n".join([self.stem, *sorted(self.options)])

    @property
    def gold(self) -> str:
        """The answer as a policy should give it: a letter where there are options."""
        return LETTERS[self.right] if self.options else self.answer

    @property
    def told(self) -> str:
        """The answer as a teacher is told it."""
        return f"{self.gold}) {self.answer}" if self.options else self.answer


def shuffled(question: Question, seed: int | None) -> Question:
    """The question with its options in an order of this seed, the same wherever it stands; None: as they are.

    Where their author saw an order, options that speak of all others keep their place, and all do where one names others by letter.
    """
    count = len(question.options)
    if seed is None or (question.ordered and any(_names_letters(option, count) for option in question.options)):
        return question
    rng = random.Random(f"options/{seed}/{question.content}".encode("utf-8", "surrogatepass"))
    free = [place for place, option in enumerate(question.options) if not (question.ordered and _OTHERS.search(option))]
    order = list(range(count))
    for place, source in zip(free, rng.sample(free, len(free)), strict=True):
        order[place] = source
    options = tuple(question.options[source] for source in order)
    return replace(question, options=options, right=order.index(question.right) if options else -1)


def is_right(question: Question, answer: str, python: str | None = None) -> bool:
    """Whether an answer is right. Any text may be given.

    Args:
        python: Interpreter that has math-verify, for questions without options; by default this one.
    """
    if question.options:
        return chosen(answer, question.options) == question.right
    if len(answer) > LONGEST_ANSWER:
        return answer == question.answer
    gold, said = _compared(question.answer), _compared(answer)
    if gold != said and gold.casefold() == said.casefold():  # Co is no CO, and 5 MHz are no 5 mHz
        return _WORDS.fullmatch(question.answer.strip()) is not None or gold[1:] == said[1:]
    return is_correct(question.answer, answer, python=python)


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """Which of the options an answer chooses; None: none, or more than one.

    A letter counts before a text. A letter with a text chooses when the text is that of its option; case does not count unless options
    differ in nothing else, nor do spaces; a text that two options have chooses none.
    """
    if len(answer) > LONGEST_ANSWER + max(map(len, options)):
        return None
    said = _undressed(answer)
    letter = _LETTER.fullmatch(said)
    if letter and (index := _place(letter[1])) < len(options):
        return index
    named = _LETTER_AND_TEXT.fullmatch(said)
    if (
        named
        and (index := _place(named[1])) < len(options)
        and _compared(named[2]).casefold() == _compared(options[index]).casefold()
    ):
        return index
    for form in (_spaced, _compared, _folded):
        found = [index for index, option in enumerate(options) if form(option) == form(said) != ""]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _place(letter: str) -> int:
    return LETTERS.index(letter.upper())


def _names_letters(option: str, count: int) -> bool:
    return any(max(map(_place, pair)) < count for pair in _NAMED.findall(option))


def _undressed(text: str) -> str:
    """Without the commands of LaTeX that set words in a font."""
    text = text.strip()
    while (barer := _DRESS.sub(r"\1", text)) != text:
        text = barer
    return text.strip().strip("$").strip()


@lru_cache(maxsize=16384)
def _compared(text: str) -> str:
    return plain(_undressed(text))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> str:
    return _compared(text).casefold()

"""Questions of science: multiple choice or a short answer, with Python as a tool."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from sdar.envs import math_checking, science_generated
from sdar.envs.answer_env import RIGHT, WRONG, AnswerEnv
from sdar.envs.duplicates import distinct
from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.envs.problem_env import MALFORMED, NO_CALLS_LEFT, NO_OUTPUT, families_of, measured_elsewhere
from sdar.envs.science_choices import BY_LETTER, Question, is_right, shuffled
from sdar.envs.science_generated import FAMILIES
from sdar.envs.science_questions import file_questions, rows_as_written
from sdar.envs.worked_solutions import Hints, check_hints
from sdar.parts import Expert
from sdar.paths import resolve
from sdar.registry import register
from sdar.sandbox.base import CodeRunner
from sdar.skills import SkillBank

GENERATOR = 1
"""Raised whenever the same arguments would make another question, or another order of options, so that no panel can mean two things."""

PHRASES = [
    "```python\n",
    "\n```",
    "```output\n",
    "\\boxed{",
    "print(",
    "round(",
    "\n\nA) ",
    "\nB) ",
    "\nC) ",
    "\nD) ",
    f"\n\n{BY_LETTER}",
    "What is the ",
    "Which element has the ",
    " atomic number ",
    "How many ",
    "To which group of animals does the ",
    " belong?",
    "Which of these is in the same group of animals as the ",
    " Atomic masses: ",
    " How large is the ",
    NO_CALLS_LEFT,
    NO_OUTPUT,
    MALFORMED,
]


@register("science")
class ScienceEnv(AnswerEnv):
    r"""Questions of science with options or a short answer, and a Python interpreter.

    Actions are those of `MathEnv`. Where a question has options, the answer is right when it is the letter of the right one (``B``,
    ``(b)``, ``\text{B}``), its text, or both; otherwise when `is_correct` of the gold answer says so.

    Args:
        split: Where training questions come from. Generated questions of different splits never ask the same.
        files: Split -> JSONL (it may end in .gz), CSV or parquet file, instead of generated questions. Columns, in any case: GPQA's
            (``Question``, ``Correct Answer``, ``Incorrect Answer 1`` to ``3``); or ``question``, options in ``choices`` or ``options`` (a
            list, or an object such as ``{A: ..., B: ...}``) or in columns ``A``, ``B``, ..., and ``answer``, the right one's place from 0,
            its letter or its text; or MegaScience's (``question``, ``reference_answer``). The family is the high-level domain, subdomain,
            ``subject``, ``category`` or ``type``. A row that repeats the question and options of an earlier one is left out, and a
            training row whose question and options stand in another split's file. Perhaps ``hint``, for teachers.
        families: Families of generated questions, all by default.
        shuffle_seed: Options stand in an order of this seed, the same for a question wherever it occurs; None: as in the file. An option
            that speaks of all others (all of the above) keeps its place, and so do all where one names others by letter.
        runner: What runs the code; by default the best sandbox of this machine.
        stateful: What earlier calls of an episode defined is there in later ones (they are run again, within the same limits).
        horizon: Most responses in an episode, answers included (SOD: 16).
        max_tool_calls: Most calls in an episode; None: as many as there are responses.
        reward: ``binary``: 1 or 0. ``signed``: 1 or -1. ``sod``: signed, but a wrong answer gets 0.1 for each program that was run, at
            most -0.6 together.
        output_chars: Most characters of an output that are told; the middle is cut.
        verify_python: Interpreter that has math-verify, which compares answers of questions without options; by default this one.
        hints: As in `MathEnv`; solutions are GPQA's explanations and MegaScience's answers.
    """

    protocol_name, world_kind, id_prefix = "hermes_science", "science", "science"
    generated_splits = science_generated.SPLITS

    def __init__(
        self,
        split: str = "train",
        files: dict[str, str] | None = None,
        families: list[str] | None = None,
        shuffle_seed: int | None = 0,
        runner: CodeRunner | None = None,
        stateful: bool = False,
        horizon: int = 16,
        max_tool_calls: int | None = None,
        reward: Literal["binary", "signed", "sod"] = "binary",
        output_chars: int = 2000,
        verify_python: str | None = None,
        hints: Hints = "column",
    ):
        super().__init__(split, files, runner, stateful, horizon, max_tool_calls, reward, output_chars)
        self.families = families_of(families, FAMILIES, files)
        check_hints(hints, files)
        self.shuffle_seed, self.hints = shuffle_seed, hints
        self.verify_python = verify_python
        self._mark([GENERATOR, self.families, shuffle_seed], reading=[GENERATOR, shuffle_seed])

    def problem(self, task_id: str) -> Question:
        """The question of a task id, the same on every machine."""
        question: Question = self._problem(task_id)
        return question

    def check(self) -> None:
        """Whether code can be run, and answers compared where there are no options."""
        super().check()
        paths = [str(resolve(path)) for path in (self.files or {}).values()]
        if any(not question.options for path in paths for question in self._file(path)[0]):
            math_checking.check(self.verify_python)

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "ScienceExpert":
        return ScienceExpert(self, self.problem(self.ongoing().task_id))

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        texts = [NO_CALLS_LEFT, NO_OUTPUT, MALFORMED, RIGHT, WRONG]
        texts += [skill.text for skill in SkillBank.load("conf/skills/science")] * 3  # read in words, not in bytes
        for i in range(60 * len(self.families)):
            q = _generated(self.families[i % len(self.families)], "train", f"corpus/{rng.random()}", self.shuffle_seed)
            texts += [q.text, q.hint, f"\\boxed{{{q.gold}}}", f"```python\n{q.program}\n```" if q.program else q.answer]
        return texts, PHRASES

    def _is_right(self, problem: Question, answer: str) -> bool:
        return is_right(problem, answer, self.verify_python)

    def _generated(self, split: str, seed: str, index: int) -> Question:
        return _generated(self.families[index % len(self.families)], split, f"{seed}/{index}", self.shuffle_seed)

    def _file(self, path: str) -> tuple[Sequence[Question], str]:
        return file_questions(path, self.shuffle_seed)

    def _kept(self, split: str) -> list[int]:
        return _kept(*measured_elsewhere(self, split))


class ScienceExpert(Expert):
    """Runs the program that computes the answer, once, then gives the answer."""

    def __init__(self, env: ScienceEnv, question: Question):
        self.env, self.question = env, question

    def act(self) -> str:
        known = self.env.ongoing().turns or not self.question.program
        return ANSWER + self.question.gold if known else PYTHON + self.question.program

    def watch(self, action: str) -> None:
        """Everything that it goes by is in the episode."""


@lru_cache(maxsize=8192)
def _generated(family: str, split: str, name: str, shuffle_seed: int | None) -> Question:
    return shuffled(science_generated.generate(family, split, name), shuffle_seed)


@lru_cache(maxsize=16)
def _kept(path: str, measured: tuple[str, ...]) -> list[int]:
    others = [question.content for other in measured for question in rows_as_written(other)[0]]
    return distinct(path, [question.content for question in rows_as_written(path)[0]], others)

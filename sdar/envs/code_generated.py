"""Generated programming problems: a list of numbers or words is filtered, changed and summed up; read from standard input or given to a
function.

Expected outputs are computed here in one way and by the reference program in another.
"""

import json
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from sdar.envs.code_problems import CallTest, CodeProblem, StdinTest, Test, shown

SPLITS = ("train", "seen", "unseen")
TESTS, EXAMPLES = 5, 2
"""Tests of a problem, and how many of them it tells."""
TIME_S = 5.0

Rule = tuple[str, str, Callable[[Any], Any]]
"""What is said, an expression in x (of one item, or of all of them), and what it is."""


def _composed(items: str, kept: Rule, changed: Rule, ends: Rule) -> tuple[str, str, Callable[[list], Any]]:
    """What is asked, the expression that answers it, and the same computed in another way."""
    text = f"Of the given {items} take {kept[0]}, {changed[0]}, and give {ends[0]}."
    program = ends[1].replace("items", f"[{changed[1]} for x in items if {kept[1]}]")
    return text, program, lambda items: ends[2]([changed[2](x) for x in items if kept[2](x)])


def numbers(rng: random.Random) -> tuple[str, str, Callable[[list], Any], Callable[[], list]]:
    """Text, expression in ``items``, function and a maker of inputs of a problem about numbers."""
    k, t, c = rng.randint(2, 9), rng.randint(-20, 20), rng.randint(2, 9)
    kept: Rule = rng.choice(
        [
            (f"those divisible by {k}", f"x % {k} == 0", lambda x: x % k == 0),
            (f"those greater than {t}", f"x > {t}", lambda x: x > t),
            ("the odd ones", "x % 2", lambda x: x % 2 == 1),
            ("the negative ones", "x < 0", lambda x: x < 0),
        ]
    )
    changed: Rule = rng.choice(
        [
            (f"multiply each by {c}", f"x * {c}", lambda x: x * c),
            (f"add {c} to each", f"x + {c}", lambda x: x + c),
            ("square each", "x * x", lambda x: x**2),
            ("take its absolute value", "abs(x)", lambda x: -x if x < 0 else x),
        ]
    )
    ends: Rule = rng.choice(
        [
            ("their sum", "sum(items)", lambda items: sum(items)),
            ("the largest of them, or 0 if there is none", "max(items, default=0)", lambda items: sorted([*items])[-1] if items else 0),
            (f"how many of them leave remainder 1 modulo {k}", f"sum(x % {k} == 1 for x in items)",
             lambda items: len([x for x in items if x % k == 1])),
            ("how many different numbers they are", "len(set(items))", lambda items: len(dict.fromkeys(items))),
        ]
    )  # fmt: skip
    return *_composed("integers", kept, changed, ends), lambda: [rng.randint(-50, 50) for _ in range(rng.randint(1, 12))]


def words(rng: random.Random) -> tuple[str, str, Callable[[list], Any], Callable[[], list]]:
    """As `numbers`, about words."""
    k, letter = rng.randint(2, 5), rng.choice("abcde")
    kept: Rule = rng.choice(
        [
            (f"those with at least {k} letters", f"len(x) >= {k}", lambda x: len(x) >= k),
            (f"those with the letter {letter}", f"{letter!r} in x", lambda x: x.count(letter) > 0),
            (f"those that do not begin with {letter}", f"x[0] != {letter!r}", lambda x: not x.startswith(letter)),
        ]
    )
    changed: Rule = rng.choice(
        [
            ("reverse each", "x[::-1]", lambda x: "".join(reversed(x))),
            ("write each in capitals", "x.upper()", lambda x: x.upper()),
            (f"keep the first {k} letters of each", f"x[:{k}]", lambda x: "".join(c for i, c in enumerate(x) if i < k)),
        ]
    )
    ends: Rule = rng.choice(
        [
            ("them in this order, with a hyphen between two", "'-'.join(items)", lambda items: "-".join(items)),
            ("them in alphabetical order, with a hyphen between two", "'-'.join(sorted(items))", lambda items: "-".join(sorted(items))),
            ("the number of their letters", "sum(map(len, items))", lambda items: len("".join(items))),
        ]
    )  # fmt: skip

    def drawn() -> list[str]:
        return ["".join(rng.choices("abcdefgh", k=rng.randint(1, 7))) for _ in range(rng.randint(1, 8))]

    return *_composed("words", kept, changed, ends), drawn


FAMILIES = {f"{make.__name__}_{form}": (make, form) for make in (numbers, words) for form in ("input", "call")}


def generate(family: str, split: str, name: str) -> CodeProblem:
    """The problem called `name`. A text belongs to one split, whatever name it was drawn under: 8 of 10 to train."""
    make, form = FAMILIES[family]
    rng = random.Random(f"code/{family}/{split}/{name}")
    while True:
        text, expression, function, inputs = make(rng)
        given = [inputs() for _ in range(TESTS)]
        varied = (
            len({str(function(items)) for items in given}) > TESTS // 2
        )  # else a program that says one thing would nearly pass
        if varied and SPLITS[max(0, sha256(text.encode()).digest()[0] % 10 - 7)] == split:
            break
    if form == "call":
        text += " Write a function solve(items)."
        program = f"def solve(items):\n    return {expression}\n"
        tests: list[Test] = [CallTest(json.dumps(items), json.dumps(function(items))) for items in given]
    else:
        text += " They stand in one line, with a space between two."
        read = "map(int, input().split())" if make is numbers else "input().split()"
        program = f"items = list({read})\nprint({expression})\n"
        tests = [StdinTest(" ".join(map(str, items)) + "\n", f"{function(items)}\n") for items in given]
    return CodeProblem(
        text=text,
        family=family,
        tests=tuple(tests),
        entry="solve" if form == "call" else "",
        examples=shown(tests[:EXAMPLES], text),
        solution=program,
        time_s=TIME_S,
    )

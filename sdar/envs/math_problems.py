"""Generated problems whose answers are integers, with a program that finds each.

Every family is a function from a random generator and a level to a `Problem`; the answer is computed here in one way and by the
program in another.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from math import comb, lcm

LEVELS = ("easy", "full")
SPLITS = ("train", "seen", "unseen")


@dataclass(frozen=True)
class Problem:
    """A question with a checkable answer; `program`, `hint` and `worked` are empty where nobody wrote them."""

    text: str
    answer: str
    family: str
    program: str = ""
    hint: str = ""
    worked: str = ""
    """How the answer is found, in words."""
    where: str = field(default="", compare=False)
    """File and row, for errors."""

    @property
    def gold(self) -> str:
        """The answer as a policy should give it."""
        return self.answer

    @property
    def told(self) -> str:
        """The answer as a teacher is told it."""
        return self.answer


def modular_arithmetic(rng: random.Random, level: str) -> Problem:
    """A power plus a product, modulo a number."""
    top = 20 if level == "easy" else 10**4
    a, b, c, d = rng.randint(2, top), rng.randint(2, top), rng.randint(2, top), rng.randint(2, top)
    m = rng.randint(5, 99 if level == "easy" else 9999)
    power, base, exponent = 1, a % m, b
    while exponent:
        if exponent & 1:
            power = power * base % m
        base, exponent = base * base % m, exponent >> 1
    return Problem(
        f"Find the remainder when {a}^{b} + {c} * {d} is divided by {m}.",
        str((power + c * d) % m),
        "modular_arithmetic",
        f"print(({a}**{b} + {c}*{d}) % {m})",
        "Python's integers have no limit: compute the power and use %.",
    )


def counting(rng: random.Random, level: str) -> Problem:
    """Integers in a range that are divisible by one of two numbers and not by a third."""
    small = level == "easy"
    n = rng.randint(30, 300) if small else rng.randint(10**3, 10**5)
    a, b, c = rng.sample(range(2, 12 if small else 60), 3)

    def multiples(*numbers: int) -> int:
        return n // lcm(*numbers)

    either = multiples(a) + multiples(b) - multiples(a, b)
    excluded = multiples(a, c) + multiples(b, c) - multiples(a, b, c)
    return Problem(
        f"How many integers from 1 to {n} are divisible by {a} or {b} but not by {c}?",
        str(either - excluded),
        "counting",
        f"print(sum((n%{a}==0 or n%{b}==0) and n%{c}!=0 for n in range(1,{n + 1})))",
        "Let a program test every integer of the range and count.",
    )


def number_sequences(rng: random.Random, level: str) -> Problem:
    """A term of a linear recurrence, modulo a number."""
    small = level == "easy"
    p, q, first, second = (rng.randint(1, 4 if small else 20) for _ in range(4))
    n = rng.randint(6, 20) if small else rng.randint(50, 3000)
    m = rng.randint(10, 99) if small else rng.randint(100, 9999)

    def times(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
        a, b, c, d = x
        e, f, g, h = y
        return (a * e + b * g) % m, (a * f + b * h) % m, (c * e + d * g) % m, (c * f + d * h) % m

    result: tuple[int, ...] = (1, 0, 0, 1)
    step: tuple[int, ...] = (p, q, 1, 0)
    steps = n - 1
    while steps:
        if steps & 1:
            result = times(result, step)
        step, steps = times(step, step), steps >> 1
    return Problem(
        f"A sequence has a(1) = {first}, a(2) = {second} and a(n) = {p} a(n-1) + {q} a(n-2). Find a({n}) modulo {m}.",
        str((result[2] * second + result[3] * first) % m),
        "number_sequences",
        f"x, y = {first}, {second}\nfor _ in range({n - 1}):\n    x, y = y, {p}*y + {q}*x\nprint(x % {m})",
        "Keep two neighbouring terms and step forward in a loop.",
    )


def systems_of_equations(rng: random.Random, level: str) -> Problem:
    """Linear equations with one integer solution; a combination of the unknowns is asked for."""
    small = level == "easy"
    size, top, coefficients = (2, 9, 5) if small else (3, 60, 20)
    names = "xyz"[:size]
    while True:
        matrix = [[rng.choice([-1, 1]) * rng.randint(1, coefficients) for _ in names] for _ in names]
        if _determinant(matrix):
            break
    values = [rng.randint(-top, top) for _ in names]
    weights = [rng.randint(1, 9) for _ in names]
    sides = [sum(c * v for c, v in zip(row, values, strict=True)) for row in matrix]
    equations = ", ".join(f"{_sum(row, names)} = {side}" for row, side in zip(matrix, sides, strict=True))
    left = ", ".join(f"{_sum(row, names, '*')} - ({side})" for row, side in zip(matrix, sides, strict=True))
    return Problem(
        f"Solve {equations}. Find {_sum(weights, names)}.",
        str(sum(w * v for w, v in zip(weights, values, strict=True))),
        "systems_of_equations",
        f"from sympy import *\n{','.join(names)} = symbols('{' '.join(names)}')\ns = solve([{left}])\n"
        f"print(({_sum(weights, names, '*')}).subs(s))",
        "sympy's solve takes a list of expressions that are zero.",
    )


def combinatorics(rng: random.Random, level: str) -> Problem:
    """Subsets of a given size whose sum has a given remainder."""
    small = level == "easy"
    n, k = (rng.randint(6, 30), rng.randint(2, 4)) if small else (rng.randint(14, 24), rng.randint(3, 5))
    m = rng.randint(2, 9) if small else rng.randint(3, 13)
    r = rng.randrange(m)
    table = [[0] * m for _ in range(k + 1)]  # subsets by size and remainder
    table[0][0] = 1
    for value in range(1, n + 1):
        for size, rest in product(range(k, 0, -1), range(m)):
            table[size][(rest + value) % m] += table[size - 1][rest]
    assert sum(table[k]) == comb(n, k)
    return Problem(
        f"In how many ways can {k} different numbers be chosen from 1 to {n} so that their sum leaves remainder {r} modulo {m}?",
        str(table[k][r]),
        "combinatorics",
        f"from itertools import combinations\nprint(sum(sum(c)%{m}=={r} for c in combinations(range(1,{n + 1}),{k})))",
        "itertools.combinations lists every choice.",
    )


def digits(rng: random.Random, level: str) -> Problem:
    """Sum of the digits of a power."""
    top = 12 if level == "easy" else 300
    a, b = rng.randint(2, 999), rng.randint(2, top)
    value, total = a**b, 0
    while value:
        value, digit = divmod(value, 10)
        total += digit
    return Problem(
        f"Find the sum of the digits of {a}^{b}.",
        str(total),
        "digits",
        f"print(sum(map(int,str({a}**{b}))))",
        "Turn the power into a string and add its characters as numbers.",
    )


FAMILIES: dict[str, Callable[[random.Random, str], Problem]] = {
    make.__name__: make
    for make in (modular_arithmetic, counting, number_sequences, systems_of_equations, combinatorics, digits)
}


def generate(family: str, level: str, split: str, name: str) -> Problem:
    """The problem called `name`. A text belongs to one split, whatever name it was drawn under: 8 of 10 to train."""
    rng = random.Random(f"math/{family}/{level}/{split}/{name}")
    while True:
        problem = FAMILIES[family](rng, level)
        if split_of(problem.text) == split:
            return problem


def split_of(text: str) -> str:
    """Which split a problem text belongs to."""
    return SPLITS[max(0, sha256(text.encode()).digest()[0] % 10 - 7)]


def _determinant(matrix: list[list[int]]) -> int:
    if len(matrix) == 1:
        return matrix[0][0]
    minors = ([row[:i] + row[i + 1 :] for row in matrix[1:]] for i in range(len(matrix)))
    return sum((-1) ** i * matrix[0][i] * _determinant(minor) for i, minor in enumerate(minors))


def _sum(coefficients: list[int], names: str, times: str = "") -> str:
    """``3x - y + 2z``."""
    terms = []
    for c, name in zip(coefficients, names, strict=True):
        size = name if abs(c) == 1 else f"{abs(c)}{times}{name}"
        terms.append(f"{'-' if c < 0 else '+'} {size}")
    joined = " ".join(terms)
    return joined[2:] if joined[0] == "+" else "-" + joined[2:]

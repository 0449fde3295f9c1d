"""Generated questions of science with four options: from small tables of facts, and computed.

Every family is a function from a random generator to a `Question` whose right option is the first; `generate` puts them in an order.
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from sdar.envs.math_problems import SPLITS as SPLITS
from sdar.envs.math_problems import split_of
from sdar.envs.science_choices import Question, shuffled

_TABLE = """
H hydrogen 1 1.0, He helium 2 4.0, Li lithium 3 6.9, Be beryllium 4 9.0, B boron 5 10.8, C carbon 6 12.0,
N nitrogen 7 14.0, O oxygen 8 16.0, F fluorine 9 19.0, Ne neon 10 20.2, Na sodium 11 23.0, Mg magnesium 12 24.3,
Al aluminium 13 27.0, Si silicon 14 28.1, P phosphorus 15 31.0, S sulfur 16 32.1, Cl chlorine 17 35.5,
Ar argon 18 39.9, K potassium 19 39.1, Ca calcium 20 40.1, Cr chromium 24 52.0, Mn manganese 25 54.9, Fe iron 26 55.8,
Co cobalt 27 58.9, Ni nickel 28 58.7, Cu copper 29 63.5, Zn zinc 30 65.4, Br bromine 35 79.9, Kr krypton 36 83.8,
Ag silver 47 107.9, Sn tin 50 118.7, I iodine 53 126.9, Xe xenon 54 131.3, Ba barium 56 137.3, W tungsten 74 183.8,
Pt platinum 78 195.1, Au gold 79 197.0, Hg mercury 80 200.6, Pb lead 82 207.2, U uranium 92 238.0
"""
ELEMENTS = [tuple(line.split()) for line in _TABLE.split(",")]
"""Symbol, name, atomic number, atomic mass (standard atomic weights, to one decimal)."""
MASSES = {symbol: mass for symbol, _, _, mass in ELEMENTS}
ANIMALS = {
    "mammals": "whale bat otter horse mouse elephant kangaroo seal",
    "birds": "sparrow penguin owl ostrich eagle duck pigeon robin",
    "reptiles": "crocodile turtle gecko viper iguana cobra chameleon tortoise",
    "amphibians": "frog newt toad salamander axolotl treefrog caecilian olm",
    "fish": "salmon tuna trout carp herring cod seahorse pike",
    "insects": "beetle ant wasp butterfly dragonfly mosquito termite cricket",
    "arachnids": "spider scorpion tick mite tarantula harvestman vinegaroon camelspider",
    "crustaceans": "crab lobster shrimp barnacle krill crayfish woodlouse prawn",
}
CLASS_OF = {animal: group for group, animals in ANIMALS.items() for animal in animals.split()}
PREFIXES = {"kilo": "1000", "mega": "1000000", "giga": "1000000000", "centi": "1/100", "milli": "1/1000", "micro": "1/1000000"}
UNITS = ("metre", "gram", "second", "joule", "watt", "volt", "newton", "pascal")
COMPOUNDS = {
    "water": "H2O1",
    "carbon dioxide": "C1O2",
    "ammonia": "N1H3",
    "methane": "C1H4",
    "table salt": "Na1Cl1",
    "sulfuric acid": "H2S1O4",
    "glucose": "C6H12O6",
    "lime": "Ca1O1",
    "ethanol": "C2H6O1",
    "iron oxide": "Fe2O3",
    "silicon dioxide": "Si1O2",
    "nitric acid": "H1N1O3",
}
FORMULAS: list[tuple[str, str, str]] = [
    ("A force gives a body of {a} kg an acceleration of {b} m/s^2. How large is the force?", "{a} * {b}", "N"),
    ("A body of {a} kg moves at {b} m/s. How large is its momentum?", "{a} * {b}", "kg m/s"),
    ("A body of {a} kg moves at {b} m/s. How large is its kinetic energy?", "{a} * {b}**2 / 2", "J"),
    ("A car drives {a} m in {b} s at a constant speed. How fast is it?", "{a} / {b}", "m/s"),
    ("A current of {a} A flows through {b} ohm. How large is the voltage?", "{a} * {b}", "V"),
    ("A lamp at {a} V takes {b} A. How large is its power?", "{a} * {b}", "W"),
    ("A block of {a} g fills {b} cm^3. How large is its density?", "{a} / {b}", "g/cm^3"),
    ("A wave of {a} Hz has a wavelength of {b} m. How fast is it?", "{a} * {b}", "m/s"),
]


def elements(rng: random.Random) -> Question:
    """Symbol, name and number of an element."""
    column, template = rng.choice([
        (0, "What is the symbol of {1}?"),
        (0, "Which symbol belongs to the atomic number {2}?"),
        (1, "Which element has the symbol {0}?"),
        (1, "Which element has the atomic number {2}?"),
        (2, "What is the atomic number of {1}?"),
        (2, "How many protons are in an atom of {1}?"),
    ])  # fmt: skip
    known = [
        element for element in ELEMENTS if column or len(element[0]) > 1
    ]  # a symbol of one letter could be an option's letter
    element, *others = rng.sample(known, 4)
    hint = "The atomic number counts the protons and is the place in the periodic table."
    return _question(template.format(*element), element[column], [other[column] for other in others], "elements", hint=hint)


def animals(rng: random.Random) -> Question:
    """The class of an animal, and what else is in it."""
    animal = rng.choice(list(CLASS_OF))
    group = CLASS_OF[animal]
    others = rng.sample([name for name in ANIMALS if name != group], 3)
    hint = "Ask how many legs it has, whether it breathes by lungs, and what covers it."
    if rng.random() < 0.5:
        return _question(f"To which group of animals does the {animal} belong?", group, others, "animals", hint=hint)
    right, *wrong = (rng.choice([a for a in ANIMALS[name].split() if a != animal]) for name in (group, *others))
    return _question(f"Which of these is in the same group of animals as the {animal}?", right, wrong, "animals", hint=hint)


def units(rng: random.Random) -> Question:
    """How many of a unit are so many of it with a prefix."""
    prefix, unit, count = rng.choice(list(PREFIXES)), rng.choice(UNITS), rng.randint(2, 99)
    size = Fraction(PREFIXES[prefix])
    right, *wrong = (_decimal(count * value) for value in (size, size * 10, size / 10, 1 / size))
    return _question(
        f"How many {unit}s are {count} {prefix}{unit}s?", right, wrong, "units", f"print({count} * {PREFIXES[prefix]})",
        "kilo is a thousand, mega a million, giga a thousand million; centi a hundredth, milli a thousandth, micro a millionth.",
    )  # fmt: skip


def masses(rng: random.Random) -> Question:
    """The mass of some moles of a compound."""
    name, moles = rng.choice(list(COMPOUNDS)), rng.randint(2, 30)
    parts = [(symbol, int(count)) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d+)", COMPOUNDS[name])]
    formula = re.sub(r"(?<=[A-Za-z])1(?!\d)", "", COMPOUNDS[name])
    one = sum((count * Fraction(MASSES[symbol]) for symbol, count in parts), Fraction())
    right, *wrong = (f"{_decimal(value)} g" for value in (moles * one, (moles + 1) * one, (moles - 1) * one, moles * one + 2))
    given = ", ".join(f"{symbol} {MASSES[symbol]}" for symbol, _ in parts)
    return _question(
        f"What is the mass of {moles} mol of {name}, {formula}? Atomic masses: {given}.", right, wrong, "masses",
        f"print(round({moles} * ({' + '.join(f'{count} * {MASSES[symbol]}' for symbol, count in parts)}), 1))",
        "Add the atomic masses, each as often as its atom is in the formula, and multiply by the number of moles.",
    )  # fmt: skip


def formulas(rng: random.Random) -> Question:
    """One step of physics with two numbers."""
    told, computed, unit = rng.choice(FORMULAS)
    b = rng.randint(2, 12)
    a = rng.randint(2, 60) * (b if "/ {b}" in computed else 2)
    value = {"{a} * {b}": a * b, "{a} / {b}": a // b, "{a} * {b}**2 / 2": a * b * b // 2}[computed]
    wrong = rng.sample(sorted({a + b, a * b, a * b * b, a // b, abs(a - b), 2 * value, value + 10} - {value, 0}), 3)
    return _question(
        told.format(a=a, b=b), f"{value} {unit}", [f"{other} {unit}" for other in wrong], "formulas",
        f"print({computed.format(a=a, b=b)})", "Write the formula down first, and look at the units.",
    )  # fmt: skip


FAMILIES: dict[str, Callable[[random.Random], Question]] = {
    make.__name__: make for make in (elements, animals, units, masses, formulas)
}


def generate(family: str, split: str, name: str) -> Question:
    """The question called `name`. A stem belongs to one split, whatever name it was drawn under: 8 of 10 to train."""
    rng = random.Random(f"science/{family}/{split}/{name}")
    while True:
        question = FAMILIES[family](rng)
        if split_of(question.stem) == split:
            return shuffled(question, rng.randrange(1 << 30))


def _question(stem: str, right: str, wrong: list[str], family: str, program: str = "", hint: str = "") -> Question:
    return Question(stem, right, family, (right, *wrong), 0, program=program, hint=hint)


def _decimal(value: Fraction) -> str:
    """A number whose decimals end, as ``0.025``."""
    return f"{float(value):.9f}".rstrip("0").rstrip(".")

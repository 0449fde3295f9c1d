"""WebShop's files (arXiv 2207.01206): products, attributes and instructions as they are downloaded, and the goals made of them.

A folder holds ``items_shuffle_1000.json`` and ``items_ins_v2_1000.json`` (small) or ``items_shuffle.json`` and
``items_ins_v2.json`` (full), and ``items_human_ins.json`` for human goals. The generated catalogue is the same structures, so
everything below sees one form.

Goals are made and shuffled as the original makes and shuffles them, so the n-th goal is the original's n-th goal; a price
that is a range and the price limit of a goal, which the original draws anew in every process, follow from the seed and the
product's id alone.
"""

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from sdar.errors import ConfigError
from sdar.paths import how_to_fetch, resolve
from sdar.reading import LimitedDecoder, read_json, read_name

Size = Literal["small", "full"]
FILES: dict[str, tuple[str, str]] = {
    "small": ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
    "full": ("items_shuffle.json", "items_ins_v2.json"),
}
HUMAN_FILE = "items_human_ins.json"
MOST_GOALS = 100_000
"""Goals of one product: one for each combination of its options."""
LARGEST_PRICE = 1e12
NO_LIMIT = 1_000_000.0
NO_PRICE = 100.0
TEST, DEV = 500, 1000
"""How many goals the original keeps for testing and for development."""

_CHUNK = 1 << 22
_LONGEST_ENTRY = 1 << 26


@dataclass(frozen=True, slots=True)
class Product:
    """What the shop knows about one thing it sells."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    category: str
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    price: float
    """What a limit is compared with, in dollars; drawn from the range where the shop gives one."""
    price_tag: str


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be bought. Any product that fits counts, the one it was written for is `asin`."""

    asin: str
    title: str
    category: str
    query: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[Any, ...]
    """Synthetic goals: pairs (name, value). Human goals: values. The reward compares them differently."""
    price_upper: float
    weight: float = 1.0
    """How often the original draws it when no goal is asked for."""

    @property
    def values(self) -> tuple[str, ...]:
        """The option values alone."""
        return tuple(o if isinstance(o, str) else o[1] for o in self.options)


@dataclass(frozen=True)
class Source:
    """The contents of the three files."""

    items: Iterable[Any]
    attributes: Mapping[str, Any]
    human: Mapping[str, Any]
    names: tuple[str, str, str]
    """What errors call them."""


def source_files(folder: str | Path, size: Size, human_goals: bool) -> tuple[Path, Path, Path | None]:
    """The files of a data folder.

    Raises:
        ConfigError: one of them is missing.
    """
    folder, given = resolve(folder), folder
    wanted = [folder / name for name in FILES[size]] + ([folder / HUMAN_FILE] if human_goals else [])
    missing = [file.name for file in wanted if not file.is_file()]
    if missing:
        other = next((s for s in FILES if s != size and (folder / FILES[s][0]).is_file()), None)
        advice = (
            f"The folder has the {other} catalogue: use env.size: {other}."
            if other
            else f"Download WebShop's data there.{how_to_fetch(given)}"
        )
        raise ConfigError(f"env.data: {folder} has no {' and no '.join(missing)}, which the {size} catalogue needs. {advice}")
    return wanted[0], wanted[1], wanted[2] if human_goals else None


def read_folder(folder: str | Path, size: Size, human_goals: bool) -> Source:
    """The files of a data folder; products are read one at a time, because the full file has more than 5 GB."""
    items, attributes, human = source_files(folder, size, human_goals)
    names = (str(items), str(attributes), str(human or HUMAN_FILE))
    return Source(read_list(items), _read_object(attributes), _read_object(human) if human else {}, names)


def load_products(source: Source, num_products: int | None, seed: int) -> list[Product]:
    """The first `num_products` entries (None: all) as the original reads them: without repeated or odd ids.

    Raises:
        ConfigError: an entry is damaged; names file, entry and reason.
    """
    products: dict[str, Product] = {}
    for number, entry in enumerate(itertools.islice(source.items, num_products)):
        try:
            asin = _field(entry, "asin", str)
            if asin == "nan" or len(asin) > 10 or asin in products:
                continue
            read_name(asin, "asin", _DamageError)
            products[asin] = _product(entry, asin, source.attributes.get(asin, {}), seed)
        except _DamageError as damage:
            raise _damaged(source.names[0], number, str(damage)) from None
    if not products:
        raise ConfigError(f"env.data: {source.names[0]} holds no product: there is nothing to buy. Check the file.")
    return list(products.values())


def make_goals(products: Sequence[Product], source: Source, human: bool, seed: int) -> list[Goal]:
    """All goals in the shuffled order of the original (its seed is 233).

    Raises:
        ConfigError: an instruction is damaged, or there is none.
    """
    goals = list(_human_goals(products, source, seed) if human else _synthetic_goals(products, source, seed))
    if not goals:
        name = source.names[2 if human else 1]
        raise ConfigError(
            f"env.data: {name} has no instruction for any of the {len(products)} products: there is no goal. Read more "
            f"products (env.num_products), or use env.human_goals: {str(not human).lower()}."
        )
    if not human:  # rare attributes weigh more, as in the original
        counts = Counter(a for goal in goals for a in goal.attributes)
        weights = [sum(1 / counts[a] for a in goal.attributes) / len(goal.attributes) for goal in goals]
        goals = [_weighed(goal, weight) for goal, weight in zip(goals, weights, strict=True)]
    random.Random(seed).shuffle(goals)
    return goals


def split_ranges(goals: int) -> dict[str, range]:
    """Positions of the shuffled goals that belong to each split: the original's 500 and 1,000, where at least half remain
    for training; fewer goals are divided in the same proportion."""
    test = min(TEST, goals // 6)
    dev = min(DEV, goals // 3)
    return {"unseen": range(test), "seen": range(test, test + dev), "train": range(test + dev, goals)}


def first_occurrences(goals: Sequence[Goal], positions: Iterable[int]) -> list[int]:
    """`positions` without goals whose instruction stands before them anywhere in the list.

    Products that differ in brand alone and option lists with a repeated value make such twins; in two splits they would leak.
    """
    first: dict[str, int] = {}
    for i, goal in enumerate(goals):
        first.setdefault(goal.instruction, i)
    return [i for i in positions if first[goals[i].instruction] == i]


# ------------------------------------------------------------------------------------------------------------------- goals


def price_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit for a price, and the words that tell it: the larger of two of the next four multiples of 10 dollars."""
    above = [10.0 * i for i in range(1, 100) if 10.0 * i > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _human_goals(products: Sequence[Product], source: Source, seed: int) -> Iterator[Goal]:
    for product in products:
        rng = random.Random(f"webshop/limit/{seed}/{product.asin}")
        entries = source.human.get(product.asin, [])
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            try:
                attributes = _texts(entry, "instruction_attributes")
                if not attributes:  # the original leaves them out too
                    continue
                limit, told = price_limit(product.price, rng)
                instruction = _field(entry, "instruction", str).strip(".") + told
                yield _goal(product, instruction, attributes, _texts(entry, "instruction_options"), limit)
            except _DamageError as damage:
                raise _damaged(source.names[2], f"{product.asin!r}, instruction {number}", str(damage)) from None


def _synthetic_goals(products: Sequence[Product], source: Source, seed: int) -> Iterator[Goal]:
    for product in products:
        entry = source.attributes.get(product.asin, {})
        try:
            instruction = _field(entry, "instruction", str, optional=True)
            if instruction is None:
                continue
            attributes = _texts(entry, "instruction_attributes")
            if not attributes:
                raise _DamageError("it has an instruction and no instruction_attributes")
        except _DamageError as damage:
            raise _damaged(source.names[1], repr(product.asin), str(damage)) from None
        limit, told = price_limit(product.price, random.Random(f"webshop/limit/{seed}/{product.asin}"))
        names = sorted(product.options)
        if (count := math.prod(len(product.options[name]) for name in names)) > MOST_GOALS:
            reason = f"its options combine to {count} goals, at most {MOST_GOALS} of one product are made"
            raise _damaged(source.names[0], repr(product.asin), reason)
        for values in itertools.product(*(product.options[name] for name in names)):
            chosen = tuple(zip(names, values, strict=True))
            wish = ", and ".join(f"{name}: {value}" for name, value in chosen)
            yield _goal(product, f"{instruction}{' with ' + wish if wish else ''}{told}", attributes, chosen, limit)


def _goal(product: Product, instruction: str, attributes: tuple[str, ...], options: tuple[Any, ...], limit: float) -> Goal:
    return Goal(
        asin=product.asin,
        title=product.title,
        category=product.category,
        query=product.query,
        product_category=product.product_category,
        instruction=instruction,
        attributes=attributes,
        options=options,
        price_upper=limit,
    )


def _weighed(goal: Goal, weight: float) -> Goal:
    object.__setattr__(goal, "weight", weight)  # a copy of each of a million goals would only cost time
    return goal


# ---------------------------------------------------------------------------------------------------------------- products


def _product(entry: Any, asin: str, known: Any, seed: int) -> Product:
    attributes = _field(known, "attributes", list, optional=True) if isinstance(known, dict) else None
    bullets = _field(entry, "small_description", (list, str), optional=True) or []
    tag, price = _price(entry.get("pricing"), random.Random(f"webshop/price/{seed}/{asin}"))
    return Product(
        asin=asin,
        title=_field(entry, "name", str),
        description=_field(entry, "full_description", str, optional=True) or "",
        bullets=tuple(map(str, bullets)) if isinstance(bullets, list) else (bullets,),
        category=_field(entry, "category", str),
        query=_field(entry, "query", str).lower().strip(),
        product_category=_field(entry, "product_category", str),
        attributes=("DUMMY_ATTR",) if attributes is None else tuple(map(str, attributes)),
        options=_options(entry.get("customization_options")),
        price=price,
        price_tag=tag,
    )


def _price(pricing: Any, rng: random.Random) -> tuple[str, float]:
    if not pricing:
        return f"${NO_PRICE}", NO_PRICE
    if not isinstance(pricing, str):
        raise _DamageError(f"pricing is {_kind(pricing)}, not a text like '$12.99'")
    try:
        amounts = [float(Decimal(re.sub(r"[^\d.]", "", amount))) for amount in pricing.split("$")[1:]]
    except InvalidOperation:
        amounts = []
    if not amounts or max(amounts) > LARGEST_PRICE:
        raise _DamageError(f"pricing {pricing[:40]!r} has no amount like '$12.99'")
    if len(amounts) == 1:
        return f"${amounts[0]}", amounts[0]
    return f"${amounts[0]} to ${amounts[1]}", rng.uniform(*amounts[:2])


def _options(contents: Any) -> dict[str, tuple[str, ...]]:
    if not contents:
        return {}
    if not isinstance(contents, dict):
        raise _DamageError(f"customization_options is {_kind(contents)}, not an object of option names")
    options = {}
    for name, values in contents.items():
        if values is None:
            continue
        if not isinstance(values, list):
            raise _DamageError(f"option {name!r} is {_kind(values)}, not a list of values")
        options[name.lower()] = tuple(_field(v, "value", str).strip().replace("/", " | ").lower() for v in values)
    return options


# ------------------------------------------------------------------------------------------------------------------ reading


class _DamageError(Exception):
    """What is wrong inside an entry."""


def _damaged(name: str, entry: int | str, reason: str) -> ConfigError:
    return ConfigError(
        f"env.data: {name}, entry {entry}: {reason}. The file is damaged or no WebShop file; download it again or repair the entry."
    )


def _field(entry: Any, key: str, kind: Any, optional: bool = False) -> Any:
    if not isinstance(entry, dict):
        raise _DamageError(f"it is {_kind(entry)}, not an object")
    if key not in entry and not optional:
        raise _DamageError(f"it has no {key!r}")
    value = entry.get(key)
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise _DamageError(f"{key} is {_kind(value)}")


def _texts(entry: Any, key: str) -> tuple[str, ...]:
    values = _field(entry, key, list)
    if not all(isinstance(value, str) for value in values):
        raise _DamageError(f"{key} holds something that is no text")
    return tuple(values)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def read_list(file: Path) -> Iterator[Any]:
    """The entries of a JSON list of objects, one at a time.

    Raises:
        ConfigError: no list, or broken JSON; names the entry.
    """
    decoder, number = LimitedDecoder(), 0
    with file.open(encoding="utf-8-sig") as source:
        text, position = _ahead(source, "", 0, str(file), 0)
        if text[position : position + 1] != "[":
            raise _damaged(str(file), 0, "the file does not begin with '[': it is no JSON list")
        text, position = _ahead(source, text, position + 1, str(file), 0)
        while text[position : position + 1] != "]":
            try:
                value, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                more = _read(source, str(file), number)
                if not more or len(text) - position > _LONGEST_ENTRY:
                    raise _damaged(str(file), number, f"broken JSON ({error.msg})") from None
                text, position = text[position:] + more, 0
                continue
            except ValueError as error:
                raise _damaged(str(file), number, str(error)) from None
            yield value
            text, position = _ahead(source, text, end, str(file), number)
            if text[position : position + 1] == ",":
                text, position = _ahead(source, text, position + 1, str(file), number)
            elif text[position : position + 1] != "]":
                raise _damaged(str(file), number, "after it, neither ',' nor ']' follows: the file is cut or broken")
            number += 1


def _ahead(source: Any, text: str, position: int, name: str, number: int) -> tuple[str, int]:
    """Past white space, with more text where this one ends."""
    while True:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        if position < len(text):
            return text, position
        text, position = _read(source, name, number), 0
        if not text:
            return text, position


def _read(source: Any, name: str, number: int) -> str:
    try:
        return source.read(_CHUNK)
    except UnicodeDecodeError as error:
        raise _damaged(name, number, f"no UTF-8 text ({error.reason})") from None


def _read_object(file: Path) -> dict[str, Any]:
    content = read_json(file, lambda reason: ConfigError(f"env.data: {reason}"), advice="Download it again.")
    if not isinstance(content, dict):
        raise ConfigError(f"env.data: {file} holds {_kind(content)}, not an object of product ids. Download it again.")
    return content

"""A generated catalogue in the formats of WebShop's files: invented brands and products in the original's five categories.

Everything follows from the seed and the number of products. It goes through the same reader as the real files, and
`write_catalogue` writes it as those files.
"""

import json
import random
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdar.envs.webshop_data import FILES, HUMAN_FILE, Source

VERSION = 1
"""Raised whenever the same arguments would make another catalogue."""

OptionSpec = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Department:
    """One kind of shelf: what stands on it and how it varies."""

    category: str
    path: tuple[str, ...]
    shelves: dict[str, tuple[str, ...]]
    audiences: tuple[str, ...]
    attributes: tuple[str, ...]
    options: tuple[OptionSpec, ...]
    prices: tuple[int, int]


_COLOURS = (
    "black",
    "white",
    "navy blue",
    "forest green",
    "wine",
    "light gray",
    "dark brown",
    "khaki",
    "royal purple",
    "coral",
    "mustard yellow",
    "teal",
    "black/white",
)

DEPARTMENTS = {
    "apparel": Department(
        category="fashion",
        path=("Clothing, Shoes & Jewelry", "Clothing"),
        shelves={
            "Shirts": ("polo shirts", "henley shirts", "linen blouses", "flannel shirts"),
            "Trousers": ("cargo pants", "jogger pants", "yoga leggings", "chino shorts"),
            "Outerwear": ("rain jackets", "fleece vests", "knit cardigans", "hooded sweatshirts"),
        },
        audiences=("men's", "women's"),
        attributes=(
            "machine wash",
            "hand wash",
            "long sleeve",
            "short sleeve",
            "slim fit",
            "relaxed fit",
            "elastic waist",
            "moisture wicking",
            "quick drying",
            "cotton blend",
            "button closure",
            "everyday wear",
        ),
        options=(("color", _COLOURS), ("size", ("x-small", "small", "medium", "large", "x-large", "xx-large"))),
        prices=(12, 79),
    ),
    "footwear": Department(
        category="fashion",
        path=("Clothing, Shoes & Jewelry", "Shoes"),
        shelves={
            "Athletic": ("running shoes", "hiking boots", "training sneakers"),
            "Casual": ("canvas loafers", "slip-on clogs", "strap sandals"),
            "Formal": ("ankle boots", "oxford shoes", "ballet flats"),
        },
        audiences=("men's", "women's"),
        attributes=(
            "rubber sole",
            "memory foam",
            "arch support",
            "slip resistant",
            "water repellent",
            "faux leather",
            "lace closure",
            "steel toe",
            "wide toe box",
            "shock absorbing",
        ),
        options=(("color", _COLOURS), ("size", ("6", "7", "7.5", "8", "8.5 wide", "9", "10", "11 wide", "12"))),
        prices=(24, 139),
    ),
    "beauty_health": Department(
        category="beauty",
        path=("Beauty & Personal Care",),
        shelves={
            "Hair Care": ("shampoo bars", "hair masks", "scalp serums", "styling creams"),
            "Skin Care": ("face serums", "body lotions", "clay masks", "night creams"),
            "Oral Care": ("bamboo toothbrushes", "whitening toothpastes", "herbal mouthwashes"),
        },
        audiences=("",),
        attributes=(
            "sulfate free",
            "paraben free",
            "cruelty free",
            "alcohol free",
            "tea tree",
            "hyaluronic acid",
            "coconut oil",
            "sensitive skin",
            "dry hair",
            "fine lines",
            "travel size",
            "plant based",
        ),
        options=(
            ("scent", ("lavender", "coconut", "unscented", "citrus", "eucalyptus", "vanilla", "green tea")),
            ("size", ("2 fl oz", "4 fl oz", "8 fl oz", "16 fl oz (pack of 2)", "pack of 3", "pack of 6")),
        ),
        prices=(6, 49),
    ),
    "electronics": Department(
        category="electronics",
        path=("Electronics",),
        shelves={
            "Headphones": ("wireless earbuds", "over-ear headphones", "neckband headsets"),
            "Computer Accessories": ("usb hubs", "mechanical keyboards", "laptop sleeves", "webcam covers"),
            "Home Audio": ("bluetooth speakers", "soundbars", "clock radios"),
        },
        audiences=("",),
        attributes=(
            "noise cancelling",
            "fast charging",
            "stereo sound",
            "long battery life",
            "hands free",
            "plug and play",
            "water resistant",
            "high resolution",
            "compact size",
            "low latency",
            "aluminum alloy",
        ),
        options=(
            ("color", ("black", "white", "rose gold", "midnight blue", "silver", "olive green")),
            ("style", ("basic", "pro", "pro max", "with case", "2 pack")),
        ),
        prices=(9, 189),
    ),
    "home": Department(
        category="garden",
        path=("Home & Kitchen",),
        shelves={
            "Furniture": ("coffee tables", "ottoman benches", "bookshelves", "bar stools"),
            "Bedding": ("duvet covers", "throw blankets", "pillow cases"),
            "Decor": ("table lamps", "area rugs", "curtain panels", "wall mirrors"),
        },
        audiences=("",),
        attributes=(
            "solid wood",
            "easy assembly",
            "storage space",
            "mid century",
            "space saving",
            "machine washable",
            "non slip",
            "living room",
            "super soft",
            "stainless frame",
            "energy efficient",
        ),
        options=(
            ("color", ("ivory", "walnut", "dark gray", "beige", "navy blue", "white", "espresso", "sage/white")),
            ("size", ("small", "medium", "large", "twin", "queen", "king", "30 x 40 inch", "5 x 7 feet")),
        ),
        prices=(14, 320),
    ),
    "grocery": Department(
        category="grocery",
        path=("Grocery & Gourmet Food",),
        shelves={
            "Snacks": ("kale chips", "granola bars", "trail mixes", "rice crackers"),
            "Beverages": ("herbal teas", "ground coffees", "oat milks"),
            "Pantry": ("pasta sauces", "nut butters", "pancake mixes", "lentil soups"),
        },
        audiences=("",),
        attributes=(
            "gluten free",
            "dairy free",
            "low sugar",
            "non gmo",
            "high protein",
            "low sodium",
            "certified organic",
            "keto friendly",
            "no artificial colors",
            "shelf stable",
            "individually wrapped",
        ),
        options=(
            ("flavor name", ("sea salt", "cinnamon", "honey lemon", "spicy chili", "peach", "dark chocolate", "original")),
            ("size", ("4 ounce", "8 ounce", "1 pound", "12 count", "24 count", "pack of 4")),
        ),
        prices=(4, 45),
    ),
}

_FIRST = ("Nor", "Bel", "Kes", "Tam", "Ulva", "Mir", "Oak", "Pell", "Quin", "Sor", "Var", "Wex")
_LAST = ("vale", "wick", "trel", "dora", "ford", "lumen", "mere", "nest", "port", "ridge", "stad", "wyn")

_BULLETS = (
    "{attribute}: made so that you notice it on the first day.",
    "{attribute} - one of the reasons why people come back for these {noun}.",
    "We call it {attribute}, and we stand by it.",
    "{attribute} as standard, in every variant on this page.",
)
_CLOSING = (
    "Questions? Our service answers within a day.",
    "Comes in a box made of recycled paper.",
    "Please allow for small differences between screen and product.",
)
_WISHES = (
    "i want {noun} that are {attributes}{options}",
    "can you find {noun} for me? they should be {attributes}{options}",
    "my old {noun} are worn out, so i need new ones, {attributes}{options}",
    "looking for {attributes} {noun}{options}",
)


def make_catalogue(num_products: int = 1000, seed: int = 0) -> Source:
    """A catalogue with synthetic and human-like instructions."""
    rng = random.Random(f"webshop/catalogue/{VERSION}/{seed}")
    items: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    human: dict[str, Any] = {}
    families = list(DEPARTMENTS)
    for number in range(num_products):
        asin = _asin(rng, attributes)
        item = _item(DEPARTMENTS[families[number % len(families)]], asin, rng)
        known = item.pop("attributes")
        wanted = rng.sample(known, rng.choice((1, 1, 2, 2, 3)))
        instruction = f"Get me {', '.join(wanted)} {item['query']}"
        items.append(item)
        attributes[asin] = {"attributes": known, "instruction": instruction, "instruction_attributes": wanted}
        human[asin] = [_wish(item, known, rng) for _ in range(rng.choice((0, 1, 1, 2)))]
    rng.shuffle(items)
    return Source(items, attributes, {asin: wishes for asin, wishes in human.items() if wishes}, ("the catalogue",) * 3)


def write_catalogue(folder: str | Path, num_products: int = 1000, seed: int = 0) -> None:
    """Write a generated catalogue as the original's small files."""
    source = make_catalogue(num_products, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    items, attributes = FILES["small"]
    for name, content in ((items, source.items), (attributes, source.attributes), (HUMAN_FILE, source.human)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _asin(rng: random.Random, taken: dict[str, Any]) -> str:
    while True:
        asin = "B0" + "".join(rng.choices(string.ascii_uppercase + string.digits, k=8))
        if asin not in taken:
            return asin


def _item(department: Department, asin: str, rng: random.Random) -> dict[str, Any]:
    shelf = rng.choice(list(department.shelves))
    noun, audience = rng.choice(department.shelves[shelf]), rng.choice(department.audiences)
    attributes = rng.sample(department.attributes, rng.randint(3, 5))
    brand = rng.choice(_FIRST) + rng.choice(_LAST)
    named = attributes[: rng.randint(1, 2)]
    query = f"{audience} {noun}".strip()
    levels = [*department.path, *([audience.removesuffix("'s").title()] if audience else []), shelf, noun.title()]
    bullets = [rng.choice(_BULLETS).format(attribute=a.capitalize(), noun=noun) for a in attributes]
    return {
        "asin": asin,
        "name": " ".join([brand, *(string.capwords(part) for part in [audience, *named, noun] if part)]),
        "category": department.category,
        "query": query,
        "product_category": " › ".join(levels),
        "pricing": _pricing(department.prices, rng),
        "full_description": f"{brand} makes {query} with care. These are {', '.join(attributes[:-1])} and {attributes[-1]}.",
        "small_description": [*bullets, rng.choice(_CLOSING)],
        "images": [f"https://shop.invalid/{asin}.jpg"],
        "customization_options": _variants(department.options, asin, rng),
        "attributes": attributes,
    }


def _pricing(prices: tuple[int, int], rng: random.Random) -> str:
    low = rng.randint(*prices)
    cents = rng.choice(("99", "49", "95", "00"))
    kind = rng.random()
    if kind < 0.04:
        return ""
    return f"${low}.{cents}" if kind < 0.85 else f"${low}.{cents}${low + rng.randint(1, 1 + low // 2)}.{cents}"


def _variants(options: tuple[OptionSpec, ...], asin: str, rng: random.Random) -> dict[str, Any] | str:
    if rng.random() < 0.08:
        return ""
    made = {}
    for name, values in options:
        count = rng.choice((0, 2, 3, 3, 4, 4))
        chosen = sorted(rng.sample(values, count), key=values.index)
        made[name] = [{"value": value, "asin": asin, "image": None, "is_selected": False} for value in chosen] or None
    return made


def _wish(item: dict[str, Any], known: list[str], rng: random.Random) -> dict[str, Any]:
    wanted = rng.sample(known, rng.choice((1, 2)))
    variants = item["customization_options"] or {}
    chosen = {name: rng.choice(values)["value"].replace("/", " | ") for name, values in variants.items() if values}
    told = "".join(f", {name.removesuffix(' name')} {value}" for name, value in chosen.items())
    sentence = rng.choice(_WISHES).format(noun=item["query"], attributes=" and ".join(wanted), options=told)
    return {
        "asin": item["asin"],
        "instruction": f"{sentence}.",
        "attributes": known,
        "options": [f"{name}: {value}" for name, value in chosen.items()],
        "instruction_attributes": wanted,
        "instruction_options": list(chosen.values()),
    }

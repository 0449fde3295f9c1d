"""A generated encyclopedia: people, works, organisations, towns, rivers, regions and years that never were.

Every passage says what is true in this world and names others of its kind beside it, so that a search finds neighbours too.
Names share their parts (given names, families, adjectives, towns in their upper and nether halves) but are unique as a whole.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sdar.search.base import Passage

GENERATOR = 1
"""Raised whenever the same arguments would make another encyclopedia, so that no task id can mean two things."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIVEN = _words(
    "Ada Alvar Anselm Astrid Bela Bertil Birgit Carla Cedric Clara Conrad Dagny Dario Edda Edgar Elin Emil Enid Erland Esther "
    "Felix Frida Gerda Gideon Greta Gustav Hanna Hector Hilda Hugo Ida Ilse Ivar Jakob Jonna Judith Karin Kasper Lars Lena "
    "Linus Lotte Magda Marius Mathis Mira Nadia Nils Nora Olaf Oscar Petra Quentin Ragna Rasmus Rosa Ruben Sigrid Silas Sonja "
    "Tilda Tobias Ulla Viggo"
)
ADJECTIVES = _words(
    "Amber Bitter Blue Borrowed Broken Buried Copper Crooked Distant Drowned Early Empty Endless Faithful Fallen Foreign "
    "Frozen Gilded Golden Green Grey Hidden Hollow Humble Idle Iron Last Late Little Lonely Lost Marble Narrow Nameless "
    "Northern Open Paper Patient Pale Quiet Red Restless Rusted Salt Scarlet Second Secret Seventh Silent Silver Sleeping "
    "Southern Stolen Summer Third Velvet White Wild Winter Wooden Yellow"
)
NOUNS = _words(
    "Alphabet Anchor Archive Arrow Bell Bridge Candle Canal Carpet Clock Compass Crown Door Drum Feast Ferry Field Fountain "
    "Garden Gate Glove Harbour Harvest Heron Hour Island Journey Key Ladder Lantern Letter Lighthouse Map Market Mask Meadow "
    "Mill Mirror Moth Mountain Nest Night Orchard Oven Palace Pilot Quarry Rain River Road Room Rose Sail Shadow Shore Song "
    "Stair Station Stone Storm Tower Traveller Valley Voyage Wall Well Window Witness Year"
)
FORMS = {"novel": "author", "opera": "composer", "painting": "painter", "play": "playwright", "poem": "poet"}
"""What a work is -> what its maker is called."""
MAKERS = {"author": "wrote", "composer": "composed", "painter": "painted", "playwright": "wrote", "poet": "wrote"}
KINDS = (
    "academy",
    "almshouse",
    "botanical garden",
    "brewery",
    "college",
    "library",
    "museum",
    "observatory",
    "orchestra",
    "press",
)
PRODUCTS = _words(
    "apples barley baskets bells bricks candles cheese cider clocks copper felt glass gloves hats honey lace leather linen "
    "mustard paper pottery ribbons rope salt saddles silk soap tiles tin toys vinegar"
)
TRADES = _words(
    "baker blacksmith bookbinder carpenter cooper farmer ferryman glazier miller printer shepherd tailor teacher weaver"
)
SEAS = ("Amber Sea", "Bay of Lanterns", "Cold Sea", "Gulf of Reeds", "Long Sound", "Sea of Larks")
TOWN_ENDS = _words("wick ford holm mere stead by combe haven den minster dale thorpe")
FAMILY_ENDS = _words("sen ow ard ell ins ley ander ot wen berg ström man")


@dataclass(frozen=True)
class Person:
    name: str
    maker: str
    born: int
    died: int
    birthplace: str
    home: str
    teacher: str | None
    trade: str


@dataclass(frozen=True)
class Work:
    name: str
    form: str
    creator: str
    year: int
    setting: str


@dataclass(frozen=True)
class Organisation:
    name: str
    kind: str
    founder: str
    year: int
    seat: str


@dataclass(frozen=True)
class Town:
    name: str
    region: str
    river: str
    product: str
    chartered: int


@dataclass(frozen=True)
class River:
    name: str
    length: int
    source: str
    sea: str


@dataclass(frozen=True)
class Encyclopedia:
    """Everything there is, and what is written about it."""

    people: dict[str, Person]
    works: dict[str, Work]
    organisations: dict[str, Organisation]
    towns: dict[str, Town]
    rivers: dict[str, River]
    capitals: dict[str, str]
    """Region -> its capital."""
    passages: tuple[Passage, ...]


@lru_cache(maxsize=4)
def make_encyclopedia(seed: int, size: int, short: bool) -> Encyclopedia:
    """The encyclopedia of a seed with about `size` passages; `short` ones say one sentence and name no neighbours."""
    rng = random.Random(f"encyclopedia/{GENERATOR}/{seed}/{size}")
    words = _namer(rng)
    regions = [f"{words()}{rng.choice(('mark', 'land', 'ria'))}" for _ in range(max(2, size // 120))]
    names = [f"River {words()}" for _ in range(max(4, size // 25))]
    lengths = rng.sample(range(30, 30 + 8 * len(names)), len(names))
    rivers = {n: River(n, length, rng.choice(regions), rng.choice(SEAS)) for n, length in zip(names, lengths, strict=True)}
    towns = _towns(rng, words, max(8, size // 7), regions, names)
    capitals = {r: rng.choice([t.name for t in towns.values() if t.region == r]) for r in regions}
    people = _people(rng, words, max(12, size * 34 // 100), list(towns))
    works = _works(rng, max(12, size * 34 // 100), people, list(towns))
    organisations = _organisations(rng, max(6, size // 9), people, list(towns))
    world = Encyclopedia(people, works, organisations, towns, rivers, capitals, ())
    articles = _short_articles(world) if short else _articles(world, rng, size // 30)
    passages = tuple(Passage(str(i), f'"{title}"\n{text}') for i, (title, text) in enumerate(articles))
    return Encyclopedia(people, works, organisations, towns, rivers, capitals, passages)


def _namer(rng: random.Random) -> Callable[[], str]:
    """New names, no two alike."""
    onsets = _words("B Br C Cl D Dr F Fl G Gr H J K L M N P Pr R S St T Th Tr V W")
    vowels, middles, ends = _words("a e i o u ai ea ei ou"), _words("l ld m n nd r rd rn s st th v lm rk"), "lmnrst"
    used: set[str] = set()

    def word() -> str:
        while True:
            made = rng.choice(onsets) + rng.choice(vowels) + rng.choice(middles)
            if rng.random() < 0.4:
                made += rng.choice(vowels) + rng.choice(ends)
            if made not in used:
                used.add(made)
                return made

    return word


def _towns(rng: random.Random, words: Callable[[], str], count: int, regions: list[str], rivers: list[str]) -> dict[str, Town]:
    names: list[str] = []
    while len(names) < count:
        base = f"{words()}{rng.choice(TOWN_ENDS)}"
        names += [f"Upper {base}", f"Nether {base}"] if rng.random() < 0.25 else [base]
    placed = [*regions, *(rng.choice(regions) for _ in names)]  # every region has a town
    return {
        name: Town(name, placed[i], rng.choice(rivers), rng.choice(PRODUCTS), rng.randint(1050, 1650))
        for i, name in enumerate(names[:count])
    }


def _people(rng: random.Random, words: Callable[[], str], count: int, towns: list[str]) -> dict[str, Person]:
    families = [f"{words()}{rng.choice(FAMILY_ENDS)}" for _ in range(max(6, count // 6))]
    people: dict[str, Person] = {}
    masters: dict[str, list[Person]] = {maker: [] for maker in MAKERS}
    years = sorted(rng.randint(1700, 1930) for _ in range(count))
    for year in years:
        while (name := f"{rng.choice(GIVEN)} {rng.choice(families)}") in people:
            pass
        maker = rng.choice(list(MAKERS))
        elders = [p for p in masters[maker][-40:] if year - p.born >= 18 and p.died - year >= 15]
        teacher = rng.choice(elders).name if elders and rng.random() < 0.7 else None
        birthplace, home = rng.sample(towns, 2)
        person = Person(name, maker, year, year + rng.randint(45, 90), birthplace, home, teacher, rng.choice(TRADES))
        people[name] = person
        masters[maker].append(person)
    return people


def _works(rng: random.Random, count: int, people: dict[str, Person], towns: list[str]) -> dict[str, Work]:
    titles = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    forms = {maker: form for form, maker in FORMS.items()}
    works = {}
    for title in rng.sample(titles, min(count, len(titles))):
        creator = rng.choice(list(people.values()))
        works[title] = Work(title, forms[creator.maker], creator.name, creator.born + rng.randint(20, 44), rng.choice(towns))
    return works


def _organisations(rng: random.Random, count: int, people: dict[str, Person], towns: list[str]) -> dict[str, Organisation]:
    places = [(town, kind) for town in towns for kind in KINDS]
    made = {}
    for town, kind in rng.sample(places, min(count, len(places))):
        founder = rng.choice(list(people.values()))
        name = f"{town} {kind.title()}"
        made[name] = Organisation(name, kind, founder.name, founder.born + rng.randint(22, 44), town)
    return made


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _articles(world: Encyclopedia, rng: random.Random, chronicles: int) -> list[tuple[str, str]]:
    """Title and text, some forty to eighty words each."""
    kinds = (_of_people, _of_works, _of_organisations, _of_towns, _of_rivers, _of_regions)
    return [*(article for of in kinds for article in of(world, rng)), *_of_years(world, rng, chronicles)]


def _of_people(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    people = list(world.people.values())
    of: dict[str, list[Work]] = {}
    for w in world.works.values():
        of.setdefault(w.creator, []).append(w)
    for p in people:
        known = " and ".join(f"the {w.form} {w.name}" for w in of.get(p.name, [])[:2])
        yield (
            p.name,
            f"{p.name} ({p.born}-{p.died}) was {a(p.maker)}. Born in {p.birthplace} in {p.born}, the child of "
            f"{a(p.trade)}, {p.name} "
            + (f"learned the craft from {p.teacher} and " if p.teacher else "had no teacher and ")
            + f"later settled in {p.home}, where {rng.choice(('a street', 'a small square', 'a school', 'an inn'))} still "
            f"has that name. {f'Best known for {known}.' if known else 'No finished work is preserved.'} "
            f"{rng.choice(people).name} left a portrait of {p.name} in words. {p.name} died in {p.died}.",
        )


def _of_works(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    works = list(world.works.values())
    towns = list(world.towns.values())
    for w in works:
        yield (
            w.name,
            f"{w.name} is {a(w.form)} by {w.creator}. It was finished in {w.year} and is set in {w.setting}, "
            f"{rng.choice(('at the time of a great flood', 'during one long winter', 'on the eve of a fair'))}. "
            f"A {rng.choice(TRADES)} and a {rng.choice(TRADES)} "
            f"{rng.choice(('quarrel over', 'search for', 'inherit', 'lose'))} a {rng.choice(NOUNS).lower()}. Critics in "
            f"{rng.choice(towns).name} preferred {rng.choice(works).name}, but {w.name} is the one that was "
            f"{rng.choice(('copied most often', 'translated first', 'forbidden twice', 'never forgotten'))}.",
        )


def _of_organisations(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    people = list(world.people.values())
    works = list(world.works.values())
    for o in world.organisations.values():
        yield (
            o.name,
            f"The {o.name} is {a(o.kind)} in {o.seat}. It was founded in {o.year} by {o.founder}, with money from the "
            f"trade in {rng.choice(PRODUCTS)}. Its rooms hold letters of {rng.choice(people).name} and an early copy of "
            f"{rng.choice(works).name}. The {o.name} is older than its present building and "
            f"{rng.choice(('open on Sundays', 'closed in winter', 'run by volunteers', 'owned by the town'))}.",
        )


def _of_towns(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    towns = list(world.towns.values())
    for t in towns:
        yield (
            t.name,
            f"{t.name} is a town in {t.region}, on the {t.river}. It is known for its {t.product}. A charter of "
            f"{t.chartered} names {t.name} for the first time; by then {rng.choice(towns).name} already had a wall. About "
            f"{rng.randint(2, 90)},{rng.randint(100, 999)} people live in {t.name}, and a "
            f"{rng.choice(('market', 'horse fair', 'regatta', 'procession'))} is held there every "
            f"{rng.choice(('spring', 'summer', 'autumn'))}.",
        )


def _of_rivers(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    on: dict[str, list[str]] = {}
    for t in world.towns.values():
        on.setdefault(t.river, []).append(t.name)
    for r in world.rivers.values():
        banks = on.get(r.name, [])[:3]
        yield (
            r.name,
            f"The {r.name} is a river of {r.length} kilometres. It rises in the hills of {r.source} and flows into the "
            f"{r.sea}. "
            + (f"On its banks lies {', then '.join(banks)}. " if banks else "No town lies on its banks. ")
            + f"Barges used the {r.name} until the railway came; {rng.choice(list(world.rivers))} was never deep enough "
            "for them.",
        )


def _of_regions(world: Encyclopedia, rng: random.Random) -> Iterator[tuple[str, str]]:
    people = list(world.people.values())
    for region, capital in world.capitals.items():
        yield (
            region,
            f"{region} is a region whose capital is {capital}. It borders on {rng.choice(list(world.capitals))}. People "
            f"of {region} drink {rng.choice(('cider', 'strong tea', 'sour milk', 'black beer'))} and are said to count in "
            f"dozens. {rng.choice(people).name} travelled through {region} on foot.",
        )


def _of_years(world: Encyclopedia, rng: random.Random, chronicles: int) -> Iterator[tuple[str, str]]:
    for year in sorted(rng.sample(range(1720, 1960), min(chronicles, 240))):
        events = [f"{p.name} was born" for p in world.people.values() if p.born == year][:3]
        events += [f"{w.name} was finished" for w in world.works.values() if w.year == year][:3]
        events += [f"the {o.name} was founded" for o in world.organisations.values() if o.year == year][:2]
        told = "; ".join(events) or "nothing of note happened"
        yield (f"Year {year}", f"What is remembered of the year {year}: {told}.")


def _short_articles(world: Encyclopedia) -> list[tuple[str, str]]:
    """One sentence each, with everything that a question asks for."""
    out = []
    for p in world.people.values():
        taught = f", taught by {p.teacher}" if p.teacher else ""
        out.append((p.name, f"{p.name} was {a(p.maker)}, born in {p.birthplace} in {p.born}{taught}."))
    for w in world.works.values():
        out.append((w.name, f"{w.name} is {a(w.form)} of {w.year} by {w.creator}."))
    for o in world.organisations.values():
        out.append((o.name, f"The {o.name} in {o.seat} was founded in {o.year} by {o.founder}."))
    for t in world.towns.values():
        out.append((t.name, f"{t.name} is a town in {t.region}, on the {t.river}, known for {t.product}."))
    for r in world.rivers.values():
        out.append((r.name, f"The {r.name} is {r.length} kilometres long."))
    for region, capital in world.capitals.items():
        out.append((region, f"The capital of {region} is {capital}."))
    return out

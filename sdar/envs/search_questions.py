"""Questions with known answers: of the generated encyclopedia, or from files in Search-R1's form."""

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from sdar.envs.duplicates import distinct
from sdar.envs.search_encyclopedia import FORMS, MAKERS, Encyclopedia, make_encyclopedia
from sdar.errors import ConfigError, PanelError
from sdar.paths import how_to_fetch
from sdar.reading import convert, is_written_list, read_json_lines, read_name
from sdar.versions import install

TRAINING_KINDS = ("direct", "attribute", "bridge", "comparison")
UNSEEN_KINDS = ("chain", "longer", "same")


@dataclass(frozen=True)
class Hop:
    """One thing that has to be found out."""

    thing: str
    """E.g. "birthplace of Ada Sorel"."""
    value: str
    title: str
    """Of the passage that says it."""
    query: str
    """Finds that passage."""


@dataclass(frozen=True)
class Question:
    id: str
    family: str
    """A kind of question, or the dataset."""
    text: str
    answers: tuple[str, ...]
    hops: tuple[Hop, ...] = ()
    """How the answer is found; empty where nobody knows."""


Questions = Mapping[str, Mapping[str, Question]]
"""Split -> id -> question."""


def choose(questions: Collection[Question], count: int, seed: int, what: str) -> list[str]:
    """Ids of `count` questions, every family as often as the others while it lasts.

    Raises:
        PanelError: there are fewer.
    """
    if count > len(questions):
        raise PanelError(f"{what} has {len(questions)} questions, {count} were asked for: ask for fewer, or give more data.")
    families: dict[str, list[str]] = {}
    for q in questions:
        families.setdefault(q.family, []).append(q.id)
    for family, ids in families.items():
        ids.sort()  # an order of files or rows means nothing
        random.Random(f"{family}/{seed}").shuffle(ids)
    turns = max(map(len, families.values()), default=0)
    order = [ids[turn] for turn in range(turns) for ids in (families[f] for f in sorted(families)) if turn < len(ids)]
    return order[:count]


def digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:10]


# ----------------------------------------------------------------------------------------------- of the generated encyclopedia


@lru_cache(maxsize=4)
def generated_questions(seed: int, size: int, short: bool) -> Questions:
    """``train``: four kinds. ``seen``: other questions of these kinds. ``unseen``: three kinds that are in neither."""
    world = make_encyclopedia(seed, size, short)
    rng = random.Random(f"questions/{seed}/{size}")
    splits: dict[str, dict[str, Question]] = {"train": {}, "seen": {}, "unseen": {}}
    for family, text, answers, hops in _all_questions(world, rng):
        key = digest(text)
        split = "unseen" if family in UNSEEN_KINDS else "seen" if int(key, 16) % 5 == 0 else "train"
        splits[split][f"{family}-{key}"] = Question(f"{family}-{key}", family, text, answers, hops)
    return splits


Asked = tuple[str, str, tuple[str, ...], tuple[Hop, ...]]


class _Facts:
    """What the passages say, as hops."""

    def __init__(self, world: Encyclopedia):
        self.world = world

    def creator(self, work: str) -> Hop:
        w = self.world.works[work]
        return Hop(f"{FORMS[w.form]} of {work}", w.creator, work, f"{work} {w.form}")

    def finished(self, work: str) -> Hop:
        w = self.world.works[work]
        return Hop(f"year of {work}", str(w.year), work, f"{work} {w.form}")

    def founder(self, name: str) -> Hop:
        return Hop(f"founder of the {name}", self.world.organisations[name].founder, name, f"{name} founded")

    def founded(self, name: str) -> Hop:
        return Hop(f"founding year of the {name}", str(self.world.organisations[name].year), name, f"{name} founded")

    def seat(self, name: str) -> Hop:
        return Hop(f"seat of the {name}", self.world.organisations[name].seat, name, f"{name} founded")

    def birthplace(self, person: str) -> Hop:
        return Hop(f"birthplace of {person}", self.world.people[person].birthplace, person, f"{person} born")

    def born(self, person: str) -> Hop:
        return Hop(f"birth year of {person}", str(self.world.people[person].born), person, f"{person} born")

    def maker(self, person: str) -> Hop:
        return Hop(f"occupation of {person}", self.world.people[person].maker, person, f"{person} born")

    def teacher(self, person: str) -> Hop:
        return Hop(f"teacher of {person}", self.world.people[person].teacher or "", person, f"{person} born")

    def river(self, town: str) -> Hop:
        return Hop(f"river of {town}", self.world.towns[town].river, town, f"{town} town region river")

    def region(self, town: str) -> Hop:
        return Hop(f"region of {town}", self.world.towns[town].region, town, f"{town} town region river")

    def product(self, town: str) -> Hop:
        return Hop(f"product of {town}", self.world.towns[town].product, town, f"{town} town region river")

    def length(self, river: str) -> Hop:
        return Hop(f"length of the {river}", f"{self.world.rivers[river].length} kilometres", river, f"{river} kilometres")

    def capital(self, region: str) -> Hop:
        return Hop(f"capital of {region}", self.world.capitals[region], region, f"{region} region capital")


def _all_questions(world: Encyclopedia, rng: random.Random) -> Iterator[Asked]:
    yield from _single(world)
    yield from _bridges(world)
    yield from _comparisons(world, rng)
    yield from _chains(world)
    yield from _pairs(world, rng)


def _ask(family: str, text: str, *hops: Hop) -> Asked:
    """A question whose answer is the value of the last hop."""
    return family, text, _golds(hops[-1].value), hops


def _golds(value: str) -> tuple[str, ...]:
    """Forms of an answer that are as good as any other."""
    for word, first in (("River ", True), (" kilometres", False)):
        if value.startswith(word) if first else value.endswith(word):
            return value, value.replace(word, "")
    return (value,)


def _single(world: Encyclopedia) -> Iterator[Asked]:
    facts = _Facts(world)
    for w in world.works.values():
        maker = FORMS[w.form]
        yield _ask("direct", f"Who {MAKERS[maker]} the {w.form} {w.name}?", facts.creator(w.name))
        yield _ask("attribute", f"In which year was the {w.form} {w.name} finished?", facts.finished(w.name))
    for o in world.organisations:
        yield _ask("direct", f"Who founded the {o}?", facts.founder(o))
        yield _ask("attribute", f"In which year was the {o} founded?", facts.founded(o))
    for t in world.towns:
        yield _ask("direct", f"On which river does {t} lie?", facts.river(t))
        yield _ask("attribute", f"What product is {t} known for?", facts.product(t))
    for p in world.people.values():
        if p.teacher:
            yield _ask("direct", f"Who taught {p.name}?", facts.teacher(p.name))
        yield _ask("attribute", f"In which year was {p.name} born?", facts.born(p.name))
        yield _ask("attribute", f"What was the occupation of {p.name}?", facts.maker(p.name))
    for region in world.capitals:
        yield _ask("direct", f"What is the capital of {region}?", facts.capital(region))


def _bridges(world: Encyclopedia) -> Iterator[Asked]:
    facts = _Facts(world)
    for w in world.works.values():
        first, who = facts.creator(w.name), f"the {FORMS[w.form]} of {w.name}"
        yield _ask("bridge", f"In which town was {who} born?", first, facts.birthplace(w.creator))
        yield _ask("bridge", f"In which year was {who} born?", first, facts.born(w.creator))
        if world.people[w.creator].teacher:
            yield _ask("bridge", f"Who taught {who}?", first, facts.teacher(w.creator))
    for o in world.organisations.values():
        yield _ask(
            "bridge",
            f"In which town was the founder of the {o.name} born?",
            facts.founder(o.name),
            facts.birthplace(o.founder),
        )
        yield _ask("bridge", f"On which river does the town of the {o.name} lie?", facts.seat(o.name), facts.river(o.seat))
    for p in world.people.values():
        yield _ask(
            "bridge",
            f"In which region does the birthplace of {p.name} lie?",
            facts.birthplace(p.name),
            facts.region(p.birthplace),
        )


def _comparisons(world: Encyclopedia, rng: random.Random) -> Iterator[Asked]:
    facts = _Facts(world)
    for one, other in _twos(list(world.people.values()), rng):
        if one.born != other.born:
            first = min(one, other, key=lambda p: p.born).name
            hops = facts.born(one.name), facts.born(other.name)
            yield "comparison", f"Who was born first, {one.name} or {other.name}?", (first,), hops
    for one, other in _twos(list(world.organisations.values()), rng):
        if one.year != other.year:
            first = min(one, other, key=lambda o: o.year).name
            hops = facts.founded(one.name), facts.founded(other.name)
            yield "comparison", f"Which was founded first, the {one.name} or the {other.name}?", (first,), hops


def _chains(world: Encyclopedia) -> Iterator[Asked]:
    facts = _Facts(world)
    for w in world.works.values():
        first, person = facts.creator(w.name), world.people[w.creator]
        who = f"the {FORMS[w.form]} of {w.name}"
        last = facts.river(person.birthplace)
        yield _ask("chain", f"On which river was {who} born?", first, facts.birthplace(w.creator), last)
        if person.teacher:
            taught = facts.teacher(w.creator)
            last = facts.birthplace(person.teacher)
            yield _ask("chain", f"In which town was the teacher of {who} born?", first, taught, last)


def _pairs(world: Encyclopedia, rng: random.Random) -> Iterator[Asked]:
    facts = _Facts(world)
    rivers = list(world.rivers.values())
    for _ in range(4):
        for one, other in _twos(rivers, rng):
            longest = max(one, other, key=lambda r: r.length).name
            hops = facts.length(one.name), facts.length(other.name)
            yield "longer", f"Which is longer, the {one.name} or the {other.name}?", _golds(longest), hops
    people = list(world.people.values())
    born_in: dict[str, list[str]] = {}
    for p in people:
        born_in.setdefault(p.birthplace, []).append(p.name)
    for one, other in _twos(people, rng):
        neighbours = [name for name in born_in[one.birthplace] if name != one.name]
        name = rng.choice(neighbours) if neighbours and rng.random() < 0.5 else other.name
        same = world.people[name].birthplace == one.birthplace
        hops = facts.birthplace(one.name), facts.birthplace(name)
        yield "same", f"Were {one.name} and {name} born in the same town?", ("yes" if same else "no",), hops


def _twos(things: list[Any], rng: random.Random) -> Iterator[tuple[Any, Any]]:
    """Everything once, with a random other."""
    shuffled = rng.sample(things, len(things))
    return zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True)


# ----------------------------------------------------------------------------------------------------------------- from files


@lru_cache(maxsize=2)
def file_questions(
    train: tuple[tuple[str, int, int], ...], test: tuple[tuple[str, int, int], ...], in_domain: tuple[str, ...]
) -> Questions:
    """Rows of files (path, size, time of change). Test rows of `in_domain` datasets are ``seen``, the others ``unseen``.

    Of rows of a split with the same text one counts, whatever their order; a training row whose text is a test row's does not.

    Raises:
        ConfigError: an unreadable file, a row without a question or an answer, a training row that is not in the domain.
    """
    rows: dict[str, list[Question]] = {"train": [], "seen": [], "unseen": []}
    for files, training in ((train, True), (test, False)):
        for path, *_ in files:
            for number, row in enumerate(_rows(Path(path)), 1):
                name, family, text, answers = _read_row(row, f"{path}, row {number}")
                if training and family not in in_domain:
                    raise ConfigError(
                        f"{path}, row {number} trains on {family!r}, which is not in env.in_domain ({', '.join(in_domain)}): "
                        "it would be measured as unseen. Add it to env.in_domain, or take its rows out of the training files."
                    )
                split = "train" if training else "seen" if family in in_domain else "unseen"
                id_ = f"{family}-{name}-{digest(text, *answers)}"
                rows[split].append(Question(id_, family, text, answers))
    for found in rows.values():
        found.sort(key=lambda q: q.id)  # an order of files or rows means nothing
    measured = [q.text for split in ("seen", "unseen") for q in rows[split]]
    kept = {
        split: distinct(f"env.data, split {split}", [q.text for q in found], measured if split == "train" else ())
        for split, found in rows.items()
    }
    return {split: {rows[split][i].id: rows[split][i] for i in indices} for split, indices in kept.items()}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"question file {path} {found}: name a .parquet or .jsonl file.{how_to_fetch(path)}")
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError:
            raise ConfigError(
                f"{path} is read with the package pyarrow, which is not installed: {install('search')}."
            ) from None
        try:
            file = parquet.ParquetFile(path)
            wanted = [c for c in ROW_COLUMNS if c in file.schema_arrow.names]
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
        except ArrowException as error:
            raise ConfigError(f"question file {path} cannot be read: {error}.") from error
    elif path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        yield from (row for _, row in read_json_lines(path, advice="One question a line."))
    else:
        raise ConfigError(f"question file {path} ends in {path.suffix!r}: questions are read from .parquet and .jsonl files.")


ROW_COLUMNS = ("id", "question", "golden_answers", "data_source", "reward_model", "env_kwargs", "extra_info")


class _Truth(msgspec.Struct):
    target: str | list[str] | None = None


class _Rewarded(msgspec.Struct):
    ground_truth: str | list[str] | _Truth | None = None


class _Inner(_Rewarded):
    question: str | None = None
    data_source: str | None = None


class _Extra(msgspec.Struct):
    index: str | int | None = None


class _Row(msgspec.Struct):
    """A row of Search-R1, verl-agent or FlashRAG."""

    id: str | int | None = None
    question: str | None = None
    golden_answers: str | list[str] | None = None
    data_source: str | None = None
    reward_model: _Rewarded | None = None
    env_kwargs: _Inner | None = None
    extra_info: _Extra | None = None


def _read_row(row: Any, where: str) -> tuple[str, str, str, tuple[str, ...]]:
    """(id, dataset, question, answers) of a row; the question ends in a question mark."""
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is {type(row).__name__}, not an object with a question and golden_answers.")
    found = convert(row, _Row, where, advice="A row needs question and golden_answers (or reward_model).")
    inner = found.env_kwargs or _Inner()
    truth = (found.reward_model and found.reward_model.ground_truth) or inner.ground_truth
    answers = found.golden_answers
    if answers is None:
        answers = truth.target if isinstance(truth, _Truth) else truth
    answers = [answers] if isinstance(answers, str) else answers
    text = (found.question or inner.question or "").strip()
    if not text or not answers:
        raise ConfigError(f"{where} has no question or no answers: it needs question and golden_answers (or reward_model).")
    for answer in answers:
        if not answer.strip() or is_written_list(answer):
            reason = "nothing could be found" if not answer.strip() else "it is a list that was written as one text"
            raise ConfigError(f"{where} has the answer {answer[:80]!r}: {reason}. Give golden_answers as a list of texts.")
    family = found.data_source or inner.data_source or "questions"
    name = found.id if found.id is not None else found.extra_info and found.extra_info.index
    return (
        read_name("q" if name is None else str(name), f"{where}: id"),
        read_name(family, f"{where}: data_source"),
        text if text.endswith("?") else f"{text}?",
        tuple(answers),
    )


def told(question: Question) -> dict[str, str]:
    """What a teacher may be told: each hop, and the answer."""
    return {hop.thing: hop.value for hop in question.hops} | {"answer": " or ".join(question.answers)}


def found_by(question: Question) -> str:
    """How the answer is found, in sentences."""
    steps = "".join(f"The {hop.thing} is {hop.value}. " for hop in question.hops)
    return f"{steps}The answer is {' or '.join(question.answers)}."

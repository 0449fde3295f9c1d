"""Figures of what a teacher says of each token, from stored episodes."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from sdar.episodes import StoredEpisode
from sdar.episodes.schema import StoredTurn
from sdar.figures.base import Chart, Lines, Places, Row, Settings, Table, episodes_with, figure, mean

Value = tuple[Hashable, float]
"""Where a number belongs, and the number."""


def _groups(settings: Settings, number: str) -> dict[str, list[StoredEpisode]]:
    """The episodes of each setting; of one alone also by their outcome."""
    found = {label: episodes_with(runs, number) for label, runs in settings.items()}
    if len(found) == 1:
        [episodes] = found.values()
        sides = {"goal reached": True, "goal missed": False}
        found |= {name: [e for e in episodes if e.success is side and not e.lost] for name, side in sides.items()}
    return {label: episodes for label, episodes in found.items() if episodes}


def _range(number: int, ranges: Mapping[str, int | None]) -> str:
    return next(name for name, last in ranges.items() if last is None or number <= last)


def _places(title: str, of: Mapping[str, Iterable[Value]], order: Sequence[str], unit: str = "nats") -> Places:
    """Means at each place, without the places where nobody has one."""
    means: dict[str, dict[Hashable, float]] = {}
    for label, values in of.items():
        found: dict[Hashable, list[float]] = defaultdict(list)
        for place, value in values:
            found[place].append(value)
        means[label] = {place: sum(vs) / len(vs) for place, vs in found.items()}
    known = [place for place in order if any(place in one for one in means.values())]
    return Places(title, known, {label: [one.get(place) for place in known] for label, one in means.items()}, unit)


def _tokens(episodes: Sequence[StoredEpisode], number: str) -> Iterator[tuple[int, int, float]]:
    """Turn and position of each token, from 1, and its number."""
    for e in episodes:
        for turn, t in enumerate(e.turns, 1):
            for position, value in enumerate(getattr(t, number) or (), 1):
                if value is not None:
                    yield turn, position, value


@figure(
    "SDAR (2605.15155), Fig. 3: the gap widens from turn to turn",
    "the size of the gap and the gap itself, of sampled tokens, not a KL over the vocabulary; of one setting also by outcome",
    {"SDAR": ("sdar",)},
)
def gap_by_turn(settings: Settings) -> list[Chart]:
    from sdar.metrics.places import TURNS

    charts: list[Chart] = []
    measures: dict[str, Callable[[float], float]] = {"size of the gap by turn": abs, "gap by turn": float}
    for title, told in measures.items():
        of = {
            label: [(_range(k, TURNS), told(g)) for k, _, g in _tokens(es, "gap")]
            for label, es in _groups(settings, "gap").items()
        }
        charts.append(_places(title, of, [*TURNS]))
    return charts


@figure(
    "Revisiting OPD (2603.25562): a teacher's guidance on drifted prefixes",
    "how far the teacher is from the sampled token, and how unsure it is, by position in a response; no figure of theirs has these axes",
    {"OPD": ("opd",), "top-K": ("top_k_opd",)},
)
def guidance_by_position(settings: Settings) -> list[Chart]:
    from sdar.metrics.places import POSITIONS

    charts: list[Chart] = []
    for number, title in (("gap", "size of the gap by position"), ("teacher_entropy", "entropy of the teacher by position")):
        groups = _groups(settings, number)
        of = {label: [(_range(p, POSITIONS), abs(v)) for _, p, v in _tokens(es, number)] for label, es in groups.items()}
        charts.append(_places(title, of, [*POSITIONS]))
    return charts


@figure(
    "Revisiting OPD (2603.25562): the imbalanced one-token signal",
    "the share of the summed size of the gap that the largest tokens have",
    {"OPD": ("opd",), "top-K": ("top_k_opd",)},
)
def signal_concentration(settings: Settings) -> list[Chart]:
    of = {}
    for label, runs in settings.items():
        sizes = sorted((abs(g) for _, _, g in _tokens(episodes_with(runs, "gap"), "gap")), reverse=True)
        total = sum(sizes)
        tops = [sizes[: max(1, round(share * len(sizes)))] for share in LARGEST.values()]
        of[label] = [sum(top) / total if total else None for top in tops]
    return [Places("share of the gap on the largest tokens", [*LARGEST], of)]


LARGEST = {"1 %": 0.01, "5 %": 0.05, "10 %": 0.1, "25 %": 0.25, "50 %": 0.5, "100 %": 1.0}


def _before(e: StoredEpisode, tools: bool) -> Iterator[tuple[int, str, StoredTurn]]:
    """Number, from 1, of each turn, and what came before it: as `turn/divergence/after_<what>` where there are tools."""
    called = False
    for number, turn in enumerate(e.turns, 1):
        last = e.turns[number - 2] if number > 1 else None
        called |= last is not None and last.tool_ok is not None
        if tools:
            if last is not None and last.tool_ok is not None:
                yield number, "a call that worked" if last.tool_ok else "a call with an error", turn
            elif not called:
                yield number, "no call yet", turn
        elif last is not None:
            yield number, "an accepted action" if last.valid else "a refused action", turn


def _after(settings: Settings, number: str, title: str) -> list[Chart]:
    from sdar.metrics.places import TURNS

    of: dict[str, list[Value]] = defaultdict(list)
    for label, runs in settings.items():
        episodes = episodes_with(runs, number)
        tools = any(t.tool_ok is not None for e in episodes for t in e.turns)
        for turn, what, t in (found for e in episodes for found in _before(e, tools)):
            value = mean([None if v is None else abs(v) for v in getattr(t, number) or ()])
            if value is not None:
                of[what if len(settings) == 1 else f"{label}, {what}"].append((_range(turn, TURNS), value))
    rows: list[Row] = [{"behind": what, "turns": len(vs), "mean": sum(v for _, v in vs) / len(vs)} for what, vs in of.items()]
    return [_places(f"{title} by turn", of, [*TURNS]), Table(title, rows)]


@figure(
    "SOD (2605.07725), Fig. 1a: d_k by step, behind an error and in text alone",
    "all stored attempts instead of 800; in a world without tools a refused action stands for an error",
    {"SOD": ("sod",)},
)
def distance_after_error(settings: Settings) -> list[Chart]:
    return _after(settings, "gap", "d_k, size of the gap")


@figure(
    "SOD (2605.07725), Fig. 1b: the teacher's entropy behind an error",
    "as distance_after_error; a teacher that is asked elsewhere tells no entropy",
    {"SOD": ("sod",)},
)
def teacher_entropy_after_error(settings: Settings) -> list[Chart]:
    return _after(settings, "teacher_entropy", "entropy of the teacher")


@figure(
    "SOD (2605.07725), Fig. 5 and 6: three patterns of distillation, and their shares over training",
    "the patterns are ours, for no file of theirs names them: no weight below the first (aligned), some but not the last (recovered), the "
    "last (drifted)",
    {"SOD": ("sod",)},
)
def weight_patterns(settings: Settings) -> list[Chart]:
    from sdar.metrics.places import TURNS

    shares: dict[str, list[tuple[list[float], list[float]]]] = {}
    weights: dict[str, list[Value]] = defaultdict(list)
    how = "Train SOD (--model SOD) with --model.log_episodes_every 1."
    for label, runs in settings.items():
        for run in runs:
            by_iteration: dict[int, list[str]] = defaultdict(list)
            for e in episodes_with([run], "turn_weight", how):
                told = [t.turn_weight for t in e.turns if t.turn_weight is not None]
                if len(told) > 1:
                    pattern = _pattern(told)
                    by_iteration[e.iteration or 0].append(pattern)
                    weights[_named(settings, label, pattern)] += [(_range(k, TURNS), w) for k, w in enumerate(told, 1)]
            for pattern in PATTERNS:
                at = sorted(by_iteration)
                told_shares = [by_iteration[i].count(pattern) / len(by_iteration[i]) for i in at]
                shares.setdefault(_named(settings, label, pattern), []).append(([float(i) for i in at], told_shares))
    return [Lines("share of the episodes", shares, percent=True), _places("weight of a turn (w_k)", weights, [*TURNS], "")]


PATTERNS = ("aligned", "recovered", "drifted")


def _pattern(weights: Sequence[float]) -> str:
    import torch

    from sdar.functional import weight_patterns

    told = weight_patterns(torch.tensor(weights), torch.zeros(len(weights), dtype=torch.long))
    return next(name for name, is_it in zip(PATTERNS, told, strict=True) if bool(is_it))


def _named(settings: Settings, label: str, name: str) -> str:
    return name if len(settings) == 1 else f"{label}, {name}"

"""A comparison as Markdown tables, for a terminal and for a document alike."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sdar.reading import excerpt

UNITS = {"env_steps": "environment steps", "tokens": "sampled tokens", "seconds": "seconds of iterations"}
"""What learning curves are aligned on, in words."""
QUARTERS = (25, 50, 75, 100)


def markdown(found: dict[str, Any]) -> str:
    """What `sdar.evaluate.compare.compare` returned."""
    pieces = [piece for panel in found["panels"] for piece in _of_panel(panel)]
    if found["curves"]:
        pieces += ["### Learning curves", *_of_curves(found["curves"])]
    pieces += [f"- {note}" for note in found["notes"]]
    return "\n\n".join(pieces) + "\n"


def _of_panel(panel: dict[str, Any]) -> Iterator[str]:
    attempts = panel["attempts"]
    of_each = f"{attempts} attempt{'s' * (attempts != 1)} at each"
    yield f"## {_word(panel['panel'])}: {panel['tasks']} tasks, {of_each} (panel {panel['hash']})"
    yield from success(panel)
    yield from differences(panel)
    if not panel["differences"]:
        return
    reference = _word(panel["differences"][0]["reference"])
    families = [*panel["differences"][0]["families"]]
    if len(families) > 1:
        yield _table(
            ["family", "tasks", *(f"{_word(of['label'])} less {reference}" for of in panel["differences"])],
            [_family(name, panel["differences"]) for name in families],
        )


def differences(panel: dict[str, Any]) -> Iterator[str]:
    """Every setting but the first less the first; nothing where there is one alone."""
    if panel["differences"]:
        yield _table(
            [
                f"less {_word(panel['differences'][0]['reference'])}",
                "success, points",
                "reward",
                "better with probability",
                "intervals over",
            ],
            [_against(of) for of in panel["differences"]],
        )


def success(panel: dict[str, Any]) -> Iterator[str]:
    """Every run of a panel by seed and setting, and what its numbers are: what a document shows that has no room for the rest."""
    settings = panel["settings"]
    seeds = sorted({run["seed"] for setting in settings for run in setting["runs"]})
    rows = [
        [str(seed), *(next((_run(run) for run in of["runs"] if run["seed"] == seed), "-") for of in settings)]
        for seed in seeds
    ]
    rows += [
        ["mean", *(_percent(of["success"]) for of in settings)],
        ["interquartile mean", *(_percent(of["interquartile_mean"]["success"]) for of in settings)],
        ["mean reward", *(f"{of['reward']:.3g}" for of in settings)],
    ]
    yield _table(["seed", *(_word(of["label"]) for of in settings)], rows)
    yield (
        "Success; where a run was measured before, too, before → after, and the paired change in points with its 95 % interval over tasks."
    )


def _run(run: dict[str, Any]) -> str:
    mean, low, high = run["success"]
    if "change" not in run:
        return f"{_percent(mean)} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{_percent(run['before'])} → {_percent(mean)}, {_points(run['change'])}"


def _against(of: dict[str, Any]) -> list[str]:
    success, reward = of["success"], of["reward"]
    mean, low, high = reward["difference"]
    better = success["probability_of_improvement"]
    share = "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in better["estimate"]))
    return [
        _word(of["label"]),
        _points(success["difference"]),
        f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]",
        f"{share} over {better['over']}",
        success["varies"],
    ]


def _family(name: str, differences: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    for of in differences:
        one = of["families"][name]
        after, before = one["means"]
        cells.append(f"{_percent(before)} → {_percent(after)}, {_points(one['difference'])}")
    return [_word(name), str(differences[0]["families"][name]["tasks"]), *cells]


def _of_curves(curves: dict[str, Any]) -> Iterator[str]:
    labels = [*next(iter(curves.values()))["settings"]]
    rows = []
    for cost, curve in curves.items():
        at = np.array(curve["at"])
        for quarter in QUARTERS:
            place = quarter * (len(at) - 1) // 100
            cells = [_over_seeds(curve["settings"][label]["mean"][place]) for label in labels]
            rows.append([f"{at[place]:,.0f} {UNITS[cost]}", *cells])
    yield _table(["after", *map(_word, labels)], rows)
    yield (
        "Success on training tasks, mean of the last five iterations, over the seeds with their 95 % interval where there are several. "
        "Each run is read at the same cost; the last row of a kind is where the first run ended."
    )


def _over_seeds(estimate: Sequence[float | None]) -> str:
    mean, low, high = estimate
    assert mean is not None
    if low is None or high is None:
        return _percent(mean)
    return f"{_percent(mean)} [{100 * max(0.0, low):.1f}, {100 * min(1.0, high):.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(estimate: Sequence[float]) -> str:
    mean, low, high = (100 * x for x in estimate)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _word(text: str) -> str:
    """Somebody's name in a cell of a table."""
    return (text if text.isprintable() else excerpt(text)).replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""What skills did in runs: how often attempts had each, how they went, and what a teacher that was told it made of the same tasks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdar.episodes import StoredEpisode
from sdar.evaluate.intervals import paired_difference, wilson_interval
from sdar.report.gather import Run


def skills_of(settings: Mapping[str, Sequence[Run]]) -> Iterator[dict[str, str]]:
    """Each skill and family of the stored attempts of training, the most used first."""
    for label, runs in settings.items():
        attempts = [e for run in runs for e in run.episodes if e.kind == "train" and not (e.extra or e.privileged or e.lost)]
        uses: dict[tuple[str, str], int] = defaultdict(int)
        for e in attempts:
            for skill in e.skills:
                uses[skill, e.family] += 1
        for (skill, family), count in sorted(uses.items(), key=lambda pair: -pair[1]):
            of_family = [e for e in attempts if e.family == family]
            sides = [[e.success for e in of_family if (skill in e.skills) is has] for has in (True, False)]
            yield {
                "label": label, "skill": skill, "family": family, "uses": str(count),
                "with_it": percent(wilson_interval(sum(sides[0]), len(sides[0]))),
                "without": percent(wilson_interval(sum(sides[1]), len(sides[1]))) if sides[1] else "",
                "lift": in_points(_lift(runs, skill, family)),
            }  # fmt: skip


def _lift(runs: Sequence[Run], skill: str, family: str) -> Sequence[float] | None:
    """The teacher's success less the policy's, in all measurements, on the tasks of which the teacher was told the skill."""
    pairs = []
    for run in runs:
        for line in run.measured:
            teacher, policy = (
                averages(run.episodes, line["panel"], line["iteration"], actor) for actor in ("privileged", "policy")
            )
            told = {e.task for e in run.episodes if e.actor == "privileged" and e.family == family and skill in e.skills}
            pairs += [(teacher[t], policy[t]) for t in teacher if t in policy and t in told]
    return paired_difference(*map(list, zip(*pairs, strict=True)))[:3] if pairs else None


def averages(episodes: Sequence[StoredEpisode], panel: str, iteration: int, actor: str) -> dict[str, float]:
    """Success of each task of a measurement, over its attempts."""
    found = defaultdict(list)
    for e in episodes:
        if e.kind == "validation" and (e.panel, e.iteration, e.actor) == (panel, iteration, actor) and not e.lost:
            found[e.task].append(float(e.success))
    return {task: sum(values) / len(values) for task, values in found.items()}


def three(found: Any) -> tuple[float, float, float]:
    """A number with its interval, as lines of measurements have it."""
    return (found[0], found[1], found[2]) if isinstance(found, list | tuple) else (found, found, found)


def percent(found: Any) -> str:
    if found is None:
        return ""
    mean, low, high = three(found)
    return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def in_points(found: Any) -> str:
    if found is None:
        return ""
    mean, low, high = three(found)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

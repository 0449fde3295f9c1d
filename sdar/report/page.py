"""A report as one page: what is in it, and how it becomes a file that needs nothing else."""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

import sdar
from sdar.evaluate.curves import smooth
from sdar.evaluate.intervals import paired_difference
from sdar.metrics.places import POSITIONS, TURNS
from sdar.reading import yaml_text
from sdar.report import figures
from sdar.report.changed import changed
from sdar.report.gather import Run, plain
from sdar.report.skills import averages, in_points, percent, skills_of, three
from sdar.report.viewed import choose, viewed

CHARTS: tuple[tuple[str, str, str, tuple[tuple[str, str, str, bool], ...]], ...] = (
    (
        "learning", "Learning", "Each point is the mean of the last five iterations.",
        (
            ("success/train", "success in training", "", True),
            ("reward/mean", "reward", "", False),
            ("train/entropy", "entropy", "nats", False),
            ("rollout/response_length", "tokens of a response", "", False),
            ("rollout/episode_length", "turns of an episode", "", False),
            ("rollout/valid_action_rate", "actions that the world accepted", "", True),
            ("rollout/repeated_action_share", "turns that repeat an action", "", True),
            ("reward/flat_group_share", "rows in groups without signal", "", True),
            ("train/grad_norm", "norm of the gradient", "", False),
            ("kl/reference", "KL to the initial policy", "nats", False),
        ),
    ),
    (
        "channel", "The teacher's channel", "",
        (
            ("gap/mean", "gap", "nats", False),
            ("gap/abs", "size of the gap", "nats", False),
            ("gap/success", "gap where the goal was reached", "nats", False),
            ("gap/failure", "gap where it was missed", "nats", False),
            ("gate/mean", "gate", "", False),
            ("gate/active_share", "tokens with a gate above 0.5", "", True),
            ("turn/weight", "weight of a turn", "", False),
            ("distill/divergence", "divergence", "", False),
            ("distill/coef", "coefficient", "", False),
            ("teacher/entropy", "entropy of the teacher", "nats", False),
            ("teacher/empty_share", "rows whose teacher is told nothing", "", True),
            ("gap/top1_share", "gap on 1 % of the tokens", "", True),
            ("grad/top_token_share", "gradient of the largest token", "", True),
        ),
    ),
)  # fmt: skip
"""Id, head and note of a section, and metric, title, unit and whether it is a share of each of its charts."""
BY_PLACE = (
    ("gap/abs", "size of the gap", "nats"), ("gap", "gap", "nats"), ("entropy", "entropy", "nats"),
    ("gate", "gate", ""), ("distill/divergence", "divergence", ""), ("turn/weight", "turn weight", ""),
)  # fmt: skip
PHASES = {
    "time/rollout_s": "rollout", "time/score_s": "score", "time/update_s": "update", "time/judge_s": "judge",
    "time/weights_s": "weights",
}  # fmt: skip


def page(runs: Sequence[Run], most_episodes: int = 500, refresh: int | None = None) -> str:
    """The page of some runs.

    Args:
        most_episodes: In the viewer, of all runs together.
        refresh: Seconds after which a browser loads the page again.
    """
    settings: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        settings[run.label].append(run)
    charts = [chart for chart in _charts(settings) if chart[3]]
    each = most_episodes // max(1, len(runs))
    episodes = [(f"{run.label}, {run.folder.name}", e) for run in runs for e in choose(run.episodes, each)]
    episodes.sort(key=lambda pair: pair[1].kind != "train")  # those with the numbers of a training step come first
    stored = sum(len(run.episodes) for run in runs)
    families, skills = [*_families(settings)], [*skills_of(settings)]
    sections = [("result", "result"), ("alarms", "alarms"), *((id, head.lower()) for id, head, *_ in charts)]
    sections += [("families", "families")] * bool(families) + [("skills", "skills")] * bool(skills)
    sections += [("episodes", "episodes"), ("settings", "settings")]
    here = files("sdar.report")
    script = here.joinpath("viewer.js").read_text(encoding="utf-8")
    told = {
        "title": ", ".join(settings),
        "version": sdar.__version__,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "refresh": refresh,
        "sections": sections,
        "results": [row for label, of in settings.items() for run in of for row in _results(label, run)],
        "alarms": [{"run": f"{run.label}, {run.folder.name}", **alarm} for run in runs for alarm in run.alarms],
        "charts": [(id, head, note, [Markup(picture) for picture in pictures]) for id, head, note, pictures in charts],
        "families": families,
        "skills": skills,
        "episodes": Markup(viewed(episodes)) if episodes else "",
        "episodes_note": f"{len(episodes)} of {stored} stored episodes. Hover over a token for all of its numbers.",
        "settings": [
            {
                "name": f"{run.label}, {run.folder}",
                "changed": [*_changed(run)],
                "text": yaml_text(run.settings),
            }
            for run in runs
        ],
        "style": Markup(here.joinpath("style.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }  # fmt: skip
    templates = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return templates.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(told)


def _changed(run: Run) -> Iterator[dict[str, str]]:
    for key, value, default in changed(run.settings):
        yield {"key": key, "value": plain(value), "default": "" if default is None else plain(default)}


def _results(label: str, run: Run) -> Iterator[dict[str, str]]:
    """First and last measurement of each panel."""
    for panel in dict.fromkeys(line["panel"] for line in run.measured):
        lines = [line for line in run.measured if line["panel"] == panel]
        first, last = lines[0], lines[-1]
        yield {
            "label": label, "run": str(run.folder), "seed": str(run.seed), "panel": f"{panel} ({last['tasks']} tasks, {last['hash'][:12]})",
            "before": percent(first.get(f"success/{panel}")) if len(lines) > 1 else "",
            "after": percent(last.get(f"success/{panel}")),
            "change": in_points(_change(run, panel, first, last)) if len(lines) > 1 else "",
            "teacher": percent(last.get(f"teacher/success/{panel}")),
            "lift": in_points(last.get(f"teacher/lift/{panel}")),
        }  # fmt: skip


def _change(run: Run, panel: str, first: Mapping[str, Any], last: Mapping[str, Any]) -> Sequence[float] | None:
    """The paired difference of two measurements of the same tasks, with its interval."""
    if first["hash"] != last["hash"] or first["iteration"] == last["iteration"]:
        return None
    before, after = (averages(run.episodes, panel, line["iteration"], "policy") for line in (first, last))
    both = [task for task in after if task in before]
    return paired_difference([after[t] for t in both], [before[t] for t in both])[:3] if both else None


def _charts(settings: Mapping[str, Sequence[Run]]) -> Iterator[tuple[str, str, str, list[str]]]:
    yield "measured", "Measured success", "The band is the interval over tasks of each run.", [*_measured(settings)]
    for id, head, note, metrics in CHARTS:
        yield id, head, note, [*_curves(settings, metrics)]
    note = "Means over the last fifth of the iterations; of one run also over the first."
    yield "places", "By turn and by position", note, [*_by_place(settings)]
    yield "gaps", "Distribution of the gap", "Over the tokens of the stored attempts of training.", [*_gaps(settings)]
    yield "time", "Time and tokens", "Seconds of an iteration by phase.", [*_times(settings)]


def _measured(settings: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    panels = dict.fromkeys(line["panel"] for runs in settings.values() for run in runs for line in run.measured)
    for panel in panels:
        for name, title in (
            (f"success/{panel}", f"success, {panel}"),
            (f"teacher/lift/{panel}", f"teacher's lift in points, {panel}"),
        ):
            of, bands = defaultdict(list), defaultdict(list)
            for label, runs in settings.items():
                for run in runs:
                    points = {m["iteration"]: m[name] for m in run.measured if m["panel"] == panel and name in m}
                    at, told = sorted(points), [three(points[i]) for i in sorted(points)]
                    of[label].append((at, [mean for mean, _, _ in told]))
                    if len(runs) == 1:
                        bands[label].append((at, [low for _, low, _ in told], [high for _, _, high in told]))
            if any(x for runs in of.values() for x, _ in runs):
                yield figures.lines(title, of, percent=True, bands=bands)


def _curves(settings: Mapping[str, Sequence[Run]], metrics: Sequence[tuple[str, str, str, bool]]) -> Iterator[str]:
    for metric, title, unit, share in metrics:
        of = {
            label: [(x, smooth(y)) for x, y in (run.series(metric) for run in runs) if x] for label, runs in settings.items()
        }
        of = {label: curves for label, curves in of.items() if curves}
        if of:
            yield figures.lines(title, of, unit, share)


def _by_place(settings: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    for metric, title, unit in BY_PLACE:
        for kind, ranges in (("turn", TURNS), ("position", POSITIONS)):
            of: dict[str, list[float | None]] = {}
            for label, runs in settings.items():
                names = [f"{metric}/{kind}/{place}" for place in ranges]
                of[label] = [_fifth([run.series(name)[1] for run in runs], last=True) for name in names]
                if len(settings) == 1:
                    of = {
                        "last fifth": of[label],
                        "first fifth": [_fifth([run.series(n)[1] for run in runs], last=False) for n in names],
                    }
            of = {label: values for label, values in of.items() if any(v is not None for v in values)}
            known = [k for k in range(len(ranges)) if any(values[k] is not None for values in of.values())]
            if of and len(known) > 1:
                shown = {label: [values[k] for k in known] for label, values in of.items()}
                yield figures.places(f"{title} by {kind}", [[*ranges][k] for k in known], shown, unit)


def _fifth(runs: Sequence[Sequence[float]], last: bool) -> float | None:
    """Mean over the last or the first fifth of the values of each run."""
    found = [values[-n:] if last else values[:n] for values in runs if (n := -(-len(values) // 5))]
    flat = [value for values in found for value in values]
    return sum(flat) / len(flat) if flat else None


def _gaps(settings: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    for label, runs in settings.items():
        gaps: dict[int, list[float]] = defaultdict(list)
        for run in runs:
            for e in run.episodes:
                if e.kind == "train" and e.iteration is not None:
                    gaps[e.iteration] += [x for turn in e.turns for x in turn.gap or () if x is not None]
        at = sorted(i for i, values in gaps.items() if values)
        if at:
            of = list(zip(*(figures.quantiles(gaps[i]) for i in at), strict=True))
            names = ("5 %", "25 %", "median", "75 %", "95 %")
            yield figures.spread(f"gap, {label}", at, dict(zip(names, of, strict=True)), "nats")


def _times(settings: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    for label, runs in settings.items():
        run = runs[0]
        rows = [row for row in run.rows if "time/rollout_s" in row]
        parts = {name: [row.get(metric, 0.0) for row in rows] for metric, name in PHASES.items()}
        parts = {name: values for name, values in parts.items() if any(values)}
        if len(rows) > 1 and parts:
            yield figures.stacked(f"seconds, {label}", [row["step"] for row in rows], parts, "s")
    names = {"rollout": "sampled tokens a second", "train": "tokens a second of the update"}
    yield from _curves(settings, [(f"{name}/tokens_per_second", title, "", False) for name, title in names.items()])
    yield from _curves(settings, [("memory/peak_gib", "most memory so far", "GiB", False)])


def _families(settings: Mapping[str, Sequence[Run]]) -> Iterator[dict[str, str]]:
    for label, runs in settings.items():
        for run in runs:
            for panel in dict.fromkeys(line["panel"] for line in run.measured):
                lines, head = [line for line in run.measured if line["panel"] == panel], f"success_by_family/{panel}/"
                for key in (key for key in lines[-1] if key.startswith(head)):
                    yield {
                        "label": f"{label}, {run.folder.name}",
                        "panel": panel,
                        "family": key.removeprefix(head),
                        "before": percent(lines[0].get(key)) if len(lines) > 1 else "",
                        "after": percent(lines[-1][key]),
                    }

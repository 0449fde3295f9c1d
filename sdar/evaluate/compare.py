"""Settings side by side: on every panel that all of their runs measured, and as they learned; as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray as Array

from sdar.errors import ConfigError
from sdar.evaluate.curves import Curve, aligned, mean_over_seeds, smooth
from sdar.evaluate.intervals import Estimate, mean_interval, paired_difference
from sdar.evaluate.results import Attempt, MeasuredRun, Measurement, Setting
from sdar.evaluate.seeds import difference, improvement_over_seeds, improvement_over_tasks, interquartile_mean

POINTS = 101
"""Places at which learning curves are told."""
QUANTITIES = ("success", "reward")
Read = dict[str, list[Attempt]]
"""Task -> its attempts."""


@dataclass(frozen=True)
class Played:
    """A panel as one setting's runs played it.

    Attributes:
        measured: Of each run.
        attempts: Of each run, at the same tasks in the same order.
        before: The first measurement of each run, where it is another one.
    """

    setting: Setting
    measured: tuple[Measurement, ...]
    attempts: tuple[Read, ...]
    before: tuple[Read | None, ...]

    def means(self, quantity: str, tasks: Sequence[str]) -> Array:
        """``[seeds, tasks]``: mean over the attempts at each task."""
        return np.array([[_mean(read[task], quantity) for task in tasks] for read in self.attempts])


def compare(settings: Sequence[Setting], panel: str | None = None, iteration: int | None = None) -> dict[str, Any]:
    """Every setting but the first is compared with the first; one alone has its runs, before and after, and no differences.

    Args:
        panel: The only panel that is looked at; None: all that every run measured.
        iteration: Of the measurement; None: each run's last.

    Returns:
        ``panels`` (each with ``settings`` and ``differences``), ``curves`` (by what they cost) and ``notes``, all plain data.

    Raises:
        ConfigError: no panel that all measured; panels of the same name that are not the same; episodes that
            are gone.
    """
    notes: list[str] = []
    runs = [run for setting in settings for run in setting.runs]
    panels = [_compare_panel(name, settings, iteration, notes) for name in _panels(runs, panel, iteration)]
    return {"panels": panels, "curves": _curves(settings, notes), "notes": notes}


def _panels(runs: Sequence[MeasuredRun], panel: str | None, iteration: int | None) -> list[str]:
    """The names of the panels that all runs measured, each the same everywhere."""
    when = "" if iteration is None else f" after iteration {iteration}"
    names = [{m.panel for m in run.measurements if run.of_panel(m.panel, iteration)} for run in runs]
    for run, of_run in zip(runs, names, strict=True):
        if not of_run or (panel is not None and panel not in of_run):
            known = {m.panel: ", ".join(str(x.iteration) for x in run.of_panel(m.panel)) for m in run.measurements}
            told = "; ".join(f"panel {name} after iteration {iterations}" for name, iterations in known.items())
            wanted = "a measurement" if panel is None else f"a measurement of panel {panel!r}"
            raise ConfigError(f"{run.folder} does not have {wanted}{when}; it has {told}. Correct --panel or --iteration.")
    common = [panel] if panel is not None else sorted(set.intersection(*names))
    if not common:
        told = "; ".join(f"{run.folder}: {', '.join(sorted(of))}" for run, of in zip(runs, names, strict=True))
        raise ConfigError(
            f"no panel was measured by all of these runs ({told}): measure them on the same tasks (data.val_splits)."
        )
    for name in common:
        first, *others = [run.of_panel(name, iteration)[-1] for run in runs]
        for other in others:
            if (first.hash, first.attempts) != (other.hash, other.attempts):
                what = [f"hash {m.hash} ({m.tasks} tasks, {m.attempts} attempts at each)" for m in (first, other)]
                raise ConfigError(
                    f"panel {name} of {first.folder} has {what[0]}, that of {other.folder} has {what[1]}: where tasks or attempts "
                    "differ, a difference is none between methods. Measure both on the same panel (the same world, data.panel_seed, "
                    "data.val_tasks and data.val_attempts, or a file in data.panel_files), or compare another one with --panel."
                )
    return common


def _compare_panel(name: str, settings: Sequence[Setting], iteration: int | None, notes: list[str]) -> dict[str, Any]:
    played = [_played(setting, name, iteration) for setting in settings]
    first = played[0].measured[0]
    reads = [read for of in played for read in of.attempts]
    tasks = [task for task in reads[0] if all(task in read for read in reads)]
    if not tasks:
        raise ConfigError(f"panel {name}: faults of the world ended every attempt at each of its tasks in one of the runs.")
    if lost := first.tasks - len(tasks):
        notes.append(
            f"{lost} of the {first.tasks} tasks of panel {name} were lost to faults of the world in a run: they are left out."
        )
    if len({m.env_steps for of in played for m in of.measured}) > 1:
        spent = "; ".join(f"{of.setting.label}: {', '.join(f'{m.env_steps:,}' for m in of.measured)}" for of in played)
        notes.append(f"Panel {name} was measured after different numbers of environment steps ({spent}).")
    if len(played) > 1 and any(len(of.attempts) == 1 for of in played):
        notes.append(
            f"Panel {name}: with one seed on a side an interval tells how these policies differ on other tasks of this kind; how another "
            "seed would come out it does not tell."
        )
    return {
        "panel": name,
        "hash": first.hash,
        "tasks": len(tasks),
        "attempts": first.attempts,
        "settings": [_of_setting(of, tasks) for of in played],
        "differences": [_against(of, played[0], tasks) for of in played[1:]],
    }


def _played(setting: Setting, panel: str, iteration: int | None) -> Played:
    measured, before = [], []
    for run in setting.runs:
        found = run.of_panel(panel, iteration)
        same = [m for m in found if m.hash == found[-1].hash]
        measured.append(found[-1])
        before.append(same[0].read_attempts() if len(same) > 1 else None)
    return Played(setting, tuple(measured), tuple(m.read_attempts() for m in measured), tuple(before))


def _of_setting(played: Played, tasks: Sequence[str]) -> dict[str, Any]:
    """Each run of a setting, and all of them."""
    success, reward = (played.means(quantity, tasks) for quantity in QUANTITIES)
    runs = []
    for run, measured, values, rewards, before in zip(
        played.setting.runs, played.measured, success, reward, played.before, strict=True
    ):
        told: dict[str, Any] = {"folder": str(run.folder), "seed": run.seed, "method": run.method}
        told |= {"iteration": measured.iteration, "env_steps": measured.env_steps}
        told |= {"success": _plain(mean_interval(values.tolist())), "reward": float(rewards.mean())}
        both = [i for i, task in enumerate(tasks) if before is not None and task in before]
        if before is not None and both:
            began = [_mean(before[tasks[i]], "success") for i in both]
            told["before"] = sum(began) / len(began)
            told["change"] = _plain(paired_difference(values[both].tolist(), began))
        runs.append(told)
    return {
        "label": played.setting.label,
        "runs": runs,
        "success": float(success.mean()),
        "reward": float(reward.mean()),
        "interquartile_mean": {
            quantity: interquartile_mean(of.mean(1)) for quantity, of in zip(QUANTITIES, (success, reward), strict=True)
        },
    }


def _against(played: Played, reference: Played, tasks: Sequence[str]) -> dict[str, Any]:
    """A setting less the first one."""
    family = {task: attempts[0].family for task, attempts in reference.attempts[0].items()}
    told: dict[str, Any] = {"label": played.setting.label, "reference": reference.setting.label}
    families: dict[str, Any] = {}
    for quantity in QUANTITIES:
        told[quantity] = _difference(played, reference, tasks, quantity)
    for name in sorted({family[task] for task in tasks}):
        of_family = [task for task in tasks if family[task] == name]
        families[name] = {"tasks": len(of_family), **_difference(played, reference, of_family, "success")}
    return told | {"families": families}


def _difference(played: Played, reference: Played, tasks: Sequence[str], quantity: str) -> dict[str, Any]:
    after, before = played.means(quantity, tasks), reference.means(quantity, tasks)
    found = difference(after, before, 1.0 if quantity == "success" else _range(played, reference, tasks))
    if min(len(after), len(before)) > 1:
        better, over = improvement_over_seeds(after.mean(1), before.mean(1)), "seeds"
    else:
        better, over = improvement_over_tasks(_wins(played, reference, tasks, quantity)), "tasks"
    return {
        "means": [float(after.mean()), float(before.mean())],
        "difference": list(found[:3]),
        "varies": found.varies,
        "probability_of_improvement": {"estimate": _plain(better), "over": over},
    }


def _range(played: Played, reference: Played, tasks: Sequence[str]) -> float:
    """The largest difference of two rewards that were seen."""
    rewards = [a.reward for of in (played, reference) for read in of.attempts for task in tasks for a in read[task]]
    return max(rewards) - min(rewards)


def _wins(played: Played, reference: Played, tasks: Sequence[str], quantity: str) -> Array:
    """``[tasks]``: the share of pairs of attempts, one of each side, that the first one wins; ties count half."""

    def values(of: Played, task: str) -> Array:
        return np.array([float(getattr(attempt, quantity)) for read in of.attempts for attempt in read[task]])

    return np.array([(np.sign(values(played, t)[:, None] - values(reference, t)).mean() + 1) / 2 for t in tasks])


def _mean(attempts: Sequence[Attempt], quantity: str) -> float:
    return float(sum(getattr(attempt, quantity) for attempt in attempts)) / len(attempts)


def _plain(estimate: Estimate) -> list[float]:
    return list(estimate[:3])


def _curves(settings: Sequence[Setting], notes: list[str]) -> dict[str, Any]:
    """Success on training tasks (mean of the last five iterations) at equal cost: cost -> its places, and the curve of each setting with
    its interval over seeds, from where all runs have begun to where the first one ends."""
    read = [[Curve.read(run.folder) for run in setting.runs] for setting in settings]
    if missing := [
        run.folder for s, of in zip(settings, read, strict=True) for run, c in zip(s.runs, of, strict=True) if c is None
    ]:
        notes.append(f"{missing[0]} has no metrics.csv of a training: learning curves are left out.")
        return {}
    curves = [curve for of in read for curve in of if curve is not None]
    found = {}
    for cost in ("env_steps", "tokens", "seconds"):
        if not all(cost in curve.costs for curve in curves):
            notes.append(f"A metrics.csv does not tell the {cost} of every iteration: no curve over them.")
            continue
        lines = [(curve.costs[cost].tolist(), smooth(curve.success.tolist())) for curve in curves]
        at, heights = aligned(lines, POINTS)
        if at[0] >= at[-1]:
            notes.append(f"One run had ended before another one's first iteration did, by {cost}: no curve over them.")
            continue
        rest, told = iter(heights), {}
        for setting in settings:
            of_setting = np.array([next(rest) for _ in setting.runs])
            told[setting.label] = {
                "seeds": of_setting.tolist(),
                "mean": [_known(mean_over_seeds(column)) for column in of_setting.T],
            }
        found[cost] = {"at": at.tolist(), "settings": told}
    return found


def _known(estimate: Estimate) -> list[float | None]:
    """As JSON has it, which knows no NaN."""
    return [None if np.isnan(x) else x for x in estimate[:3]]

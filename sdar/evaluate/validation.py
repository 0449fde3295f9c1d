"""Validation of a strategy: its policy as it is, and, where there is a teacher, the teacher acting with what it may see.

If the teacher is not better than the student, no distillation can help: the difference is reported as the teacher's lift.
"""

from collections import defaultdict
from typing import Any

from sdar.data import Step
from sdar.data.panels import Panel
from sdar.evaluate.intervals import Estimate, mean_interval, paired_difference, pass_at_k
from sdar.rollout import Rollout
from sdar.rollout.groups import by_group, describe_lost, finished
from sdar.training import bars, reporting
from sdar.training.playing import Playing
from sdar.types import Episode, Status, Task


class Validation:
    """Plays panels piece by piece and sums them up."""

    def __init__(self, module: Playing, rollout: Rollout):
        self.module = module
        self.rollout = rollout
        self._played: dict[str, dict[str, list[Episode]]] = defaultdict(lambda: defaultdict(list))
        self._panels: dict[str, Panel] = {}
        self._tasks: dict[str, list[str]] = defaultdict(list)
        self._history: dict[str, list[tuple[int, Panel, dict[str, float]]]] = defaultdict(list)

    def play(self, step: Step) -> None:
        """One piece of a panel, by the policy and, if there is one that can act, by the teacher with what it may see."""
        module, played = self.module, self._played[step.panel.name]
        self._panels[step.panel.name] = step.panel
        self._tasks[step.panel.name] += [task.id for task in step.tasks]
        attempts = module.play(self.rollout, module.model, module.requests(step, privileged=False, training=False))
        played["policy"] += attempts
        for task_id, error in step.unreadable.items():
            task = Task(task_id, "unreadable", "")
            played["policy"] += [Episode(task, n, status=Status.ENV_ERROR, error=error) for n in range(step.attempts)]
        if module.retriever is not None if module.teacher is None else not module.teacher.elsewhere:
            played["privileged"] += module.play_as_teacher(
                self.rollout, module.informed_requests(by_group(finished(attempts)))
            )

    def report(self) -> None:
        """Log, print and write what was played since the last report."""
        module, played, self._played = self.module, self._played, defaultdict(lambda: defaultdict(list))
        tasks, self._tasks = self._tasks, defaultdict(list)
        for name, actors in played.items():
            panel = Panel(name, tuple(tasks[name]))  # what was played: a limit of the Trainer may leave a part
            asked = len(by_group(actors["policy"])[0])
            values = {actor: averages(of_actor) for actor, of_actor in actors.items()}
            summary = summarize(name, actors["policy"], asked)
            if values["policy"]:
                self._history[name].append((module.iteration, panel, values["policy"]))
            if values.get("privileged"):
                summary[f"teacher/success/{name}"] = mean_interval([*values["privileged"].values()])
                if pairs := paired(values["privileged"], values["policy"]):
                    summary[f"teacher/lift/{name}"] = paired_difference(*pairs)
            flat = {key: estimate.mean for key, estimate in summary.items()}
            for bound in ("low", "high") if values["policy"] else ():
                flat[f"success_{bound}/{name}"] = getattr(summary[f"success/{name}"], bound)
            self._log(flat, len(panel))
            if module.trainer.is_global_zero:
                self._tell(panel, asked, summary, actors)
                for actor, of_actor in actors.items():
                    reporting.write_episodes(module.trainer, f"{name}-{actor}-{module.iteration:06d}", of_actor)

    def first(self) -> dict[str, dict[str, Any]]:
        """The run's first measurement of each panel, as plain data: a run that goes on compares its last one with it."""
        return {
            name: {"iteration": iteration, "tasks": list(panel.task_ids), "values": values}
            for name, ((iteration, panel, values), *_) in self._history.items()
        }

    def take_first(self, state: dict[str, dict[str, Any]]) -> None:
        """Begin with what `first` gave."""
        for name, of in state.items():
            self._history[name] = [(of["iteration"], Panel(name, tuple(of["tasks"])), of["values"])]

    def changes(self) -> list[str]:
        """For each panel success in the first and the last validation of the run that played the same tasks, and the paired difference."""
        lines = []
        for name, played in self._history.items():
            ended, panel, after = played[-1]
            began, _, before = next(of for of in played if of[1] == panel)
            if ended > began and (pairs := paired(after, before)):
                gain, both = paired_difference(*pairs), len(pairs[0])
                most = max(len(before), len(after))
                of = "" if both == most else f", over the {both} tasks that both played"
                lines += [
                    f"{name} (panel {panel.hash})",
                    f"  success before (iteration {began}): {mean_interval([*before.values()])}",
                    f"  success after  (iteration {ended}): {mean_interval([*after.values()])}",
                    f"  change: {100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] (paired, 95 %{of})",
                ]
        return lines

    def _log(self, metrics: dict[str, float], tasks: int) -> None:
        """Give loggers the numbers beside the iteration that they belong to; the first ones too, which Lightning keeps to itself."""
        module = self.module
        metrics |= {"train/iteration": module.iteration, "train/env_steps": module.env_steps}
        module.log_dict(metrics | {"step": float(module.iteration)}, batch_size=tasks, add_dataloader_idx=False)
        if module.trainer.sanity_checking:
            for logger in module.trainer.loggers:
                logger.log_metrics(metrics, step=module.iteration)
                logger.save()

    def _tell(self, panel: Panel, attempts: int, summary: dict[str, Estimate], actors: dict[str, list[Episode]]) -> None:
        module, whole = self.module, self._panels[panel.name]
        what = "test" if module.trainer.state.fn == "test" else "validation"
        part = "" if panel == whole else f", a part of panel {whole.hash} with {len(whole)}"
        when = f"{module.iteration} iteration{'s' * (module.iteration != 1)}"
        head = f"{what} of {panel.name} (panel {panel.hash}, {len(panel)} tasks{part}, avg@{attempts}) after {when}"
        names = [key.replace(f"success_by_family/{panel.name}/", "  ", 1) for key in summary]
        width = max(map(len, names), default=0)  # no wider than must be: terminals may have 80 columns
        lines = [f"  {key:<{width}} {estimate}" for key, estimate in zip(names, summary.values(), strict=True)]
        for actor, of_actor in actors.items():
            if lost := describe_lost(of_actor):
                lines.append(
                    f"  MISSING: faults of the world ended {lost}. They are in no number above; {actor} played the others."
                )
        if what == "test" and panel.hash in (p.hash for p in module.tasks.val_panels):
            lines.append(
                "  Validation measures these tasks, too: a policy that was chosen by it is not tested by them. For a number of its own "
                "give a split that is not in data.val_splits, or a panel file, as data.test_splits."
            )
        if module.teacher is not None and module.teacher.elsewhere:
            lines.append(
                "  The teacher is in other processes and does not act: whether it is better than the student is not known."
            )
        lift = summary.get(f"teacher/lift/{panel.name}")
        if lift is not None and lift.high <= 0:
            lines.append("  The teacher is not better than the student on these tasks: no distillation from it can help.")
        bars.say(module.trainer, "\n".join(["", head, *lines]))
        reporting.write_validation(
            module,
            {
                "panel": panel.name,
                "hash": panel.hash,
                "tasks": len(panel),
                **({} if panel == whole else {"part_of": {"hash": whole.hash, "tasks": len(whole)}}),
                "attempts": attempts,
                "episodes": len(actors["policy"]),
                "lost": sum(e.lost for e in actors["policy"]),
                **{key: list(estimate[:3]) for key, estimate in summary.items()},
            },
        )


def averages(episodes: list[Episode]) -> dict[str, float]:
    """avg@k of each task of which at least one attempt was played, by its id."""
    played = by_group(finished(episodes))
    return {group[0].task.id: sum(e.success for e in group) / len(group) for group in played}


def paired(after: dict[str, float], before: dict[str, float]) -> tuple[list[float], list[float]] | None:
    """The values of the tasks that both have, in one order; None where there is no such task."""
    both = [task for task in after if task in before]
    return ([after[task] for task in both], [before[task] for task in both]) if both else None


def summarize(name: str, episodes: list[Episode], attempts: int) -> dict[str, Estimate]:
    """Success, pass@k, success of families and scores of a panel: over what was played. Empty where nothing was.

    Args:
        attempts: At each task; pass@k is about the tasks of which all of them were played.
    """
    played = finished(episodes)
    groups = by_group(played)
    if not groups:
        return {}
    summary = {f"success/{name}": mean_interval([*averages(played).values()])}
    whole = [sum(e.success for e in group) for group in groups if len(group) == attempts]
    if attempts > 1 and whole:
        summary[f"pass@{attempts}/{name}"] = mean_interval([pass_at_k(w, attempts, attempts) for w in whole])
    for family in sorted({e.task.family for e in played}):
        of_family = [e for e in played if e.task.family == family]
        summary[f"success_by_family/{name}/{family}"] = mean_interval([*averages(of_family).values()])
    for score in sorted({score for e in played for score in e.scores}):  # an episode that failed has none
        told = [[e.scores.get(score, 0.0) for e in group] for group in groups]
        summary[f"scores/{score}/{name}"] = mean_interval([sum(group) / len(group) for group in told])
    return summary

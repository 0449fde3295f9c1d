"""Validation of a strategy: its policy as it is, and, where there is a teacher, the teacher acting with what it may see.

If the teacher is not better than the student, no distillation can help: the difference is reported as the teacher's lift.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from sdar.data import Pieces, TaskBatch
from sdar.data.panels import Panel
from sdar.data.set_means import metrics_of
from sdar.errors import ConfigError
from sdar.evaluate.intervals import Estimate, macro_mean, paired_difference
from sdar.metrics.base import EpisodeMetric
from sdar.metrics.tasks import OverTasks, PassAtK, Score, Success, TeacherLift, averages, paired
from sdar.parts import Environment
from sdar.rollout import AgentLoop
from sdar.rollout.groups import by_group, describe_lost, finished
from sdar.rollout.standing import Standing
from sdar.training import bars, reporting
from sdar.training.measuring import Measuring
from sdar.training.playing import Playing
from sdar.types import Episode, Status, Task

Summary = dict[str, Estimate | float]
"""Metric name -> its value, with an interval where it is one over tasks."""


class Validation:
    """Plays panels piece by piece and sums them up."""

    def __init__(self, module: Playing, rollout: AgentLoop):
        self.module = module
        self.rollout = rollout
        self.last_metrics: dict[str, float] = {}
        """Of the last report, by name."""
        self._played: dict[str, dict[str, list[Episode]]] = defaultdict(lambda: defaultdict(list))
        self._panels: dict[str, Panel] = {}
        self._tasks: dict[str, list[str]] = defaultdict(list)
        self._told: dict[str, bool] = {}
        self._history: dict[str, list[tuple[int, Panel, dict[str, float]]]] = defaultdict(list)
        self._families: dict[str, str] = {}  # of each task that was played
        self._by_frozen: dict[tuple[str, str, int, str], Episode] = {}  # panel, task, attempt, what the teacher was told
        self.measuring = Measuring("validation")
        rollout.progress = self._hear

    def begin(self) -> None:
        """A measurement begins: find out how much there is to play."""
        trainer, what = self.module.trainer, str(self.module.trainer.state.fn)
        kind = what if what in ("test", "predict") else "sanity_val" if trainer.sanity_checking else "val"
        self.measuring = Measuring({"test": "test", "predict": "prediction"}.get(kind, "validation"), trainer.world_size)
        loaders = getattr(trainer, f"{kind.removeprefix('sanity_')}_dataloaders") or []
        for pieces, most in zip(
            loaders if isinstance(loaders, list) else [], getattr(trainer, f"num_{kind}_batches"), strict=False
        ):
            for piece in (
                pieces.steps[: int(min(most, len(pieces)))] if isinstance(pieces, Pieces) else ()
            ):  # others play nothing
                self.plan(piece, teacher=self.teacher_acts and kind != "predict")

    def plan(self, piece: TaskBatch, teacher: bool) -> None:
        """This piece will be played, by the teacher too if it acts."""
        for actor in ("policy", "teacher") if teacher else ("policy",):
            self.measuring.plan(piece.panel.name, actor, len(piece.tasks) * piece.attempts)

    def _hear(self, standing: Standing) -> None:
        self.measuring.hear(standing)
        bars.measured(self.module.trainer, self.measuring)

    def announce(self, piece: TaskBatch, actor: str, episodes: int) -> None:
        """An actor begins with a piece, of which it plays so many episodes."""
        self.measuring.begin(piece.panel.name, actor, len(piece.tasks) * piece.attempts, episodes)
        if episodes:
            bars.measured(self.module.trainer, self.measuring, at_once=True)

    @property
    def teacher_acts(self) -> bool:
        module = self.module
        return module.retriever is not None if module.teacher is None else module.teacher.acts

    def play(self, task_batch: TaskBatch) -> None:
        """One piece of a panel, by the policy and, if there is one that can act, by the teacher with what it may see."""
        module, played = self.module, self._played[task_batch.panel.name]
        self._panels[task_batch.panel.name] = task_batch.panel
        self._tasks[task_batch.panel.name] += [task.id for task in task_batch.tasks]
        requests = module.requests(task_batch, privileged=False, training=False)
        self.announce(task_batch, "policy", len(requests))
        attempts = module.play(self.rollout, module.model, requests)
        played["policy"] += attempts
        for task_id, error in task_batch.unreadable.items():
            task = Task(task_id, "unreadable", "")
            played["policy"] += [Episode(task, n, status=Status.ENV_ERROR, error=error) for n in range(task_batch.attempts)]
        if self.teacher_acts and task_batch.tasks:
            tells = self._tells(task_batch.panel, module.env_of(task_batch.tasks[0]))
            played["privileged"] += self._as_teacher(task_batch, finished(attempts) if tells else [])

    def _as_teacher(self, piece: TaskBatch, attempts: list[Episode]) -> list[Episode]:
        """The same attempts by the teacher. Where that is the policy, told nothing, they are those that were played: same prompts, same
        random numbers. A teacher that never changes plays what it is told once: later it would say the same, and only how such an
        episode ended is given again."""
        module = self.module
        requests = module.privileged_requests(by_group(attempts))
        names = [(piece.panel.name, r.task.id, r.attempt, r.privileged_text) for r in requests]
        known = [
            attempt if not r.privileged_text and self._is_policy(r.task) else self._by_frozen.get(name)
            for attempt, r, name in zip(attempts, requests, names, strict=True)
        ]
        told = [(r, name) for r, name, episode in zip(requests, names, known, strict=True) if episode is None]
        self.announce(piece, "teacher", len(told))
        played = module.play_as_teacher(self.rollout, [r for r, _ in told])
        frozen = {
            name: _ended(e) for e, (r, name) in zip(played, told, strict=True) if not e.lost and self._never_changes(r.task)
        }
        self._by_frozen |= frozen
        others = iter(played)
        return [next(others) if episode is None else episode for episode in known]

    def _is_policy(self, task: Task) -> bool:
        return self.module.teacher is None or self.module.teacher_network(task) is self.module.model

    def _never_changes(self, task: Task) -> bool:
        """Whether the teacher of a task has the weights that it began with, until the run ends."""
        module = self.module
        if module.teacher is None:
            return False
        frozen = [module.initial, *(module.teacher_networks[name] for name in module.teacher.external())]
        return module.teacher_network(task) in [network for network in frozen if network is not None]

    def _tells(self, panel: Panel, env: Environment) -> bool:
        """Whether the view can tell the teacher of every task of a panel; says why not."""
        if panel.name not in self._told:
            try:
                self.module.view.check_tasks(env, panel.task_ids)
                self._told[panel.name] = True
            except ConfigError as error:
                self._told[panel.name] = False
                rank_zero_warn(
                    f"the teacher does not play panel {panel.name!r}, for there is nothing to tell it of a task: {error}"
                )
        return self._told[panel.name]

    def report(self) -> None:
        """Log, print and write what was played since the last report."""
        module, played, self._played = self.module, self._played, defaultdict(lambda: defaultdict(list))
        bars.measurement_over(module.trainer, self.measuring)
        tasks, self._tasks = self._tasks, defaultdict(list)
        successes: dict[str, Estimate] = {}
        self.last_metrics = {}
        for name, actors in played.items():
            panel = Panel(name, tuple(tasks[name]))  # what was played: a limit of the Trainer may leave a part
            asked = len(by_group(actors["policy"])[0])
            metrics = of_panel(name, actors["policy"], asked, module.own_metrics)
            self._families |= {e.task.id: e.task.family for e in actors["policy"]}
            if values := averages(actors["policy"]):
                self._history[name].append((module.iteration, panel, values))
            if teacher := finished(actors.get("privileged", [])):
                metrics[f"teacher/success/{name}"] = success = Success()
                success.update(teacher)
                lift = TeacherLift()
                lift.update(teacher, actors["policy"])
                if lift.teacher:
                    metrics[f"teacher/lift/{name}"] = lift
            summary = {key: told(metric) for key, metric in metrics.items()}
            self.last_metrics |= {key: found.mean if isinstance(found, Estimate) else found for key, found in summary.items()}
            self._log(name, metrics, summary, len(panel))
            successes |= {key: of for key, of in summary.items() if key.startswith("success") and isinstance(of, Estimate)}
            if module.trainer.is_global_zero:
                self._tell(panel, asked, summary, actors)
                for actor, of_actor in actors.items():
                    if new := [e for e in of_actor if e.turns or e.lost or actor == "policy"]:  # others are told again
                        module.episode_writer.validation(new, panel, actor)

        self._report_means(successes)

    def _report_means(self, successes: dict[str, Estimate]) -> None:
        """Log, print and write the means over data sets of which all were played.

        Args:
            successes: Of panels and their families, by the names of their metrics.
        """
        module, lines = self.module, []
        for name, sets in module.tasks.val_means.items():
            of = metrics_of(sets, [*successes])
            missing = [key.partition("/")[2] for key in of if key not in successes]
            if len(missing) == len(of):  # in a test, perhaps
                continue
            if missing:
                rank_zero_warn(f"success_mean/{name} is not reported: no task of {missing[0]!r} was played.")
                continue
            mean = macro_mean([successes[key] for key in of])
            key = f"success_mean/{name}"
            numbers = {key: mean.mean, f"success_mean_low/{name}": mean.low, f"success_mean_high/{name}": mean.high}
            module.log_dict(numbers, batch_size=mean.n, add_dataloader_idx=False)
            self._log_at_once({"train/iteration": module.iteration, "train/env_steps": module.env_steps} | numbers)
            lines.append(f"  {key} {mean} over {len(of)} sets")
            if module.trainer.is_global_zero:
                reporting.write_validation(module, {"sets": [key.partition("/")[2] for key in of], key: list(mean[:3])})
        if lines and module.trainer.is_global_zero:
            bars.say(module.trainer, "\n".join(["", f"means over data sets after {module.iteration} iterations", *lines]))

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
        """For each panel success in the first and the last validation of the run that played the same tasks, and the paired difference;
        of its families too."""
        lines: list[str] = []
        for name, played in self._history.items():
            ended, panel, after = played[-1]
            began, _, before = next(of for of in played if of[1] == panel)
            if ended > began and paired(after, before):
                tasks = {*before, *after}
                families = {f: {i for i in tasks if self._families.get(i) == f} for f in sorted({*self._families.values()})}
                rows = {"success": tasks} | {f"  {f}": mine for f, mine in families.items() if mine and mine < tasks}
                width = max(map(len, rows))
                told = [(row, _change(after, before, ids)) for row, ids in rows.items()]
                lines += [
                    f"{name} (panel {panel.hash}), iteration {began} → {ended}, paired change in points",
                    *(f"  {row:<{width}}  {change}" for row, change in told if change),
                ]
        return lines

    def _log(self, panel: str, metrics: dict[str, Metric], summary: Summary, tasks: int) -> None:
        """Give loggers the numbers beside the iteration that they belong to; the first ones too, which Lightning keeps to itself."""
        module = self.module
        numbers: dict[str, float] = {"train/iteration": module.iteration, "train/env_steps": module.env_steps}
        numbers["time/validation_s"] = self.measuring.seconds
        if isinstance(success := summary.get(f"success/{panel}"), Estimate):
            numbers |= {f"success_low/{panel}": success.low, f"success_high/{panel}": success.high}
        module.log_dict(numbers | {"step": float(module.iteration)}, batch_size=tasks, add_dataloader_idx=False)
        for key, metric in metrics.items():
            module.log(key, metric, batch_size=tasks, add_dataloader_idx=False, metric_attribute=key)
        self._log_at_once(
            numbers | {key: found.mean if isinstance(found, Estimate) else found for key, found in summary.items()}
        )

    def _log_at_once(self, numbers: dict[str, float]) -> None:
        """Give loggers what Lightning keeps to itself: numbers from before the first step."""
        for logger in self.module.trainer.loggers if self.module.trainer.sanity_checking else ():
            logger.log_metrics(numbers, step=self.module.iteration)
            logger.save()

    def _tell(self, panel: Panel, attempts: int, summary: Summary, actors: dict[str, list[Episode]]) -> None:
        module, whole = self.module, self._panels[panel.name]
        what = "test" if module.trainer.state.fn == "test" else "validation"
        part = "" if panel == whole else f", a part of panel {whole.hash} with {len(whole)}"
        when = f"{module.iteration} iteration{'s' * (module.iteration != 1)}"
        head = f"{what} of {panel.name} (panel {panel.hash}, {len(panel)} tasks{part}, avg@{attempts}) after {when}"
        names = [key.replace(f"success_by_family/{panel.name}/", "  ", 1) for key in summary]
        width = max(map(len, names), default=0)  # no wider than must be: terminals may have 80 columns
        lines = [f"  {key:<{width}} {found}" for key, found in zip(names, summary.values(), strict=True)]
        for actor, of_actor in actors.items():
            if lost := describe_lost(of_actor):
                lines.append(
                    f"  MISSING: faults of the world ended {lost}. They are in no number above; {actor} played the others."
                )
        if what == "test" and panel.hash in (p.hash for world in module.tasks.worlds.values() for p in world.val_panels):
            lines.append(
                "  Validation measures these tasks, too: a policy that was chosen by it is not tested by them. For a number of its own "
                "give a split that is not in data.val_splits, or a panel file, as data.test_splits."
            )
        if module.teacher is not None and not module.teacher.acts:
            where = "is in other processes" if module.teacher.is_remote else "has a tokenizer of its own"
            lines.append(f"  The teacher {where} and does not act: whether it is better than the student is not known.")
        lift = summary.get(f"teacher/lift/{panel.name}")
        if isinstance(lift, Estimate) and lift.high <= 0:
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
                **{key: list(found[:3]) if isinstance(found, Estimate) else found for key, found in summary.items()},
            },
        )


def of_panel(name: str, episodes: list[Episode], attempts: int, own: Iterable[nn.Module] = ()) -> dict[str, Metric]:
    """Success, pass@k, success of families and scores of a panel, and metrics of one's own: over what was played. Empty where nothing was.

    Args:
        attempts: At each task; pass@k is about the tasks of which all of them were played.
    """
    played = finished(episodes)
    if not played:
        return {}
    metrics: dict[str, Metric] = {f"success/{name}": Success()}
    if attempts > 1:
        metrics[f"pass@{attempts}/{name}"] = PassAtK(attempts)
    families = {f"success_by_family/{name}/{family}": family for family in sorted({e.task.family for e in played})}
    metrics |= {key: Success() for key in families}
    for score in sorted({score for e in played for score in e.scores}):  # an episode that failed has none
        metrics[f"scores/{score}/{name}"] = Score(score)
    for metric in own:
        if isinstance(metric, EpisodeMetric):
            metrics[f"{metric.name}/{name}"] = mine = metric.clone()
            mine.reset()
    for key, metric in metrics.items():
        metric.update([e for e in played if key not in families or e.task.family == families[key]])
    return {key: metric for key, metric in metrics.items() if not metric.compute().isnan()}


def _change(after: Mapping[str, float], before: Mapping[str, float], tasks: Collection[str]) -> str:
    """Means of some tasks before and after, over those that both played, and the difference in points; empty where there are none."""
    mine, theirs = ({i: v for i, v in values.items() if i in tasks} for values in (after, before))
    if not (pairs := paired(mine, theirs)):
        return ""
    gain, both, most = paired_difference(*pairs), len(pairs[0]), max(len(mine), len(theirs))
    now, then = (100 * fmean(values) for values in pairs)
    count = f"n = {both}" if both == most else f"the {both} of {most} tasks that both played"
    return f"{then:5.1f} → {now:5.1f} %  {100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]  {count}"


def told(metric: Metric) -> Estimate | float:
    """What is printed and written of a metric."""
    estimate = metric.estimate() if isinstance(metric, OverTasks) else None
    return metric.compute().item() if estimate is None else estimate


def _ended(episode: Episode) -> Episode:
    """How it ended, without what was said."""
    return replace(episode, turns=[], privileged_text="", first_messages=[], turn_messages=[], later_messages=[])

"""Numbers over tasks, with their 95 % intervals: avg@k, pass@k, scores, what a teacher has ahead of the student."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sdar.errors import check_least
from sdar.evaluate import intervals
from sdar.evaluate.intervals import Estimate, mean_interval, paired_difference
from sdar.metrics.base import EpisodeMetric
from sdar.registry import register
from sdar.rollout.groups import by_group, finished
from sdar.types import Episode


class OverTasks:
    """What makes a metric a number with its interval over tasks."""

    def estimate(self) -> Estimate | None:
        """The number with its interval; None: no task had one."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        estimate = self.estimate()
        return torch.tensor(torch.nan if estimate is None else estimate.mean)


class TaskMean(OverTasks, EpisodeMetric):
    """The mean over tasks of a number in [0, 1] about each task's attempts. The task is the unit of evidence: attempts at one are not
    independent."""

    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def of(self, attempts: list[Episode]) -> float | None:
        """The number for one task; None: these attempts have none."""
        raise NotImplementedError

    def update(self, episodes: Sequence[Episode]) -> None:
        found = [value for group in by_group(finished(episodes)) if (value := self.of(group)) is not None]
        if found:
            self.values.append(torch.tensor(found, dtype=torch.float64))

    def estimate(self) -> Estimate | None:
        return mean_interval(dim_zero_cat(self.values).tolist()) if self.values else None


class Success(TaskMean):
    """Success, avg@k: the share of a task's attempts that reached the goal."""

    def of(self, attempts: list[Episode]) -> float:
        return average(attempts)


@register("pass_at_k")
class PassAtK(TaskMean):
    """Unbiased pass@k of the tasks that have at least k attempts (arXiv 2107.03374).

    Args:
        k: Attempts of which at least one shall succeed.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        check_least("", 1, k=k)
        self.k = k

    @property
    def name(self) -> str:
        return f"pass@{self.k}"

    def of(self, attempts: list[Episode]) -> float | None:
        successes = sum(e.success for e in attempts)
        return intervals.pass_at_k(successes, len(attempts), self.k) if len(attempts) >= self.k else None


class Score(TaskMean):
    """What the world measures beside success, in [0, 1]; 0 for an attempt that has none.

    Args:
        score: Its name in ``Episode.scores``.
    """

    def __init__(self, score: str) -> None:
        super().__init__()
        self.score = score

    @property
    def name(self) -> str:
        return f"scores/{self.score}"

    def of(self, attempts: list[Episode]) -> float:
        return sum(e.scores.get(self.score, 0.0) for e in attempts) / len(attempts)


class TeacherLift(OverTasks, Metric):
    """The teacher's avg@k less the student's on the tasks that both played, paired."""

    full_state_update = False
    teacher: list[Tensor]
    student: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # every rank sees all episodes
        for side in ("teacher", "student"):
            self.add_state(side, [], dist_reduce_fx="cat")

    def update(self, teacher: Sequence[Episode], student: Sequence[Episode]) -> None:
        if pairs := paired(averages(teacher), averages(student)):
            self.teacher.append(torch.tensor(pairs[0], dtype=torch.float64))
            self.student.append(torch.tensor(pairs[1], dtype=torch.float64))

    def estimate(self) -> Estimate | None:
        sides = (self.teacher, self.student)
        return paired_difference(*(dim_zero_cat(side).tolist() for side in sides)) if self.teacher else None


def average(attempts: Sequence[Episode]) -> float:
    """avg@k of one task: the share of its attempts that reached the goal."""
    return sum(e.success for e in attempts) / len(attempts)


def averages(episodes: Sequence[Episode]) -> dict[str, float]:
    """avg@k of each task of which at least one attempt was played, by its id."""
    return {group[0].task.id: average(group) for group in by_group(finished(episodes))}


def paired(after: dict[str, float], before: dict[str, float]) -> tuple[list[float], list[float]] | None:
    """The values of the tasks that both have, in one order; None where there is no such task."""
    both = [task for task in after if task in before]
    return ([after[task] for task in both], [before[task] for task in both]) if both else None

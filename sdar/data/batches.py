"""What Lightning is given: the tasks of an iteration or of a piece of a panel, and the order in which they come."""

from collections.abc import Iterator

from sdar.data.panels import Panel
from sdar.types import Episode, Task


class TaskBatch:
    """Tasks of one iteration (or one piece of a validation panel). No dataclass: Lightning would take it apart to cast tensors.

    Args:
        panel: Where the tasks are from.
        tasks: The tasks.
        visits: How often each had been taken before in this run; with `attempts` it numbers attempts.
        attempts: Attempts at each.
        unreadable: Tasks that belong here and could not be made, with the world's error.
    """

    def __init__(
        self, panel: Panel, tasks: list[Task], visits: list[int], attempts: int, unreadable: dict[str, str] | None = None
    ):
        self.panel, self.tasks, self.visits, self.attempts = panel, tasks, visits, attempts
        self.unreadable = unreadable or {}

    @property
    def parts(self) -> "list[TaskBatch]":
        """The tasks of each world, one after the other."""
        return [self]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskBatch) and vars(self) == vars(other)

    # it holds lists
    __hash__ = None  # type: ignore[assignment]


class WorldsBatch(TaskBatch):
    """Tasks of an iteration in several worlds; which panel they are of and how many attempts there are only its parts say.

    Args:
        parts: The tasks of each world.
    """

    def __init__(self, parts: list[TaskBatch]):
        self._parts = parts
        self.tasks = [task for part in parts for task in part.tasks]
        self.visits = [visit for part in parts for visit in part.visits]
        self.unreadable = {task_id: error for part in parts for task_id, error in part.unreadable.items()}

    @property
    def parts(self) -> list[TaskBatch]:
        return self._parts


class Played:
    """Episodes that ``Trainer.predict`` returns, one after the other. No list: Lightning would take it apart to move tensors."""

    def __init__(self, episodes: list[Episode]):
        self.episodes = episodes

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)


class Pieces:
    """Steps in order, the same on every rank. Not a DataLoader: Lightning would deal its items to the ranks, and a step is divided
    when it is played."""

    def __init__(self, steps: list[TaskBatch]):
        self.steps = steps

    def __iter__(self) -> Iterator[TaskBatch]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

"""MultiTaskModule: several worlds in one run, each with a protocol, row layout, horizon and panels of its own."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sdar.arguments import checked
from sdar.data.batches import TaskBatch, WorldsBatch
from sdar.data.panels import Panel
from sdar.data.set_means import check_means
from sdar.data.shares import Shares
from sdar.data.tasks import TaskModule, TaskSource
from sdar.errors import ConfigError, PanelError, SdarError, check_least
from sdar.parts import Environment, PrivilegedView, Protocol, Sampler
from sdar.registry import did_you_mean
from sdar.rollout.chat import ChatFormat
from sdar.rollout.worlds import WorldsRollout


@checked
class World:
    """One world of a run with several. What is null is as `MultiTaskModule` says for all of them.

    Args:
        env: The world.
        share: Its share of the tasks (``batching: mixed``) or of the iterations (``sequential``), as a weight beside the others'.
        protocol: How it is told to the model; null: as the world says (`Environment.protocol_name`).
        layout: Row layout.
        history: Past exchanges in a prompt of the ``turn`` layout.
        max_new_tokens: Most tokens of a response in this world; null: as many as the sampler's.
        max_episode_tokens: Most tokens of an episode behind its first prompt.
        group_size: Attempts at each task of an iteration.
        train_tasks: Size of the training panel.
        val_tasks: Size of each panel that is measured.
        val_splits: Which validation panels there are; they are called ``<world>/<split>``.
        test_splits: Which panels ``sdar test`` and ``sdar predict`` play.
        val_attempts: Attempts at each validation task.
        val_batch: Validation tasks played at once.
        panel_files: Panel files that replace generated panels, by split.
        leave_out: Ids of tasks that are not played.
        workers: Worker processes for the world.
        threads: So many calls of the world at once, in this process.
        deadline: Seconds that one call of the world in a worker or thread may take.
    """

    def __init__(
        self,
        env: Environment,
        share: float = 1.0,
        protocol: Protocol | None = None,
        layout: Literal["trajectory", "turn"] | None = None,
        history: int | None = None,
        max_new_tokens: int | None = None,
        max_episode_tokens: int | None = None,
        group_size: int | None = None,
        train_tasks: int | Literal["all"] | None = None,
        val_tasks: int | Literal["all"] | dict[str, int | Literal["all"]] | None = None,
        val_splits: list[str] | None = None,
        test_splits: list[str] | None = None,
        val_attempts: int | None = None,
        val_batch: int | None = None,
        panel_files: dict[str, str] | None = None,
        leave_out: list[str] | None = None,
        workers: int | None = None,
        threads: int | None = None,
        deadline: float | None = None,
    ):
        check_least("data.envs", 1, max_new_tokens=max_new_tokens)
        own = {name: value for name, value in locals().items() if name not in ("self", "env", "share", "max_new_tokens")}
        self.env, self.share, self.max_new_tokens = env, share, max_new_tokens
        self.own = {name: value for name, value in own.items() if value is not None}


@checked
class MultiTaskModule(TaskSource):
    """Tasks of several worlds. Episodes and rows of all of them make one update.

    A world's tasks come in the order of a run of its own. Nothing is drawn to choose among worlds: `sdar.data.shares.Shares` deals
    places out, so that after any number of them each world has had its share to within one.

    Args:
        envs: The worlds by names of your own; metrics and panels bear them.
        batching: ``mixed``: each iteration has tasks of every world, by their shares. ``sequential``: each iteration has tasks of one
            world, and the worlds take turns (the published runs of arXiv 2603.25562).
        tasks_per_step: Different tasks in one iteration, of all worlds together.
        group_size: Attempts at each task of an iteration.
        layout: ``turn``: every turn is a row with a window of history. ``trajectory``: one growing conversation.
        history: Past exchanges in a prompt of the ``turn`` layout.
        train_tasks: Size of each training panel.
        val_tasks: Size of each panel that is measured.
        val_splits: Which validation panels each world has; they are called ``<world>/<split>``.
        val_means: Means over data sets, as in `TaskModule`: ``{worlds: [alfworld/unseen, math/unseen]}`` is logged as
            ``success_mean/worlds``.
        test_splits: Which panels ``sdar test`` and ``sdar predict`` play, as in `TaskModule`.
        val_attempts: Attempts at each validation task.
        val_batch: Validation tasks played at once.
        panel_seed: Seed of the panels.
        max_episode_tokens: Most tokens of an episode behind its first prompt, as in `TaskModule`.
        workers: Worker processes of each world; 0 runs them in this process.
        threads: So many calls of a world at once, in this process.
        deadline: Seconds that one call of a world in a worker or thread may take; None: 30.
    """

    def __init__(
        self,
        envs: dict[str, World],
        batching: Literal["mixed", "sequential"] = "mixed",
        tasks_per_step: int = 16,
        group_size: int = 8,
        layout: Literal["trajectory", "turn"] = "turn",
        history: int = 2,
        train_tasks: int | Literal["all"] = 4096,
        val_tasks: int | Literal["all"] | dict[str, int | Literal["all"]] = 128,
        val_splits: list[str] = ["seen", "unseen"],  # noqa: B006
        test_splits: list[str] | None = None,
        val_attempts: int = 1,
        val_batch: int = 64,
        panel_seed: int = 0,
        workers: int = 0,
        threads: int = 0,
        deadline: float | None = None,
        max_episode_tokens: int | None = None,
        val_means: dict[str, list[str]] | None = None,
    ):
        usual = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "__class__", "envs", "batching", "tasks_per_step", "val_means")
        }
        super().__init__()
        check_least("data", 1, tasks_per_step=tasks_per_step)
        if batching not in ("mixed", "sequential"):
            raise ConfigError(
                f"data.batching is {batching!r}: worlds are `mixed` in each iteration, or take turns (`sequential`)."
            )
        if not envs:
            raise ConfigError(
                "data.envs is empty: there is no world to play in. Name at least one, or use TaskModule with data.env."
            )
        if wrong := [name for name in envs if not name.isidentifier()]:
            raise ConfigError(
                f"data.envs has a world {wrong[0]!r}: names of worlds stand in names of metrics and files. Use letters, digits and _."
            )
        self.tasks_per_step, self.batching = tasks_per_step, batching
        self.shares = Shares({name: world.share for name, world in envs.items()})
        self._worlds = {name: _made(name, world, usual) for name, world in envs.items()}
        for name, weight in self.shares.of.items():  # of an iteration that it has a part in
            self._worlds[name].tasks_per_step = (
                tasks_per_step if batching == "sequential" else math.ceil(tasks_per_step * weight)
            )
        self._check_panels()
        self.val_means = {name: list(sets) for name, sets in (val_means or {}).items()}
        check_means(self.val_means, [panel.name for world in self._worlds.values() for panel in world.measured])

    @property
    def worlds(self) -> Mapping[str, TaskModule]:
        return self._worlds

    @property
    def only(self) -> TaskModule:
        if len(self._worlds) > 1:
            raise ConfigError(
                f"this run has the worlds {', '.join(self._worlds)}, and one is asked for: in a method or a part ask for that of a task "
                "(`self.env_of(task)`, `self.tasks.of(task)`)."
            )
        return next(iter(self._worlds.values()))

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return ()  # each world tells of its own

    def rollout(self, chat: ChatFormat, sampler: Sampler, view: PrivilegedView, seed: int) -> WorldsRollout:
        return WorldsRollout({name: world.rollout(chat, sampler, view, seed) for name, world in self._worlds.items()})

    def step(self, seed: int, iteration: int) -> TaskBatch:
        size = self.tasks_per_step
        if self.batching == "sequential":
            name = self.shares.at(iteration)
            first = size * self.shares.before(iteration)[name]
            return WorldsBatch([self._worlds[name].drawn(seed, range(first, first + size))])
        before, after = self.shares.before(iteration * size), self.shares.before((iteration + 1) * size)
        places = {name: range(first, after[name]) for name, first in before.items()}
        return WorldsBatch([self._worlds[name].drawn(seed, of) for name, of in places.items() if of])

    def alone(self, name: str) -> "MultiTaskModule":
        """The same with iterations of one of the worlds."""
        if name not in self._worlds:
            raise ConfigError(
                f"--world is {name!r}, and the worlds of this run are {', '.join(self._worlds)}."
                f"{did_you_mean(name, self._worlds)} Name one of them."
            )
        made = copy.copy(self)
        made.shares, made.tasks_per_step = Shares({name: 1.0}), self._worlds[name].tasks_per_step
        return made

    def _check_panels(self) -> None:
        """Raise PanelError where two worlds have one task: its attempts would be taken for those of the other."""
        seen: dict[str, str] = {}
        for name, world in self._worlds.items():
            for task_id in {task_id for panel in (world.train_panel, *world.measured) for task_id in panel.task_ids}:
                if seen.setdefault(task_id, name) != name:
                    raise PanelError(
                        f"data.envs: {seen[task_id]} and {name} both have the task {task_id}: what is random in its episodes would be the "
                        "same in both. Give them other tasks (split, seed or files), or make one world of them."
                    )


def _made(name: str, world: World, usual: Mapping[str, Any]) -> TaskModule:
    try:
        made = TaskModule(world.env, **{**usual, **world.own})
    except SdarError as error:
        raise type(error)(f"data.envs.{name}: {error}") from error
    called = {panel.name: replace(panel, name=f"{name}/{panel.name}") for panel in (made.train_panel, *made.measured)}

    def of(panels: Sequence[Panel]) -> list[Panel]:
        return [called[panel.name] for panel in panels]

    made.world, made.max_new_tokens, made.train_panel = name, world.max_new_tokens, called[made.train_panel.name]
    made.val_panels, made.test_panels, made.measured = of(made.val_panels), of(made.test_panels), of(made.measured)
    return made

"""TaskModule: which tasks an iteration gets, and the rollout that plays them."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

import sdar.envs  # noqa: F401  (its protocols are registered)
from sdar.arguments import checked
from sdar.data.batches import Pieces, TaskBatch
from sdar.data.panels import Panel, Size, check_disjoint, size_of
from sdar.data.set_means import check_means
from sdar.errors import ConfigError, PanelError, check_least
from sdar.parts import Environment, Policy, PrivilegedView, Protocol, Retriever, Sampler
from sdar.registry import did_you_mean, part_name, parts
from sdar.rollout import AgentLoop, EnvPool, Rollout
from sdar.rollout.chat import ChatFormat
from sdar.rollout.pool import make_pool
from sdar.training.lightning_checks import check_trainer
from sdar.types import Task


class TrainingSteps:
    """Endless iterations. Where they stand is known to the method alone, so that whoever begins to read anew (a resumed run, another of
    Lightning's epochs) goes on where it stopped."""

    def __init__(self, data: "TaskSource"):
        self.data = data

    def __iter__(self) -> Iterator[TaskBatch]:
        trainer: Any = self.data.trainer
        module = trainer.lightning_module
        for iteration in count(module.iteration):
            yield self.data.step(module.seed, iteration)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: Lightning asks for it before it believes that reading can go on in the middle of an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to undo."""


class TaskSource(LightningDataModule, ABC):
    """Panels of tasks and where they are played, in one world or several.

    Whoever needs a world asks for that of a task (`of`).
    """

    val_means: dict[str, list[str]]
    """Means over data sets that validation reports."""

    def __init__(self) -> None:
        super().__init__()

    @property
    @abstractmethod
    def worlds(self) -> Mapping[str, "TaskModule"]:
        """Each world by its name, with its panels and how it is told. The only world of a run is called ""."""

    @property
    @abstractmethod
    def only(self) -> "TaskModule":
        """The only world of the run.

        Raises:
            ConfigError: there are several.
        """

    @property
    @abstractmethod
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Functions that the model is told of, whatever its task."""

    @abstractmethod
    def step(self, seed: int, iteration: int) -> TaskBatch:
        """Tasks of an iteration. A function of its arguments alone."""

    @abstractmethod
    def rollout(self, chat: ChatFormat, sampler: Sampler, view: PrivilegedView, seed: int) -> AgentLoop:
        """The agent loop; the worlds' processes are shared by all rollouts of a run."""

    def of(self, task: Task) -> "TaskModule":
        """The world of a task."""
        return self.worlds[task.world]

    def panels(self) -> list[Panel]:
        """Every panel of the run."""
        return [panel for world in self.worlds.values() for panel in (world.train_panel, *world.val_panels)]

    @property
    def conditions(self) -> dict[str, str]:
        """`Environment.conditions` of the worlds."""
        return {
            f"{name}/{what}" if name else what: value
            for name, world in self.worlds.items()
            for what, value in world.env.conditions.items()
        }

    def bind(self, policy: Policy, retriever: Retriever | None = None) -> None:
        """Tell parts that are made for a world which one they are in."""
        for world in self.worlds.values():
            policy.bind_env(world.env)
        if retriever is not None:
            retriever.bind_worlds({name: world.env for name, world in self.worlds.items()})

    def some_tasks(self) -> Iterator[Task]:
        """The first tasks of training in each world, as far as it can make them."""
        for world in self.worlds.values():
            yield from world.first_tasks()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer is not None:
            check_trainer(self.trainer)  # here, for this comes before the callbacks' own
        for world in self.worlds.values():
            world.check(stage)

    def train_dataloader(self) -> TrainingSteps:
        return TrainingSteps(self)

    def val_dataloader(self) -> list[Pieces]:
        return [world.pieces(panel) for world in self.worlds.values() for panel in world.val_panels]

    def test_dataloader(self) -> list[Pieces]:
        return [world.pieces(panel) for world in self.worlds.values() for panel in world.test_panels]

    predict_dataloader = test_dataloader

    def teardown(self, stage: str) -> None:
        for world in self.worlds.values():
            world.close()


@checked
class TaskModule(TaskSource):
    """Panels of tasks and the world they are played in.

    Args:
        env: The world.
        tasks_per_step: Different tasks in one iteration.
        group_size: Attempts at each task of an iteration.
        protocol: How the world is told to the model; null: as the world says (`Environment.protocol_name`).
        layout: ``turn``: every turn is a row with a window of history. ``trajectory``: one growing conversation.
        history: Past exchanges in a prompt of the ``turn`` layout.
        max_episode_tokens: Most tokens of an episode behind its first prompt, in training and validation: all responses and, with
            ``layout: trajectory``, what the world answers between them, as verl counts its response length. The response that would be
            longer is cut there, the world judges what is left of it, and the episode ends (``rollout/token_limit_share``). None: no bound.
        train_tasks: Size of the training panel; ``all``: every task that the world has.
        val_tasks: Size of each panel that is measured; ``all``: every task that the world has of it; or the size of each by its name
            (``{aime24: all, math500: 100}``).
        val_splits: Which validation panels there are.
        val_means: Means over data sets, by the name that each is logged under (``success_mean/<name>``): panels (``aime24``), a family of
            a panel (``seen/nq``), or all of them (``unseen/*``). Each set counts alike, however many tasks it has.
        test_splits: Which panels ``sdar test`` and ``sdar predict`` play, kept apart from training also in a run that only trains;
            null: ``unseen``, where the world has so many tasks of it.
        val_attempts: Attempts at each validation task.
        val_batch: Validation tasks played at once.
        panel_seed: Seed of the panels; not the seed of the run, so that runs share them.
        panel_files: Panel files that replace generated panels, by split.
        leave_out: Ids of tasks that are not played, because they cannot be: a prompt that fits no context, a damaged file. In training
            the others keep their places and random numbers, and a run with them left out goes on from the checkpoint of one without.
        workers: Worker processes for the world; 0 runs it in this process.
        threads: In this process, run that many calls of the world at once: for worlds that wait for a server.
        deadline: Seconds that one call of a world in a worker or thread may take; None: 30.
    """

    def __init__(
        self,
        env: Environment,
        tasks_per_step: int = 16,
        group_size: int = 8,
        protocol: Protocol | None = None,
        layout: Literal["trajectory", "turn"] = "turn",
        history: int = 2,
        train_tasks: int | Literal["all"] = 4096,
        val_tasks: int | Literal["all"] | dict[str, int | Literal["all"]] = 128,
        val_splits: list[str] = ["seen", "unseen"],  # noqa: B006  (a fresh list is made below)
        test_splits: list[str] | None = None,
        val_attempts: int = 1,
        val_batch: int = 64,
        panel_seed: int = 0,
        panel_files: dict[str, str] | None = None,
        leave_out: list[str] = [],  # noqa: B006
        workers: int = 0,
        threads: int = 0,
        deadline: float | None = None,
        max_episode_tokens: int | None = None,
        val_means: dict[str, list[str]] | None = None,
    ):
        super().__init__()
        self.world = ""
        """Its name in a run that has several."""
        self.max_new_tokens: int | None = None
        """Most tokens of a response, in a run that has several; None: as many as the sampler's."""
        check_least("data", 1, tasks_per_step=tasks_per_step, group_size=group_size)
        check_least("data", 1, val_attempts=val_attempts, val_batch=val_batch)
        check_least("data", 0, history=history, workers=workers, threads=threads)
        check_least("data", 1, max_episode_tokens=max_episode_tokens)
        if deadline is not None and not (workers or threads):
            raise ConfigError(
                f"data.deadline is {deadline} seconds, but the world runs in this process, where a call cannot be stopped. Set "
                "data.workers or data.threads, or remove the deadline."
            )
        self.env = env
        self.tasks_per_step = tasks_per_step
        self.group_size = group_size
        self.protocol = protocol_of(env, protocol)
        self.layout = layout
        self.history = history
        self.max_episode_tokens = max_episode_tokens
        self.val_attempts = val_attempts
        self.val_batch = val_batch
        self.workers, self.threads = workers, threads
        self.deadline = 30.0 if deadline is None else deadline
        self._pool: EnvPool | None = None
        self.left_out = frozenset(leave_out)
        self._untested: PanelError | None = None  # who named no test splits hears of them when they are played
        self._make_panels(train_tasks, val_tasks, val_splits, test_splits, panel_seed, dict(panel_files or {}))
        self.val_means = {name: list(sets) for name, sets in (val_means or {}).items()}
        check_means(self.val_means, [panel.name for panel in self.measured])

    def _make_panels(
        self,
        train_tasks: Size,
        val_tasks: Size | dict[str, Size],
        val_splits: list[str],
        test_splits: list[str] | None,
        seed: int,
        files: dict[str, str],
    ) -> None:
        """The panels of training, validation and tests, no two of which share a task."""
        env = self.env
        split = getattr(env, "split", "train")
        tested = ["unseen"] if test_splits is None else test_splits
        if split != "train" and "train" in {*val_splits, *tested}:
            raise ConfigError(
                f"a panel 'train' is measured while training plays {split!r}: both would be logged as success/train. Play 'train' in "
                "training, or measure another split."
            )
        unknown = set(files) - {split, *val_splits, *tested}
        if unknown:
            raise ConfigError(
                f"data.panel_files names {sorted(unknown)}, which no panel of this run uses: remove it or correct the split."
            )

        named = [*val_splits, *tested]
        if isinstance(val_tasks, dict) and (strange := sorted({*val_tasks} - {*named})):
            raise ConfigError(
                f"data.val_tasks has a size for {strange[0]!r}, which no panel is called.{did_you_mean(strange[0], named)} Correct it, or "
                "measure it (data.val_splits)."
            )

        def panel(name: str, size: Size | dict[str, Size], settings: str) -> Panel:
            if name not in files:
                try:
                    return Panel.generate(env, name, size_of(env, name, size), seed)
                except PanelError as error:
                    raise PanelError(f"{settings}: {error}") from error
            loaded = Panel.load(files[name])
            env.task(loaded.task_ids[0])  # tasks of another world are refused here, before anything is loaded
            return loaded

        self.train_panel = panel(split, train_tasks, f"data.train_tasks is {train_tasks}")
        asked = f"with data.val_tasks {val_tasks}"
        measured = {name: panel(name, val_tasks, f"data.val_splits names {name!r}, {asked}") for name in val_splits}
        try:
            measured |= {
                name: panel(name, val_tasks, f"data.test_splits names {name!r}, {asked}")
                for name in tested
                if name not in measured
            }
        except PanelError as error:
            if test_splits is not None:
                raise
            self._untested, tested = error, []
        known = {task_id for p in (self.train_panel, *measured.values()) for task_id in p.task_ids}
        if strange := sorted(self.left_out - known):
            raise ConfigError(
                f"data.leave_out names {strange[0]!r}, which is in no panel of this run.{did_you_mean(strange[0], known)} Remove it."
            )
        if self.left_out >= set(self.train_panel.task_ids):
            raise ConfigError(
                f"data.leave_out names all {len(self.train_panel)} tasks of training: nothing is left to train on."
            )
        measured = {name: p.without(self.left_out) for name, p in measured.items()}
        self.val_panels = [measured[name] for name in dict.fromkeys(val_splits)]
        self.test_panels = [measured[name] for name in dict.fromkeys(tested)]
        self.measured = list(measured.values())
        check_disjoint(self.train_panel, *self.measured)

    has_world = True
    """False where nothing can be played."""

    @property
    def worlds(self) -> Mapping[str, "TaskModule"]:
        return {self.world: self}

    @property
    def only(self) -> "TaskModule":
        return self

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self.protocol.tools

    def rollout(self, chat: ChatFormat, sampler: Sampler, view: PrivilegedView, seed: int) -> Rollout:
        """The agent loop in this world; the worlds' processes are shared by all rollouts of a run."""
        if self._pool is None:
            self._pool = make_pool(self.env, self.workers, self.deadline, self.threads)
        horizon, most = self.env.horizon, self.max_episode_tokens
        chat = chat.telling(self.protocol.tools)
        return Rollout(
            self._pool, self.protocol, chat, sampler, view, self.layout, self.history, horizon, seed, most, self.max_new_tokens
        )

    def check(self, stage: str) -> None:
        """Look at the world before a command begins, and warn of tasks that are measured and trained on."""
        if stage in ("test", "predict") and self._untested is not None:
            raise self._untested
        self.env.check()
        if stage == "fit" and getattr(rank_zero_only, "rank", 0) == 0:
            for panel in self.measured:
                if shared := self.env.shared(self.train_panel.task_ids, panel.task_ids):
                    rank_zero_warn(
                        f"{shared} of the {len(panel)} tasks of panel {panel.name!r} are, but for their ids, tasks of training too: its "
                        "numbers tell in part what was learned by heart. A larger world repeats itself less."
                    )

    def close(self) -> None:
        """Let go of the world's processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self.env.close()

    def pieces(self, panel: Panel) -> Pieces:
        """A panel to be measured, in pieces that are played at once."""
        pieces = [panel.task_ids[i : i + self.val_batch] for i in range(0, len(panel), self.val_batch)]
        return Pieces([self._step(panel, [(task_id, 0) for task_id in piece], self.val_attempts) for piece in pieces])

    def first_tasks(self, most: int = 256) -> Iterator[Task]:
        """The first tasks of training, as far as the world can make them."""
        return iter(self._step(self.train_panel, [(task_id, 0) for task_id in self.train_panel.task_ids[:most]], 1).tasks)

    def _step(self, panel: Panel, wanted: list[tuple[str, int]], attempts: int) -> TaskBatch:
        """The tasks of (id, visit). One that the world cannot make is left out and told; it ends nothing else."""
        tasks, visits, unreadable = [], [], {}
        for task_id, visit in wanted:
            try:
                tasks.append(self.task(task_id))
                visits.append(visit)
            except ConfigError:
                raise
            except Exception as error:  # the world is other people's code, with other people's files
                unreadable[task_id] = f"{type(error).__name__}: {error}"
        return TaskBatch(panel, tasks, visits, attempts, unreadable)

    def step(self, seed: int, iteration: int) -> TaskBatch:
        """Tasks of an iteration: the panel in an order drawn anew for each pass. A function of its arguments alone."""
        return self.drawn(seed, self._positions(iteration))

    def task(self, task_id: str) -> Task:
        """The task of an id, which knows its world."""
        task = self.env.task(task_id)
        return replace(task, world=self.world) if self.world else task

    def drawn(self, seed: int, places: range) -> TaskBatch:
        """The tasks at these places of those that a run takes one after the other, pass after pass."""
        panel = self.train_panel
        wanted = []
        for k in places:
            epoch, position = divmod(k, len(panel))
            task_id = panel.task_ids[_order(len(panel), seed, epoch)[position]]
            if task_id not in self.left_out:
                wanted.append((task_id, epoch))
        return self._step(panel, wanted, self.group_size)

    def _positions(self, iteration: int) -> range:
        """Which of the tasks that a run takes one after the other, pass after pass, an iteration has."""
        return range(iteration * self.tasks_per_step, (iteration + 1) * self.tasks_per_step)


def protocol_of(env: Environment, protocol: Protocol | None) -> Protocol:
    """The protocol, by default the world's own.

    Raises:
        ConfigError: it tells another world, or its actions are none of this one.
    """
    protocols = parts("protocols")
    if env.protocol_name not in protocols:
        raise ConfigError(
            f"{part_name(env)}.protocol_name is {env.protocol_name!r}, which no protocol is registered by."
            f"{did_you_mean(env.protocol_name, protocols)} Set data.protocol, or correct the world."
        )
    own = protocols[env.protocol_name]
    protocol = own() if protocol is None else protocol
    told, world = part_name(protocol), part_name(env)
    if env.action_form is not None and protocol.action_form != env.action_form:
        raise ConfigError(
            f"data.protocol is {told}, whose actions are {protocol.action_form}, and {world} takes {env.action_form}: no response would do "
            f"anything. Use {own.__name__}, the protocol of this world, or another one that gives {env.action_form}."
        )
    if protocol.world_kind and protocol.world_kind != env.world_kind:
        raise ConfigError(
            f"data.protocol is {told}, which tells the model that it acts in a {protocol.world_kind}, and {world} is none: set the "
            f"protocol's role to what this world is, or use {own.__name__}."
        )
    return protocol


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> list[int]:
    """The order of a panel in one pass."""
    order = list(range(length))
    random.Random(f"{seed}/tasks/{epoch}").shuffle(order)
    return order

"""Whose weights the teacher has."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from sdar.distributed.sharding import local_shard
from sdar.errors import ConfigError, PolicyError
from sdar.functional.precision import widen
from sdar.parts import ModelCopy, Policy, RemoteModel, Teacher
from sdar.registry import did_you_mean, part_name, register
from sdar.types import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("live")
class LiveTeacher(Teacher):
    """The student's own weights as they are when a rollout is scored (the published setting of SDAR, arXiv 2605.15155)."""

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel":
        return live


@register("initial")
class InitialTeacher(Teacher):
    """The weights that training started from, frozen: a student cannot drag its teacher down."""

    needs_initial = True

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel":
        assert initial is not None, "AgentModule keeps a frozen copy whenever needs_initial is set"
        return initial


class FollowingTeacher(Teacher):
    """A frozen copy of the student that follows it now and then."""

    copy: "PreTrainedModel"

    def prepare(self, live: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.copy = copy.deepcopy(live).requires_grad_(False).eval()

    def networks(self) -> dict[str, "PreTrainedModel"]:
        return {"copy": self.copy}

    def copies(self) -> tuple[ModelCopy, ...]:
        averages = getattr(self, "rate", 1) < 1
        return (ModelCopy(f"{part_name(self)}'s copy", follows=True, averages=averages),)

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel":
        return self.copy

    @torch.no_grad()
    def follow(self, live: "PreTrainedModel", rate: float) -> None:
        """copy <- (1 - rate) copy + rate live; each rank moves what it holds.

        The average is in float32. Where a strategy keeps the copy narrower (DeepSpeed under bf16-mixed), the average lies beside it
        as ``parameter.average``: moves are smaller than the copy's rounding.
        """
        for copied, source in zip(self.copy.parameters(), live.parameters(), strict=True):
            kept, shown = local_shard(copied), widen(local_shard(source))
            if rate < 1 and torch.finfo(kept.dtype).bits < 32:
                before = getattr(copied, "average", kept)
                average = before.to(kept.device, torch.float32).lerp(shown, rate)
                cast(Any, copied).average = average
                kept.copy_(average)
            else:
                kept.copy_(widen(kept).lerp(shown, rate))
        for buffer, live_buffer in zip(self.copy.buffers(), live.buffers(), strict=True):
            buffer.copy_(live_buffer)


@register("ema")
class EMATeacher(FollowingTeacher):
    """An exponential moving average of the student (SDPO, arXiv 2601.20802: rate 0.05).

    Args:
        rate: Share of the student in each move; 1 is the student itself, 0.001 is a decay of 0.999.
        per: When it moves: after every optimizer ``step``, or once an ``iteration``, after all of them (SDPO's code).
    """

    def __init__(self, rate: float = 0.05, per: Literal["step", "iteration"] = "step"):
        if not 0 < rate <= 1:
            raise ConfigError(
                f"teacher.rate is {rate}: the share of the student in each move lies in (0, 1]. Published: 0.05."
            )
        self.rate, self.per = rate, per

    def after_step(self, live: "PreTrainedModel") -> None:
        if self.per == "step":
            self.follow(live, self.rate)

    def after_iteration(self, live: "PreTrainedModel", iteration: int) -> None:
        if self.per == "iteration":
            self.follow(live, self.rate)


@register("stale")
class StaleTeacher(FollowingTeacher):
    """The student as it was up to `every` iterations ago (StepOPSD, arXiv 2605.27140: 10).

    Args:
        every: Iterations between two copies.
    """

    def __init__(self, every: int = 10):
        if every < 1:
            raise ConfigError(f"teacher.every is {every}: copies are made every 1 or more iterations. Published: 10.")
        self.every = every

    def after_iteration(self, live: "PreTrainedModel", iteration: int) -> None:
        if (iteration + 1) % self.every == 0:
            self.follow(live, 1.0)


@register("external")
class ExternalTeacher(Teacher):
    """Another model, frozen. It must read the student's token ids; a vocabulary padded to another size is fine, and so is one without
    added tokens of the student that no row holds.

    Args:
        policy: Where the model comes from.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.network: PreTrainedModel | None = None

    def check_student(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.lacks = check_same_tokens(tokenizer, name, self.policy.load_tokenizer(), self.policy.name)

    def prepare(self, live: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.check_student(tokenizer, name)
        self.network = self.policy.load_frozen()
        rows = self.network.get_output_embeddings().weight.shape[0]
        if rows < len(tokenizer):
            raise PolicyError(
                f"the teacher {self.policy.name} has {rows} output rows for the {len(tokenizer)} tokens of {name}: it cannot score "
                "the last ones. Resize its embeddings, or use a teacher that knows every token."
            )

    def networks(self) -> dict[str, "PreTrainedModel"]:
        return {} if self.network is None else {"external": self.network}

    def copies(self) -> tuple[ModelCopy, ...]:
        return (ModelCopy(f"teacher {self.policy.name}", self.policy, key="policy"),)

    def external(self) -> set[str]:
        return {"external"}

    def context(self, task: Task) -> int | None:
        return self.policy.context()

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel":
        assert self.network is not None, "prepare is called before training"
        return self.network


@register("routed")
class RoutedTeacher(Teacher):
    """Several teachers, one for each task family or world.

    Args:
        routes: Family -> teacher, or, in a run with several worlds, world -> teacher; of a task that has both, its family's.
        default: Teacher of all other tasks; without one, such a task is an error.
    """

    def __init__(self, routes: dict[str, Teacher], default: Teacher | None = None):
        if not routes:
            raise ConfigError("teacher.routes is empty: name at least one task family and its teacher.")
        self.routes = dict(routes)
        self.default = default
        self.needs_initial = any(t.needs_initial for t in self._all())
        self.is_remote = any(t.is_remote for t in self._all())
        if own := [part_name(t) for t in self._all() if not t.shares_tokens]:
            raise ConfigError(
                f"teacher.routes names {own[0]}, whose tokens are its own: the teachers of one batch read the student's. Give it alone, or "
                "use ExternalTeacher."
            )

    def _all(self) -> list[Teacher]:
        """Each teacher once, though several families may share it."""
        return list({id(t): t for _, t in self._named()}.values())

    def _named(self) -> list[tuple[str, Teacher]]:
        return [*self.routes.items(), *([("", self.default)] if self.default else [])]

    def check_student(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        for teacher in self._all():
            teacher.check_student(tokenizer, name)
            self.lacks = {**self.lacks, **teacher.lacks}

    def prepare(self, live: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        for teacher in self._all():
            teacher.prepare(live, tokenizer, name)
            self.lacks = {**self.lacks, **teacher.lacks}

    def of(self, task: Task) -> Teacher:
        """The teacher of a task."""
        teacher = self.routes.get(task.family) or self.routes.get(task.world, self.default)
        if teacher is None:
            where, what = (f" in {task.world}", "worlds and families") if task.world else ("", "families")
            raise ConfigError(
                f"task {task.id} is of family {task.family!r}{where}, for which teacher.routes names no teacher."
                f"{did_you_mean(task.family, self.routes) or did_you_mean(task.world, self.routes)} Routed {what}: "
                f"{', '.join(self.routes)}. Add it, or give a default."
            )
        return teacher

    def check_tasks(self, tasks: Iterable[Task]) -> None:
        known: set[str] = set()
        for task in tasks:
            self.of(task)
            known |= {task.family, task.world}
        if "" not in known and (strange := sorted(self.routes.keys() - known)):
            rank_zero_warn(
                f"teacher.routes names {strange[0]!r}, which is no world of this run, nor a family of its first tasks."
                f"{did_you_mean(strange[0], known)} Its teacher may never be asked."
            )

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel | RemoteModel":
        return self.of(task).model(live, initial, task)

    def metrics(self) -> dict[str, float]:
        counted: Counter[str] = Counter()
        for teacher in self._all():
            counted.update(teacher.metrics())
        return dict(counted)

    def context(self, task: Task) -> int | None:
        return self.of(task).context(task)

    def networks(self) -> dict[str, "PreTrainedModel"]:
        return {f"{family}/{name}": network for family, t in self._named() for name, network in t.networks().items()}

    def copies(self) -> tuple[ModelCopy, ...] | None:
        every = [teacher.copies() for teacher in self._all()]
        return None if None in every else tuple(replace(c, key="") for copies in every for c in copies or ())

    def external(self) -> set[str]:
        return {f"{family}/{name}" for family, t in self._named() for name in t.external()}

    def after_step(self, live: "PreTrainedModel") -> None:
        for teacher in self._all():
            teacher.after_step(live)

    def after_iteration(self, live: "PreTrainedModel", iteration: int) -> None:
        for teacher in self._all():
            teacher.after_iteration(live, iteration)


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase, name: str, teacher: PreTrainedTokenizerBase, teacher_name: str
) -> dict[int, str]:
    """Every token of the student is the same token for the teacher, but for added ones that the teacher lacks, which are returned.

    Raises:
        PolicyError: names both, and the first token that differs.
    """
    added = tokenizer.added_tokens_decoder
    return check_same_vocabulary(tokenizer.get_vocab(), name, teacher.get_vocab(), teacher_name, added)


def check_same_vocabulary(
    student_ids: Mapping[str, int],
    name: str,
    teacher_ids: Mapping[str, int],
    teacher_name: str,
    added: Collection[int] = (),
    role: str = "teacher",
) -> dict[int, str]:
    """`check_same_tokens` of what tokenizers know: token -> id; `added` are the student's ids that its tokenizer was given later."""
    known = set(teacher_ids.values())
    lacks = {i: token for token, i in student_ids.items() if i in added and token not in teacher_ids and i not in known}
    differ = sorted((i, token) for token, i in student_ids.items() if teacher_ids.get(token) != i and i not in lacks)
    if differ:
        number, token = differ[0]
        other = next((t for t, i in teacher_ids.items() if i == number), None)
        raise PolicyError(
            f"the {role} {teacher_name} and the student {name} have different tokenizers: {len(differ)} of {len(student_ids)} tokens "
            f"differ, the first is id {number}, {token!r} for the student and {other!r} for the {role}. Log-probabilities of the "
            f"same ids would be about different texts. Use a {role} of the student's family."
        )
    return dict(sorted(lacks.items()))

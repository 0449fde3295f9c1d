"""Who plays: networks handed to samplers, attempts divided among the ranks, the next rollout begun ahead."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdar.data import TaskBatch
from sdar.errors import ConfigError
from sdar.lora import plain_weights
from sdar.parts import RemoteModel, Sampler, SharedWeights
from sdar.rollout import AgentLoop, Request
from sdar.training.host import Host
from sdar.training.prefetch import Prefetcher
from sdar.types import Completion, Episode, SampleKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Playing(Host):
    """Episodes and continuations, sampled by the policy or by a teacher."""

    ahead: Prefetcher

    def play(self, rollout: AgentLoop, network: "PreTrainedModel | RemoteModel", requests: list[Request]) -> list[Episode]:
        """Episodes played by a network, in the order of the requests; each rank plays a share."""
        with self.synced(rollout.sampler, network) as actor:
            episodes = self.ranks.map_over_ranks(lambda mine: rollout(actor, mine), requests, "episodes")
        return episodes

    @contextmanager
    def synced(self, sampler: Sampler, network: "PreTrainedModel | RemoteModel") -> Iterator["PreTrainedModel"]:
        """What a sampler shall sample with: an engine of its own gets the network's weights, others get the network, whole."""
        if isinstance(network, RemoteModel):
            raise ConfigError(
                f"{type(self).__name__} has its teacher act, and model.teacher is asked in other processes, where it only scores. Use a "
                "teacher in the process (ExternalTeacher), or another method. `teacher_acts = True` in the method says so before the run."
            )
        self.ahead.wait()  # servers and worlds do one thing at a time
        source = network.live if isinstance(network, SharedWeights) else network
        if not sampler.own_engine:
            with self.sharding.full_parameters(source) as actor:
                try:
                    yield actor if source is network else self.policy.frozen(actor)
                finally:
                    sampler.release()
            return
        name = next(i for i, known in enumerate(self.networks()) if known is network)
        weights = plain_weights(network, self.sharding.full_weights(source))
        sampler.load(f"{name}@{self.trainer.global_step}.{self.iteration}", weights)
        try:
            yield network
        finally:
            sampler.release()

    def play_as_teacher(self, rollout: AgentLoop, requests: list[Request]) -> list[Episode]:
        """Episodes played by each task's teacher (by the policy where there is none), in the order of the requests."""
        whose = [self.model if self.teacher is None else self.teacher_network(r.task) for r in requests]
        played: dict[int, Episode] = {}
        for network in {id(n): n for n in whose}.values():
            mine = [i for i, n in enumerate(whose) if n is network]
            played |= dict(zip(mine, self.play(rollout, network, [requests[i] for i in mine]), strict=True))
        return [played[i] for i in range(len(requests))]

    def continuations(
        self, model: "PreTrainedModel | RemoteModel", prefixes: list[list[int]], keys: list[SampleKey], length: int
    ) -> list[Completion]:
        """What a model would say next, behind any prefix, in at most `length` tokens; sampled as rollouts are.

        Whoever asks sees to it that the model's context has room for both.
        """
        sampler = copy.copy(self.sampler)
        sampler.reset()
        sampler.max_new_tokens, sampler.context = length, max(map(len, prefixes)) + length
        asked = list(zip(prefixes, keys, strict=True))
        with self.synced(sampler, model) as actor:

            def said(mine: list[tuple[list[int], SampleKey]]) -> list[Completion]:
                return sampler.sample(actor, [p for p, _ in mine], [d for _, d in mine]) if mine else []

            return self.ranks.map_over_ranks(said, asked, "continuations")

    def attempts(self, task_batch: TaskBatch) -> list[Episode]:
        """The attempts at each task of a step: those that were played ahead, if they were."""
        played = self.ahead.take(self.iteration)
        self.metrics.add("rollout/staleness", float(played is not None))
        if played is not None:
            return played
        return self.play(self.rollout, self.model, self.requests(task_batch, self.student_sees_skills))

    def prefetch_rollout(self) -> None:
        """Begin the next iteration's rollout, unless this one is the last."""
        self.count_sampling()  # now, while nobody samples
        # With rows_per_update how many steps this one will have is not known: one that is too many is dropped.
        if not 0 <= self.trainer.max_steps <= self.trainer.global_step + self.updates_per_rollout:
            following = self.iteration + 1
            step = self.tasks.step(self.seed, following)
            requests = self.requests(step, self.student_sees_skills, iteration=following)
            self.ahead.begin(requests, following, self.synced(self.sampler, self.model))

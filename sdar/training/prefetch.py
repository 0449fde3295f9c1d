"""The rollout of the next iteration, sampled by servers while this iteration updates: one step off, never more.

    iteration n      join rollout n | push the weights before update n, begin rollout n+1 | credit, score, weigh, update n
    iteration n+1    join rollout n+1 (sampled with the weights before update n) | push those before update n+1, begin n+2 | ...

Which tasks, attempts and random numbers a rollout has does not depend on when it is played. What differs from playing it later: its
weights are one iteration older, and its requests are made before the retriever has heard how iteration n went and with the view and
controller of that moment. A resumed run begins with nothing on the way: its first rollout is played with the checkpoint's weights and
retriever, where the run that was stopped had begun it an iteration earlier. From one checkpoint every resumed run goes on in the same way,
but not as the run would have that was never stopped.
"""

import copy
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from sdar.rollout import AgentLoop, Request
from sdar.rollout.chat import ChatFormat
from sdar.training.host import Host
from sdar.types import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prefetcher:
    """At most one rollout on its way, in a thread that talks to servers and worlds only.

    Everything that concerns other ranks (handing over weights, gathering episodes) happens in the thread that trains. Nobody else uses
    servers or worlds meanwhile: whoever wants to act waits first (`Playing.synced`).
    """

    def __init__(self, module: Host):
        self.module = module
        self._rollout: AgentLoop | None = None
        self._thread: threading.Thread | None = None
        self._requests: Sequence[Request] = []
        self._iteration = -1
        self._played: list[Episode] | BaseException = []
        self._acting = ExitStack()

    def begin(self, requests: Sequence[Request], iteration: int, acting: AbstractContextManager["PreTrainedModel"]) -> None:
        """Start to play the requests of `iteration` with the weights of this moment. Every rank must call it.

        Args:
            acting: Hands the weights over; it is left when the episodes are there.
        """
        module = self.module
        if self._rollout is None:  # tokenizers are not made for two threads: this one has its own
            own = ChatFormat(copy.deepcopy(module.chat.tokenizer), module.chat.given, module.policy.name, module.chat.tools)
            self._rollout = module.tasks.rollout(own, module.sampler, module.view, module.seed)
        self._requests, self._iteration = requests, iteration
        mine = self._requests[module.ranks.rank :: module.ranks.world_size]
        actor = self._acting.enter_context(acting)
        self._thread = threading.Thread(
            target=self._play, args=(self._rollout, actor, mine), name="sdar-rollout-ahead", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is on its way in this process."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._acting.close()

    def take(self, iteration: int) -> list[Episode] | None:
        """The episodes of `iteration`, on every rank; None where they were not begun. What failed in the thread is raised here."""
        if self._iteration != iteration:
            return None
        self.wait()
        self._iteration = -1
        return self.module.ranks.map_over_ranks(lambda mine: self._result(), self._requests, "episodes")

    def drop(self) -> None:
        """Nobody wants what is on its way."""
        self.wait()
        self._iteration = -1

    def _play(self, rollout: AgentLoop, actor: "PreTrainedModel", requests: Sequence[Request]) -> None:
        try:
            self._played = rollout(actor, requests)
        except BaseException as error:
            self._played = error

    def _result(self) -> list[Episode]:
        if isinstance(self._played, BaseException):
            raise self._played
        return self._played

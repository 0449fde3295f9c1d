"""Sampling by engines in other processes, on this machine or others: what `sdar serve-policy` serves."""

import itertools
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError, EngineFault, SdarError
from sdar.parts import Completion, SampleKey, Session
from sdar.registry import register
from sdar.samplers.bound import TruncatingSampler
from sdar.samplers.server_session import ServerSession, name_of
from sdar.serving.collective import CollectiveTransport
from sdar.serving.fleet import Fleet, RetryPolicy
from sdar.serving.protocol import SampleRequest, Sampling, Weights
from sdar.serving.weights import FileTransport

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("server")
class ServerSampler(TruncatingSampler):
    """Samples on policy servers, with a copy of the weights that is pushed to them; prompts are spread over the servers. In a rollout each
    response is a request of its own: its episode goes on while others are still being answered.

    An episode stays with the server that has read its past. A server that fails is left alone for a while, with its episodes given to
    the others; when it was started again it gets the weights of the moment. Tokens are those that `TorchSampler` samples:
    every random number derives from (run seed, task id, attempt, turn, position). In a run of several processes each is a client of
    its own; the first one has the weights.

    Args:
        urls: The servers, e.g. ``[http://127.0.0.1:8000]``.
        transport: How weights travel. files: they are written once, for the servers to read. collective: the first process keeps them
            in memory and broadcasts them, by NCCL where it and all servers have an accelerator of their own, else by gloo; servers
            must reach it at ports that the system chooses.
        weights_folder: For files: where they are written. Default: shared memory, for servers on this machine; for others a folder that
            all machines have under the same path.
        timeout: Seconds for one request, a response of a rollout, to the last byte.
        load_timeout: Seconds for a server to take other weights.
        retries: Further attempts at a request that was answered wrongly or too late.
        outage: Seconds that the run waits while no server can be reached; also at the start.
        pause: Seconds that a server is left alone after it failed; doubled each time.
        token_env: Environment variable that holds the token which the servers want (`sdar serve-policy --token_env`).
    """

    own_engine = True
    works_alone = True

    def __init__(
        self,
        urls: list[str],
        *,
        transport: Literal["files", "collective"] = "files",
        weights_folder: str | None = None,
        timeout: float = 600.0,
        load_timeout: float = 600.0,
        retries: int = 4,
        outage: float = 900.0,
        pause: float = 0.5,
        token_env: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if transport != "files" and weights_folder is not None:
            raise ConfigError(
                f"sampler.weights_folder is {weights_folder}, and with sampler.transport {transport} nothing is written: leave one of both "
                "out."
            )
        self.client = secrets.token_hex(8)
        self._fleet = Fleet(urls, RetryPolicy(timeout, load_timeout, retries, outage, pause), token_env=token_env)
        self._rollouts = itertools.count()
        self._rollout = next(self._rollouts)
        self._assigned: dict[object, str] = {}
        self._transport = TRANSPORTS[transport](self._fleet, weights_folder)
        self._reported: Counter[str] = Counter()
        self._push_seconds = 0.0

    def bind(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], context: int) -> None:
        super().bind(tokenizer, stop_ids, context)
        self._fleet.begin_at(self.ranks.rank)
        for replica, health in zip(self._fleet.replicas, self._fleet.health(self._fleet.retry_policy.outage), strict=True):
            if health["vocab_size"] < self.vocab_size:
                raise ConfigError(
                    f"the policy server {replica.url} has a model of {health['vocab_size']} tokens, the tokenizer has {self.vocab_size}: "
                    "it serves another model. Start it with the directory of the policy that is trained."
                )
            if health["context"] <= self.max_new_tokens:
                raise ConfigError(
                    f"the policy server {replica.url} has a context of {health['context']} tokens and sampler.max_new_tokens is "
                    f"{self.max_new_tokens}: there is no room for a prompt. Start it with a longer context."
                )
            self.context = min(self.context, health["context"])

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        if version == self._fleet.loaded:
            for _ in weights:
                pass
            return
        begun, self._fleet.loaded = time.monotonic(), None
        request, error = self._stage(version, weights)
        self.ranks.all_gather_object(None, "the push of weights")  # nobody samples from the old ones any more
        try:
            self._push(request, error)
        except SdarError as failure:
            error = failure
        request, error = self.ranks.all_gather_object((request, error), "the weights that were pushed")[0]
        if error is not None:
            raise error
        self._fleet.weights, self._fleet.loaded = request, version
        self._push_seconds += time.monotonic() - begun

    def _stage(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> tuple[Weights | None, SdarError | None]:
        """Rank 0 keeps them; every rank takes every tensor, come what may."""
        request, error, weights = None, None, iter(weights)
        if self.ranks.rank == 0:
            run = f"{socket.gethostname()}.{os.getpid()}.{self.client}"
            try:
                request = self._transport.stage(run, version, weights)
            except EngineFault as failure:
                error = failure
        for _ in weights:
            pass
        return request, error

    def _push(self, request: Weights | None, error: SdarError | None) -> None:
        if error is not None:
            raise error
        if request is not None:
            self._fleet.push(request)
            self._transport.commit(request.version)

    def sample(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]
    ) -> list[Completion]:
        request = self._request(prompts, keys, self.max_new_tokens)
        return self._fleet.sample(request, [name_of(key) for key in keys], self._assigned) if prompts else []

    def session(self, model: "PreTrainedModel") -> Session:
        if type(self).sample is not ServerSampler.sample:  # a subclass that samples in its own way is asked to
            return super().session(model)
        return ServerSession(self._fleet, self._request, self._assigned)

    def _request(self, prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey], most: int) -> SampleRequest:
        self.check_room(prompts, keys)
        if prompts and self._fleet.weights is None:
            raise EngineFault(
                "ServerSampler.sample was called before `load`: the servers do not know whose weights shall sample."
            )
        return SampleRequest(
            version=self._fleet.weights.version if self._fleet.weights else "",
            client=self.client,
            rollout=self._rollout,
            deadline=self._fleet.retry_policy.timeout,
            sampling=msgspec.structs.replace(Sampling.of(self), max_new_tokens=most),
            prompts=tuple(tuple(p) for p in prompts),
            draws=tuple(keys),
        )

    def reset(self) -> None:
        self._assigned = {}  # a copy of this sampler may go on with the old ones
        self._rollout = next(self._rollouts)

    def release(self) -> None:
        """The servers need not keep what they have read for this client."""
        self._fleet.forget(self.client)

    def metrics(self) -> dict[str, float]:
        counts = self._fleet.counts
        new, self._reported = counts - self._reported, Counter(counts)
        failed = {f"rollout/{kind}": float(n) for kind, n in new.items() if kind.startswith("failed/")}
        seconds, self._push_seconds = self._push_seconds, 0.0
        return failed | {
            "rollout/retries": float(new["retries"]),
            "rollout/replica_failures": sum(failed.values()),
            "rollout/stale_replicas": float(new["stale"]),
            "time/weights_s": seconds,
        }

    def close(self) -> None:
        self._fleet.forget(self.client)
        self._transport.close()
        self._fleet.loaded = None


TRANSPORTS: dict[str, Callable[[Fleet, str | None], FileTransport | CollectiveTransport]] = {
    "files": lambda fleet, folder: FileTransport(folder),
    "collective": lambda fleet, folder: CollectiveTransport(fleet),
}

"""Sampling by engines in other processes, on this machine or others: what `sdar serve-policy` serves."""

import itertools
import os
import secrets
import shutil
import socket
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor, distributed, nn
from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError, EngineFault, SdarError
from sdar.parts import Completion, Draw
from sdar.registry import register
from sdar.samplers.bound import TruncatingSampler
from sdar.serving.fleet import Fleet, Patience
from sdar.serving.protocol import LoadRequest, SampleRequest, Sampling
from sdar.serving.weights import forget_others, write_weights


@register("server")
class ServerSampler(TruncatingSampler):
    """Samples on policy servers, with a copy of the weights that is pushed to them; prompts are spread over the servers.

    An episode stays with the server that has read its past. A server that fails is left alone for a while, with its episodes given to
    the others; when it was started again it is told to read the weights of the moment. Tokens are those that `TorchSampler` samples:
    every random number derives from (run seed, task id, attempt, turn, position). In a run of several processes each is a client of
    its own; the first one writes the weights.

    Args:
        urls: The servers, e.g. ``[http://127.0.0.1:8000]``.
        max_new_tokens: Longest response, in tokens.
        temperature: Softmax temperature; 0 is greedy.
        top_k: Keep the k likeliest tokens (0: all).
        top_p: Keep the likeliest tokens that together reach this mass.
        forbid: Tokens that a turn may not emit. Default: all special tokens but those that end a turn.
        weights_folder: Where weights are written for the servers to read. Default: shared memory, for servers on this machine; for
            others a folder that all machines have under the same path.
        timeout: Seconds for one request, the responses of one turn, to the last byte.
        load_timeout: Seconds for a server to read other weights.
        retries: Further attempts at a request that was answered wrongly or too late.
        outage: Seconds that the run waits while no server can be reached; also at the start.
        pause: Seconds that a server is left alone after it failed; doubled each time.
    """

    own_engine = True
    works_alone = True

    def __init__(
        self,
        urls: list[str],
        max_new_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        forbid: list[str] | None = None,
        weights_folder: str | None = None,
        timeout: float = 600.0,
        load_timeout: float = 600.0,
        retries: int = 4,
        outage: float = 900.0,
        pause: float = 0.5,
    ):
        super().__init__(max_new_tokens, temperature, top_k, top_p, forbid)
        if not urls:
            raise ConfigError("sampler.urls is empty: name at least one server, as `sdar serve-policy` prints its address.")
        if doubled := [url for url, n in Counter(u.rstrip("/") for u in urls).items() if n > 1]:
            raise ConfigError(f"sampler.urls names {doubled[0]} twice: each server counts once. Remove one.")
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(
                    f"sampler.urls names {url!r}: it begins with http:// or https://, e.g. http://127.0.0.1:8000."
                )
        for name, value, fits, least in (
            ("timeout", timeout, timeout > 0, "more than 0 seconds"),
            ("load_timeout", load_timeout, load_timeout > 0, "more than 0 seconds"),
            ("retries", retries, retries >= 0, "at least 0"),
            ("outage", outage, outage >= 0, "at least 0 seconds"),
            ("pause", pause, pause >= 0, "at least 0 seconds"),
        ):
            if not fits:
                raise ConfigError(f"sampler.{name} is {value}: it must be {least}.")
        self.weights_folder = weights_folder
        self.client = secrets.token_hex(8)
        patience = Patience(timeout, load_timeout, retries, outage, pause)
        self._fleet = Fleet([url.rstrip("/") for url in urls], patience)
        self._rollouts = itertools.count()
        self._rollout = next(self._rollouts)
        self._homes: dict[object, str] = {}
        self._folder: Path | None = None
        self._told: Counter[str] = Counter()
        self._push_seconds = 0.0

    def bind(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], context: int) -> None:
        super().bind(tokenizer, stop_ids, context)
        self._fleet.begin_at(rank())
        for replica, told in zip(self._fleet.replicas, self._fleet.health(self._fleet.patience.outage), strict=True):
            if told["vocab_size"] < self.vocab_size:
                raise ConfigError(
                    f"the policy server {replica.url} has a model of {told['vocab_size']} tokens, the tokenizer has {self.vocab_size}: it "
                    "serves another model. Start it with the directory of the policy that is trained."
                )
            if told["context"] <= self.max_new_tokens:
                raise ConfigError(
                    f"the policy server {replica.url} has a context of {told['context']} tokens and sampler.max_new_tokens is "
                    f"{self.max_new_tokens}: there is no room for a prompt. Start it with a longer context."
                )
            self.context = min(self.context, told["context"])

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        if version == self._fleet.loaded:
            for _ in weights:
                pass
            return
        begun, self._fleet.loaded = time.monotonic(), None
        request, error = self._write(version, weights)
        if alone():
            self._push(request, error)
        else:
            distributed.barrier()  # nobody samples from the old ones any more
            try:
                self._push(request, error)
            except SdarError as failure:
                error = failure
            box = [(request, error)]
            distributed.broadcast_object_list(box, src=0)
            request, error = box[0]
            if error is not None:
                raise error
        self._fleet.weights, self._fleet.loaded = request, version
        self._push_seconds += time.monotonic() - begun

    def _write(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> tuple[LoadRequest | None, SdarError | None]:
        """Rank 0 writes them; every rank takes every tensor, come what may."""
        request, error, weights = None, None, iter(weights)
        if rank() == 0:
            folder = self._own_folder()
            try:
                request = write_weights(folder, f"{folder.name}.{version}", weights)
            except OSError as failure:
                error = EngineFault(
                    f"the weights of {version} could not be written to {folder}: {failure}. Free some space there, or give "
                    "sampler.weights_folder another place."
                )
        for _ in weights:
            pass
        return request, error

    def _push(self, request: LoadRequest | None, error: SdarError | None) -> None:
        if error is not None:
            raise error
        if request is not None:
            self._fleet.push(request)
            forget_others(self._own_folder(), request.version)

    def sample(self, model: nn.Module, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Completion]:
        self.check_room(prompts, draws)
        if not prompts:
            return []
        if self._fleet.weights is None:
            raise EngineFault(
                "ServerSampler.sample was called before `load`: the servers do not know whose weights shall sample."
            )
        request = SampleRequest(
            version=self._fleet.weights.version,
            client=self.client,
            rollout=self._rollout,
            deadline=self._fleet.patience.timeout,
            sampling=Sampling.of(self),
            prompts=tuple(tuple(p) for p in prompts),
            draws=tuple(draws),
        )
        return self._fleet.sample(request, [(d.seed, d.task, d.attempt) for d in draws], self._homes)

    def reset(self) -> None:
        self._homes = {}  # a copy of this sampler may go on with the old ones
        self._rollout = next(self._rollouts)

    def rest(self) -> None:
        """The servers need not keep what they have read for this client."""
        self._fleet.forget(self.client)

    def metrics(self) -> dict[str, float]:
        counts = self._fleet.counts
        new, self._told = counts - self._told, Counter(counts)
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
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _own_folder(self) -> Path:
        if self._folder is None:
            shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
            root = shared / "sdar" if self.weights_folder is None else Path(self.weights_folder).expanduser().absolute()
            remove_orphans(root)
            self._folder = root / f"{socket.gethostname()}.{os.getpid()}.{self.client}"
            self._folder.mkdir(parents=True, exist_ok=True)
            weakref.finalize(self, shutil.rmtree, self._folder, True)
        return self._folder


def alone() -> bool:
    """Is this the only process of the run?"""
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def rank() -> int:
    """Of this process in the run."""
    return 0 if alone() else distributed.get_rank()


def remove_orphans(root: Path) -> None:
    """Remove the weights of runs on this machine whose process is gone: they were killed."""
    for folder in root.glob(f"{socket.gethostname()}.*.*") if root.is_dir() else ():
        pid = folder.name.removeprefix(f"{socket.gethostname()}.").partition(".")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)

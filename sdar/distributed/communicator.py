"""The processes of a run and what they tell each other: small objects, with a deadline that names who is missing.

Every rank knows every episode and every number about a token; only networks, and the work of running them, are divided. So a
method is written as for one process, and gives the same on any number of them.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from sdar.distributed.store import open_store
from sdar.errors import RankError, SdarError, first_line
from sdar.renamed import old_names

T = TypeVar("T")
R = TypeVar("R")

HEARTBEAT_S = 1.0
SILENT_S = 30.0
"""A process that gave no sign of life for this long is gone, whatever the deadline."""
EXPLAIN_S = 5.0
"""How long ranks that cannot go on look at what became of the others."""


class Communicator:
    """One process, alone.

    Attributes:
        rank: Number of this process.
        world_size: How many there are.
        status: What the run is doing, for errors, e.g. ``iteration 12``.
    """

    rank, world_size = 0, 1
    status = "start"

    def set_progress(self, doing: str) -> None:
        """Record what this rank does now, for errors of the other ranks."""

    def all_gather_object(self, value: T, what: str) -> list[T]:
        """The value of every rank, in the order of ranks. `what` names the rendezvous in errors."""
        return [value]

    def all_reduce_sum(self, tensor: Tensor, what: str) -> Tensor:
        """The sum over all ranks, in place."""
        return tensor

    def shard(self, items: Sequence[T], fill: T) -> list[T]:
        """This rank's items, equally many on each rank: neighbours run at the same time, and `fill` stands where there are none."""
        filled = [*items, *[fill] * (-len(items) % self.world_size)]
        return filled[self.rank :: self.world_size]

    def map_over_ranks(self, work: Callable[[list[T]], Sequence[R]], items: Sequence[T], what: str) -> list[R]:
        """`work` on this rank's share of the items; the results of all ranks, in the order of the items."""
        shares = self.all_gather_object(list(work(list(items[self.rank :: self.world_size]))), what)
        out: list[Any] = [None] * len(items)
        for rank, share in enumerate(shares):
            out[rank :: self.world_size] = share
        return out

    def check_same(self, value: object, what: str) -> None:
        """Make sure that all ranks have come to the same.

        Raises:
            RankError: they have not.
        """
        values = self.all_gather_object(value, what)
        if others := [r for r, other in enumerate(values) if other != values[0]]:
            raise RankError(
                f"{self.status}: ranks disagree about {what}: rank 0 has {values[0]}, rank {others[0]} has {values[others[0]]}. They "
                "must run the same code with the same settings and files on the same kind of machine."
            )

    @contextmanager
    def error_context(self, status: str | None = None) -> Iterator[None]:
        """An error in here is reported to the other ranks; one that another rank caused names it. `status`: what the run does."""
        self.status = status or self.status
        yield

    def close(self) -> None:
        """Stop the heartbeat: no rank waits for another any more."""


SINGLE_PROCESS = Communicator()


def current_rank() -> int:
    """Number of this process in the run."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class TorchCommunicator(Communicator):
    """Several processes, joined by torch.distributed, which has been initialised.

    Args:
        deadline: Seconds that a rank is waited for.
    """

    def __init__(self, deadline: float):
        self.rank, self.world_size, self.deadline = dist.get_rank(), dist.get_world_size(), deadline
        self._rendezvous_count = 0
        timeout = timedelta(seconds=deadline)
        self._group = dist.new_group(backend="gloo", timeout=timeout)  # objects go from memory to memory, whatever trains
        place: list[Any] = [None]
        if self.rank == 0:
            host = _own_address()
            near = host == "localhost" or host.startswith("127.")  # a name may mean another address to other machines
            store = open_store(host if near else "0.0.0.0", deadline, self.world_size)
            place = [(host, store.port)]
        dist.broadcast_object_list(place, src=0, group=self._group)
        host, port = place[0]
        self._store = store if self.rank == 0 else dist.TCPStore(host, port, self.world_size, is_master=False, timeout=timeout)
        self._closed = threading.Event()
        heartbeat_store = dist.TCPStore(
            host, port, self.world_size, is_master=False, timeout=timeout
        )  # of its own: calls wait for each other
        threading.Thread(target=self._heartbeat, args=(heartbeat_store,), daemon=True, name="sdar-sign-of-life").start()

    def set_progress(self, doing: str) -> None:
        with self.error_context():
            self._store.set(f"at/{self.rank}", f"{self.status}, {doing}")

    def all_gather_object(self, value: T, what: str) -> list[T]:
        self._rendezvous(what)
        out: list[Any] = [None] * self.world_size
        with self.error_context():
            dist.all_gather_object(out, value, group=self._group)
        return out

    def all_reduce_sum(self, tensor: Tensor, what: str) -> Tensor:
        self._rendezvous(what)
        with self.error_context():
            dist.all_reduce(tensor, group=self._group if tensor.device.type == "cpu" else None)
        return tensor

    @contextmanager
    def error_context(self, status: str | None = None) -> Iterator[None]:
        self.status = status or self.status
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            if not isinstance(error, SdarError) and isinstance(error, RuntimeError) and _is_about_others(error):
                raise RankError(self._missing(first_line(error))) from error
            with suppress(RuntimeError):
                self._store.set(f"failed/{self.rank}", f"{self.status}: {type(error).__name__}: {str(error)[:500]}")
            raise

    def close(self) -> None:
        self._closed.set()

    def _heartbeat(self, store: dist.Store) -> None:
        with suppress(RuntimeError):
            while not self._closed.wait(HEARTBEAT_S):
                store.add(f"alive/{self.rank}", 1)

    def _rendezvous(self, what: str) -> None:
        """Wait until every rank has come here."""
        number, self._rendezvous_count = self._rendezvous_count, self._rendezvous_count + 1
        meeting = f"meeting/{number}"
        due, pause = time.monotonic() + self.deadline, 1e-4
        heartbeats: dict[int, tuple[int, float]] = {}
        try:
            self.set_progress(f"waiting for the others at {what}")
            self._store.add(meeting, 1)
            while self._store.add(meeting, 0) < self.world_size:
                if any(self._store.check([f"failed/{r}"]) for r in range(self.world_size)):
                    raise RankError(self._missing("another failed"))
                if time.monotonic() > due:
                    raise RankError(self._missing(f"not all came to {what} within {self.deadline:g} s"))
                if pause == 0.01 and any(self._is_silent(r, heartbeats) for r in range(self.world_size)):
                    raise RankError(self._missing(f"no sign of life for {SILENT_S:g} s"))
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
            if self.rank == 0 and number > 1:
                self._store.delete_key(f"meeting/{number - 2}")  # all have left that one, as all have come to the next
        except RankError:
            raise
        except RuntimeError as error:
            raise RankError(self._missing(first_line(error))) from error

    def _is_silent(self, rank: int, heartbeats: dict[int, tuple[int, float]]) -> bool:
        """Whether a rank gave no sign since it was first looked at; looks once a second."""
        count, since = heartbeats.get(rank, (-1, 0.0))
        now = time.monotonic()
        if now - since > HEARTBEAT_S and (seen := self._store.add(f"alive/{rank}", 0)) != count:
            heartbeats[rank] = (seen, now)
        return now - heartbeats[rank][1] > SILENT_S

    def _missing(self, why: str) -> str:
        """Which ranks are missing and what each did last."""
        advice = "Nothing was lost but this iteration: correct what stopped it and go on from the last checkpoint."
        try:
            self._store.set(f"waits/{self.rank}", "1")
            before = [self._store.add(f"alive/{r}", 0) for r in range(self.world_size)]
            reports: list[str] = []
            due = time.monotonic() + EXPLAIN_S
            while time.monotonic() < due:
                if all(
                    self._store.check([f"waits/{r}"]) or self._store.check([f"failed/{r}"]) for r in range(self.world_size)
                ):
                    break
                time.sleep(0.1)
            for r in range(self.world_size):
                if self._store.check([f"failed/{r}"]):
                    reports.append(f"rank {r} failed at {self._store.get(f'failed/{r}').decode()}")
            for r in range(self.world_size):
                if r == self.rank or self._store.check([f"waits/{r}"]) or self._store.check([f"failed/{r}"]):
                    continue
                last = self._store.get(f"at/{r}").decode() if self._store.check([f"at/{r}"]) else "its start"
                dead = self._store.add(f"alive/{r}", 0) == before[r]
                reports.append(
                    f"rank {r} {'is gone' if dead else 'is alive, but did not come'}; the last that it said was: {last}"
                )
        except RuntimeError:
            reports = ["rank 0 is gone (what the others said was kept there)"]
        return (
            f"{self.status}: rank {self.rank} cannot go on ({why}): {'; '.join(reports) or 'every rank was reached'}. {advice}"
        )


def _is_about_others(error: RuntimeError) -> bool:
    """Whether an error of torch means that another process did not do its part."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("gloo", "connection closed by peer", "connection reset by peer", "timed out waiting"))


def _own_address() -> str:
    """The address that the other ranks reach this machine at."""
    return os.environ.get("MASTER_ADDR") or socket.gethostbyname(socket.gethostname())


__getattr__ = old_names(__name__, Ranks="Communicator", Group="TorchCommunicator", ALONE="SINGLE_PROCESS")

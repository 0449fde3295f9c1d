"""Weights over a collective: the trainer broadcasts them to the servers, by NCCL between accelerators, else by gloo.

The trainer's first process keeps what it sends, in the host's memory, and a thread that sends it to whoever comes: a server that was
restarted comes at any time. A server that is told of new weights comes when it has finished what it works on. Those who are there
form a process group for one round, apart from torch's default one, which the training uses. Each request to come names a *seat*;
seats are waited for until they come, their request fails, or the timeout ends.

Who takes part in a round keeps looking whether the trainer's store is still there, and the round not over: gloo tells nobody who is
in the middle of a tensor that the connection broke.
"""

import hmac
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, TypeVar, cast

import msgspec
import torch
from torch import Tensor, distributed
from yarl import URL

from sdar.distributed.store import open_store
from sdar.errors import EngineFault, first_line
from sdar.serving.background import in_background
from sdar.serving.buckets import checksum, pack, view
from sdar.serving.engine import Abandoned
from sdar.serving.fleet import Fleet, Seats
from sdar.serving.protocol import Part, ReceiveRequest, seat_signature
from sdar.serving.weights import host_copies, with_twins

T = TypeVar("T")
log = logging.getLogger("sdar.serving")
BUCKET_BYTES = 2**28
"""A bucket is closed when it has grown to this."""
CONNECT_S = 30.0
"""For the trainer to be reached. torch asks for the names of both addresses: slow where nobody answers that."""
LOOK_S = 0.02
"""Between two looks at what happened."""
PAUSE_S = 0.2
"""After a round that failed."""
ARRIVALS = 1000
"""That are looked for at once: whoever reaches the store can count them up."""


class Interrupted(Exception):
    """A round ended before the weights were there. They can be asked for again."""


class Arrival(Part, frozen=True):
    """A server has come."""

    seat: str
    device: str


class Told(Part, frozen=True):
    """What the round is that it takes part in."""

    round: int
    backend: str
    rank: int
    size: int


# ------------------------------------------------------------------ the trainer's side


class CollectiveTransport:
    """Copies weights to the host's memory, from where they are sent to servers that come for them.

    Args:
        fleet: The servers. Of the seconds that they have for loading one may come late by half; a bucket that takes a quarter ends the
            round. The trainer is met at the address by which it reaches those on other machines, or at this machine's own.
    """

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._sender: Sender | None = None

    def stage(self, run: str, version: str, weights: Iterable[tuple[str, Tensor]]) -> ReceiveRequest:
        """Copy them; the message lets a server come for them."""
        if self._sender is None:
            urls = [replica.url for replica in self._fleet.replicas]
            self._sender = Sender(meeting_address(urls), self._fleet.seats, self._fleet.retry_policy.load_timeout)
            weakref.finalize(self, self._sender.close)
        return self._sender.stage(f"{run}.{version}", weights)

    def commit(self, version: str) -> None:
        """Nothing but the newest version is kept anyway."""

    def close(self) -> None:
        """Who comes from now on finds nobody."""
        if self._sender is not None:
            self._sender.close()
        self._sender = None


@dataclass
class StagedWeights:
    """The weights of the moment, and where servers come for them."""

    request: ReceiveRequest
    store: distributed.TCPStore
    flats: list[Tensor]
    device: torch.device
    """Where the trainer's own are."""
    rounds: int = 0
    counted: int = 0
    unread: set[int] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)

    def arrivals(self) -> Iterator[Arrival]:
        """Each server that has come to a seat that was handed out, and not come there before."""
        count = self.store.add("arrivals", 0)
        first = count - ARRIVALS
        self.unread = {n for n in self.unread if n > first} | set(range(max(self.counted, first) + 1, count + 1))
        self.counted = count
        for number in sorted(self.unread):
            if self.store.check([f"arrival/{number}"]):
                self.unread.discard(number)
                try:
                    arrival = msgspec.json.decode(self.store.get(f"arrival/{number}"), type=Arrival)
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    log.warning(
                        "somebody came for the weights of %s with a message that is none: %s", self.request.version, error
                    )
                    continue
                name, _, signature = arrival.seat.rpartition(".")
                if not hmac.compare_digest(signature.encode(), seat_signature(self.request.seat, name).encode()):
                    log.warning("somebody came for the weights of %s who was not asked to", self.request.version)
                elif arrival.seat not in self.taken:
                    self.taken.add(arrival.seat)
                    yield arrival


class Sender:
    """A thread that sends the weights of the moment to those who have come, once nobody is missing."""

    def __init__(self, host: str, seats: Seats, timeout: float):
        self.host, self.seats, self.timeout = host, seats, timeout
        self._staged: StagedWeights | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="weights", daemon=True)
        self._thread.start()

    def stage(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> ReceiveRequest:
        """See `CollectiveTransport`."""
        tied: dict[str, str] = {}
        device = torch.device("cpu")

        def noted() -> Iterator[tuple[str, Tensor]]:
            nonlocal device
            for name, tensor in weights:
                device = tensor.device
                yield name, tensor

        packed = list(pack(host_copies(noted(), tied), BUCKET_BYTES))
        store = open_near(self.host, self.timeout)
        buckets = tuple(bucket for bucket, _ in packed)
        key = secrets.token_hex(16)
        request = ReceiveRequest(version, self.host, store.port, key, self.timeout, buckets, tied)
        self._staged = StagedWeights(request, store, [flat for _, flat in packed], device)
        return request

    def close(self) -> None:
        """Who waits notices."""
        self._closed.set()
        self._thread.join(10.0)
        self._staged = None

    def _serve(self) -> None:
        came: dict[str, Arrival] = {}
        staged, since = None, 0.0
        while not self._closed.wait(LOOK_S):
            if staged is not self._staged:
                staged, came = self._staged, {}
            try:
                for arrival in () if staged is None else staged.arrivals():
                    since = since if came else time.monotonic()
                    came[arrival.seat.rpartition(".")[0]] = arrival
                late = time.monotonic() - since > self.timeout / 2
                if staged is not None and came and (late or not self.seats.expected - came.keys()):
                    gone, came = came, {}
                    self._send(staged, gone)
            except Exception as error:  # those who came say it, too, and are told to come again
                log.warning("weights did not get to all policy servers that came for them: %s", str(error)[:1000])
                self._closed.wait(PAUSE_S)

    def _send(self, staged: StagedWeights, came: Mapping[str, Arrival]) -> None:
        """One round."""
        backend = choose_backend([device_name(staged.device), *(arrival.device for arrival in came.values())])
        device = staged.device if backend == "nccl" else torch.device("cpu")
        staged.rounds += 1
        for number, arrival in enumerate(came.values(), 1):
            told = Told(staged.rounds, backend, number, len(came) + 1)
            staged.store.set(f"seat/{arrival.seat}", msgspec.json.encode(told).decode())

        def look() -> None:
            if self._closed.is_set():
                raise Interrupted("the run ended")
            if lost := self.seats.lost & came.keys():
                raise Interrupted(f"{len(lost)} of them failed")

        member = Member(0, len(came) + 1, self.host, self.timeout / 4)
        try:
            client = connect(self.host, staged.request.port, self.timeout)  # forming a group keeps a connection busy
            with joined(member, distributed.PrefixStore(str(staged.rounds), client), backend, look) as group:
                for flat in staged.flats:
                    group.broadcast(flat.to(device))
                group.wait_until(lambda: staged.store.add(f"received/{staged.rounds}", 0) == len(came))
        except BaseException:
            staged.store.set(f"over/{staged.rounds}", "")
            raise


def refuse_stranger(host: str, trainers: Sequence[str]) -> str:
    """Why a server does not come for weights at `host`; empty where it does: at an address of this machine or of `trainers`."""
    if host in trainers or host in ("localhost", "::1") or host.startswith("127."):
        return ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip_address(host)), 0))  # which no other machine's address allows
        return ""
    except (OSError, ValueError):
        return f"this server comes for weights to its own machine only, not to {host[:100]!r}: name the trainer's address with --trainers"


def meeting_address(urls: Sequence[str]) -> str:
    """This machine's address on the way to the servers, rather to one on another machine than to one on this."""
    found = [address_towards(url.host or "", url.port or 80) for url in map(URL, urls)]
    return next((a for a in found if not a.startswith("127.") and a != "::1"), found[0])


# ------------------------------------------------------------------ the server's side


def receive(request: ReceiveRequest, device: str, wanted: Callable[[], bool] = lambda: True) -> Iterator[tuple[str, Tensor]]:
    """Go where the trainer sends weights: every (name, tensor), tied ones too. A bucket is compared with its checksum first.

    Args:
        wanted: Whether somebody still waits for it.

    Raises:
        Interrupted: the trainer or another server is gone, or took too long.
        EngineFault: something else arrived than was sent.
        Abandoned: nobody waits any more.
    """
    return with_twins(request.version, _tensors(request, torch.device(device), wanted), request.tied)


def _tensors(request: ReceiveRequest, device: torch.device, wanted: Callable[[], bool]) -> Iterator[tuple[str, Tensor]]:
    due = time.monotonic() + request.deadline
    with interruptions():
        here = address_towards(request.host, request.port)
        store = connect(request.host, request.port, request.deadline)
        number = store.add("arrivals", 1)
        store.set(f"arrival/{number}", msgspec.json.encode(Arrival(request.seat, device_name(device))).decode())
        while not store.check([f"seat/{request.seat}"]):  # until all are there; fails if the trainer is gone
            if not wanted():
                raise Abandoned
            if time.monotonic() > due:
                raise Interrupted(f"the trainer had nothing for this seat within {request.deadline:g} s")
            time.sleep(LOOK_S)
        told = _read_told(store.get(f"seat/{request.seat}"))
    member = Member(told.rank, told.size, here, request.deadline / 4)
    place = device if told.backend == "nccl" else torch.device("cpu")

    def look() -> None:
        if store.check([f"over/{told.round}"]):  # fails if the trainer is gone
            raise Interrupted("the trainer ended the round: another server failed, or the run")
        if not wanted():
            raise Abandoned

    with joined(member, distributed.PrefixStore(str(told.round), store), told.backend, look) as group:
        for number, bucket in enumerate(request.buckets):
            flat = torch.empty(bucket.size, dtype=torch.uint8, device=place)
            group.broadcast(flat)
            if (found := checksum(flat)) != bucket.checksum:
                raise EngineFault(
                    f"bucket {number} of the weights of {request.version} has the checksum {found}, the message says {bucket.checksum}: it "
                    "is not what the trainer sent. It is pushed again at the next attempt."
                )
            for tensor in bucket.tensors:
                yield tensor.name, view(flat, tensor)
    with interruptions():
        store.add(f"received/{told.round}", 1)


def _read_told(body: bytes) -> Told:
    try:
        told = msgspec.json.decode(body, type=Told)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Interrupted(f"the trainer's store holds a message that is none: {error}") from None
    if told.backend not in BACKENDS or not 0 < told.rank < told.size:
        raise Interrupted(f"the trainer's store tells of a round that cannot be: {told}")
    return told


# ------------------------------------------------------------------ both sides


class Group:
    """A process group in which nobody waits longer than need be.

    Args:
        make: Forms it.
        seconds: That one operation may take.
        look: Is called again and again while one lasts; what it raises ends it.
    """

    def __init__(self, make: Callable[[], Any], seconds: float, look: Callable[[], None]):
        self._seconds, self._look = seconds, look
        self._group: Any = self._watched(make)

    def broadcast(self, flat: Tensor) -> None:
        """From the first member to all others."""
        group = self._group

        def work() -> None:
            group.broadcast(flat, 0).wait()
            if flat.is_cuda:
                torch.cuda.synchronize(flat.device)

        self._watched(work)

    def wait_until(self, happened: Callable[[], Any]) -> None:
        """Raises Interrupted when it takes too long, or `look` says so."""
        due = time.monotonic() + self._seconds
        while not happened():
            with interruptions():
                self._look()
            if time.monotonic() > due:
                raise Interrupted(f"nothing happened for {self._seconds:g} s")
            time.sleep(LOOK_S / 10)

    def close(self) -> None:
        """In the background: an operation that was given up may last until its own deadline."""
        group, self._group = self._group, None
        in_background(group.abort)

    def _watched(self, work: Callable[[], T]) -> T:
        future = in_background(work)
        self.wait_until(lambda: wait([future], LOOK_S).done)
        with interruptions():
            return future.result()


@dataclass(frozen=True)
class Member:
    """Of a group."""

    rank: int
    size: int
    address: str
    """Where the others reach it."""
    seconds: float
    """That one operation may take."""


@contextmanager
def joined(member: Member, store: distributed.Store, backend: str, look: Callable[[], None]) -> Iterator[Group]:
    """The group whose members meet at `store`."""
    group = Group(lambda: BACKENDS[backend](member, store), member.seconds, look)
    try:
        yield group
    finally:
        group.close()


def gloo(member: Member, store: distributed.Store) -> "distributed.ProcessGroupGloo":
    """Through the host's memory."""
    options = cast(Any, distributed.ProcessGroupGloo)._Options()
    options._timeout = timedelta(seconds=member.seconds)
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=member.address)]
    return distributed.ProcessGroupGloo(store, member.rank, member.size, options)


def nccl(member: Member, store: distributed.Store) -> "distributed.ProcessGroupNCCL":
    """Between accelerators; NCCL finds their addresses itself."""
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=member.seconds)
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"  # read by the constructor: otherwise the death of one member ends the processes of all
    try:
        return distributed.ProcessGroupNCCL(store, member.rank, member.size, options)
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


BACKENDS = {"gloo": gloo, "nccl": nccl}


def choose_backend(devices: Sequence[str]) -> str:
    """NCCL where each member has an accelerator of its own (it refuses two members on one), gloo otherwise."""
    return "nccl" if "cpu" not in devices and len(set(devices)) == len(devices) else "gloo"


def device_name(device: torch.device) -> str:
    """The same for two processes if they share an accelerator; all others than CUDA's are reached through the host's memory."""
    return f"cuda {torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "cpu"


def open_near(host: str, seconds: float) -> distributed.TCPStore:
    """A store at a free port of this address, and of no other one of this machine.

    Raises:
        EngineFault: this machine has none.
    """
    try:
        return open_store(host, seconds)
    except (RuntimeError, OSError) as error:
        raise EngineFault(
            f"no port could be opened at {host} for servers to come for weights: {first_line(error)}. Look at what this "
            "machine allows, or use sampler.transport files."
        ) from None


def connect(host: str, port: int, seconds: float) -> distributed.TCPStore:
    """A store that was opened, whose answers may take `seconds`."""
    store = distributed.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=min(CONNECT_S, seconds))
    )
    store.set_timeout(timedelta(seconds=seconds))
    return store


@contextmanager
def interruptions() -> Iterator[None]:
    """torch's errors of stores and groups as Interrupted."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, EngineFault):
            raise
        raise Interrupted(f"the weights were not received to their end: {first_line(error, 300)}") from None


def address_towards(host: str, port: int) -> str:
    """This machine's address as seen from there. Nothing is sent."""
    family, kind, _, _, place = min(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))  # IPv4 first
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return probe.getsockname()[0]

"""Weights over a collective: the trainer broadcasts them to the servers, by NCCL between accelerators, else by gloo.

The trainer's first process keeps what it sends, in the host's memory, and a thread that sends it to whoever comes: a server that was
restarted comes at any time. A server that is told of new weights comes when it has finished what it works on. Those who are there
form a process group for one round, apart from torch's default one, which the training uses. Each request to come names a *seat*;
seats are waited for until they come, their request fails, or patience ends.

Who takes part in a round keeps looking whether the trainer's store is still there, and the round not over: gloo tells nobody who is
in the middle of a tensor that the connection broke.
"""

import json
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from torch import Tensor, distributed

from sdar.errors import EngineFault
from sdar.serving.background import in_background
from sdar.serving.buckets import checksum, pack, view
from sdar.serving.fleet import Fleet, Seats
from sdar.serving.protocol import ReceiveRequest
from sdar.serving.weights import host_copies, with_twins

T = TypeVar("T")
log = logging.getLogger("sdar.serving")
BUCKET_BYTES = 2**28
"""A bucket is closed when it has grown to this."""
CONNECT_S = 30.0
"""For the trainer to be reached. torch asks for the names of both addresses: slow where nobody answers that."""
LOOK_S = 0.02
"""Between two looks at what happened."""


class Interrupted(Exception):
    """A round ended before the weights were there. They can be asked for again."""


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

    def hold(self, run: str, version: str, weights: Iterable[tuple[str, Tensor]]) -> ReceiveRequest:
        """Copy them; the message lets a server come for them."""
        if self._sender is None:
            urls = [replica.url for replica in self._fleet.replicas]
            self._sender = Sender(meeting_address(urls), self._fleet.seats, self._fleet.patience.load_timeout)
            weakref.finalize(self, self._sender.close)
        return self._sender.hold(f"{run}.{version}", weights)

    def settle(self, version: str) -> None:
        """Nothing but the newest version is kept anyway."""

    def close(self) -> None:
        """Who comes from now on finds nobody."""
        if self._sender is not None:
            self._sender.close()
        self._sender = None


@dataclass
class Held:
    """The weights of the moment, and where servers come for them."""

    request: ReceiveRequest
    store: distributed.TCPStore
    flats: list[Tensor]
    device: torch.device
    """Where the trainer's own are."""
    rounds: int = 0
    counted: int = 0
    unread: set[int] = field(default_factory=set)

    def arrivals(self) -> Iterator[tuple[str, str]]:
        """Seat and device of each server that has come."""
        count = self.store.add("arrivals", 0)
        self.unread.update(range(self.counted + 1, count + 1))
        self.counted = count
        for number in sorted(self.unread):
            if self.store.check([f"arrival/{number}"]):
                self.unread.discard(number)
                told = json.loads(self.store.get(f"arrival/{number}"))
                yield told["seat"], told["device"]


class Sender:
    """A thread that sends the weights of the moment to those who have come, once nobody is missing."""

    def __init__(self, host: str, seats: Seats, patience: float):
        self.host, self.seats, self.patience = host, seats, patience
        self._held: Held | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="weights", daemon=True)
        self._thread.start()

    def hold(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> ReceiveRequest:
        """See `CollectiveTransport`."""
        tied: dict[str, str] = {}
        device = torch.device("cpu")

        def noted() -> Iterator[tuple[str, Tensor]]:
            nonlocal device
            for name, tensor in weights:
                device = tensor.device
                yield name, tensor

        packed = list(pack(host_copies(noted(), tied), BUCKET_BYTES))
        store = open_store(self.host, self.patience)
        buckets = tuple(bucket for bucket, _ in packed)
        request = ReceiveRequest(version, self.host, store.port, "", self.patience, buckets, tied)
        self._held = Held(request, store, [flat for _, flat in packed], device)
        return request

    def close(self) -> None:
        """Who waits notices."""
        self._closed.set()
        self._thread.join(10.0)
        self._held = None

    def _serve(self) -> None:
        came: dict[str, str] = {}
        held, since = None, 0.0
        while not self._closed.wait(LOOK_S):
            if held is not self._held:
                held, came = self._held, {}
            for seat, device in () if held is None else held.arrivals():
                since = since if came else time.monotonic()
                came[seat] = device
            late = time.monotonic() - since > self.patience / 2
            if held is not None and came and (late or not self.seats.expected - came.keys()):
                try:
                    self._send(held, came)
                except Exception as error:  # those who came say it, too, and are told to come again
                    log.warning("weights did not get to all of %d policy servers that came for them: %s", len(came), error)
                came = {}

    def _send(self, held: Held, came: Mapping[str, str]) -> None:
        """One round."""
        backend = choose_backend([device_name(held.device), *came.values()])
        device = held.device if backend == "nccl" else torch.device("cpu")
        held.rounds += 1
        for number, seat in enumerate(came, 1):
            told = {"round": held.rounds, "backend": backend, "rank": number, "size": len(came) + 1}
            held.store.set(f"seat/{seat}", json.dumps(told))

        def look() -> None:
            if self._closed.is_set():
                raise Interrupted("the run ended")
            if lost := self.seats.lost & came.keys():
                raise Interrupted(f"{len(lost)} of them failed")

        member = Member(0, len(came) + 1, self.host, self.patience / 4)
        try:
            own = connect(self.host, held.request.port, self.patience)  # forming a group keeps a connection busy
            with joined(member, distributed.PrefixStore(str(held.rounds), own), backend, look) as group:
                for flat in held.flats:
                    group.broadcast(flat.to(device))
                group.wait_until(lambda: held.store.add(f"received/{held.rounds}", 0) == len(came))
        except BaseException:
            held.store.set(f"over/{held.rounds}", "")
            raise


def meeting_address(urls: Sequence[str]) -> str:
    """This machine's address on the way to the servers, rather to one on another machine than to one on this."""
    found = [address_towards(parts.hostname or "", parts.port or 80) for parts in map(urlsplit, urls)]
    return next((a for a in found if not a.startswith("127.") and a != "::1"), found[0])


# ------------------------------------------------------------------ the server's side


def receive(request: ReceiveRequest, device: str) -> Iterator[tuple[str, Tensor]]:
    """Go where the trainer sends weights: every (name, tensor), tied ones too. A bucket is compared with its checksum first.

    Raises:
        Interrupted: the trainer or another server is gone, or took too long.
        EngineFault: something else arrived than was sent.
    """
    return with_twins(request.version, _tensors(request, torch.device(device)), request.tied)


def _tensors(request: ReceiveRequest, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    with interruptions():
        here = address_towards(request.host, request.port)
        store = connect(request.host, request.port, request.deadline)
        number = store.add("arrivals", 1)
        store.set(f"arrival/{number}", json.dumps({"seat": request.seat, "device": device_name(device)}))
        told = json.loads(store.get(f"seat/{request.seat}"))  # when all are there
    member = Member(told["rank"], told["size"], here, request.deadline / 4)
    place = device if told["backend"] == "nccl" else torch.device("cpu")

    def look() -> None:
        if store.check([f"over/{told['round']}"]):  # fails if the trainer is gone
            raise Interrupted("the trainer ended the round: another server failed, or the run")

    with joined(member, distributed.PrefixStore(str(told["round"]), store), told["backend"], look) as group:
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
        store.add(f"received/{told['round']}", 1)


# ------------------------------------------------------------------ both sides


class Group:
    """A process group in which nobody waits longer than need be.

    Args:
        make: Forms it.
        seconds: That one operation may take.
        look: Is called again and again while one lasts; what it raises ends it.
    """

    def __init__(self, make: Callable[[], distributed.Backend], seconds: float, look: Callable[[], None]):
        self._seconds, self._look = seconds, look
        self._group = self._watched(make)

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


def gloo(member: Member, store: distributed.Store) -> distributed.Backend:
    """Through the host's memory."""
    options = distributed.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=member.seconds)
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=member.address)]
    return distributed.ProcessGroupGloo(store, member.rank, member.size, options)


def nccl(member: Member, store: distributed.Store) -> distributed.Backend:
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


def open_store(host: str, seconds: float) -> distributed.TCPStore:
    """At a free port.

    Raises:
        EngineFault: this machine has none.
    """
    try:
        return distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        raise EngineFault(
            f"no port could be opened at {host} for servers to come for weights: {str(error).splitlines()[0]}. Look at what this "
            "machine allows, or use sampler.transport files."
        ) from None


def connect(host: str, port: int, seconds: float) -> distributed.TCPStore:
    """A store that was opened, whose answers may take `seconds`."""
    store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))
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
        raise Interrupted(f"the weights were not received to their end: {str(error).splitlines()[0][:300]}") from None


def address_towards(host: str, port: int) -> str:
    """This machine's address as seen from there. Nothing is sent."""
    family, kind, _, _, place = min(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))  # IPv4 first
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return probe.getsockname()[0]

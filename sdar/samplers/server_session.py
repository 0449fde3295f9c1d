"""Responses of servers, each as soon as it is there: every prompt is a request of its own, many are on their way at once."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from sdar.http_client import Abort
from sdar.parts import Completion, SampleKey, Session
from sdar.serving.fleet import Asking, Fleet, Share
from sdar.serving.protocol import SampleRequest
from sdar.serving.replica import Replica

AT_ONCE = 512
"""Requests that are on their way; each takes a connection and a thread."""

MakeRequest = Callable[[Sequence[Sequence[int]], Sequence[SampleKey], int], SampleRequest]
"""From prompts, their keys and the most tokens of a response."""


class ServerSession(Session):
    """Asks the servers of a fleet. In which order answers come depends on the clock; what they are does not.

    Args:
        request: What is asked.
        assigned: Url of the replica that has read each episode so far; kept up to date.
    """

    elsewhere = True

    def __init__(self, fleet: Fleet, request: MakeRequest, assigned: dict[Hashable, str]):
        self._request, self._assigned = request, assigned
        self._asked: dict[int, SampleRequest] = {}
        self._asking: Asking[Completion] = Asking(fleet, self._assign, self._ask, "sample", "responses")
        self._attempt = fleet.attempt

    @property
    def busy(self) -> bool:
        return self._asking.busy

    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        self._asked[number] = self._request([prompt], [key], most)
        self._asking.open.append(Share((number,)))
        self._asking.begin()

    def step(self) -> list[tuple[int, Completion]]:
        out = []
        for replica, share, [completion] in self._asking.answers():
            [number] = share.indices
            self._assigned[name_of(self._asked.pop(number).draws[0])] = replica.url
            out.append((number, completion))
        return sorted(out, key=lambda answered: answered[0])

    def wake(self) -> None:
        self._asking.wake()

    def close(self) -> None:
        self._asking.close()

    def _assign(self, shares: list[Share], ready: list[Replica], busy: Counter[str]) -> list[tuple[Replica, Share]]:
        """Each to the replica that has read its episode, or to the one that has least to do."""
        replicas = {replica.url: replica for replica in ready}
        begun = []
        for share in shares[: AT_ONCE - busy.total()]:
            home = self._assigned.get(name_of(self._asked[share.indices[0]].draws[0]), "")
            replica = replicas.get(home) or min(ready, key=lambda r: busy[r.url])
            busy[replica.url] += 1
            begun.append((replica, share))
        return begun

    def _ask(self, replica: Replica, numbers: Sequence[int], abort: Abort) -> list[Completion]:
        return self._attempt(replica, self._asked[numbers[0]], abort)


def name_of(key: SampleKey) -> Hashable:
    """Of the episode that a response is drawn for."""
    return (key.seed, key.task, key.attempt)

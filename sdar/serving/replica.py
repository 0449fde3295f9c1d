"""One policy server, as its client sees it: a request with a deadline to the last byte, and failures by kind."""

from threading import Lock

import msgspec

from sdar import http_client
from sdar.errors import PolicyError
from sdar.http_client import CONNECT_S as CONNECT_S
from sdar.http_client import Abort, Answer, read_token, shown

LARGEST_ANSWER = 2**30
"""Bytes: about four times the answer that holds the most scores by default."""


class RequestFailed(Exception):
    """One attempt got no usable answer; `kind` is what it is counted as.

    connection: nobody there, or cut off. timeout: nothing came in time. slow: an answer began and was not whole in time. status: a
    server error. malformed: an answer that breaks the protocol. stale: other weights, although they were just sent. interrupted: weights
    that it came for did not arrive, because of the trainer or another server. aborted: nobody wants the answer any more.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


class Refused(Exception):
    """The server understood and will never do it."""


class StaleReplica(Exception):
    """It has other weights."""


class Replica:
    """One server, and whether it is worth asking."""

    def __init__(self, url: str, token_env: str | None = None, part: str = "sampler"):
        self.url, self.token_env, self.part = url, token_env, part
        self.failures = 0
        self.failed_at = self.unavailable_until = 0.0
        self.loading = Lock()
        self.loads = 0
        """How often it was told to take weights because it had others."""

    def request(self, method: str, path: str, body: bytes | None, timeout: float, abort: Abort | None = None) -> bytes:
        """The body of the answer, all of it within `timeout` seconds; `abort` breaks it off.

        Raises:
            RequestFailed, Refused, StaleReplica.
        """
        token = read_token(self.token_env, f"{self.part}.token_env")
        try:
            answer = http_client.request(
                method,
                f"{self.url}{path}",
                body,
                timeout=timeout,
                token=token,
                largest=LARGEST_ANSWER,
                proxies=False,
                abort=abort,
            )
        except http_client.RequestFailed as error:
            raise RequestFailed("malformed" if error.kind in ("large", "elsewhere") else error.kind, str(error)) from None
        if answer.status == 200:
            return answer.body
        message = f"{shown(self.url)} answered {answer.status}: {_reason(answer)}"
        if answer.status == 409:
            raise StaleReplica(message)
        if answer.status == 424:
            raise RequestFailed("interrupted", message)
        if answer.status == 422:
            raise PolicyError(_reason(answer))
        if 400 <= answer.status < 500:
            raise Refused(message)
        raise RequestFailed("status", message)


class _Told(msgspec.Struct):
    error: str


def _reason(answer: Answer) -> str:
    try:
        return http_client.hide(msgspec.json.decode(answer.body, type=_Told).error[:1000], answer.secret)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return repr(answer.said())

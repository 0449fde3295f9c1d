"""One policy server, as its client sees it: a request with a deadline to the last byte, and failures by kind."""

import http.client
import json
import time
from urllib.parse import urlsplit

from sdar.errors import PolicyError

CONNECT_S = 10.0


class RequestFailed(Exception):
    """One attempt got no usable answer; `kind` is what it is counted as.

    connection: nobody there, or cut off. timeout: nothing came in time. slow: an answer began and was not whole in time. status: a
    server error. malformed: an answer that breaks the protocol. stale: other weights, although they were just sent. interrupted: weights
    that it came for did not arrive, because of the trainer or another server.
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

    def __init__(self, url: str):
        self.url = url
        self.failures = 0
        self.rests_until = 0.0

    def request(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        """The body of the answer, all of it within `timeout` seconds.

        Raises:
            RequestFailed, Refused, StaleReplica.
        """
        due = time.monotonic() + timeout
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=min(CONNECT_S, timeout))
        began = False
        try:
            connection.connect()
            sock = connection.sock
            sock.settimeout(max(0.001, due - time.monotonic()))
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request(method, f"{parts.path.rstrip('/')}{path}", body, headers)
            sock.settimeout(max(0.001, due - time.monotonic()))
            response = connection.getresponse()
            began = True
            received = bytearray()
            while True:
                sock.settimeout(max(0.001, due - time.monotonic()))
                chunk = response.read1(1 << 20)
                if not chunk:
                    break
                received += chunk
                if time.monotonic() > due:
                    raise TimeoutError
            if response.length:
                raise RequestFailed("connection", f"{self.url} closed the connection {response.length} bytes before the end")
        except TimeoutError:
            late = "the whole answer" if began else "an answer"
            raise RequestFailed(
                "slow" if began else "timeout", f"{self.url} did not give {late} within {timeout:g} s"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed("connection", f"{self.url}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if response.status == 200:
            return bytes(received)
        told = f"{self.url} answered {response.status}: {_reason(bytes(received))}"
        if response.status == 409:
            raise StaleReplica(told)
        if response.status == 424:
            raise RequestFailed("interrupted", told)
        if response.status == 422:
            raise PolicyError(_reason(bytes(received)))
        if 400 <= response.status < 500:
            raise Refused(told)
        raise RequestFailed("status", told)


def _reason(body: bytes) -> str:
    try:
        told = json.loads(body)
        return str(told["error"])[:1000]
    except (ValueError, LookupError, TypeError, RecursionError):
        return repr(body[:200])

"""The one HTTP client: policy servers, search, judges, code services and shops are asked through it.

A request has a deadline to the last byte, whatever the other side does, and a bound on the bytes of its answer. Nothing is sent
anywhere else than it was addressed to. No user, password or key stands in an address, and none in a message.
"""

import asyncio
import atexit
import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from sdar.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp  # imported where somebody is asked: most runs ask nobody

CONNECT_S = 10.0
LONGEST_S = 30 * 86400.0
"""That a request may take: a timeout may be infinite, what counts it cannot."""
LARGEST_ANSWER = 64 * 2**20
"""Bytes, where nobody says otherwise."""
MOST_MOVES = 10
"""That a download may be sent on."""
SECRET_NAMES = re.compile(r"(key|token|secret|passw(or)?d|pwd|sig(nature)?|auth|credentials?)$", re.IGNORECASE)
RECOGNISABLE = 8
"""Characters of a secret in a row that are hidden."""


class RequestFailed(Exception):
    """There is no whole answer.

    `kind`: connection: nobody there, or cut off. timeout: nothing came in time. slow: an answer began and was not whole in time.
    large: it has too many bytes. elsewhere: it leads to another server. refused: a download got another status than success.
    aborted: whoever asked wants it no more.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """What came back, with any status."""

    url: str
    """Where it came from, after redirects."""
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    secret: str = field(default="", repr=False)

    def said(self, characters: int = 200) -> str:
        """The beginning of the body on one line, for messages."""
        line = " ".join(hide(self.body[: 4 * characters].decode("utf-8", "replace"), self.secret).split())
        return line if len(line) <= characters else f"{line[:characters]}..."


class Abort:
    """Breaks off the requests that are made with it, from any thread; those that are made later, too."""

    def __init__(self) -> None:
        self._lock, self._called = threading.Lock(), False
        self._futures: set[Future[Answer]] = set()

    def __call__(self) -> None:
        with self._lock:
            self._called, futures = True, list(self._futures)
        for future in futures:
            future.cancel()

    @contextlib.contextmanager
    def of(self, future: "Future[Answer]") -> Iterator[None]:
        """While an answer is waited for."""
        with self._lock:
            self._futures.add(future)
            called = self._called
        if called:
            future.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._futures.discard(future)


def request(
    method: str,
    url: str,
    body: bytes | None = None,
    *,
    timeout: float,
    content_type: str = "application/json",
    token: str = "",
    largest: int = LARGEST_ANSWER,
    redirects: int = 0,
    proxies: bool = True,
    abort: Abort | None = None,
) -> Answer:
    """One exchange.

    Args:
        timeout: Seconds to the last byte, redirects included.
        token: Sent as ``Authorization: Bearer ...`` where it is not empty.
        largest: Bytes of an answer, after decompression.
        redirects: How many are followed, on the same server; more, or to another one, are answers or failures.
        proxies: Whether the environment's ``http_proxy``, ``https_proxy`` and ``no_proxy`` count.
        abort: What breaks it off.

    Raises:
        RequestFailed: no whole answer.
    """
    abort = abort or Abort()
    headers = {"Connection": "close"} | ({"Content-Type": content_type} if body is not None else {})
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    due = time.monotonic() + min(timeout, LONGEST_S)
    try:
        for _ in range(redirects + 1):
            left = max(0.001, due - time.monotonic())
            answer = _network().ask(method, url, body, headers, left, largest, _proxy(url) if proxies else None, abort)
            if answer.status not in (301, 302, 303, 307, 308) or not redirects or "Location" not in answer.headers:
                break
            url = same_origin(answer.headers["Location"], url)
            if answer.status not in (307, 308):
                method, body = "GET", None
    except RequestFailed as error:
        if error.kind in ("timeout", "slow"):
            begun = "the whole answer" if error.kind == "slow" else "an answer"
            raise RequestFailed(error.kind, f"{shown(url)} did not give {begun} within {timeout:g} s (timeout)") from None
        raise RequestFailed(error.kind, f"{shown(url)}: {hide(str(error), token)}") from None
    return Answer(answer.url, answer.status, hide(answer.reason, token), answer.headers, answer.body, token)


def download(url: str, part: Path, progress: Callable[[int, int | None], None], idle: float = 60.0) -> None:
    """Get the bytes of a file that `part` does not hold yet, from where it may be moved to: whoever asks compares what came with what
    was meant. ``https`` stays ``https``.

    Args:
        part: Grows while bytes come.
        progress: Told how many bytes are there, and of how many (None: the server does not say).
        idle: Longest wait for further bytes, in seconds.

    Raises:
        RequestFailed: no whole answer; `part` keeps what came.
    """
    network = _network()
    work = network.fetch(url, part, progress, idle)
    future = asyncio.run_coroutine_threadsafe(work, network.loop)
    try:
        future.result()
    except RequestFailed as error:
        raise RequestFailed(error.kind, f"{shown(url)}: {error}") from None
    finally:
        future.cancel()


def check_url(url: str, setting: str, example: str) -> None:
    """Refuse what is no address of a server, and what would put a secret into settings and messages.

    Raises:
        ConfigError: it is one of these.
    """
    try:
        parts = URL(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host) and parts.port is not None
    except ValueError:
        usable = False
    if not usable:
        told = shown(re.sub(r".*@", "", url))
        raise ConfigError(f"{setting} is {told!r}: it begins with http:// or https:// and a host, e.g. {example}.")
    if parts.user or parts.password or any(SECRET_NAMES.search(name) for name in parts.query):
        raise ConfigError(
            f"{setting} for {parts.host} holds a user, a password or a key: settings are written to the run's folder, and addresses to "
            "messages. Put it into an environment variable, and name that where this part has a setting for it."
        )


def shown(url: str) -> str:
    """An address for messages: without a user and a query."""
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", url, maxsplit=1)[0])


def same_origin(address: str, base: str) -> str:
    """An address that a page of `base` holds, as a whole one.

    Raises:
        RequestFailed: it leads to another server.
    """
    try:
        whole = urljoin(base, address)
        there, here = URL(whole), URL(base)
        same = there.origin() == here.origin() and not there.user
    except ValueError:
        same = False
    if not same:
        raise RequestFailed("elsewhere", f"it leads to another server ({shown(address)[:200]!r}), which is not asked")
    return whole


def hide(text: str, secret: str) -> str:
    """Without the secret, nor any part of it that is long enough to be of use."""
    size = min(RECOGNISABLE, len(secret))
    if not size:
        return text
    parts = {secret[i : i + size] for i in range(len(secret) - size + 1)}
    out, hidden = [], 0
    for i, letter in enumerate(text):
        if text[i : i + size] in parts:
            out += ["..."] if i >= hidden else []
            hidden = i + size
        if i >= hidden:
            out.append(letter)
    return "".join(out)


def read_token(variable: str | None, setting: str) -> str:
    """What the environment variable holds that a setting names; nothing where it names none.

    Raises:
        ConfigError: it is empty, or holds what cannot be sent.
    """
    if variable is None:
        return ""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"{setting} names the environment variable {variable}, which is empty: put the token there.")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{setting} names the environment variable {variable}, which holds characters that no token has.")
    return token


def _proxy(url: str) -> str | None:
    parts = URL(url)
    found = getproxies().get(parts.scheme)
    return None if found is None or proxy_bypass(f"{parts.host}:{parts.port}") else found


class _Network:
    """The loop and the session of a process, and the thread that they live in. Each request has a connection of its own: none is
    older than what was asked, none is shared with a child."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="http", daemon=True)
        self.thread.start()
        self.session: aiohttp.ClientSession = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result()

    async def _open(self) -> "aiohttp.ClientSession":
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        session._retry_connection = False  # whoever asks decides whether to ask again, and counts it
        return session

    def ask(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str],
        timeout: float,
        largest: int,
        proxy: str | None,
        abort: Abort,
    ) -> Answer:
        exchange = self._exchange(method, url, body, headers, timeout, largest, proxy)
        future = asyncio.run_coroutine_threadsafe(exchange, self.loop)
        try:
            with abort.of(future):
                return future.result(timeout + CONNECT_S)
        except TimeoutError:
            raise RequestFailed("timeout", "") from None
        except CancelledError:
            raise RequestFailed("aborted", "nobody waits for the answer any more") from None
        finally:
            future.cancel()  # an interrupted training does not wait

    async def _exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str],
        timeout: float,
        largest: int,
        proxy: str | None,
    ) -> Answer:
        import aiohttp

        began = False
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT_S, timeout))
        data = io.BytesIO(body) if body is not None and len(body) > 2**20 else body
        try:
            async with self.session.request(
                method, url, data=data, headers=headers, timeout=limit, allow_redirects=False, proxy=proxy
            ) as response:
                began = True
                received = bytearray()
                async for chunk in response.content.iter_chunked(2**16):
                    received += chunk
                    if len(received) > largest:
                        raise RequestFailed("large", f"an answer of more than {largest} bytes")
                return Answer(str(response.url), response.status, response.reason or "", response.headers, bytes(received))
        except TimeoutError:
            raise RequestFailed("slow" if began else "timeout", "") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            why = os.strerror(number) if number else " ".join(str(error).split())[:500]
            raise RequestFailed("connection", f"{type(error).__name__}: {why}") from None

    async def fetch(self, url: str, part: Path, progress: Callable[[int, int | None], None], idle: float) -> None:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=idle)
        try:
            for _ in range(MOST_MOVES):
                here = part.stat().st_size if part.exists() else 0
                asked = {"Connection": "close", "Accept-Encoding": "identity"} | ({"Range": f"bytes={here}-"} if here else {})
                async with self.session.get(
                    url, headers=asked, timeout=limit, allow_redirects=False, proxy=_proxy(url)
                ) as answer:
                    if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                        moved = urljoin(url, answer.headers["Location"])
                        if URL(url).scheme == "https" != URL(moved).scheme:
                            raise RequestFailed("elsewhere", f"it leads to {shown(moved)[:200]!r}, which nobody could trust")
                        url = moved
                        continue
                    await _receive(answer, part, here, progress)
                    return
            raise RequestFailed("elsewhere", f"it was moved more than {MOST_MOVES} times")
        except TimeoutError:
            raise RequestFailed("timeout", f"nothing came for {idle:g} s") from None
        except (aiohttp.ClientError, ValueError, RuntimeError, ConnectionError) as error:
            raise RequestFailed("connection", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}") from None

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.session.close(), self.loop).result(1.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(1.0)


async def _receive(
    answer: "aiohttp.ClientResponse", part: Path, here: int, progress: Callable[[int, int | None], None]
) -> None:
    """Write an answer behind the bytes that are there, or, where the server begins anew, in place of them."""
    if answer.status == 416 and here:  # nothing lies behind what is there
        return
    if answer.status not in (200, 206):
        busy = answer.status in (408, 425, 429) or answer.status >= 500
        raise RequestFailed("connection" if busy else "refused", f"the server says {answer.status} {answer.reason}")
    begins = here if answer.status == 206 else 0
    total = None if answer.content_length is None else begins + answer.content_length
    with part.open("r+b" if begins else "wb") as out:
        out.seek(begins)
        async for chunk in answer.content.iter_chunked(2**18):
            out.write(chunk)
            progress(out.tell(), total)
    if total is not None and part.stat().st_size != total:
        raise RequestFailed("connection", f"{part.stat().st_size:,} of {total:,} bytes came")


_lock = threading.Lock()
_current: _Network | None = None
_of_parents: list[_Network] = []
"""Kept, so that nothing of theirs is closed here."""


def _network() -> _Network:
    global _current
    with _lock:
        if _current is None:
            _current = _Network()
        return _current


def _forked() -> None:
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _of_parents.append(_current)
        _current = None


def _close() -> None:
    global _current
    if _current is not None:
        with contextlib.suppress(Exception):  # the process ends anyway
            _current.close()
        _current = None


os.register_at_fork(after_in_child=_forked)
atexit.register(_close)

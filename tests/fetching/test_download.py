"""A download goes on where it stopped, follows where it is sent, and takes no other file than was meant."""

import hashlib
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sdar.errors import FetchError
from sdar.fetching.catalogue import DataFile
from sdar.fetching.download import ATTEMPTS, fetch_file

BODY = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves BODY at any path; `most` bytes an answer, and what `says` tells for a path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.most, self.says, self.ranges, self.ignores_ranges = len(BODY), {}, [], False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, location = self.server.says.get(self.path, (200, None))
        begin = 0
        if asked := self.headers.get("Range"):
            self.server.ranges.append(asked)
            begin = 0 if self.server.ignores_ranges else int(asked.removeprefix("bytes=").rstrip("-"))
        if status == 200 and begin >= len(BODY):
            status = 416
        elif status == 200 and begin:
            status = 206
        self.send_response(status)
        body = BODY[begin:] if status in (200, 206) else b""
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.most])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Fetches a path of the server, and tells what the progress was told."""

    def fetched(path="/data", **kwargs):
        known = {"bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()} | kwargs
        told = []
        file = DataFile(name="data", url=f"http://127.0.0.1:{server.server_port}{path}", **known)
        fetch_file(file, tmp_path / "in" / "data", lambda here, of: told.append((here, of)), pause=0.0)
        return told

    return SimpleNamespace(fetch=fetched, target=tmp_path / "in" / "data", part=tmp_path / "in" / "data.part")


@pytest.mark.parametrize("known", [{}, {"bytes": None}, {"sha256": None}, {"bytes": None, "sha256": None}])
def test_a_file_comes_whole(get, known):
    assert get.fetch(**known)[-1] == (len(BODY), len(BODY))
    assert get.target.read_bytes() == BODY and not get.part.exists()


def test_what_came_before_is_not_asked_for_again(get, server):
    get.part.parent.mkdir()
    get.part.write_bytes(BODY[:1000])
    get.fetch()
    assert server.ranges == ["bytes=1000-"] and get.target.read_bytes() == BODY
    get.target.rename(get.part)  # stopped between the last byte and its check
    get.fetch()
    get.target.rename(get.part)
    get.fetch(bytes=None)
    assert server.ranges == ["bytes=1000-", f"bytes={len(BODY)}-"] and get.target.read_bytes() == BODY


def test_a_server_that_breaks_off_is_asked_for_the_rest_as_long_as_something_comes(get, server):
    server.most = len(BODY) // (ATTEMPTS + 3)
    get.fetch()
    assert len(server.ranges) > ATTEMPTS and get.target.read_bytes() == BODY


def test_a_server_that_cannot_begin_in_the_middle_begins_anew(get, server):
    server.ignores_ranges = True
    get.part.parent.mkdir()
    get.part.write_bytes(b"x" * 1000)
    get.fetch()
    assert get.target.read_bytes() == BODY


def test_it_follows_where_it_is_sent(get, server):
    server.says = {"/data": (302, "/there"), "/there": (301, f"http://localhost:{server.server_port}/here")}
    get.fetch()
    assert get.target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"/data": (404, None)}, r"the server says 404 Not Found\. 0 bytes are kept in .*data\.part: .*give it with --from"),
        ({"/data": (503, None)}, r"the server says 503"),
        ({"/data": (302, "/data")}, r"it was moved more than 10 times"),
    ],
)
def test_a_server_that_has_nothing_is_told(get, server, says, told):
    server.says = says
    with pytest.raises(FetchError, match=told):
        get.fetch()
    assert not get.target.exists()


def test_what_came_is_kept_when_nothing_more_comes(get, server):
    get.part.parent.mkdir()
    get.part.write_bytes(BODY[:1000])
    server.most = 0
    with pytest.raises(FetchError, match=r"1,000 bytes are kept in .*: the same command goes on from there"):
        get.fetch()
    assert get.part.read_bytes() == BODY[:1000]
    assert len(server.ranges) == ATTEMPTS


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (
            {"sha256": "0" * 64},
            r"is another file than was meant: its SHA-256 is [0-9a-f]{64} instead of 0{64}\. It is not kept",
        ),
        ({"bytes": 1_024_001, "sha256": None}, r"it has 1,024,000 bytes instead of 1,024,001"),
    ],
)
def test_another_file_is_refused_and_not_kept(get, known, told):
    with pytest.raises(FetchError, match=told):
        get.fetch(**known)
    assert not get.target.exists() and not get.part.exists()


def test_a_disk_without_room_is_told_before_anything_comes(get, monkeypatch):
    monkeypatch.setattr("sdar.fetching.download.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(FetchError, match=r"has 1,024,000 bytes, and .*/in has room for 1,000\. Make room, or set SDAR_DATA"):
        get.fetch()

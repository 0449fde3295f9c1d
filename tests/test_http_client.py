"""Every part that asks a server, against servers that mean harm; and the client that they share."""

import gzip
import inspect
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar import http_client, registry
from sdar.envs.webshop_http import WebShopHTTPEnv
from sdar.errors import ConfigError, SdarError
from sdar.http_client import RequestFailed, check_url, hide, read_token, request, same_origin, shown
from sdar.judges import EndpointJudge
from sdar.samplers import ServerSampler
from sdar.sandbox import FusionRunner, Limits
from sdar.search import HTTPBackend
from sdar.serving import replica
from sdar.serving.fleet import Fleet, RetryPolicy
from sdar.teachers import ServedTeacher

PAGE = '<div id="instruction-text">Instruction: <h4>x</h4></div><form action="{}" method="post"><button class="btn">Buy Now</button></form>'


def shop(url, timeout):
    env = WebShopHTTPEnv(url, goals=60, timeout=timeout, retries=0)
    return env, env.task(env.task_ids("train", 1, 0)[0])


ASK = {
    "policy server": lambda url, t: Fleet([url], RetryPolicy(t, t, 0, 0.0, 0.0)).tokens(replica.Replica(url)),
    "search": lambda url, t: HTTPBackend(url, timeout=t, retries=0).search(["q"], 1),
    "judge": lambda url, t: EndpointJudge(url, "m", timeout=t, retries=0, api_key_env=None).check(),
    "sandbox": lambda url, t: FusionRunner(url, Limits(wall_s=0.1), retries=0, patience_s=t).run("1"),
    "shop": shop,
}


@contextmanager
def server(answer):
    """Answers every request so; counts them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            http.asked.append(f"{self.command} {self.path}")
            with suppress(OSError):  # the client had enough
                answer(self)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close, http.asked = True, False, []
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", http
    finally:
        http.shutdown()
        http.server_close()


def reply(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def drips(handler):
    reply(handler)
    for _ in range(100):
        handler.wfile.write(b"abc")
        time.sleep(0.05)


def drips_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(100):
        handler.wfile.write(b"X-%d: 1\r\n" % n)
        time.sleep(0.05)


@pytest.mark.parametrize("how", [drips, drips_headers])
@pytest.mark.parametrize("who", ASK)
def test_an_answer_that_drips_is_waited_for_no_longer_than_the_deadline(who, how):
    with server(how) as (url, _):
        begun = time.monotonic()
        with pytest.raises(SdarError, match=r"within 0.\d+ s"):
            ASK[who](url, 0.3)
        assert time.monotonic() - begun < 2.0


def floods(handler):
    reply(handler)
    for _ in range(200):
        handler.wfile.write(b"x" * 2**20)
        handler.server.sent = getattr(handler.server, "sent", 0) + 1


@cache
def bomb():
    return gzip.compress(b"\0" * (80 * 2**20), 1)


@pytest.mark.parametrize("who", ASK)
@pytest.mark.parametrize("how", ["plain", "gzip"])
def test_an_answer_without_end_is_read_to_a_bound_only(who, how, monkeypatch):
    monkeypatch.setattr(replica, "LARGEST_ANSWER", 2**20)
    answer = floods if how == "plain" else lambda handler: reply(handler, bomb(), Content_Encoding="gzip")
    with server(answer) as (url, http):
        with pytest.raises(SdarError, match=r"an answer of more than \d+ bytes"):
            ASK[who](url, 60.0)
        assert getattr(http, "sent", 0) < 100


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("who", ASK)
def test_nobody_is_sent_to_another_server(who, status):
    with server(reply) as (elsewhere, other):
        for place in (
            f"{elsewhere}/admin/delete",
            elsewhere.replace("http:", "") + "/x",
            f"http://127.0.0.1:1@{elsewhere[7:]}/x",
        ):
            redirect = partial(reply, status=status, Location=place)
            with server(redirect) as (url, _), pytest.raises(SdarError):
                ASK[who](url, 5.0)
        assert other.asked == []


def test_a_form_that_leads_to_another_server_is_not_sent():
    with server(reply) as (elsewhere, other):
        page = PAGE.format(f"{elsewhere}/admin/delete").encode()
        with server(lambda handler: reply(handler, page)) as (url, _):
            env, task = shop(url, 5.0)
            env.reset(task)
            with pytest.raises(
                SdarError, match=r"leads to another server \('http://127.0.0.1:\d+/admin/delete'\), which is not asked"
            ):
                env.step("click[buy now]")
        assert other.asked == []


def test_redirects_of_one_server_end():
    with server(lambda handler: reply(handler, status=302, Location="/again")) as (url, http):
        answer = request("POST", url, b"{}", timeout=5.0, redirects=3)
        assert (answer.status, http.asked) == (302, ["POST /", *["GET /again"] * 3])


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("/a", True), ("a?b#c", True), ("", True), ("http://h:1/x", True), ("https://h:1/x", False), ("http://h/x", False),
        ("//h:1/x", True), ("//e/x", False), ("http://h:1@e/x", False), ("http://h:1:2/", False), ("\\\\e\\x", True), ("file:///x", False),
        ("javascript:1", False), ("http://u:p@h:1/x", False),
    ],
)  # fmt: skip
def test_addresses_of_pages_stay_on_their_server(address, fine):
    try:
        assert same_origin(address, "http://h:1/page").startswith("http://h:1/") and fine
    except RequestFailed as error:
        assert error.kind == "elsewhere" and not fine


# ------------------------------------------------------------------ secrets


def parts_with_urls():
    """Every part that has the address of a server among its settings."""
    registry.load_parts()
    for plural in registry.kinds():
        for name, cls in registry.parts(plural).items():
            for setting in {"url", "urls"} & set(inspect.signature(cls.__init__).parameters):
                yield pytest.param(cls, setting, id=name)


WITH_URLS = list(parts_with_urls())


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@127.0.0.1:1/r", "http://127.0.0.1:1/r?api_key=hunter2", "user:hunter2@h/r"]
)
@pytest.mark.parametrize(("cls", "setting"), WITH_URLS)
def test_no_part_takes_a_secret_in_its_address(cls, setting, url):
    needed = [
        p.name for p in inspect.signature(cls.__init__).parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD
    ][1:]
    settings = {name: "x" for name in needed} | {setting: [url] if setting == "urls" else url}
    with pytest.raises(ConfigError, match=setting) as raised:
        cls(**settings)
    assert "hunter2" not in str(raised.value)


def test_the_parts_with_addresses_are_known():
    assert {param.id for param in WITH_URLS} == {"http", "endpoint", "fusion", "auto", "webshop_http", "server", "served"}


@given(st.text("abcdef", min_size=0, max_size=30), st.text("abcdef ", max_size=80), st.integers(0, 30), st.integers(0, 30))
def test_no_part_of_a_secret_of_eight_characters_is_left(secret, text, begin, end):
    text = text + secret + text + secret[min(begin, end) : max(begin, end)] + text
    size = min(8, len(secret))
    left = hide(text, secret)
    assert size == 0 or not any(secret[i : i + size] in left for i in range(len(secret) - size + 1))
    assert hide("nothing to see", "sk-other-key") == "nothing to see"


def test_addresses_are_shown_without_users_and_queries():
    assert shown("https://u:p@h:1/a?key=1#x") == "https://h:1/a"
    for url in ("http://h:99999/", "http://u:p/w@h", "http://", "ftp://h"):
        with pytest.raises(ConfigError, match=r"part.url is '.*': it begins with http:// or https:// and a host"):
            check_url(url, "part.url", "http://x")
    check_url("https://h/v1?api-version=2&author=x", "part.url", "http://x")


def test_a_token_comes_from_the_environment(monkeypatch):
    assert read_token(None, "sampler.token_env") == ""
    monkeypatch.delenv("SDAR_TEST_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"sampler.token_env names the environment variable SDAR_TEST_TOKEN, which is empty"):
        read_token("SDAR_TEST_TOKEN", "sampler.token_env")
    monkeypatch.setenv("SDAR_TEST_TOKEN", "a\nb")
    with pytest.raises(ConfigError, match="characters that no token has"):
        read_token("SDAR_TEST_TOKEN", "sampler.token_env")


BEARERS = {
    "sampler": lambda url, name: ServerSampler([url], token_env=name, outage=0.0)._fleet.health(0.0),
    "teacher": lambda url, name: ServedTeacher([url], token_env=name, outage=0.0).network.fleet.health(0.0),
    "search": lambda url, name: HTTPBackend(url, retries=0, token_env=name).search(["q"], 1),
    "sandbox": lambda url, name: FusionRunner(url, Limits(wall_s=0.1), retries=0, token_env=name).run("1"),
    "judge": lambda url, name: EndpointJudge(url, "m", retries=0, api_key_env=name).check(),
}


@pytest.mark.parametrize("who", BEARERS)
def test_the_token_of_a_server_is_sent_and_never_told(who, monkeypatch):
    monkeypatch.setenv("SDAR_TEST_TOKEN", "tok-0123456789")
    sent = []

    def echo(handler):
        sent.append(handler.headers["Authorization"])
        reply(handler, f'{{"error": "{handler.headers["Authorization"]}"}}'.encode(), status=401)

    with server(echo) as (url, _), pytest.raises(SdarError, match="401") as raised:
        BEARERS[who](url, "SDAR_TEST_TOKEN")
    assert sent == ["Bearer tok-0123456789"] and "tok-0123" not in str(raised.value)


# ------------------------------------------------------------------ processes


def test_a_child_that_was_forked_has_a_session_of_its_own():
    with server(lambda handler: reply(handler, b"ok")) as (url, _):
        assert request("GET", url, timeout=5.0).body == b"ok"
        before = http_client._current
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(writer, request("GET", url, timeout=5.0).body + str(http_client._current is before).encode())
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0 and os.read(reader, 99) == b"okFalse"
        assert request("GET", url, timeout=5.0).body == b"ok" and http_client._current is before


def test_a_timeout_may_be_infinite():
    with server(lambda handler: reply(handler, b"ok")) as (url, _):
        assert request("GET", url, timeout=float("inf")).body == b"ok"


def test_nobody_there_is_told_shortly():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(RequestFailed, match="Connection refused") as raised:
        request("GET", f"http://127.0.0.1:{port}/?x=1", timeout=5.0)
    assert raised.value.kind == "connection" and "?" not in str(raised.value)

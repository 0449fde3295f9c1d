"""SandboxFusion's protocol over real HTTP: our client and server with each other, and with others that behave badly."""

import asyncio
import contextlib
import json
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from aiohttp import web
from asking import get, post

from sdar.envs.code_judging import judge_program
from sdar.envs.code_problems import CheckTest, CodeProblem, StdinTest
from sdar.errors import ConfigError, EnvironmentFault
from sdar.sandbox import FusionRunner, Limits, LimitsOnlyRunner
from sdar.sandbox.fusion import Run, Told, read_answer
from sdar.sandbox.fusion_server import make_app

LIMITS = Limits(wall_s=4.0, cpu_s=4, memory_bytes=256 << 20, output_bytes=1000)


@pytest.fixture(scope="module")
def url(usable):
    """A server of ours on the best runner here."""
    runner = next((r for r in usable.values() if not isinstance(r, str)), None) or LimitsOnlyRunner(allow_unsafe=True)
    loop, started, told = asyncio.new_event_loop(), threading.Event(), {}

    def serve():
        asyncio.set_event_loop(loop)
        app = web.AppRunner(make_app(runner, workers=2, queue=2))
        loop.run_until_complete(app.setup())
        site = web.TCPSite(app, "127.0.0.1", 0)
        loop.run_until_complete(site.start())
        told["port"] = site._server.sockets[0].getsockname()[1]
        started.set()
        loop.run_forever()
        loop.run_until_complete(app.cleanup())

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    yield f"http://127.0.0.1:{told['port']}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def ask(url, **request):
    return post(f"{url}/run_code", json={"language": "python", **request}, timeout=30)


def test_the_server_answers_in_the_shapes_of_the_protocol(url):
    answer = ask(
        url, code="print(6 * 7)\n'silent'", run_timeout=3, compile_timeout=3, memory_limit_MB=512, stdin="", files={}
    ).json()
    assert set(answer) == {"status", "message", "compile_result", "run_result", "executor_pod_name", "files"}
    assert answer["status"] == "Success" and answer["compile_result"] is None and answer["files"] == {}
    ran = answer["run_result"]
    assert set(ran) == {"status", "execution_time", "return_code", "stdout", "stderr"}
    assert (ran["status"], ran["return_code"], ran["stdout"], ran["stderr"]) == ("Finished", 0, "42\n", "")
    failed = ask(url, code="1 / 0").json()
    assert failed["status"] == "Failed" and failed["run_result"]["return_code"] == 1
    assert "ZeroDivisionError" in failed["run_result"]["stderr"]
    late = ask(url, code="while True: pass", run_timeout=0.5).json()
    assert late["status"] == "Failed" and late["run_result"]["status"] == "TimeLimitExceeded"
    crashed = ask(url, code="import ctypes; ctypes.string_at(0)").json()
    assert crashed["run_result"]["return_code"] == 139
    assert get(f"{url}/v1/ping", timeout=5).json() == "pong"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"code": "x", "language": "cpp"}, "language 'cpp' is not served"),
        ({"code": "x", "files": {"a": "aGk="}}, "files is not served"),
        ({"code": "x" * (1 << 20) + "y"}, "at most 1048576 are run"),
    ],
)
def test_what_the_server_does_not_do_is_a_sandbox_error(url, request_, message):
    answer = ask(url, **request_).json()
    assert answer["status"] == "SandboxError" and message in answer["message"]


@pytest.mark.parametrize("body", ["{", "[]", '{"code": 5}', '{"code": "1", "language": "python", "run_timeout": "x"}'])
def test_a_request_that_is_none_is_refused(url, body):
    assert post(f"{url}/run_code", data=body, timeout=5).status_code == 422


def test_a_crowd_is_told_to_come_back(url):
    codes = []
    threads = [
        threading.Thread(target=lambda: codes.append(ask(url, code="import time; time.sleep(0.7)").status_code))
        for _ in range(7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(200) == 4 and codes.count(503) == 3


@pytest.mark.parametrize(
    ("code", "status", "layer"),
    [
        ("6 * 7", "ok", ""),
        ("1 / 0", "error", ""),
        ("while True: pass", "timeout", "wall"),
        ("x = [0] * 10**10", "memory", "memory"),
        ("print('x' * 5000)", "output", "output"),
        ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
        ("x = (", "syntax", ""),
        ("import os; os._exit(137)", "error", ""),
    ],
)
def test_our_client_reads_our_server(url, code, status, layer):
    limits = LIMITS if status != "timeout" else Limits(wall_s=0.6, memory_bytes=256 << 20)
    result = FusionRunner(url, limits, retries=0).run(code)
    assert (result.status, result.layer) == (status, layer)
    if status == "ok":
        assert result.stdout == "42\n"
    if status == "output":
        assert result.stdout == "x" * 1000 + "\n[output cut after 1000 bytes]"


def test_standard_input_goes_along(url):
    assert ask(url, code="print(input())", stdin="a\nb").json()["run_result"]["stdout"] == "a\n"
    runner = FusionRunner(url, LIMITS)
    assert runner.run("print(a + input())", ["a = 'x'\ninput()"], stdin="\xe9\n").stdout == "x\xe9\n"
    assert runner.run("import sys\nprint(len(sys.stdin.read()))", stdin="x" * 300_000).stdout == "300000\n"
    assert "EOFError" in runner.run("input()").stderr


def test_output_beyond_the_servers_own_limit_is_told_as_such(url):
    result = FusionRunner(url, replace(LIMITS, output_bytes=10**7)).run("print('x' * 10**6)")
    assert (result.status, result.layer) == ("output", "output") and result.stdout.startswith("xxx")


def test_a_program_is_judged_on_a_service(url):
    problem = CodeProblem("Double it.", "t", (StdinTest("2", "4"), StdinTest("0", "0")), time_s=3.0)
    runner = FusionRunner(url, LIMITS)
    assert judge_program(runner, problem, "print(2 * int(input()))", None, 256 << 20).passed
    judged = judge_program(runner, problem, "print(4)", None, 256 << 20)
    assert (judged.verdict, judged.share) == ("wrong_answer", 0.5)
    check = CheckTest("def check(candidate):\n    assert candidate(2) == 4\n")
    called = CodeProblem("Double it.", "t", (check,), entry="double", time_s=3.0)
    ends = {"def double(x): return 2 * x": "passed", "def double(x) return": "compile_error", "double = abs": "wrong_answer"}
    for program, verdict in ends.items():
        assert judge_program(runner, called, program, None, 256 << 20).verdict == verdict


def test_state_goes_along(url):
    assert FusionRunner(url, LIMITS).run("a + 1", ["a = 5\nprint('unheard')", "1 / 0"]).stdout == "6\n"


class Odd(BaseHTTPRequestHandler):
    """Answers what the test wants, in turn; the last answer again and again."""

    answers: ClassVar[list] = []
    asked: ClassVar[list] = []

    def do_POST(self):
        Odd.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = Odd.answers.pop(0) if len(Odd.answers) > 1 else Odd.answers[0]
        if status is None:
            time.sleep(0.6)
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (10 if status == 206 else 0)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client gave up
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def odd():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    Odd.asked = []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = json.dumps(
    {
        "status": "Success",
        "message": "",
        "run_result": {"status": "Finished", "return_code": 0, "stdout": "7\n", "stderr": None},
    }
).encode()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((500, b"no"), "HTTP status 500"),
        ((200, b'{"status": "Succ'), "the answer: no JSON"),
        ((206, GOOD), "payload is not completed"),
        ((200, b""), "the answer: no JSON"),
        ((200, b"[]"), "Expected `object`, got `array`"),
        ((200, b'{"status": "SandboxError", "message": "full"}'), "it failed itself (full)"),
        ((200, b'{"status": "Success"}'), "without run_result"),
        ((200, b'{"status": "Failed", "run_result": {"status": "Error"}}'), "a run with status 'Error'"),
        ((200, GOOD.replace(b'"7\\n"', b"7")), "Expected `str | null`, got `int` - at `$.run_result.stdout`"),
        ((200, GOOD.replace(b": 0", b": 1e999")), "is too large"),
        ((200, b'{"a":' * 5000), "nested"),
        ((None, GOOD), "did not give an answer within"),
    ],
)
def test_a_service_that_is_down_is_a_fault_after_retries_never_a_result(odd, answer, told):
    Odd.answers = [answer]
    runner = FusionRunner(odd, Limits(wall_s=0.1), retries=1, backoff_s=0.01, patience_s=0.2)
    with pytest.raises(
        EnvironmentFault, match=rf"the code service {odd} failed 2 times, the last time with .*{re.escape(told)}"
    ):
        runner.run("7")
    assert len(Odd.asked) == 2


def test_a_service_that_recovers_is_asked_again(odd):
    Odd.answers = [(500, b"no"), (200, b"{"), (200, GOOD)]
    assert FusionRunner(f"{odd}/run_code", backoff_s=0.01).run("7").stdout == "7\n"
    assert set(Odd.asked[0]) == {
        "code", "language", "compile_timeout", "run_timeout", "memory_limit_MB", "stdin", "files", "fetch_files"
    }  # fmt: skip
    assert Odd.asked[0]["language"] == "python" and Odd.asked[0]["memory_limit_MB"] == 1024


def test_a_service_that_is_not_there_is_a_fault():
    with pytest.raises(EnvironmentFault, match=r"failed 1 times, .*Connection refused"):
        FusionRunner("http://127.0.0.1:9", retries=0).run("1")
    with pytest.raises(ConfigError, match=r"runner\.url is 'sandbox:8080': it begins with http:// or https://"):
        FusionRunner("sandbox:8080")


@pytest.mark.parametrize(
    ("code", "end"), [(0, "ok "), (1, "error "), (-9, "killed signal 9"), (137, "killed signal 9"), (255, "error ")]
)
def test_a_service_that_tells_a_signal_tells_no_success(code, end):
    result = read_answer(Told("Success", "", Run("Finished", code, "1", "")), LIMITS)
    assert f"{result.status} {result.layer}" == end

"""Serves SandboxFusion's ``POST /run_code`` with a runner of ours."""

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from aiohttp import web

from sdar import http_server
from sdar.errors import ConfigError, SdarError
from sdar.http_client import read_token
from sdar.reading import convert, parse_json
from sdar.sandbox.base import LONGEST_INPUT, CodeRunner, Program, Result, RunStatus
from sdar.sandbox.choose import AutoRunner

LARGEST_REQUEST = 2 * LONGEST_INPUT
"""Bytes: of code and standard input, as JSON."""


class Asked(msgspec.Struct):
    """A request to run code; what it has beside is ignored, as SandboxFusion does."""

    code: str
    language: str = ""
    run_timeout: float | None = None
    compile_timeout: float | None = None
    memory_limit_MB: float | None = None
    stdin: str | None = None
    files: dict[str, str | None] | None = None
    fetch_files: list[str] | None = None


def serve_sandbox(
    host: str = "127.0.0.1",
    port: int = 8080,
    runner: CodeRunner | None = None,
    workers: int = 4,
    queue: int = 256,
    hosts: list[str] | None = None,
    token_env: str | None = None,
) -> None:
    """Run other machines' Python in a sandbox: SandboxFusion's protocol over HTTP, until interrupted.

    Args:
        host: Address to listen on. Whoever reaches it, and knows the token if there is one, may run code here.
        port: Port to listen on.
        runner: What runs the code; by default the best that this machine offers. Its limits are the most a request may ask for.
        workers: Runs at the same time.
        queue: Requests that may wait; more are told to come back (HTTP status 503).
        hosts: Names and addresses by which clients call this server, beside this machine's name, localhost and the address that a
            request came to; ``*``: any.
        token_env: Environment variable that holds a token which each request must bear.
    """
    token = read_token(token_env, "serve-sandbox: token_env")
    chosen = AutoRunner() if runner is None else runner
    chosen.execute(Program(("pass",)))  # a machine that cannot isolate is known before anybody asks
    print(f"code sandbox on http://{host}:{port}/run_code, {workers} workers ({', '.join(chosen.layers)})", flush=True)
    app = make_app(chosen, workers, queue, hosts or (), token)
    http_server.run(app, host, port, say=False, cancel=False)  # a thread that runs code cannot be cancelled


def make_app(
    runner: CodeRunner, workers: int = 4, queue: int = 256, hosts: Sequence[str] = (), token: str = ""
) -> web.Application:
    """The service as an aiohttp application."""
    if workers < 1 or queue < 0:
        raise ConfigError(f"workers is {workers} and queue is {queue}: at least 1 worker and 0 waiting requests are needed.")
    threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
    running = 0

    async def run_code(http: web.Request) -> web.Response:
        nonlocal running
        try:
            request = read_request(await http.read())
        except BadRequest as error:
            return web.json_response({"detail": str(error)}, status=422)
        if running >= workers + queue:
            return web.json_response({"detail": f"{running} requests are running or waiting"}, status=503)
        running += 1
        try:
            return web.json_response(await asyncio.get_running_loop().run_in_executor(threads, answer, runner, request))
        finally:
            running -= 1

    async def ping(http: web.Request) -> web.Response:
        return web.json_response("pong")

    async def close(app: web.Application) -> None:
        threads.shutdown()
        runner.close()

    app = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[http_server.guard(hosts, token)])
    app.router.add_post("/run_code", run_code)
    app.router.add_get("/v1/ping", ping)
    app.on_cleanup.append(close)
    return app


class BadRequest(Exception):
    """What is wrong with a request."""


def read_request(body: bytes) -> Asked:
    """Raises BadRequest."""
    return convert(parse_json(body, "the body", BadRequest, advice="", unique=True), Asked, "the body", BadRequest, advice="")


def answer(runner: CodeRunner, request: Asked) -> dict[str, Any]:
    """Run a request; what goes wrong on our side is a SandboxError."""
    if request.language != "python":
        return _failed(f"language {request.language[:100]!r} is not served: this sandbox runs python")
    for name in ("files", "fetch_files"):
        if getattr(request, name):
            return _failed(f"{name} is not served: send a program that needs none")
    limits = runner.limits
    wall, memory = request.run_timeout or limits.wall_s, int(request.memory_limit_MB or -1)
    if wall > 0:
        limits = dataclasses.replace(limits, wall_s=min(wall, limits.wall_s))
    if memory > 0:
        limits = dataclasses.replace(limits, memory_bytes=min(memory << 20, limits.memory_bytes))
    try:
        result = runner.execute(Program((request.code,), show=False, stdin=request.stdin or ""), limits)
    except SdarError as error:
        return _failed(str(error))
    if result.status == RunStatus.REFUSED:
        return _failed(result.stderr)
    ran = {
        "status": "TimeLimitExceeded" if result.status == RunStatus.TIMEOUT else "Finished",
        "execution_time": result.wall_s,
        "return_code": return_code(result),
        "stdout": result.stdout,
        "stderr": result.stderr,
    }
    status = "Success" if result.status == RunStatus.OK else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": ran, "executor_pod_name": None, "files": {}}


def return_code(result: Result) -> int | None:
    """As a shell would give it: 137 for a process that was killed, and no number above 128 that a signal did not make."""
    if result.status == RunStatus.TIMEOUT:
        return None
    if result.exit_status is not None:
        return 1 if 128 < result.exit_status < 160 else result.exit_status
    return 128 + int(result.layer.removeprefix("signal ")) if result.layer.startswith("signal ") else 137


def _failed(message: str) -> dict[str, Any]:
    return {
        "status": "SandboxError",
        "message": message,
        "compile_result": None,
        "run_result": None,
        "executor_pod_name": None,
        "files": {},
    }

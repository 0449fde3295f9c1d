"""Serves SandboxFusion's ``POST /run_code`` with a runner of ours."""

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sdar.errors import ConfigError, SdarError
from sdar.sandbox.base import CodeRunner, Program, Result, RunStatus
from sdar.sandbox.choose import AutoRunner

if TYPE_CHECKING:
    from aiohttp import web

LARGEST_REQUEST = 8 << 20
"""Bytes."""


def serve_sandbox(
    host: str = "127.0.0.1",
    port: int = 8080,
    runner: CodeRunner | None = None,
    workers: int = 4,
    queue: int = 256,
) -> None:
    """Run other machines' Python in a sandbox: SandboxFusion's protocol over HTTP, until interrupted.

    Args:
        host: Address to listen on. Whoever reaches it may run code here: there is no password.
        port: Port to listen on.
        runner: What runs the code; by default the best that this machine offers. Its limits are the most a request may ask for.
        workers: Runs at the same time.
        queue: Requests that may wait; more are told to come back (HTTP status 503).
    """
    from aiohttp import web

    chosen = AutoRunner() if runner is None else runner
    chosen.execute(Program(("pass",)))  # a machine that cannot isolate is known before anybody asks
    print(f"code sandbox on http://{host}:{port}/run_code, {workers} workers ({', '.join(chosen.layers)})", flush=True)
    web.run_app(make_app(chosen, workers, queue), host=host, port=port, print=None)


def make_app(runner: CodeRunner, workers: int = 4, queue: int = 256) -> "web.Application":
    """The service as an aiohttp application."""
    try:
        from aiohttp import web
    except ImportError as error:
        raise ConfigError(
            'aiohttp is not installed: the sandbox is served with it. Install it (pip install "sdar[math]").'
        ) from error
    if workers < 1 or queue < 0:
        raise ConfigError(f"workers is {workers} and queue is {queue}: at least 1 worker and 0 waiting requests are needed.")
    threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
    running = 0

    async def run_code(http: web.Request) -> web.Response:
        nonlocal running
        try:
            request = await http.json()
        except ValueError:
            return web.json_response({"detail": "the body is no JSON"}, status=422)
        if problem := unusable(request):
            return web.json_response({"detail": problem}, status=422)
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

    app = web.Application(client_max_size=LARGEST_REQUEST)
    app.router.add_post("/run_code", run_code)
    app.router.add_get("/v1/ping", ping)
    app.on_cleanup.append(close)
    return app


def unusable(request: Any) -> str:
    """Why a request cannot be taken, in one sentence; empty if it can."""
    if not isinstance(request, dict) or not isinstance(request.get("code"), str):
        return "the request has no text `code`"
    for name in ("run_timeout", "compile_timeout", "memory_limit_MB"):
        value = request.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"{name} is {value!r}: it is a number"
    return ""


def answer(runner: CodeRunner, request: dict[str, Any]) -> dict[str, Any]:
    """Run a request; what goes wrong on our side is a SandboxError."""
    if request.get("language") != "python":
        return _failed(f"language {request.get('language')!r} is not served: this sandbox runs python")
    for name in ("stdin", "files", "fetch_files"):
        if request.get(name):
            return _failed(f"{name} is not served: send a program that needs none")
    limits = runner.limits
    wall, memory = request.get("run_timeout") or limits.wall_s, int(request.get("memory_limit_MB") or -1)
    if wall > 0:
        limits = dataclasses.replace(limits, wall_s=min(wall, limits.wall_s))
    if memory > 0:
        limits = dataclasses.replace(limits, memory_bytes=min(memory << 20, limits.memory_bytes))
    try:
        result = runner.execute(Program((request["code"],), show=False), limits)
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
    """As a shell would give it: 137 for a process that was killed."""
    if result.status == RunStatus.TIMEOUT:
        return None
    if result.status in (RunStatus.OK, RunStatus.ERROR):
        return int(result.status == RunStatus.ERROR)
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

"""An engine behind HTTP: `sdar serve-policy`. ``docs/serving.md`` describes what is sent."""

import asyncio
import contextlib
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

from sdar.errors import ConfigError, ContextOverflowError, EngineFault, PolicyError
from sdar.serving.collective import Interrupted, receive
from sdar.serving.engine import Abandoned, Engine
from sdar.serving.loop import EngineLoop, Stale
from sdar.serving.protocol import (
    PROTOCOL,
    BadMessage,
    parse,
    read_load,
    read_receive,
    read_sample,
    read_score,
    write_completions,
    write_scores,
)
from sdar.serving.weights import read_weights

if TYPE_CHECKING:
    from aiohttp import web

STATUS = {
    BadMessage: 400,
    ContextOverflowError: 400,
    Stale: 409,
    PolicyError: 422,
    Interrupted: 424,
    EngineFault: 503,
    Abandoned: 504,
}
"""How a failure is told; any other is 500."""


def make_app(engine: Engine, max_request_bytes: int = 2**30) -> "web.Application":
    """The aiohttp application: ``POST /sample``, ``POST /score``, ``POST /load``, ``POST /receive``,
    ``POST /forget``, ``GET /health``, ``GET /tokens``."""
    try:
        from aiohttp import web
    except ModuleNotFoundError:
        raise ConfigError(
            'the policy server needs the package aiohttp, which is not installed: pip install "sdar[serving]".'
        ) from None
    loop = EngineLoop(engine)
    counts: Counter[str] = Counter()
    instance = secrets.token_hex(8)  # a server that was restarted has another

    async def read(request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise BadMessage(f"the body is larger than {max_request_bytes} bytes") from None

    def handler(answer: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            counts[f"requests{request.path}"] += 1
            try:
                return web.json_response(await answer(await read(request)))
            except Exception as error:  # the client is told, the server goes on
                status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
                counts[f"status/{status}"] += 1
                told = str(error) if type(error) in STATUS else f"{type(error).__name__}: {error}"
                return web.json_response({"protocol": PROTOCOL, "error": told, "version": engine.version}, status=status)

        return handle

    async def sample(body: bytes) -> dict[str, Any]:
        asked = await asyncio.to_thread(read_sample, body)
        completions = await asyncio.wrap_future(loop.sample(asked))
        counts["completions"] += len(completions)
        counts["tokens"] += sum(len(c.ids) for c in completions)
        return write_completions(asked.version, completions)

    async def score(body: bytes) -> dict[str, Any]:
        asked = await asyncio.to_thread(read_score, body)
        scores = await asyncio.wrap_future(loop.score(asked))
        counts["scored_rows"] += len(scores)
        counts["scored_tokens"] += sum(asked.counts())
        return await asyncio.to_thread(write_scores, asked.version, scores)

    async def tokens(_: bytes) -> dict[str, Any]:
        return {"protocol": PROTOCOL, "tokens": await asyncio.to_thread(engine.tokens)}

    async def load(body: bytes) -> dict[str, Any]:
        asked = read_load(body)
        await asyncio.wrap_future(loop.load(asked.version, lambda: read_weights(asked)))
        return {"protocol": PROTOCOL, "version": asked.version}

    async def come(body: bytes) -> dict[str, Any]:
        asked = await asyncio.to_thread(read_receive, body)
        await asyncio.wrap_future(loop.load(asked.version, lambda: receive(asked, engine.device)))
        return {"protocol": PROTOCOL, "version": asked.version}

    async def forget(body: bytes) -> dict[str, Any]:
        client = parse(body).get("client")
        if not isinstance(client, str):
            raise BadMessage(f'"client" is {client!r}: a str is wanted')
        loop.forget(client)  # when the engine finds the time
        return {"protocol": PROTOCOL}

    async def health(_: bytes) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "engine": type(engine).__name__,
            "instance": instance,
            "version": engine.version,
            "scores": engine.scores,
            "vocab_size": engine.vocab_size,
            "context": engine.context,
            "counts": {**counts, **loop.counts, **engine.counts},
        }

    async def life(_: web.Application) -> Any:
        await asyncio.wrap_future(loop.open())
        yield
        await asyncio.to_thread(loop.close)

    app = web.Application(client_max_size=max_request_bytes)
    app.cleanup_ctx.append(life)
    posts = (("sample", sample), ("score", score), ("load", load), ("receive", come), ("forget", forget))
    app.add_routes([web.post(f"/{name}", handler(f)) for name, f in posts])
    app.add_routes([web.get(f"/{name}", handler(f)) for name, f in (("health", health), ("tokens", tokens))])
    return app


def serve_policy(engine: Engine, host: str = "127.0.0.1", port: int = 8000, max_request_mb: float = 1024.0) -> None:
    """Sample or score for training runs by HTTP until interrupted: what ServerSampler and ServedTeacher talk to. docs/serving.md
    describes the messages.

    Args:
        engine: What samples or scores. Its model is loaded before the port opens.
        host: Address to listen at; 0.0.0.0 for other machines, too: there is no password, and whoever can reach it can tell it to
            read weights from any file.
        port: Port to listen at.
        max_request_mb: Largest request, in MiB.
    """
    for name, value, fits in (("port", port, 0 <= port < 65536), ("max_request_mb", max_request_mb, max_request_mb > 0)):
        if not fits:
            raise ConfigError(f"serve-policy: {name} is {value}: ports are below 65536, sizes more than 0.")
    app = make_app(engine, int(max_request_mb * 2**20))
    from aiohttp import web

    with contextlib.suppress(asyncio.CancelledError):
        # a client that hangs up takes its request with it
        web.run_app(app, host=host, port=port, handler_cancellation=True, print=lambda text: print(text, flush=True))

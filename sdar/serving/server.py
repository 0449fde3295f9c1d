"""An engine behind HTTP: `sdar serve-policy`. ``docs/serving.md`` describes what is sent."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from sdar import http_server
from sdar.errors import ContextOverflowError, EngineFault, PolicyError
from sdar.http_client import read_token
from sdar.serving.collective import Interrupted, receive, refuse_stranger
from sdar.serving.engine import Abandoned, Engine
from sdar.serving.loop import EngineLoop, Stale
from sdar.serving.protocol import (
    LARGEST_SCORES,
    PROTOCOL,
    BadMessage,
    ForgetRequest,
    LoadRequest,
    ReceiveRequest,
    SampleRequest,
    ScoreRequest,
    read,
    write_completions,
    write_scores,
)
from sdar.serving.weights import check_size, read_weights


class Forbidden(Exception):
    """The operator does not want it."""


class TooLarge(Exception):
    """The request is, or its answer would be."""


STATUS = {
    BadMessage: 400,
    ContextOverflowError: 400,
    Forbidden: 403,
    Stale: 409,
    TooLarge: 413,
    PolicyError: 422,
    Interrupted: 424,
    EngineFault: 503,
    Abandoned: 504,
}
"""How a failure is told; any other is 500."""


class PolicyServer:
    """What a server answers: a coroutine for each path, from the request's body to the answer's."""

    def __init__(self, engine: Engine, trainers: Sequence[str], frozen: bool, max_scores: int, load_timeout: float):
        self.engine, self.loop = engine, EngineLoop(engine)
        self.trainers, self.frozen = trainers, frozen
        self.max_scores, self.load_timeout = max_scores, load_timeout
        self.counts: Counter[str] = Counter()
        self.instance = secrets.token_hex(8)  # a server that was restarted has another

    async def within(self, seconds: float, work: Any) -> Any:
        """What the engine's thread answers; when nobody waits any more, it is told so, and drops the work."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), seconds)
        except TimeoutError:
            raise Abandoned(f"the deadline of {seconds:g} s passed") from None

    async def sample(self, body: bytes) -> bytes:
        asked = await asyncio.to_thread(read, body, SampleRequest)
        completions = await self.within(asked.deadline, self.loop.sample(asked))
        self.counts["completions"] += len(completions)
        self.counts["tokens"] += sum(len(c.ids) for c in completions)
        return await asyncio.to_thread(write_completions, asked.version, completions)

    async def score(self, body: bytes) -> bytes:
        asked = await asyncio.to_thread(read, body, ScoreRequest)
        if (numbers := asked.numbers()) > self.max_scores:
            raise TooLarge(
                f"the answer would hold {numbers} numbers, at most {self.max_scores} are told at once: ask for fewer rows or likeliest "
                "tokens"
            )
        scores = await self.within(asked.deadline, self.loop.score(asked))
        self.counts["scored_rows"] += len(scores)
        self.counts["scored_tokens"] += sum(asked.counts())
        return await asyncio.to_thread(write_scores, asked.version, scores)

    async def tokens(self, _: bytes) -> bytes:
        return await asyncio.to_thread(lambda: said(tokens=self.engine.tokens()))

    async def load(self, body: bytes) -> bytes:
        asked = await asyncio.to_thread(read, body, LoadRequest)
        return await self._take(asked, lambda wanted: read_weights(asked, wanted, self.engine.parameters), self.load_timeout)

    async def receive(self, body: bytes) -> bytes:
        asked = await asyncio.to_thread(read, body, ReceiveRequest)
        if stranger := refuse_stranger(asked.host, self.trainers):
            raise Forbidden(stranger)
        check_size(asked.version, sum(bucket.size for bucket in asked.buckets), self.engine.parameters)
        asked = msgspec.structs.replace(asked, deadline=min(asked.deadline, self.load_timeout))
        return await self._take(asked, lambda wanted: receive(asked, self.engine.device, wanted), asked.deadline)

    async def _take(self, asked: LoadRequest | ReceiveRequest, weights: Any, seconds: float) -> bytes:
        if self.frozen:
            raise Forbidden("this server was started to keep its weights (frozen): give samplers servers of their own")
        await self.within(seconds, self.loop.load(asked.version, weights, seconds))
        return said(version=asked.version)

    async def forget(self, body: bytes) -> bytes:
        self.loop.forget(read(body, ForgetRequest).client)  # when the engine finds the time
        return said()

    async def health(self, _: bytes) -> bytes:
        engine = self.engine
        return said(
            engine=type(engine).__name__,
            instance=self.instance,
            version=engine.version,
            scores=engine.scores,
            frozen=self.frozen,
            vocab_size=engine.vocab_size,
            context=engine.context,
            max_scores=self.max_scores,
            counts={**self.counts, **self.loop.counts, **engine.counts},
        )

    async def life(self, _: web.Application) -> Any:
        await asyncio.wrap_future(self.loop.open())
        yield
        await asyncio.to_thread(self.loop.close)


def make_app(
    engine: Engine,
    max_request_bytes: int = 2**30,
    hosts: Sequence[str] = (),
    token: str = "",
    trainers: Sequence[str] = (),
    frozen: bool = False,
    max_scores: int = LARGEST_SCORES,
    load_timeout: float = 600.0,
) -> web.Application:
    """The aiohttp application: ``POST /sample``, ``POST /score``, ``POST /load``, ``POST /receive``,
    ``POST /forget``, ``GET /health``, ``GET /tokens``. `serve_policy` tells of the arguments."""
    server = PolicyServer(engine, trainers, frozen, max_scores, load_timeout)

    async def body_of(request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise TooLarge(f"the body is larger than {max_request_bytes} bytes") from None

    def handler(answer: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            server.counts[f"requests{request.path}"] += 1
            try:
                body = await answer(await body_of(request))
                return web.Response(body=body, content_type="application/json")
            except Exception as error:  # the client is told, the server goes on
                status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
                server.counts[f"status/{status}"] += 1
                told = str(error) if type(error) in STATUS else f"{type(error).__name__}: {error}"
                return web.json_response({"protocol": PROTOCOL, "error": told, "version": engine.version}, status=status)

        return handle

    app = web.Application(client_max_size=max_request_bytes, middlewares=[http_server.guard(hosts, token)])
    app.cleanup_ctx.append(server.life)
    posts = ("sample", "score", "load", "receive", "forget")
    app.add_routes([web.post(f"/{name}", handler(getattr(server, name))) for name in posts])
    app.add_routes([web.get(f"/{name}", handler(getattr(server, name))) for name in ("health", "tokens")])
    return app


def said(**answer: Any) -> bytes:
    """An answer of this protocol."""
    return msgspec.json.encode({"protocol": PROTOCOL, **answer})


def serve_policy(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_request_mb: float = 1024.0,
    hosts: list[str] | None = None,
    token_env: str | None = None,
    trainers: list[str] | None = None,
    frozen: bool = False,
    max_scores: int = LARGEST_SCORES,
    load_timeout: float = 600.0,
) -> None:
    """Sample or score for training runs by HTTP until interrupted: what ServerSampler and ServedTeacher talk to. docs/serving.md
    describes the messages.

    Args:
        engine: What samples or scores. Its model is loaded before the port opens.
        host: Address to listen at; 0.0.0.0 for other machines, too: whoever can reach it, and knows the token if there is one, can tell
            it to read weights from any file.
        port: Port to listen at.
        max_request_mb: Largest request, in MiB.
        hosts: Names and addresses by which clients call this server, beside this machine's name, localhost and the address that a
            request came to; ``*``: any.
        token_env: Environment variable that holds a token which each request must bear.
        trainers: Addresses of other machines where this server may come for weights (``transport: collective``).
        frozen: Keep the weights that it was started with: for a teacher's server.
        max_scores: Most numbers in an answer to ``/score``: scored tokens, times 1 and 2 for each likeliest token.
        load_timeout: Most seconds that taking other weights may last.
    """
    http_server.check_settings(
        "serve-policy",
        ("port", port, 0 <= port < 65536),
        ("max_request_mb", max_request_mb, max_request_mb > 0),
        ("max_scores", max_scores, max_scores >= 1),
        ("load_timeout", load_timeout, load_timeout > 0),
    )
    token = read_token(token_env, "serve-policy: token_env")
    most = int(max_request_mb * 2**20)
    app = make_app(engine, most, hosts or (), token, trainers or (), frozen, max_scores=max_scores, load_timeout=load_timeout)
    http_server.run(app, host, port)

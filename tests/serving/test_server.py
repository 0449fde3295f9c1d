"""The loop that owns an engine, and the server around it, asked in every wrong way."""

import asyncio
import json
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from msgspec.structs import replace
from sampled import assert_same

from sdar.errors import ConfigError, ContextOverflowError, EngineFault, PolicyError
from sdar.parts import Completion, SampleKey
from sdar.samplers.engine_session import EngineSession
from sdar.serving import Engine, TorchEngine, serve_policy, torch_engine
from sdar.serving.engine import Abandoned
from sdar.serving.loop import EngineLoop, Stale
from sdar.serving.protocol import BadMessage, LoadRequest, SampleRequest, Sampling, ScoreRequest, Scoring, WeightsFile, dump
from sdar.serving.server import make_app
from sdar.serving.weights import read_weights

SAMPLING = Sampling(1.0, 0, 1.0, (), (1,), 10, 2)


def request_of(version="a", prompts=((5, 6),), deadline=60.0, client="c", sampling=SAMPLING):
    return SampleRequest(
        version, client, 0, deadline, sampling, prompts, tuple(SampleKey(0, "t", i, 0) for i in range(len(prompts)))
    )


class SlowEngine(Engine):
    """Works on all requests at once, each for as many steps as its first token says, and writes down what it did."""

    def __init__(self):
        super().__init__()
        self.did, self.running, self.held = [], {}, threading.Event()
        self.held.set()

    def open(self):
        self.version, self.context, self.vocab_size = "a", 8, 10
        self.thread = threading.current_thread()

    def load(self, version, weights):
        assert not self.running and threading.current_thread() is self.thread
        self.version = None
        list(weights)
        self.version = version
        self.did.append(f"load {version}")

    def admit(self, number, request, wanted):
        self.running[number] = [request, wanted, request.prompts[0][0]]
        self.did.append(f"start {number}")

    def step(self):
        self.held.wait(10)
        time.sleep(0.005)
        done = []
        for number, job in list(self.running.items()):
            job[2] -= 1
            if not job[1]():
                done.append((number, Abandoned()))
            elif job[0].prompts[0][-1] == 9:
                done.append((number, RuntimeError("CUDA error")))
            elif job[2] <= 0:
                done.append((number, [Completion([1], [-1.0], [0.0], True) for _ in job[0].prompts]))
        for number, _ in done:
            del self.running[number]
            self.did.append(f"end {number}")
        return done

    def forget(self, client):
        self.did.append(f"forget {client}")


@pytest.fixture
def loop():
    loop = EngineLoop(SlowEngine())
    loop.open().result(10)
    yield loop
    loop.close()


def test_requests_run_together_and_weights_wait_for_those_before_and_hold_those_behind(loop):
    engine = loop.engine
    engine.held.clear()
    first, second = loop.sample(request_of(prompts=((5, 2),))), loop.sample(request_of(prompts=((2, 2),)))
    load = loop.load("b", lambda wanted: iter(()))
    late, new = loop.sample(request_of()), loop.sample(request_of("b"))
    again = loop.load("b", lambda wanted: 1 / 0)  # it has them: they are not even read
    engine.held.set()
    assert first.result(10) and second.result(10) and load.result(10) is None and new.result(10) and again.result(10) is None
    with pytest.raises(Stale, match="version 'a' was asked for, here is 'b'"):
        late.result(10)
    assert engine.did == ["start 0", "start 1", "end 1", "end 0", "load b", "start 2", "end 2"]
    assert loop.counts == {"loads": 1}


def test_weights_that_do_not_arrive_leave_an_engine_that_says_so(loop):
    def broken(wanted):
        yield "w", None
        raise EngineFault("the drive is gone")

    with pytest.raises(EngineFault, match="the drive is gone"):
        loop.load("b", broken).result(10)
    with pytest.raises(Stale, match="version 'a' was asked for, here is None"):
        loop.sample(request_of("a")).result(10)
    loop.load("b", lambda wanted: iter(())).result(10)
    assert loop.sample(request_of("b")).result(10)


def test_who_hangs_up_or_waits_no_longer_costs_nothing_more(loop):
    engine = loop.engine
    engine.held.clear()
    hung_up, late, other = loop.sample(request_of()), loop.sample(request_of(deadline=0.05)), loop.sample(request_of())
    while len(engine.running) < 3:
        time.sleep(0.005)
    assert hung_up.cancel()
    time.sleep(0.1)
    engine.held.set()
    assert other.result(10)
    with pytest.raises(Abandoned):
        late.result(10)
    with pytest.raises(CancelledError):
        hung_up.result(10)
    assert engine.did[:5] == ["start 0", "start 1", "start 2", "end 0", "end 1"]


def test_who_waited_for_weights_longer_than_its_deadline_is_told_so_whatever_the_version_is_now(loop):
    held = threading.Event()

    def slow(wanted):
        held.wait(10)
        yield "w", None

    load = loop.load("b", slow)
    late = loop.sample(request_of("a", deadline=0.05))
    time.sleep(0.1)
    held.set()
    assert load.result(10) is None
    with pytest.raises(Abandoned):
        late.result(10)


def test_weights_that_nobody_waits_for_are_not_read_on(loop):
    asked = []

    def endless(wanted):
        while wanted():
            asked.append(1)
            time.sleep(0.01)
            yield "w", None
        raise Abandoned

    with pytest.raises(Abandoned):
        loop.load("b", endless, 0.1).result(10)
    hung_up = loop.load("c", endless)
    while len(asked) < 20:
        time.sleep(0.01)
    assert hung_up.cancel()
    loop.load("d", lambda wanted: iter(())).result(10)
    with pytest.raises(Abandoned):
        loop.load("e", lambda wanted: iter(()), 0.0).result(10)
    assert loop.engine.version == "d"


def test_the_thread_outlives_a_failure_that_nobody_foresaw(loop, monkeypatch, caplog):
    monkeypatch.setattr(loop, "_begin", lambda job: 1 / 0)
    loop.sample(request_of())
    while "the engine's loop failed" not in caplog.text:
        time.sleep(0.01)
    monkeypatch.undo()
    assert loop.sample(request_of()).result(10)


def test_a_failure_of_the_engine_fails_its_request_only(loop):
    bad, good = loop.sample(request_of(prompts=((3, 9),))), loop.sample(request_of(prompts=((3, 2),)))
    with pytest.raises(RuntimeError, match="CUDA error"):
        bad.result(10)
    assert good.result(10)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (
            request_of(prompts=((1,) * 7,)),
            ContextOverflowError,
            "has 7 tokens and may get 2 more, but the engine's context is 8",
        ),
        (request_of(prompts=((10,),)), BadMessage, "holds the token 10, the engine's model has 10 tokens"),
        (request_of(sampling=Sampling(1.0, 0, 1.0, (), (), 11, 2)), BadMessage, "is 11, the engine's model has 10 tokens"),
    ],
)
def test_what_the_model_cannot_answer_is_refused_at_once(loop, request_, error, words):
    with pytest.raises(error, match=words):
        loop.sample(request_).result(10)
    assert loop.engine.did == []


def test_closing_leaves_nobody_waiting():
    loop = EngineLoop(SlowEngine())
    loop.open().result(10)
    loop.engine.held.clear()
    waiting = loop.sample(request_of(prompts=((9, 2),)))
    while not loop.engine.running:
        time.sleep(0.005)
    threading.Timer(0.1, loop.engine.held.set).start()
    loop.close()
    with pytest.raises(Abandoned):
        waiting.result(10)


def test_a_model_that_cannot_be_opened_ends_the_server(tmp_path):
    class Broken(SlowEngine):
        def open(self):
            raise ConfigError("no such model")

    with pytest.raises(ConfigError, match="no such model"):
        EngineLoop(Broken()).open().result(10)


# ------------------------------------------------------------------ over HTTP


def ask(calls, engine=None, **settings):
    """Status and answer of each (method, path, body)."""
    from aiohttp.test_utils import TestClient, TestServer

    async def run():
        async with TestClient(TestServer(make_app(engine or SlowEngine(), **settings))) as client:
            out = []
            for method, path, body in calls:
                response = await client.request(method, path, data=body, headers={"Content-Type": "application/json"})
                out.append((response.status, await response.json()))
            return out

    return asyncio.run(run())


def test_the_four_requests():
    answers = ask(
        [
            ("POST", "/sample", dump(request_of())),
            ("POST", "/load", b'{"protocol": 1, "version": "b", "files": [], "tied": {}}'),
            ("POST", "/sample", dump(request_of("a"))),
            ("POST", "/sample", dump(request_of("b"))),
            ("POST", "/forget", b'{"protocol": 1, "client": "c"}'),
            ("GET", "/health", None),
        ]
    )
    assert [status for status, _ in answers] == [200, 200, 409, 200, 200, 200]
    assert answers[0][1] == {
        "protocol": 1,
        "version": "a",
        "completions": [{"ids": [1], "behaviour_logp": [-1.0], "kept_logmass": [0.0], "stopped": True}],
    }
    assert answers[2][1] == {"protocol": 1, "error": "version 'a' was asked for, here is 'b'", "version": "b"}
    health = answers[5][1]
    assert {k: health[k] for k in ("protocol", "engine", "version", "vocab_size", "context")} == {
        "protocol": 1, "engine": "SlowEngine", "version": "b", "vocab_size": 10, "context": 8,
    }  # fmt: skip
    assert health["counts"]["requests/sample"] == 3 and health["counts"]["status/409"] == 1 and health["counts"]["tokens"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/sample", b"{", 400, "no JSON"),
        ("/sample", dump(request_of(prompts=((10,),))), 400, "holds the token 10"),
        ("/sample", dump(request_of(prompts=((1,) * 7,))), 400, "the engine's context is 8"),
        ("/sample", dump(request_of(prompts=((3, 9),))), 500, "RuntimeError: CUDA error"),
        ("/sample", b" " * 70_000, 413, "the body is larger than 65536 bytes"),
        ("/sample", dump(request_of(prompts=((9, 2),), deadline=0.01)), 504, ""),
        ("/load", b'{"protocol": 1, "version": "b"}', 400, "missing required field `files`"),
        (
            "/load",
            b'{"protocol": 1, "version": "b", "files": [{"path": "/none", "sha256": ""}], "tied": {}}',
            503,
            "are not at /none",
        ),
        ("/forget", b'{"protocol": 1}', 400, "missing required field `client`"),
    ],
)
def test_a_request_that_fails_is_told_why(path, body, status, words):
    [(code, answer), (alive, _)] = ask([("POST", path, body), ("GET", "/health", None)], max_request_bytes=2**16)
    assert code == status and words in answer["error"] and alive == 200


def test_a_deadline_that_passes_while_the_engine_is_busy_is_told_at_once():
    engine = SlowEngine()
    engine.step = lambda: time.sleep(1.0) or []
    begun = time.monotonic()
    [(code, answer)] = ask([("POST", "/sample", dump(request_of(deadline=0.1)))], engine)
    assert code == 504 and "the deadline of 0.1 s passed" in answer["error"] and time.monotonic() - begun < 15


def test_weights_of_another_model_are_the_trainers_mistake():
    class Picky(SlowEngine):
        def load(self, version, weights):
            raise PolicyError("another model")

    [(code, answer)] = ask([("POST", "/load", b'{"protocol": 1, "version": "b", "files": [], "tied": {}}')], Picky())
    assert (code, answer["error"]) == (422, "another model")


def test_settings_of_the_command_that_cannot_work_are_refused():
    for settings, words in (
        ({"port": 70_000}, "port is 70000"),
        ({"max_request_mb": 0.0}, "max_request_mb is 0.0"),
        ({"max_scores": 0}, "max_scores is 0"),
        ({"load_timeout": 0.0}, "load_timeout is 0.0"),
        ({"token_env": "SDAR_TEST_NO_TOKEN"}, "token_env names the environment variable SDAR_TEST_NO_TOKEN, which is empty"),
    ):
        with pytest.raises(ConfigError, match=f"serve-policy: {words}"):
            serve_policy(SlowEngine(), **settings)


# ------------------------------------------------------------------ the torch engine


@pytest.fixture(scope="module")
def engine(tiny_policy_dir):
    engine = TorchEngine(str(tiny_policy_dir), "float32", context=64)
    engine.open()
    engine.version = "a"
    return engine


def tiny(engine, turn=0, prompts=((5, 6, 7), (8, 9)), client="c", rollout=0):
    sampling = Sampling(1.0, 0, 1.0, (0,), (1,), engine.vocab_size, 4)
    draws = tuple(SampleKey(0, f"t{i}", 0, turn) for i in range(len(prompts)))
    return SampleRequest("a", client, rollout, 60.0, sampling, prompts, draws)


def test_each_client_has_a_cache_of_its_own_for_one_rollout(engine):
    calls = []
    handle = engine.network.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        said = engine.sample(tiny(engine))
        engine.sample(tiny(engine, client="other"))
        onwards = tuple((*p, *c.ids, 5) for p, c in zip(tiny(engine).prompts, said, strict=True))
        read = []
        for request in (
            tiny(engine, 1, onwards),  # what the other one asked in between has not spoiled it
            tiny(engine, 1, onwards, rollout=1),
            tiny(engine, 1, onwards, rollout=1, client="other"),
        ):
            calls.clear()
            engine.sample(request)
            read.append(calls[0])
        engine.forget("c")
        assert set(engine._kept) == {"other"}
    finally:
        handle.remove()
    whole = sum(map(len, onwards))
    assert read == [2 * 2, whole, whole]


def test_the_caches_of_the_last_clients_are_kept_and_of_none_that_was_silent_for_long(engine, monkeypatch):
    monkeypatch.setattr(engine, "clients", 3)
    for client in ("one", "two", "three", "one", "four"):
        engine.sample(tiny(engine, client=client))
    assert list(engine._kept) == ["three", "one", "four"]
    engine._kept["three"].used -= 2 * torch_engine.SILENT_S
    engine.sample(tiny(engine, client="four"))
    assert list(engine._kept) == ["one", "four"]


def test_a_load_that_fails_before_the_first_tensor_changes_nothing(engine, tmp_path):
    said, kept = engine.sample(tiny(engine)), dict(engine._kept)
    wrong = [
        LoadRequest("b", (WeightsFile(path, "0"),), {})
        for path in ("/nonexistent", "/" + "a" * 5000, "a\0b", str(tmp_path), "/dev/zero")
    ]
    for request in wrong:
        with pytest.raises(EngineFault, match="are not at"):
            engine.load("b", read_weights(request))
    with pytest.raises(PolicyError, match=r"have model\.nothing of shape"):
        engine.load("b", [("model.nothing", torch.ones(3))])
    assert engine.version == "a" and engine._kept == kept
    assert [c.ids for c in engine.sample(tiny(engine))] == [c.ids for c in said]


def test_a_request_that_nobody_waits_for_stops_in_the_middle(engine):
    asked = []

    def wanted():
        asked.append(len(asked))
        return len(asked) < 3

    engine.start(tiny(engine), wanted)
    assert engine.step() == []  # a token of each
    [(_, outcome)] = engine.step()
    assert isinstance(outcome, Abandoned) and len(asked) == 3
    assert [c.ids for c in engine.sample(tiny(engine))] == [c.ids for c in engine.sample(tiny(engine, client="fresh"))]


def passes_of(engine, work):
    """What `work` returns, and how many forward passes it took."""
    passes = []
    handle = engine.network.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        return work(), len(passes)
    finally:
        handle.remove()


def one_by_one(engine, **options):
    whole = tiny(engine, **options)
    parts = zip(whole.prompts, whole.draws, strict=True)
    return [replace(whole, prompts=(prompt,), draws=(draw,)) for prompt, draw in parts]


def finish(engine, numbers):
    outcomes = {}
    while numbers - outcomes.keys():
        outcomes |= dict(engine.step())
    return outcomes


def test_requests_that_come_while_others_are_answered_join_them(engine):
    said, alone = passes_of(engine, lambda: engine.sample(tiny(engine, client="alone")))
    first, second = one_by_one(engine, rollout=7)

    def staggered():
        numbers = [engine.start(first)]
        assert engine.step() == []
        numbers.append(engine.start(second))
        outcomes = finish(engine, set(numbers))
        return [outcomes[number][0] for number in numbers]

    assert alone == 4
    found, passes = passes_of(engine, staggered)
    assert_same(found, said)
    assert passes == 5  # one more than four tokens take


def test_one_of_several_requests_is_dropped_and_the_others_go_on(engine):
    first, second = one_by_one(engine, rollout=8)
    wanted = [True]
    dropped, kept = engine.start(first, lambda: wanted[0]), engine.start(second)
    engine.step()
    wanted[0] = False
    outcomes = finish(engine, {dropped, kept})
    assert isinstance(outcomes[dropped], Abandoned)
    assert_same(outcomes[kept], engine.sample(tiny(engine, client="fresh"))[1:])


def test_clients_and_scores_take_turns(engine):
    scoring = ScoreRequest("a", 60.0, Scoring(1.0, (0,), engine.vocab_size, 0), ((5, 6, 7, 8),), (((1, 4),),))
    names = {engine.start(tiny(engine, client=name, rollout=9)): name for name in ("one", "two")}
    names[engine.start_scoring(scoring)] = "scores"
    ended = []
    while len(ended) < 3:
        ended += [names[number] for number, _ in engine.step()]
    assert ended == ["scores", "two", "one"]


def test_a_pass_that_fails_is_told_to_its_client_alone(engine, monkeypatch):
    ours, theirs = engine.start(tiny(engine, client="one", rollout=10)), engine.start(tiny(engine, client="two", rollout=10))
    engine.step()
    session = next(job for number, job in engine._jobs.items() if number == ours).kept.session
    monkeypatch.setattr(session, "step", lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    outcomes = finish(engine, {ours, theirs})
    assert str(outcomes[ours]) == "CUDA out of memory"
    said = engine.sample(tiny(engine, client="one", rollout=10))  # anew
    assert_same(outcomes[theirs], said)


def test_a_session_gives_what_the_engine_samples_and_leaves_nothing_in_it(engine):
    def request(prompts, keys, most):
        return replace(tiny(engine, rollout=11), prompts=tuple(prompts), draws=tuple(keys))

    whole = tiny(engine)
    wanted = engine.sample(whole)
    session, found = EngineSession(engine, request), {}
    for number, (prompt, key) in enumerate(zip(whole.prompts, whole.draws, strict=True)):
        session.submit(number, prompt, key, 4)
        found |= dict(session.step())
    while session.busy:
        found |= dict(session.step())
    assert_same([found[number] for number in range(len(wanted))], wanted)
    session.submit(5, whole.prompts[0], whole.draws[0], 4)
    session.close()
    assert engine._jobs == engine._rows == {}


def test_what_an_engine_fails_at_reaches_the_sessions_caller():
    engine = SlowEngine()
    engine.open()
    session = EngineSession(engine, lambda prompts, keys, most: request_of(prompts=tuple(prompts)))
    session.submit(0, (1, 9), SampleKey(0, "t", 0, 0), 2)
    with pytest.raises(RuntimeError, match="CUDA error"):
        session.step()
    session.close()


def test_settings_of_the_torch_engine_that_cannot_work_are_refused(tiny_policy_dir):
    for settings, words in (
        ({"batch_size": 0}, "engine.batch_size is 0"),
        ({"context": 1}, "engine.context is 1"),
        ({"clients": 0}, "engine.clients is 0"),
        ({"draft_tokens": -1}, "engine.draft_tokens is -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            TorchEngine(str(tiny_policy_dir), **settings)
    with pytest.raises(ConfigError, match=r"engine.context is 1000, the model knows 512 positions"):
        TorchEngine(str(tiny_policy_dir), context=1000).open()


def test_what_the_server_says_is_json_that_any_client_reads(engine):
    [(_, answer)] = ask([("POST", "/sample", dump(tiny_request := request_of()))])
    assert json.loads(json.dumps(answer)) == answer and len(answer["completions"]) == len(tiny_request.prompts)

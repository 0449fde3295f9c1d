"""Responses of servers one by one: what is played is what one batch after the other plays, and nothing is left behind."""

import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faulty_world import FaultyWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import random_ids, word_chat

from sdar.envs import CompactProtocol
from sdar.errors import ConfigError, ContextOverflowError, EngineFault
from sdar.parts import Completion, SampleKey, Sampler
from sdar.rollout import LocalPool, Request, Rollout
from sdar.rollout.pool import ThreadPool
from sdar.samplers import ServerSampler
from sdar.samplers.bound import TruncatingSampler
from sdar.serving.protocol import LoadRequest, SampleRequest, read, write_completions
from sdar.serving.replica import Replica, RequestFailed, StaleReplica
from sdar.teachers import SkillView
from sdar.types import Task

CHAT = word_chat()
URLS = ["http://one:1", "http://two:2"]


def answer(prompt, key):
    """Depends on the prompt and the key alone; the third turn wins."""
    named = SampleKey(key.seed, f"{key.task} {prompt}", key.attempt, key.turn)
    ids = (
        CHAT.response("win")
        if key.turn == 2
        else [i for i in random_ids(CHAT, named) if i != CHAT.end_of_turn] + [CHAT.end_of_turn]
    )
    ids = CHAT.response("misset") if key.task == "misset" and key.turn == 1 else ids
    return Completion(ids, [-1.0] * len(ids), [0.0] * len(ids), True)


@pytest.fixture
def servers(monkeypatch):
    """What is asked of servers without a network; `before` may wait, or fail."""
    return StandIn(monkeypatch)


class StandIn:
    def __init__(self, monkeypatch):
        self.before, self.asked, self.loads = lambda url, request: None, [], []

        def ask(replica, method, path, body, timeout, abort=None):
            if path == "/load":
                self.loads.append(replica.url)
                return b'{"protocol": 1, "version": "v"}'
            if path == "/forget":
                return b'{"protocol": 1}'
            request = read(body, SampleRequest)
            self.asked += [(key.task, key.turn) for key in request.draws]
            self.before(replica.url, request)
            return write_completions("v", [answer(p, key) for p, key in zip(request.prompts, request.draws, strict=True)])

        monkeypatch.setattr(Replica, "request", ask)


class InBatches(ServerSampler):
    """Asks for all responses of a turn at once."""

    session = Sampler.session


def sampler_of(kind=ServerSampler, urls=URLS, **options):
    sampler = kind(urls, **{"max_new_tokens": 8, "pause": 0.01, "outage": 5.0} | options)
    TruncatingSampler.bind(sampler, CHAT.tokenizer, CHAT.stop_ids, 4096)  # nobody is asked how he does
    sampler._fleet.weights = LoadRequest("v", (), {})
    return sampler


def played(sampler, pool, *tasks):
    rollout = Rollout(pool, CompactProtocol(), CHAT, sampler, SkillView(), "trajectory", horizon=6, seed=3)
    return rollout(None, [Request(Task(task, "faulty", "begin"), attempt) for task in tasks for attempt in range(2)])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_in_whatever_order_answers_come_the_episodes_are_those_of_batches(seed, elsewhere):
    rng = random.Random(seed)

    def whenever(url, request):
        time.sleep(rng.choice([0, 0, 0.001, 0.004]))
        if rng.random() < 0.1:
            raise RequestFailed("status", "tired")

    with pytest.MonkeyPatch.context() as patch:
        servers = StandIn(patch)
        wanted = played(sampler_of(InBatches), LocalPool(FaultyWorld()), "a", "b", "c")
        servers.before = whenever
        pool = ThreadPool(FaultyWorld(), 3) if elsewhere else LocalPool(FaultyWorld())
        assert played(sampler_of(retries=50), pool, "a", "b", "c") == wanted
    assert all(episode.success for episode in wanted)
    assert_nothing_is_left()


@pytest.mark.parametrize("make_pool", [LocalPool, lambda env: ThreadPool(env, 4)])
def test_who_is_done_goes_on_while_another_one_is_being_answered(servers, make_pool):
    others = threading.Event()

    def before(url, request):
        key = request.draws[0]
        if key.task == "slow" and key.turn == 0:
            assert others.wait(20)
        elif (key.task, key.attempt, key.turn) == ("quick", 1, 2):
            others.set()

    servers.before = before
    episodes = played(sampler_of(), make_pool(FaultyWorld()), "slow", "quick")
    assert [e.task.id for e in episodes] == ["slow", "slow", "quick", "quick"] and all(e.success for e in episodes)


def test_an_episode_stays_with_its_server_and_servers_get_the_same_number(servers):
    homes = {}
    servers.before = lambda url, request: homes.setdefault((request.draws[0].task, request.draws[0].attempt), []).append(url)
    played(sampler_of(), LocalPool(FaultyWorld()), "a", "b", "c")
    assert all(len(set(urls)) == 1 and len(urls) == 3 for urls in homes.values())
    assert sorted(urls[0] for urls in homes.values()) == [*URLS[:1] * 3, *URLS[1:] * 3]


def test_responses_of_several_lengths_are_asked_for_as_such(servers):
    limits = []
    servers.before = lambda url, request: limits.append((request.draws[0].task, request.sampling.max_new_tokens))
    session = sampler_of().session(None)
    for number, most in enumerate((8, 7)):
        session.submit(number, [5, 6], SampleKey(0, str(number), 0, 0), most)
    while session.busy:
        session.step()
    assert sorted(limits) == [("0", 8), ("1", 7)]


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (RequestFailed("status", "CUDA out of memory"), "1 responses were asked for 2 times in vain; the last time: CUDA out of"),
        (RequestFailed("connection", "refused"), "none of 1 policy servers could sample 1 responses for .* failure: refused. Start"),
        (StaleReplica("another version"), "1 responses were asked for 2 times in vain; the last time: another version"),
        (EngineFault("told 400"), "told 400"),
    ],
)  # fmt: skip
def test_failures_are_told_as_those_of_a_batch_are(servers, fault, words):
    def fail(url, request):
        raise fault

    servers.before = fail
    for kind in (ServerSampler, InBatches):
        with pytest.raises(EngineFault, match=words):
            played_alone(sampler_of(kind, URLS[:1], retries=1, outage=0.1))
    assert_nothing_is_left()


def played_alone(sampler):
    rollout = Rollout(LocalPool(FaultyWorld()), CompactProtocol(), CHAT, sampler, SkillView(), "trajectory", horizon=6)
    return rollout(None, [Request(Task("a", "faulty", "begin"), 0)])


def test_prompts_that_cannot_be_asked_about_are_refused_at_once(servers):
    session = sampler_of().session(None)
    with pytest.raises(ContextOverflowError, match="the prompt of task t has 4095 tokens and may get 8 more"):
        session.submit(0, [5] * 4095, SampleKey(0, "t", 0, 0), 8)
    sampler = sampler_of()
    sampler._fleet.weights = None
    with pytest.raises(EngineFault, match="called before `load`"):
        sampler.session(None).submit(0, [5], SampleKey(0, "t", 0, 0), 8)
    assert not session.busy and servers.asked == []


def eight_fail_together(servers, failure):
    """A session with one server that fails the first attempt at each of eight prompts, all at the same time, and its sampler."""
    together, once = threading.Barrier(8), set()

    def fail(url, request):
        if request.draws[0].task not in once:
            once.add(request.draws[0].task)
            together.wait(20)
            raise failure

    servers.before = fail
    sampler = sampler_of(urls=URLS[:1])
    session = sampler.session(None)
    for number in range(8):
        session.submit(number, [5, 6], SampleKey(0, str(number), 0, 0), 8)
    return sampler, session


def test_many_requests_that_one_server_fails_are_one_failure_of_it(servers):
    sampler, session = eight_fail_together(servers, RequestFailed("connection", "gone"))
    while session.busy:
        session.step()
        assert sampler._fleet.replicas[0].failures <= 1
    assert sampler.metrics()["rollout/failed/connection"] == 8


def test_a_server_with_other_weights_is_told_once_where_the_right_ones_are(servers):
    sampler, session = eight_fail_together(servers, StaleReplica("it has other weights"))
    while session.busy:
        session.step()
    assert servers.loads == URLS[:1] and sampler.metrics()["rollout/stale_replicas"] == 1


# ------------------------------------------------------------------ what is left


def assert_nothing_is_left():
    for thread in threading.enumerate():
        if thread.name in ("policy server", "sdar-worlds"):
            thread.join(5)  # its work is done, and it is about to end
            assert not thread.is_alive()


@pytest.fixture
def hanging():
    """A server on the network that answers the task `misset`, and takes all others' connections and says nothing."""
    over, open_connections = threading.Event(), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/sample" and (asked := read(body, SampleRequest)).draws[0].task != "misset":
                open_connections.append(self.connection)
                over.wait(60)
                return
            told = write_completions("v", [answer(asked.prompts[0], asked.draws[0])]) if self.path == "/sample" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", open_connections
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("make_pool", [LocalPool, lambda env: ThreadPool(env, 4)])
def test_a_rollout_that_fails_in_the_middle_hangs_up_on_the_servers(hanging, make_pool):
    url, open_connections = hanging
    with pytest.raises(ConfigError, match=r"env\.roof is 0"):
        played(sampler_of(urls=[url]), make_pool(FaultyWorld()), "a", "misset", "b")
    assert_nothing_is_left()
    assert len(open_connections) == 4
    for connection in open_connections:
        connection.settimeout(10)
        assert connection.recv(1) == b""  # the client's end is closed

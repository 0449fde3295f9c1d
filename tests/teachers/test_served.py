"""A teacher behind servers says what the same model says in this process, whatever happens to a server; or why it cannot."""

import copy
import json
import threading
import time
from itertools import pairwise

import pytest
import torch
from policy_servers import CODE, Meddler, PolicyServer, dripping, policy_servers, sharp_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar.distributed.communicator import Communicator
from sdar.errors import ConfigError, EngineFault, PolicyError
from sdar.policies import PretrainedPolicy, world_tokenizer
from sdar.rollout import collate
from sdar.samplers import ServerSampler
from sdar.scoring import Scorer, score_with_teachers
from sdar.teachers import ExternalTeacher, LiveTeacher, RoutedTeacher, ServedTeacher
from sdar.teachers.served import spans_of
from sdar.types import Episode, Row, Task, TeacherSignal

FAMILIES = ("heat", "cool")


@pytest.fixture(scope="module")
def folder(tiny_policy_dir, tmp_path_factory):
    return sharp_policy(tiny_policy_dir, tmp_path_factory.mktemp("teacher"), 1)


@pytest.fixture(scope="module")
def pair(folder):
    with policy_servers(folder, 2) as servers:
        yield servers


@pytest.fixture
def servers(pair):
    """Both at work with the weights of the start, whatever was done to them before."""
    for server in pair:
        if server.process.poll() is None and server.health()["version"] is not None:
            server.kill()
        if server.process.poll() is not None:
            server.start()
    return [server.wait() for server in pair]


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def live(tiny_policy_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_policy_dir, dtype=torch.float32)


@pytest.fixture(scope="module")
def external(folder, tokenizer, live):
    teacher = ExternalTeacher(PretrainedPolicy(str(folder), dtype="float32"))
    teacher.prepare(live, tokenizer, "the student")
    return teacher


@pytest.fixture
def served(tokenizer, live):
    def make(urls, **options):
        teacher = ServedTeacher(urls, **{"request_tokens": 80, "pause": 0.05, "outage": 60.0} | options)
        teacher.prepare(live, tokenizer, "the student")
        teacher.metrics()  # what the start counted
        return teacher

    return make


def ragged(number=14, seed=0):
    """Rows of 4 to 60 tokens whose teacher reads another beginning; one or two responses in each."""
    generator = torch.Generator().manual_seed(seed)

    def some(n):
        return torch.randint(5, 300, (n,), generator=generator).tolist()

    rows, episodes = [], []
    for e in range(number):
        first, between, last = 1 + e % 4, 3 * (e % 2), 2 + (5 * e) % 17
        tail, mask = some(first + between + last), [1] * first + [0] * between + [1] * last
        head, its = some(2 + (3 * e) % 11), some(1 + (7 * e) % 23)
        zeros = [0.0] * (len(head) + len(tail))
        turns = [0] * (len(head) + first) + [1] * (between + last)
        rows.append(
            Row(
                head + tail,
                [0] * len(head) + mask,
                turns,
                zeros,
                zeros,
                e,
                0,
                [0] * len(zeros),
                its + tail,
                is_privileged=True,
            )
        )
        episodes.append(Episode(Task(str(e), FAMILIES[e % 2], ""), 0))
    return collate(rows, episodes, [0] * number), episodes


def asked(teacher, live, scorer, payload=TeacherSignal.SAMPLED, k=0, ranks=None, batch=None):
    """The rows as a strategy has them scored."""
    batch, episodes = ragged() if batch is None else (batch, ragged()[1])
    networks = [teacher.model(live, None, e.task) for e in episodes]
    heads = score_with_teachers(batch, networks, scorer, 100, payload, k, **({} if ranks is None else {"ranks": ranks}))
    assert heads == []
    return batch


def assert_same(one, other, k=0):
    mask = one.response_mask
    torch.testing.assert_close(one.teacher_logp, other.teacher_logp, rtol=0, atol=1e-5)
    assert (one.teacher_logp[mask] < 0).all() and not one.teacher_logp[~mask].any() and one.teacher_logp[mask].std() > 0.3
    assert one.teacher_logp.dtype == other.teacher_logp.dtype
    if k:
        assert torch.equal(one.teacher_top_ids, other.teacher_top_ids)
        torch.testing.assert_close(one.teacher_top_logp, other.teacher_top_logp, rtol=0, atol=1e-5)
    else:
        assert not one.has("teacher_top_ids") and not other.has("teacher_top_ids")


def scored(server):
    return server.health()["counts"].get("scored_rows", 0)


@pytest.fixture
def scorer(tokenizer):
    return Scorer(0.7, (0, 1, 2, 301, 302), len(tokenizer))


# ------------------------------------------------------------------ the same as in one process


@pytest.mark.parametrize(("payload", "k"), [(TeacherSignal.SAMPLED, 0), (TeacherSignal.TOP_K, 6)])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tempered and masked"])
def test_two_servers_say_what_the_same_model_says_here(servers, served, external, live, scorer, tokenizer, payload, k, plain):
    scorer = Scorer(1.0, (), len(tokenizer)) if plain else scorer
    before = [scored(s) for s in servers]
    there = asked(served([s.url for s in servers]), live, scorer, payload, k)
    here = asked(external, live, scorer, payload, k)
    assert_same(there, here, k)
    assert here.teacher_index.tolist() == there.teacher_index.tolist() == [0] * 14
    worked = [scored(s) - b - 1 for s, b in zip(servers, before, strict=True)]  # one row at the start
    assert sum(worked) == 14 and all(worked)
    other = asked(external, live, Scorer(1.3, (), len(tokenizer)), payload, k)
    assert not torch.allclose(other.teacher_logp, here.teacher_logp, atol=0.05)  # the density is heard


class OneOf(Communicator):
    """A rank of several whose others are asked one after the other."""

    def __init__(self, rank, world, said):
        self.rank, self.world_size, self.said = rank, world, said

    def all_gather_object(self, value, what):
        self.said[self.rank] = value
        return [self.said.get(r, []) for r in range(self.world_size)]


def test_ranks_ask_for_a_share_each_and_get_everything(servers, served, external, live, scorer):
    urls, said, before = [s.url for s in servers], {}, sum(scored(s) for s in servers)
    for rank in range(3):
        batch, _ = ragged()
        ranks = OneOf(rank, 3, said)
        if rank < 2:  # the shares of the others are not there yet
            with pytest.raises(ValueError, match="assign sequence"):
                asked(served(urls), live, scorer, TeacherSignal.TOP_K, 4, ranks, batch)
        else:
            asked(served(urls), live, scorer, TeacherSignal.TOP_K, 4, ranks, batch)
    assert [len(said[r]) for r in range(3)] == [5, 5, 4]
    assert sum(scored(s) for s in servers) - before == 14 + 3 * 2
    assert_same(batch, asked(external, live, scorer, TeacherSignal.TOP_K, 4), 4)


def test_families_may_be_taught_here_and_there(servers, served, external, live, scorer, tokenizer):
    def routed(other):
        teacher = RoutedTeacher({"heat": other}, LiveTeacher())
        teacher.prepare(live, tokenizer, "the student")
        return teacher

    elsewhere = routed(served([servers[0].url]))
    assert elsewhere.is_remote and not routed(external).is_remote and elsewhere.networks() == {}
    there, here = (asked(t, live, scorer, TeacherSignal.TOP_K, 5) for t in (elsewhere, routed(external)))
    assert there.teacher_index.tolist() == [0, 1] * 7
    assert_same(there, here, 5)
    assert elsewhere.metrics()["teacher/retries"] == 0.0


def test_spans_are_those_of_the_mask():
    for bits in ("0110010", "0000", "01", "010101", "0111"):
        spans = spans_of(torch.tensor([c == "1" for c in bits]))
        assert "".join("1" if any(b <= i < e for b, e in spans) else "0" for i in range(len(bits))) == bits
        assert all(a[1] < b[0] for a, b in pairwise(spans))


# ------------------------------------------------------------------ failures


def test_a_server_killed_while_it_scores_costs_no_row_and_comes_back(servers, served, external, live, scorer):
    teacher = served([s.url for s in servers])
    expected = asked(external, live, scorer)
    servers[0].freeze()  # its requests are under way, and never answered
    threading.Timer(0.5, servers[0].kill).start()
    assert_same(asked(teacher, live, scorer), expected)
    counted = teacher.metrics()
    assert counted["teacher/failed/connection"] >= 1 and counted["teacher/retries"] >= 1
    assert_same(asked(teacher, live, scorer), expected)  # between two iterations it is still gone
    servers[0].start()
    servers[0].wait()
    due = time.monotonic() + 30
    while not scored(servers[0]) and time.monotonic() < due:  # its pause may last a little longer
        assert_same(asked(teacher, live, scorer), expected)
    assert scored(servers[0])


def answered(change):
    """A fault that changes a right answer."""

    def fault(handler, hand_on):
        answer = json.loads(hand_on()[1])
        change(answer["scores"])
        handler.answer(200, json.dumps(answer).encode())

    return fault


def cut_off(handler, hand_on):
    _, body = hand_on()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) + 100))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


FAULTS = {
    "status": lambda handler, hand_on: handler.answer(500, b'{"error": "CUDA out of memory"}'),
    "malformed": lambda handler, hand_on: handler.answer(200, hand_on()[1][:-20]),
    "malformed (rows)": answered(lambda scores: scores.pop()),
    "malformed (tokens)": answered(lambda scores: scores[0]["logp"].pop()),
    "malformed (density)": answered(lambda scores: scores[0]["logp"].__setitem__(0, 0.5)),
    "malformed (nan)": answered(lambda scores: scores[0]["logp"].__setitem__(0, float("nan"))),
    "malformed (support)": answered(lambda scores: scores[0]["top_ids"].__setitem__(0, [5, 5, 5])),
    "connection": cut_off,
    "timeout": lambda handler, hand_on: time.sleep(2),
    "slow": dripping,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_answer_is_counted_and_asked_for_again(servers, served, external, live, scorer, kind):
    meddler = Meddler(servers[0].url, "/score")
    try:
        teacher = served([meddler.url], timeout=1.0)
        meddler.faults = [FAULTS[kind]] * 2
        there = asked(teacher, live, scorer, TeacherSignal.TOP_K, 3)
    finally:
        meddler.close()
    assert_same(there, asked(external, live, scorer, TeacherSignal.TOP_K, 3), 3)
    counted = teacher.metrics()
    assert (
        counted[f"teacher/failed/{kind.split()[0]}"] == counted["teacher/replica_failures"] == counted["teacher/retries"] == 2
    )
    assert teacher.metrics() == {"teacher/retries": 0.0, "teacher/replica_failures": 0.0}  # counted once


def test_patience_ends(servers, served, live, scorer):
    meddler = Meddler(servers[0].url, "/score")
    try:
        teacher = served([meddler.url], retries=1, request_tokens=10**6)
        meddler.faults = [FAULTS["status"]] * 2
        words = r"14 rows were asked for 2 times in vain; the last time: .* answered 500: CUDA out of memory. .* the teacher's timeout"
        with pytest.raises(EngineFault, match=words):
            asked(teacher, live, scorer)
    finally:
        meddler.close()
    teacher.network.fleet.retry_policy.outage = 0.2
    with pytest.raises(
        EngineFault,
        match=r"none of 1 policy servers could score 14 rows for .* s; the last failure: .*refused.* a longer teacher\.outage",
    ):
        asked(teacher, live, scorer)


def test_weights_that_somebody_pushed_never_teach(servers, served, live, scorer, tokenizer, tmp_path):
    """Neither at the start nor later; a server that was started again does."""
    teacher = served([servers[0].url])
    sampler = ServerSampler([servers[0].url], max_new_tokens=6, weights_folder=str(tmp_path))
    sampler.bind(tokenizer, [tokenizer.eos_token_id], 512)
    sampler.load("0@3.1", live.state_dict().items())
    sampler.close()
    words = r"version None was asked for, here is '.*0@3.1': somebody gave this server other weights than it was started with"
    with pytest.raises(PolicyError, match=words):
        asked(teacher, live, scorer)
    with pytest.raises(
        PolicyError, match=r"has the weights .*0@3.1, which somebody gave it.* Start it again, and give samplers"
    ):
        served([servers[0].url])
    servers[0].kill()
    servers[0].start()
    servers[0].wait()
    asked(served([servers[0].url]), live, scorer)


# ------------------------------------------------------------------ at the start


def test_a_server_of_other_tokens_is_refused(servers, live, tokenizer):
    other = world_tokenizer(["Other words make another tokenizer."], [], 300, 512)
    url, count = servers[0].url, len(other)
    words = (
        rf"the teacher {url} and the student qwen have different tokenizers: \d+ of {count} tokens differ, the first is id "
    )
    with pytest.raises(PolicyError, match=words):
        ServedTeacher([servers[0].url]).prepare(live, other, "qwen")
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<tool>"])
    with pytest.raises(PolicyError, match=rf"has {len(tokenizer)} output rows for the {len(more)} tokens of qwen"):
        ServedTeacher([servers[0].url]).prepare(live, more, "qwen")


def test_a_teacher_may_know_more_tokens(tiny_policy_dir, tokenizer, live, tmp_path):
    """A padded head, and a token behind the student's."""
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_dir, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer) + 9)
    model.save_pretrained(tmp_path)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<tool>"])
    more.save_pretrained(tmp_path)
    external = ExternalTeacher(PretrainedPolicy(str(tmp_path), dtype="float32"))
    external.prepare(live, tokenizer, "the student")
    scorer = Scorer(0.9, (0, 1), len(tokenizer))
    with policy_servers(tmp_path, 1) as [server]:
        teacher = ServedTeacher([server.url])
        teacher.prepare(live, tokenizer, "the student")
        there, here = (asked(t, live, scorer, TeacherSignal.TOP_K, 9) for t in (teacher, external))
    torch.testing.assert_close(there.teacher_logp, here.teacher_logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(there.teacher_top_logp, here.teacher_top_logp, rtol=0, atol=1e-5)
    assert int(there.teacher_top_ids.max()) < len(tokenizer)


def test_servers_of_two_models_are_no_teacher(servers, tiny_policy_dir, served, tmp_path):
    other = sharp_policy(tiny_policy_dir, tmp_path, 2)
    with policy_servers(other, 1) as [stranger]:
        words = rf"{servers[0].url} and {stranger.url} are not of one model: they differ by .* nats on average about the same"
        with pytest.raises(PolicyError, match=words):
            served([servers[0].url, stranger.url])


SHORT = CODE.replace('dtype="float32"', 'dtype="float32", context=20')
SAMPLES_ONLY = CODE.replace("serve_policy(", "TorchEngine.scores = False\nserve_policy(", 1)


def test_a_server_that_cannot_score_is_refused(folder, served):
    server = PolicyServer(folder, SAMPLES_ONLY)
    try:
        server.wait()
        with pytest.raises(ConfigError, match=r"runs TorchEngine, which samples and does not score: it is no teacher"):
            served([server.url])
    finally:
        server.kill()


def test_the_shortest_context_of_the_servers_is_the_teachers(servers, folder, served, live, scorer):
    server = PolicyServer(folder, SHORT)
    try:
        server.wait()
        teacher = served([servers[0].url, server.url])
        assert teacher.context(Task("t", "heat", "")) == 20
        assert served([servers[0].url]).context(Task("t", "heat", "")) == 512
        with pytest.raises(EngineFault, match=r"answered 400: a row has \d+ tokens, but the engine's context is 20"):
            asked(teacher, live, scorer)
    finally:
        server.kill()


def test_a_server_that_is_not_there_is_named_at_the_start(live, tokenizer):
    teacher = ServedTeacher(["http://127.0.0.1:9"], outage=0.3, pause=0.05)
    with pytest.raises(EngineFault, match=r"no policy server answers at http://127.0.0.1:9 .* or correct teacher.urls"):
        teacher.prepare(live, tokenizer, "the student")
    assert teacher.context(Task("t", "heat", "")) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"urls": []}, "teacher.urls is empty: name at least one server"),
        ({"urls": ["http://a:1", "http://a:1/"]}, "teacher.urls names http://a:1 twice"),
        ({"urls": ["a:1"]}, "teacher.urls is 'a:1': it begins with http://"),
        ({"request_tokens": 0}, "teacher.request_tokens is 0"),
        ({"timeout": 0.0}, "teacher.timeout is 0.0: it must be more than 0 seconds"),
        ({"retries": -1}, "teacher.retries is -1: it must be at least 0"),
        ({"outage": -1.0}, "teacher.outage is -1.0"),
        ({"pause": -1.0}, "teacher.pause is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        ServedTeacher(**{"urls": ["http://127.0.0.1:1"]} | options)

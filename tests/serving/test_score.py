"""Scoring by an engine: messages read strictly, the density that is trained, and only the weights that were asked for."""

import math
import re

import pytest
import torch
from messages import changed
from policy_servers import sharp_policy
from transformers import AutoTokenizer

from sdar.errors import ContextOverflowError, PolicyError
from sdar.scoring import Scorer
from sdar.serving import TorchEngine
from sdar.serving.engine import Abandoned
from sdar.serving.loop import EngineLoop, Stale
from sdar.serving.protocol import (
    BadMessage,
    ScoreRequest,
    Scores,
    Scoring,
    dump,
    read,
    read_scores,
    write_scores,
)
from sdar.types import TeacherSignal

# ------------------------------------------------------------------ messages

SCORING = Scoring(0.7, (0, 2), 10, 2)
REQUEST = ScoreRequest(None, 60.0, SCORING, ((5, 6, 7, 0), (7, 3)), (((1, 2), (2, 3)), ((1, 2),)))
ANSWER = [
    Scores(torch.tensor([-0.5, -3.0]), torch.tensor([[6, 1], [9, 4]]), torch.tensor([[-0.5, -2.0], [-1.0, -1.0]])),
    Scores(torch.tensor([-1e-30]), torch.tensor([[3, 8]]), torch.tensor([[-1e-30, -70.0]])),
]


def test_messages_come_back_as_they_were():
    assert read(dump(REQUEST), ScoreRequest) == REQUEST
    body = write_scores(None, ANSWER)
    for one, other in zip(read_scores(body, REQUEST), ANSWER, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("logp", "top_ids", "top_logp"))


def test_rows_without_likeliest_tokens_or_without_a_response_travel_too():
    request = ScoreRequest("v", 1.0, Scoring(1.0, (), 10, 0), ((5, 6), (7,)), (((1, 2),), ()))
    answer = [
        Scores(torch.tensor([-0.5]), torch.zeros(1, 0), torch.zeros(1, 0)),
        Scores(torch.zeros(0), torch.zeros(0, 0), torch.zeros(0, 0)),
    ]
    back = read_scores(write_scores("v", answer), request)
    assert [s.logp.tolist() for s in back] == [[-0.5], []]
    assert [tuple(s.top_ids.shape) for s in back] == [(1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["version"], 3, "Expected `str | null`, got `int` - at `$.version`"),
        (["version"], ..., "Object missing required field `version`"),
        (["deadline"], 0, '"deadline" is 0.0: seconds, more than 0'),
        (["rows"], [[5, 6]], '1 "rows" and 2 "responses"'),
        (["rows", 0], [5, -1], "Expected `int` >= 0 - at `$.rows[0][1]`"),
        (["responses", 0], [[0, 2]], "for a row of 4 tokens: spans lie in it, in order"),
        (["responses", 0], [[1, 5]], "for a row of 4 tokens"),
        (["responses", 0], [[2, 3], [1, 2]], "for a row of 4 tokens"),
        (["responses", 0], [[1, 2, 3]], "Expected `array` of length 2 - at `$.responses"),
        (["responses", 0], [[3, 4]], '"rows" has the token 0 in a response: it has no probability'),
        (["rows", 1], [7, 10], '"rows" has the token 10 in a response'),
        (["scoring", "temperature"], 0, '"scoring.temperature" is 0.0: it must be more than 0'),
        (["scoring", "temperature"], math.nan, "bytes that are no JSON"),
        (["scoring", "top_k"], 11, '"scoring.top_k" is 11: it must be from 0 to 10'),
        (["scoring", "forbidden_ids"], [10], '"scoring.forbidden_ids" is (10,): it must be of ids from 0 to 9'),
        (["scoring", "vocab_size"], 0, '"scoring.vocab_size" is 0'),
        (["scoring", "top_p"], 0.9, "Object contains unknown field `top_p` - at `$.scoring`"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(path, value, words):
    with pytest.raises(BadMessage, match=re.escape(words)):
        read(changed(dump(REQUEST), path, value), ScoreRequest)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["version"], "v", "\"version\" is 'v', None was asked for"),
        (["version"], ..., "Object missing required field `version`"),
        (["scores"], [], "scores of 0 rows for 2"),
        (["scores", 0, "logp"], [-0.5], '"logp" of shape [1] where [2] is wanted'),
        (["scores", 0, "logp"], [-0.5, -1.0, -1.0], '"logp" of shape [3] where [2] is wanted'),
        (["scores", 0, "logp", 0], 0.1, "that is not in (-inf, 0]"),
        (["scores", 0, "logp", 0], math.nan, "bytes that are no JSON"),
        (["scores", 0, "logp", 0], -(10**400), "Number out of range"),
        (["scores", 0, "logp", 0], None, "Expected `float`, got `null` - at `$.scores[0].logp[0]`"),
        (["scores", 0, "logp", 0], "-1", "Expected `float`, got `str` - at `$.scores[0].logp[0]`"),
        (["scores", 0, "logp"], 7, "Expected `array`, got `int` - at `$.scores[0].logp`"),
        (["scores", 0, "top_ids", 0], [6], '"top_ids" is no table of numbers'),
        (["scores", 0, "top_ids", 0], [6, 6], '"top_ids" with a token twice'),
        (["scores", 0, "top_ids", 0], [6, 10], "or one that is none of 10"),
        (["scores", 0, "top_ids", 0], [6, -1], "or one that is none of 10"),
        (["scores", 0, "top_ids", 0], [6, 1.5], "Expected `int`, got `float` - at `$.scores[0].top_ids[0][1]`"),
        (["scores", 0, "top_ids", 0], [6, 2**63], '"top_ids" is no table of numbers'),
        (["scores", 0, "top_logp", 0], [-2.0, -0.5], '"top_logp" that rises'),
        (["scores", 0, "top_logp", 0], [-0.1, -0.2], "more than all of the mass"),
        (["scores", 1, "entropy"], [1.0], "Object contains unknown field `entropy` - at `$.scores[1]`"),
    ],
)
def test_an_answer_that_breaks_its_promises_is_noticed(path, value, words):
    body = write_scores(None, ANSWER)
    with pytest.raises(BadMessage, match=re.escape(words)):
        read_scores(changed(body, path, value), REQUEST)


# ------------------------------------------------------------------ the torch engine


@pytest.fixture(scope="module")
def folder(tiny_policy_dir, tmp_path_factory):
    return sharp_policy(tiny_policy_dir, tmp_path_factory.mktemp("sharp"), 1)


@pytest.fixture
def engine(folder):
    engine = TorchEngine(str(folder), "float32", context=64, score_tokens=40)
    engine.open()
    return engine


def request_of(engine, version=None, top_k=0, temperature=1.0, forbidden=(), pad=0, lengths=(9, 20, 3, 64)):
    """Rows of several lengths, two responses in each but the shortest."""
    generator = torch.Generator().manual_seed(3)
    rows = tuple(tuple(torch.randint(5, 300, (n,), generator=generator).tolist()) for n in lengths)
    spans = tuple(((1, 3), (n // 2 + 1, n)) if n > 4 else ((1, n),) for n in lengths)
    return ScoreRequest(version, 60.0, Scoring(temperature, forbidden, engine.vocab_size - pad, top_k), rows, spans)


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize(("temperature", "forbidden", "pad"), [(1.0, (), 0), (0.6, (0, 1, 2, 301, 302), 4)])
def test_it_scores_the_density_that_is_trained(engine, top_k, temperature, forbidden, pad):
    """Against the scores of each row alone, by a scorer of this process."""
    request = request_of(engine, None, top_k, temperature, forbidden, pad)
    found = engine.score(request)
    scorer = Scorer(temperature, forbidden, engine.vocab_size - pad)
    for row, spans, scores, n in zip(request.rows, request.responses, found, request.counts(), strict=True):
        ids, mask = torch.tensor([row]), torch.zeros(1, len(row), dtype=torch.bool)
        for begin, end in spans:
            mask[0, begin:end] = True
        payload = TeacherSignal.TOP_K if top_k else TeacherSignal.SAMPLED
        alone = scorer.score(engine.network, ids, torch.ones_like(ids), mask, 10**6, payload, top_k)
        assert len(scores.logp) == n == int(mask.sum())
        torch.testing.assert_close(scores.logp, alone.logp[mask], rtol=0, atol=1e-5)
        assert scores.top_ids.shape == scores.top_logp.shape == (n, top_k)
        if top_k:
            assert torch.equal(scores.top_ids, alone.top_ids[mask].long())
            torch.testing.assert_close(scores.top_logp, alone.top_logp[mask], rtol=0, atol=1e-5)
            assert not set(forbidden).intersection(scores.top_ids.flatten().tolist())
    assert found[0].logp.std() > 0.1  # the weights are sharp: tokens differ


def test_rows_that_do_not_fit_the_model_are_refused(engine):
    with pytest.raises(ContextOverflowError, match="a row has 65 tokens, but the engine's context is 64: nothing is cut"):
        engine.score(request_of(engine, lengths=(65,)))
    with pytest.raises(BadMessage, match=rf'"scoring.vocab_size" is {engine.vocab_size + 1}, the engine\'s model has'):
        engine.score(request_of(engine, pad=-1))
    row = (5, engine.vocab_size, 6)
    with pytest.raises(BadMessage, match=rf'"rows" holds the token {engine.vocab_size}, the engine\'s model has'):
        engine.score(ScoreRequest(None, 60.0, Scoring(1.0, (), 300, 0), (row,), (((2, 3),),)))
    assert engine.score(ScoreRequest(None, 60.0, Scoring(1.0, (), 300, 0), (), ())) == []


def test_scores_that_nobody_waits_for_stop_in_the_middle(engine):
    asked = []

    def wanted():
        asked.append(len(asked))
        return len(asked) < 2

    request = request_of(engine)  # several forward passes
    engine.score(request)
    engine.start_scoring(request, wanted)
    [(_, outcome)] = engine.step()
    assert isinstance(outcome, Abandoned) and len(asked) == 2
    assert [len(s.logp) for s in engine.score(request)] == request.counts()


def test_only_the_weights_that_were_asked_for_score(engine):
    """None names those of the start; it never does again once others were taken, or taken in part."""
    loop = EngineLoop(engine)
    loop.open().result(60)
    try:
        before = loop.score(request_of(engine)).result(60)
        with pytest.raises(Stale, match=r"version '0@1.1' was asked for, here is None"):
            loop.score(request_of(engine, "0@1.1")).result(60)
        halved = {name: tensor / 2 for name, tensor in engine.network.state_dict().items()}
        loop.load("0@1.1", lambda wanted: halved.items()).result(60)
        with pytest.raises(Stale, match=r"version None was asked for, here is '0@1.1'"):
            loop.score(request_of(engine)).result(60)
        after = loop.score(request_of(engine, "0@1.1")).result(60)
        assert not torch.allclose(before[0].logp, after[0].logp, atol=1e-2)
        with pytest.raises(PolicyError, match="lack"):
            loop.load("0@2.2", lambda wanted: list(halved.items())[:3]).result(60)
        for version in (None, "0@1.1", "0@2.2"):
            with pytest.raises(Stale, match=r"here is '0@2.2, incomplete'"):
                loop.score(request_of(engine, version)).result(60)
    finally:
        loop.close()


def test_an_engine_tells_the_tokens_of_its_model(engine, folder, tmp_path):
    assert engine.tokens() == AutoTokenizer.from_pretrained(folder).get_vocab()
    engine.model = str(tmp_path)
    with pytest.raises(PolicyError, match=r"no tokenizer can be read beside the model .* Save the tokenizer in the model's"):
        engine.tokens()


def test_an_engine_that_only_samples_says_so(engine):
    engine.scores = False
    with pytest.raises(BadMessage, match="TorchEngine cannot score rows: it is no engine for a teacher"):
        engine.score(request_of(engine))

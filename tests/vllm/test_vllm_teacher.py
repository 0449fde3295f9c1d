"""vLLM as a teacher, in a process of its own: the scores of this process, several densities at once, samples in between."""

import threading

import pytest
import torch
from engines import POLICY, command
from msgspec.structs import replace

from sdar.errors import PolicyError
from sdar.parts import SampleKey
from sdar.policies import PretrainedPolicy
from sdar.samplers import ServerSampler, TorchSampler
from sdar.scoring import Scorer
from sdar.serving.fleet import Fleet, RetryPolicy
from sdar.serving.protocol import ScoreRequest, Scoring
from sdar.teachers import ServedTeacher
from sdar.types import TeacherSignal

pytestmark = pytest.mark.vllm

PROGRAM = command("--engine.options", "{max_num_batched_tokens: 256}")


@pytest.fixture(scope="module")
def tokenizer():
    return PretrainedPolicy(POLICY).load_tokenizer()


@pytest.fixture(scope="module")
def model():
    return PretrainedPolicy(POLICY).load_model().eval()


@pytest.fixture
def fleet(server):
    return Fleet([server.url], RetryPolicy(timeout=120.0, outage=60.0, pause=0.1), "teacher")


def request_of(scoring, lengths=(9, 40, 3, 255, 120, 77, 200), seed=3):
    """Rows of several lengths, two responses in each but the shortest; more tokens than vLLM reads at once."""
    generator = torch.Generator().manual_seed(seed)
    rows = tuple(tuple(torch.randint(5, 430, (n,), generator=generator).tolist()) for n in lengths)
    spans = tuple(((1, 3), (n // 2 + 1, n)) if n > 4 else ((1, n),) for n in lengths)
    return ScoreRequest(None, 120.0, scoring, rows, spans)


def assert_scored(found, request, model):
    s, payload = request.scoring, TeacherSignal.TOP_K if request.scoring.top_k else TeacherSignal.SAMPLED
    scorer = Scorer(s.temperature, s.forbidden_ids, s.vocab_size)
    for row, spans, scores in zip(request.rows, request.responses, found, strict=True):
        ids, mask = torch.tensor([row]), torch.zeros(1, len(row), dtype=torch.bool)
        for begin, end in spans:
            mask[0, begin:end] = True
        alone = scorer.score(model, ids, torch.ones_like(ids), mask, 10**6, payload, s.top_k)
        torch.testing.assert_close(scores.logp, alone.logp[mask], rtol=1e-5, atol=1e-4)
        if s.top_k:
            assert (scores.top_ids == alone.top_ids[mask]).float().mean() > 0.99  # neighbours may be as likely
            torch.testing.assert_close(scores.top_logp, alone.top_logp[mask], rtol=1e-5, atol=1e-4)


DENSITIES = [
    Scoring(1.0, (), 437, 0),
    Scoring(0.7, (0, 1, 2, 431), 437, 0),
    Scoring(1.3, (0, 434, 436), 437, 16),
    Scoring(1.0, (), 432, 40),
]


@pytest.mark.parametrize("scoring", DENSITIES)
def test_it_scores_the_density_that_is_trained(fleet, model, scoring):
    request = request_of(scoring)
    assert_scored(fleet.score(request, 10**6), request, model)


def test_clients_of_several_densities_are_served_together(server, model):
    requests = [request_of(scoring, seed=i) for i, scoring in enumerate(DENSITIES * 2)]
    found = [None] * len(requests)

    def ask(i):
        found[i] = Fleet([server.url], RetryPolicy(timeout=120.0), "teacher").score(requests[i], 300)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores, request in zip(found, requests, strict=True):
        assert_scored(scores, request, model)


def test_it_is_a_teacher_until_somebody_gives_it_other_weights(server, tokenizer, model, fleet):
    teacher = ServedTeacher([server.url], outage=60.0)
    teacher.prepare(model, tokenizer, "the student")
    assert teacher.context(None) == 256
    sampler = ServerSampler([server.url], max_new_tokens=6, outage=60.0)
    sampler.bind(tokenizer, [1], 256)
    try:
        sampler.load("0@0.0", model.state_dict().items())
        prompts, draws = [[5 + i, 6, 7] for i in range(40)], [SampleKey(0, f"t{i}", 0, 0) for i in range(40)]
        said = []
        sampling = threading.Thread(target=lambda: said.append(sampler.sample(None, prompts, draws)))
        sampling.start()
        for scoring in DENSITIES:  # at the same time, with the weights that it has now
            request = replace(request_of(scoring), version=sampler._fleet.weights.version)
            assert_scored(fleet.score(request, 300), request, model)
        sampling.join()
        here = TorchSampler(max_new_tokens=6)
        here.bind(tokenizer, [1], 256)
        assert [c.ids for c in said[0]] == [c.ids for c in here.sample(model, prompts, draws)]
        with pytest.raises(PolicyError, match="somebody gave this server other weights than it was started with"):
            fleet.score(request_of(DENSITIES[0]), 10**6)
    finally:
        sampler.close()

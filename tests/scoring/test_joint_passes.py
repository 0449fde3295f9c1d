"""What several ask of one network is read in one pass: same numbers, shared beginnings once."""

import copy

import pytest
import torch
from scored import EVERYTHING, FORBIDDEN, VOCAB, network

from sdar.joint_passes import JointPasses, without_gradient
from sdar.scoring import Reading, Scorer
from sdar.types import TeacherSignal

SHARED = 40


@pytest.fixture(scope="module")
def wide():
    return network(max_position_embeddings=128).double()


def rows(count, length, seed, signal=TeacherSignal.SAMPLED, k=0, shared=SHARED):
    """Rows that begin like those of any other call, the last one shorter."""
    beginning = torch.randint(7, VOCAB, (shared,), generator=torch.Generator().manual_seed(0)).repeat(count, 1)
    ends = torch.randint(7, VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([beginning, ends], 1)
    at = torch.arange(ids.shape[1])[None]
    attention = (at < torch.tensor([[ids.shape[1]]] * (count - 1) + [[ids.shape[1] - 2]])).long()
    return Reading(ids, attention, (at >= shared + 1) & attention.bool(), signal, k)


def read(model, work):
    """Tokens that passed through the model."""
    seen = []
    handle = model.base_model.register_forward_pre_hook(
        lambda layer, args, told: seen.append(told["input_ids"].numel()), with_kwargs=True
    )
    work()
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 30, EVERYTHING])
@pytest.mark.parametrize("signal", TeacherSignal)
def test_what_is_read_together_is_what_is_read_alone(wide, signal, max_tokens, packed):
    scorer = Scorer(1.7, FORBIDDEN, VOCAB, packed=packed)
    readings = [rows(3, 6, 1), rows(2, 9, 2, signal, 4), rows(2, 4, 3, signal, 2)]
    passes = JointPasses(max_tokens)
    answers = [passes.ask(scorer, wide, reading) for reading in readings]
    for answer, reading in zip(answers, readings, strict=True):
        alone = scorer.score(wide, *reading.rows, EVERYTHING, reading.signal, reading.k)
        for name, values in vars(alone).items():
            told = getattr(answer(), name)
            assert (told is None) == (values is None), name
            if values is not None:
                torch.testing.assert_close(told, values, atol=1e-10, rtol=0)


def test_a_beginning_is_read_once_for_all_who_ask(wide):
    scorer, readings = Scorer(1.0, (), VOCAB), [rows(3, 6, 1), rows(2, 9, 2)]

    def joint():
        passes = JointPasses(EVERYTHING)
        answers = [passes.ask(scorer, wide, reading) for reading in (*readings, readings[0])]
        assert torch.equal(answers[0]().logp, answers[2]().logp)
        assert answers[1]() is answers[1]()

    alone = sum(read(wide, lambda r=r: scorer.score(wide, *r.rows, EVERYTHING)) for r in (*readings, readings[0]))
    # what the two have of their own: five ends, the first ones of three rows once though two ask about them
    assert read(wide, joint) == alone - 2 * SHARED - (3 * 6 - 2) < alone


def test_networks_and_densities_are_kept_apart(wide):
    other, reading = copy.deepcopy(wide), rows(2, 5, 1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    passes, hot = JointPasses(EVERYTHING), Scorer(2.0, (), VOCAB)
    asked = [(Scorer(1.0, (), VOCAB), wide), (Scorer(1.0, (), VOCAB), other), (hot, wide)]
    answers = [passes.ask(scorer, model, reading) for scorer, model in asked]
    for answer, (scorer, model) in zip(answers, asked, strict=True):
        torch.testing.assert_close(answer().logp, scorer.score(model, *reading.rows, EVERYTHING).logp)
    assert not torch.allclose(answers[0]().logp, answers[1]().logp) and not torch.allclose(
        answers[0]().logp, answers[2]().logp
    )


@pytest.mark.parametrize("tokens, ranks, most", [(10**6, 1, 400), (10, 1, 400), (10**6, 8, 400), (6400, 8, 200), (10, 8, 100)])
def test_passes_without_a_gradient_are_larger_where_no_rank_waits(tokens, ranks, most):
    assert without_gradient(100, tokens, ranks) == most

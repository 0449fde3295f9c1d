"""RLSD: advantages scaled by what the teacher thinks of each token."""

import pytest
import torch
from one_step import HALF, SAID, Did, assert_equal, by_layout, near, one_step, playing, rewarded, thinking_data, with_gaps
from played import gathered

from sdar.errors import ConfigError
from sdar.parts import AdvantageTransform
from sdar.retrievers import FactRetriever
from sdar.strategies import GRPO, RLSD

EVIDENCE = [[[0.1, 1.0, -1.0, 0.0]], [[0.1, 1.0, -1.0, 0.0]]]
ONE_WON = playing([Did("go to shelf 1", reward=1.0)], ["go to shelf 1"])


@pytest.mark.parametrize(
    ("iteration", "won", "lost"),
    [  # lambda 0.5: factors 1 + lambda (clip(exp(sign(A) gap), 0.8, 1.2) - 1)
        (0, [1.0525855, 1.1, 0.9, 1.0], [0.9524187, 0.9, 1.1, 1.0]),
        (30, [1.0262927, 1.05, 0.95, 1.0], [0.9762094, 0.95, 1.05, 1.0]),
        (60, [1.0] * 4, [1.0] * 4),
    ],
)
def test_rlsd_scales_grpos_advantage_by_the_clipped_evidence_of_each_token(small, iteration, won, lost):
    strategy = with_gaps(small.strategy(RLSD, retriever=FactRetriever()), EVIDENCE)
    batch = one_step(small, strategy, play=ONE_WON, iteration=iteration).batch
    assert gathered(batch, batch.advantages) == near([[[HALF * f for f in won]], [[-HALF * f for f in lost]]])


def told_its_span(tag, asked):
    class Told(AdvantageTransform):
        gradient_estimand = "-E[A grad student_logp]"
        span = tag

        def __call__(self, advantages, tokens, turns, iteration, metrics):
            asked.append(tokens.in_span)
            return advantages

    return Told()


def test_rlsd_may_scale_bad_attempts_alone_or_tokens_of_a_span_alone(small):
    strategy = with_gaps(small.strategy(RLSD, retriever=FactRetriever(), negative_only=True), EVIDENCE)
    batch = one_step(small, strategy, play=ONE_WON).batch
    lost = [-HALF * f for f in (0.9524187, 0.9, 1.1, 1.0)]
    assert gathered(batch, batch.advantages) == near([[[HALF] * 4], [lost]])
    strategy = small.strategy(RLSD, policy=small.policy(context=2048), retriever=FactRetriever(), evidence_span="think")
    play = playing([Did(SAID.format("look"), reward=1.0)], [SAID.format("look")])
    seen = one_step(small, with_gaps(strategy, [[[1.0] * 9], [[1.0] * 9]]), thinking_data(small), play)
    size = seen.batch.advantages.abs() / HALF
    thought = seen.batch.response_mask & (seen.batch.spans == 1)
    assert strategy.rollout.protocol.tags[0] == "think" and 0 < thought.sum() < seen.batch.response_mask.sum()
    torch.testing.assert_close((size != 1) & seen.batch.response_mask & ((size - 1).abs() > 1e-3), thought)
    asked = []
    strategy.transforms = [told_its_span("think", asked), told_its_span(None, asked)]
    seen = one_step(small, with_gaps(strategy, [[[1.0] * 9], [[1.0] * 9]]), thinking_data(small), play)
    assert torch.equal(asked[0], thought) and torch.equal(asked[1], seen.batch.response_mask)
    with pytest.raises(ConfigError, match=r"the span is 'query', but responses of CompactProtocol hold action"):
        one_step(small, small.strategy(RLSD, retriever=FactRetriever(), evidence_span="query"))


@by_layout
def test_rlsd_never_turns_an_advantage_and_ends_as_grpo(small, layout):
    data = small.data(layout=layout)

    def advantages(cls, iteration, **kwargs):
        seen = one_step(small, rewarded(small.strategy(cls, **kwargs)), data, iteration=iteration)
        return seen.batch.advantages[seen.batch.response_mask], seen.gradient

    told = {"retriever": FactRetriever()}
    plain, _ = advantages(GRPO, 0)
    ratio = advantages(RLSD, 0, **told)[0] / plain
    assert 0.9 - 1e-6 <= ratio.min() < 1 < ratio.max() <= 1.1 + 1e-6
    (after, gradient), (plain, naive) = advantages(RLSD, 60, **told), advantages(GRPO, 60)
    assert torch.equal(after, plain) and plain.abs().min() > 0
    assert_equal(gradient, naive)

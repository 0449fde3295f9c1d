"""TIP: which tokens are learned from."""

import math

import pytest
import torch
from one_step import (
    allowed,
    assert_close,
    double,
    external,
    gradient_of,
    jsd,
    kl,
    log_probs,
    one_step,
    playing,
    rows,
    with_gaps,
)

from sdar import scoring
from sdar.divergences import K1PolicyGradient, TopKReverseKL
from sdar.errors import ConfigError
from sdar.strategies import TIP
from sdar.types import TeacherSignal


def test_tip_learns_from_the_drawn_tokens_only(small):
    strategy = small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), keep=0.3)
    seen = one_step(small, strategy)
    assert seen.batch.loss_mask.sum() == math.floor(0.3 * int(seen.scored.response_mask.sum()))
    values = [
        kl(*(allowed(log_probs(strategy, n, row.ids, row.mask)) for n in (strategy.model, strategy.teacher.network)))
        for row in rows(seen.batch)
    ]
    assert_close(seen.gradient, gradient_of(strategy, torch.cat(values).mean()))


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"alpha": 2.0, "gamma": 0.5}, lambda doubt, dispute: doubt**2 * dispute**0.5),
        ({"importance": "soft_or"}, lambda doubt, dispute: 1 - (1 - doubt) * (1 - dispute)),
    ],
    ids=["doubt times dispute", "doubt or dispute"],
)
def test_tips_importance_is_of_doubt_and_disagreement_on_full_logits(small, settings, formula):
    strategy = small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), **settings)
    seen = one_step(small, strategy)
    importance = []
    for row in rows(seen.scored):
        student, teacher = (
            allowed(log_probs(strategy, n, row.ids, row.mask)) for n in (strategy.model, strategy.teacher.network)
        )
        doubt = -(student.exp() * student).sum(1) / math.log(strategy.scorer.vocab_size)
        importance.append(formula(doubt, jsd(student, teacher) / math.log(2)))
    assert seen.metrics["tip/importance"] == pytest.approx(float(torch.cat(importance).mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="importance is soft_or, which has no exponents"):
        small.strategy(TIP, teacher=external(small), importance="soft_or", gamma=0.0)


def test_tip_draws_what_is_important_first(small):
    """Entropies by hand: half of the tokens are certain, and those are left out."""
    strategy = small.strategy(TIP, teacher=external(small), divergence=K1PolicyGradient(), gamma=0.0, keep=0.5)
    with_gaps(strategy, [[[0.5], [0.5]]])
    score = strategy.score

    def doubtful(batch, episodes):
        score(batch, episodes)
        batch.old_entropy = (torch.arange(batch.ids.shape[1]) % 2).float().expand_as(batch.ids) * batch.response_mask

    strategy.score = doubtful
    batch = one_step(small, strategy, play=playing(["go to shelf 1", "open drawer 1"])).batch
    assert (batch.loss_mask & (batch.old_entropy == 0)).sum() == 0 and batch.loss_mask.sum() == 4


def test_the_vocabulary_head_sees_only_tips_tokens_in_the_update(small, monkeypatch):
    counted: dict[str, set[int]] = {"scoring": set(), "update": set()}
    phase = ["before"]

    def counting(head):
        def count(hidden, *args, **kwargs):
            counted.setdefault(phase[-1], set()).add(len(hidden))
            return head(hidden, *args, **kwargs)

        return count

    for head in (scoring.chunked_token_stats, scoring.vocabulary_log_probs):
        monkeypatch.setattr(scoring, head.__name__, counting(head))
    strategy = small.strategy(TIP, teacher=external(small), keep=0.4)
    score, optimize = strategy.score, strategy.optimize
    strategy.score = lambda *args: (phase.append("scoring"), score(*args))
    strategy.optimize = lambda update: (phase.append("update"), optimize(update))
    seen = one_step(small, strategy)
    every, kept = int(seen.scored.response_mask.sum()), int(seen.batch.loss_mask.sum())
    assert kept == math.floor(0.4 * every)
    assert counted["scoring"] == {every} and counted["update"] == {kept}


def test_tips_draw_belongs_to_seed_and_iteration(small):
    play = playing(["go to shelf 1", "open drawer 1", "close drawer 1"], ["look", "go to drawer 2"])

    def kept(iteration, seed=1):
        strategy = small.strategy(TIP, teacher=external(small), gamma=0.0)
        strategy.seed = seed
        batch = one_step(small, strategy, play=play, iteration=iteration).batch
        return {(int(batch.episode[row]), time) for row, time in batch.loss_mask.nonzero().tolist()}

    drawn = kept(3)
    assert kept(3) == drawn and kept(4) != drawn and kept(3, seed=2) != drawn


@pytest.mark.parametrize(
    ("gamma", "divergence", "payload"),
    [
        (0.0, K1PolicyGradient(), TeacherSignal.SAMPLED),
        (0.0, TopKReverseKL(8), TeacherSignal.TOP_K),
        (1.0, K1PolicyGradient(), TeacherSignal.FULL),
    ],
)
def test_tip_asks_for_as_much_of_the_teacher_as_it_needs(small, gamma, divergence, payload):
    strategy = small.strategy(TIP, teacher=external(small), divergence=divergence, gamma=gamma)
    batch = one_step(small, strategy).scored
    assert strategy.teacher_signal == payload
    assert batch.has("teacher_hidden") == (payload == TeacherSignal.FULL)
    assert batch.has("teacher_top_ids") == (payload == TeacherSignal.TOP_K)

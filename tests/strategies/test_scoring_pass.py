"""Where one optimizer step learns from all rows in one pass, that pass scores them, too: same numbers, same gradient, less work."""

import pytest
import torch
from one_step import assert_close, double, external, one_step, rewarded

from sdar.joint_passes import JointPasses
from sdar.lora import LoRAPolicy
from sdar.retrievers import KeywordRetriever
from sdar.scoring import Scorer
from sdar.strategies import GRPO, SDAR, TIP
from sdar.teachers import InitialTeacher, LiveTeacher


def grpo(small, **kwargs):
    return small.strategy(GRPO, policy=double(small.policy()), kl_coef=0.0, **kwargs)


def tip(small, **kwargs):
    return small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), keep=0.5, **kwargs)


def passes(strategy, seen):
    """Whether each pass of the policy carried a gradient, of those over rows."""
    build = strategy._build

    def count(layer, args, told):
        if not told.get("use_cache"):
            seen.append(torch.is_grad_enabled())

    def built():
        build()
        strategy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)

    strategy._build = built
    return strategy


@pytest.mark.parametrize("method", [grpo, tip])
def test_the_pass_that_scores_is_that_of_the_update(small, method):
    once, twice = [], []
    kept = one_step(small, rewarded(passes(method(small), once)))
    apart = rewarded(passes(method(small), twice))
    apart.one_pass = lambda batch: False
    scored = one_step(small, apart)
    assert once.count(True) == 1 and len(once) < len(twice)
    assert_close(kept.gradient, scored.gradient, 1e-10)
    told = [
        {k: v for k, v in seen.metrics.items() if not k.endswith(("_s", "_per_second", "_gib"))} for seen in (kept, scored)
    ]
    assert told[0] == pytest.approx(told[1], abs=1e-6)


def test_rows_that_are_left_out_since_do_not_count(small):
    strategy = rewarded(grpo(small))
    weigh = strategy.weigh
    strategy.weigh = lambda batch, episodes: weigh(batch.select(torch.arange(1, len(batch))), episodes)
    kept = one_step(small, strategy)
    other = rewarded(grpo(small))
    other.weigh, other.one_pass = (
        (lambda batch, episodes: weigh(batch.select(torch.arange(1, len(batch))), episodes)),
        lambda batch: False,
    )
    assert_close(kept.gradient, one_step(small, other).gradient, 1e-10)


@pytest.mark.parametrize(
    "settings",
    [{"updates_per_rollout": 2}, {"rows_per_update": 2}, {"micro_batch_tokens": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_where_the_update_needs_several_passes_rows_are_scored_before(small, settings):
    seen = one_step(small, rewarded(grpo(small, **settings)))
    assert not seen.batch.has("scored_row")


def test_where_adapters_drop_inputs_rows_are_scored_before(small):
    strategy = small.strategy(GRPO, policy=LoRAPolicy(small.policy(), rank=2, dropout=0.5))
    one_pass, found = strategy.one_pass, []
    strategy.one_pass = lambda batch: found.append(one_pass(batch)) or found[-1]
    small.fit(rewarded(strategy), steps=1)
    assert found == [False]


@pytest.mark.parametrize("teacher", [InitialTeacher, LiveTeacher])
def test_the_rows_of_the_teacher_are_read_with_those_of_the_same_weights(small, teacher, monkeypatch):
    def run():
        retriever = KeywordRetriever("conf/skills/household")
        strategy = small.strategy(
            SDAR, policy=double(small.policy()), teacher=teacher(), retriever=retriever, kl_coef=0.1, updates_per_rollout=2
        )
        return one_step(small, rewarded(strategy))

    scored, score = [], Scorer.score_together
    monkeypatch.setattr(
        Scorer,
        "score_together",
        lambda self, model, readings, *rest: scored.append(len(readings)) or score(self, model, readings, *rest),
    )
    joint = run()
    assert sorted(scored) == [1, 2]  # the policy's and the reference's; the teacher's are with one of them

    def alone(passes, scorer, network, reading):
        return lambda: score(scorer, network, [reading], passes.max_tokens, passes.sharding, passes.ranks)[0]

    monkeypatch.setattr(JointPasses, "ask", alone)
    apart = run()
    for name in ("old_logp", "ref_logp", "teacher_logp"):
        torch.testing.assert_close(getattr(joint.scored, name), getattr(apart.scored, name), atol=1e-10, rtol=0)
    assert_close(joint.gradient, apart.gradient, 1e-10)

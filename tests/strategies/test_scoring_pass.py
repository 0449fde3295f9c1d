"""Where one optimizer step learns from all rows in one pass, that pass scores them, too: same numbers, same gradient, less work."""

import pytest
import torch
from one_step import assert_close, double, external, one_step, rewarded

from sdar.corrections import TruncatedCorrection
from sdar.gates import GapGate
from sdar.joint_passes import JointPasses
from sdar.lora import LoRAPolicy
from sdar.prefix_tree import PrefixTree
from sdar.retrievers import KeywordRetriever
from sdar.scoring import Scorer
from sdar.shaping import EvidenceRatio
from sdar.strategies import GRPO, SDAR, TIP
from sdar.teachers import InitialTeacher, LiveTeacher
from sdar.turn_weights import StepwiseWeight


def grpo(small, method=GRPO, **kwargs):
    return small.strategy(method, policy=double(small.policy()), kl_coef=0.0, **kwargs)


def sdar(small, **kwargs):
    return grpo(small, SDAR, teacher=external(small, double), retriever=KeywordRetriever("conf/skills/household"), **kwargs)


def tip(small, **kwargs):
    return small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), keep=0.5, **kwargs)


def passes(strategy, seen):
    """Whether each pass of the policy carried a gradient, of those over rows."""
    build = strategy._build

    def count(layer, args, told):
        if isinstance(told.get("row_layout"), PrefixTree):
            seen.append(torch.is_grad_enabled())

    def built():
        build()
        strategy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)

    strategy._build = built
    return strategy


@pytest.mark.parametrize("method", [grpo, sdar, tip])
def test_the_pass_that_scores_is_that_of_the_update(small, method):
    once, twice = [], []
    kept = one_step(small, rewarded(passes(method(small), once)))
    apart = rewarded(passes(method(small), twice))
    apart.one_pass = apart.scores_late = lambda *_: False
    scored = one_step(small, apart)
    assert once.count(True) == 1 and len(once) < len(twice)
    assert_close(kept.gradient, scored.gradient, 1e-10)
    assert numbers(kept) == pytest.approx(numbers(scored), abs=1e-6)


def numbers(seen):
    return {name: value for name, value in seen.metrics.items() if not name.endswith(("_s", "_per_second", "_gib"))}


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


def reads_early(batch):
    assert batch.old_logp[batch.response_mask].abs().sum() > 0
    return batch


def every_other_token(batch):
    batch.loss_mask = batch.response_mask & (torch.arange(batch.ids.shape[1]) % 2 == 0)
    return batch


@pytest.mark.parametrize("method", [grpo, sdar])
@pytest.mark.parametrize(
    ("look", "early"),
    [(lambda batch: batch, False), (reads_early, True), (lambda batch: batch.select(torch.arange(1, len(batch))), True),
     (every_other_token, True)],
    ids=["all", "read before", "rows left out", "tokens left out"],
)  # fmt: skip
def test_the_passes_of_one_step_score_its_rows_unless_somebody_asks_before(small, method, look, early):
    """The step takes a row at a time; what is told and written of an iteration is what it is where all rows are scored before."""
    found = []
    for late in (True, False):
        read, kept = [], []
        strategy = rewarded(passes(method(small, micro_batch_tokens=1, log_episodes_every=1), read))
        if not late:
            strategy.scores_late = lambda: False
        take = strategy.token_log.take
        strategy.token_log.take = lambda ranks, take=take, kept=kept: kept.append(take(ranks)) or kept[0]
        weigh = strategy.weigh
        strategy.weigh = lambda batch, episodes, weigh=weigh: weigh(look(batch), episodes)
        found.append((one_step(small, strategy), kept[0], read))
    (late, told, read), (before, wanted, _) = found
    assert (False in read) == early and True in read
    assert_close(late.gradient, before.gradient, 1e-10)
    assert numbers(late) == pytest.approx(numbers(before), abs=1e-6)
    assert [turn.keys() for turn in told.values()] == [turn.keys() for turn in wanted.values()]
    for turn, other in zip(told.values(), wanted.values(), strict=True):
        assert all(turn[name] == pytest.approx(other[name], abs=1e-6) for name in turn)


@pytest.mark.parametrize("method", [grpo, sdar])
@pytest.mark.parametrize(("settings", "first"), [({"updates_per_rollout": 2}, 2), ({"rows_per_update": 3}, 3)])
def test_of_several_steps_the_first_scores_its_rows_and_the_others_are_scored_behind_it(small, method, settings, first):
    found = []
    for late in (True, False):
        read = []
        strategy = rewarded(passes(method(small, micro_batch_tokens=1, **settings), read))
        if not late:
            strategy.scores_late = lambda: False
        found.append((one_step(small, strategy), read))
    (late, read), (before, all_before) = found
    rows = len(late.scored)
    assert rows == 4 and read == [True] * first + [False] * (rows - first) + [True] * (rows - first)
    assert all_before == [False] * rows + [True] * rows
    assert_close(late.gradient, before.gradient, 1e-10)
    torch.testing.assert_close(late.scored.old_logp, before.scored.old_logp, atol=1e-10, rtol=0)
    assert numbers(late) == pytest.approx(numbers(before), abs=1e-6)


class LearningGate(GapGate):
    def observe(self, tokens, metrics):
        assert tokens.gap.abs().sum() > 0


@pytest.mark.parametrize(
    "settings",
    [{"correction": TruncatedCorrection()}, {"turn_weight": StepwiseWeight()}, {"transforms": [EvidenceRatio()]},
     {"gate": LearningGate()}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_where_something_needs_them_before_the_step_rows_are_scored_with_those_of_others(small, settings):
    strategy = rewarded(sdar(small, micro_batch_tokens=1, **settings))
    asked = []
    ask_policy = strategy.ask_policy
    strategy.ask_policy = lambda *told: asked.append(ask_policy(*told)) or asked[-1]
    one_step(small, strategy)
    assert asked == [True]


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
        strategy.scores_late = lambda: False
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

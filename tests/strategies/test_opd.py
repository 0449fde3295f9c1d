"""Distillation of a stronger teacher on what the student said: OPD, its top-K form, SOD and TCOD."""

import copy
import json
import re

import pytest
import torch
from one_step import (
    GAPS,
    HALF,
    LAMP,
    MARKS,
    Did,
    assert_close,
    by_layout,
    double,
    external,
    gaps_on_full_logits,
    gradient_of,
    kl,
    log_probs,
    near,
    on_support,
    one_step,
    playing,
    rewarded,
    rows,
    sampled,
    shown,
    thinking,
    turn_by_turn,
    with_gaps,
)
from played import gathered

from sdar import episodes
from sdar.credit import GroupAdvantage
from sdar.curricula import BackToFront, FrontToBack
from sdar.divergences import TopKReverseKL
from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError, PolicyError
from sdar.samplers import TorchSampler
from sdar.strategies import OPD, SOD, TCOD, TopKOPD
from sdar.teachers import ExternalTeacher, PlainView
from sdar.turn_weights import StepwiseWeight
from sdar.turns import Turns

# ------------------------------------------------------------------ OPD


@by_layout
def test_opd_is_rewarded_by_the_gap_alone(small, layout):
    """Whatever the world gave; and the gradient is that of the mean of -coef gap logp."""
    data = small.data(layout=layout)
    settings = {"policy": double(small.policy()), "teacher": external(small, double), "coef": 0.5}
    plain = one_step(small, small.strategy(OPD, **settings), data)
    strategy = rewarded(small.strategy(OPD, **settings))
    seen = one_step(small, strategy, data)
    assert seen.metrics["reward/mean"] == 0.5 and plain.metrics["reward/mean"] == 0
    assert torch.equal(seen.batch.advantages, plain.batch.advantages)
    gaps = gaps_on_full_logits(strategy, seen.batch)
    advantages = seen.batch.advantages[seen.batch.response_mask]
    torch.testing.assert_close(advantages, 0.5 * gaps.to(advantages))
    logp = torch.cat([sampled(log_probs(strategy, strategy.model, r.ids, r.mask), r) for r in rows(seen.batch)])
    assert_close(seen.gradient, gradient_of(strategy, -(0.5 * gaps * logp).mean()))


def test_opd_clips_the_gap(small):
    strategy = small.strategy(OPD, teacher=external(small), gap_clip=2.0, coef=0.5)
    batch = one_step(small, with_gaps(strategy, [[[0.5, -3.0, 7.0, -2.0]]]), play=playing(["go to shelf 1"])).batch
    assert gathered(batch, batch.advantages) == near([[[0.25, -1.0, 1.0, -1.0]]])


def test_opd_with_group_advantages_adds_them(small):
    strategy = with_gaps(small.strategy(OPD, teacher=external(small), advantage=GroupAdvantage()), [[[0.5, -0.25]]] * 2)
    batch = one_step(small, strategy, play=playing([Did("go to shelf 1", reward=1.0)], ["go to shelf 1"])).batch
    by_hand = [[[a + 0.5, a - 0.25, a + 0.5, a - 0.25]] for a in (HALF, -HALF)]
    assert gathered(batch, batch.advantages) == near(by_hand)


def test_opd_may_leave_the_gap_of_control_tokens_out(small):
    """The first of each in a row gets no gap: its loss on-policy is 0, and a clip bounds the others."""
    teacher = ExternalTeacher(thinking(small, hidden_size=32))
    strategy = small.strategy(OPD, policy=thinking(small), teacher=teacher, gap_clip=0.1, **MARKS)
    play = playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"])
    batch = one_step(small, strategy, play=play).batch
    assert shown(strategy, batch, batch.advantages != 0) == ["..>think</think>look.go<think><|end|>", "look.go.go>.<|end|>"]
    plain = one_step(small, small.strategy(OPD, policy=thinking(small), teacher=teacher), play=play).batch
    kept = batch.advantages != 0
    torch.testing.assert_close(batch.advantages[kept], plain.advantages.clamp(-0.1, 0.1)[kept])
    assert (plain.advantages.abs() > 0.1).any()


# ------------------------------------------------------------------ TopKOPD


@pytest.mark.parametrize(
    ("settings", "layout", "kept"),
    [
        (MARKS, "trajectory", ["..>think</think>look.go<think><|end|>", "look.go.go>.<|end|>"]),
        (MARKS, "turn", ["..>think</think>look.", "go..>.", "look.", "go.go>.."]),
        ({"mask_first": ["nowhere"]}, "turn", ["<think>think</think>look.", "go<think>.", "look.", "go<go>think."]),
        (
            {},
            "trajectory",
            ["<think>think</think>look<|end|>go<think><|end|>", "look<|end|>go<go>think<|end|>"],
        ),
    ],
)
def test_top_k_opd_leaves_out_the_first_of_each_control_token_of_a_row_and_nothing_else(small, settings, layout, kept):
    teacher = ExternalTeacher(thinking(small, hidden_size=32))
    strategy = small.strategy(TopKOPD, policy=thinking(small), teacher=teacher, **settings)
    play = playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"])
    batch = one_step(small, strategy, small.data(layout=layout), play).batch
    assert shown(strategy, batch, batch.distill_weights > 0) == kept
    assert set(batch.distill_weights.flatten().tolist()) == {0.0, 1.0}


def test_top_k_opd_is_the_reverse_kl_on_the_teachers_likeliest_tokens_renormalised(small):
    teacher = ExternalTeacher(double(thinking(small, hidden_size=32)))
    strategy = small.strategy(TopKOPD, policy=double(thinking(small)), teacher=teacher, **MARKS)
    seen = one_step(small, strategy, play=playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"]))
    values = []
    for row in rows(seen.batch):
        student, teacher = (log_probs(strategy, n, row.ids, row.mask) for n in (strategy.model, strategy.teacher.network))
        top = teacher.topk(16).indices
        chosen = seen.batch.distill_weights[row.number][seen.batch.response_mask[row.number]] > 0
        values.append(kl(on_support(student, top, False), on_support(teacher, top, False))[chosen])
    assert len(torch.cat(values)) < seen.batch.response_mask.sum()
    assert_close(seen.gradient, gradient_of(strategy, torch.cat(values).mean()))


def test_top_k_opd_counts_what_its_support_covers(small):
    divergence = TopKReverseKL(k=40)
    strategy = small.strategy(TopKOPD, policy=double(small.policy()), teacher=external(small, double), divergence=divergence)
    seen = one_step(small, strategy)
    inside, mass = [], []
    for row in rows(seen.batch):
        top = log_probs(strategy, strategy.teacher.network, row.ids, row.mask).topk(40)
        inside += [int(i) in ids for i, ids in zip(row.ids[row.mask], top.indices.tolist(), strict=True)]
        mass += top.values.exp().sum(1).tolist()
    assert 0 < sum(inside) < len(inside)
    assert seen.metrics["support/covers_sampled"] == pytest.approx(sum(inside) / len(inside))
    assert seen.metrics["support/teacher_mass"] == pytest.approx(sum(mass) / len(mass), rel=1e-5)


# ------------------------------------------------------------------ SOD

TWO_ATTEMPTS = playing(
    ["go to shelf 1", "open drawer 1", Did("close drawer 1", reward=1.0)], ["go to drawer 1", "open drawer 2"]
)
TURN_WEIGHTS = [[1.0, 0.5, 1.2], [1.0, 0.5]]  # 0.2 / 0.1 is more than 1 + delta


@by_layout
@pytest.mark.parametrize("coef", [1.0, 0.5])
def test_sod_adds_the_gap_weighted_by_how_far_a_turn_is_from_the_teacher(small, layout, coef):
    settings = {"teacher": external(small), "coef": coef, "advantage": GroupAdvantage("episode")}  # alike in both layouts
    strategy = with_gaps(small.strategy(SOD, **settings), GAPS)
    seen = one_step(small, strategy, small.data(layout=layout), TWO_ATTEMPTS)
    expected = turn_by_turn(seen.batch, lambda e, t, gap: (HALF, -HALF)[e] + coef * TURN_WEIGHTS[e][t] * gap)
    assert gathered(seen.batch, seen.batch.advantages) == near(expected)
    assert seen.metrics["turn/weight"] == pytest.approx(4.2 / 5)
    assert seen.metrics["turn/weight_capped_share"] == pytest.approx(1 / 3)


def test_sod_without_turn_weights_is_opd_with_group_advantages(small):
    sod = with_gaps(small.strategy(SOD, teacher=external(small), turn_weight=None), GAPS)
    batch = one_step(small, sod, play=TWO_ATTEMPTS).batch
    assert gathered(batch, batch.advantages) == near(turn_by_turn(batch, lambda e, t, gap: (HALF, -HALF)[e] + gap))
    opd = with_gaps(small.strategy(OPD, teacher=external(small), advantage=GroupAdvantage()), GAPS)
    assert torch.equal(one_step(small, opd, play=TWO_ATTEMPTS).batch.advantages, batch.advantages)


@by_layout
def test_a_span_is_where_the_gap_teaches_or_what_a_turns_distance_is_of(small, layout):
    """Actions alone: tags and end of turn keep the reward's advantage; d_k of all tokens and of the actions differ."""
    settings = {"teacher": external(small), "advantage": GroupAdvantage("episode")}
    inside = with_gaps(small.strategy(SOD, **settings, turn_weight=None, gap_span="action"), GAPS)
    seen = one_step(small, inside, small.data(layout=layout), TWO_ATTEMPTS)
    chosen = seen.batch.response_mask & (seen.batch.spans == 1 + inside.rollout.tags.index("action"))
    reward = torch.tensor([HALF, -HALF])[seen.batch.episode][:, None]
    gap = seen.batch.teacher_logp - seen.batch.old_logp
    expected = torch.where(chosen, reward + gap, reward).where(seen.batch.response_mask, 0.0)
    torch.testing.assert_close(seen.batch.advantages.where(seen.batch.response_mask, 0.0), expected.float())
    assert 0 < chosen.sum() < seen.batch.response_mask.sum()
    measured = with_gaps(small.strategy(SOD, **settings, turn_weight=StepwiseWeight(span="action")), GAPS)
    told = one_step(small, measured, small.data(layout=layout), TWO_ATTEMPTS).metrics["turn/divergence"]
    turns = Turns(seen.batch)
    assert told == pytest.approx(float((turns.sum(gap.abs() * chosen) / turns.sum(chosen.float())).mean()))


@pytest.mark.parametrize("settings", [{"gap_span": "code"}, {"turn_weight": StepwiseWeight(span="code")}])
def test_a_span_that_the_world_does_not_have_is_refused(small, settings):
    with pytest.raises(ConfigError, match="the span is 'code', but responses of CompactProtocol hold action: no token"):
        one_step(small, small.strategy(SOD, teacher=external(small), **settings))


# ------------------------------------------------------------------ TCOD


def test_tcod_plays_one_more_turn_from_the_front_now_and_then_and_validates_without(small):
    strategy = small.strategy(TCOD, teacher=external(small), controller=FrontToBack(every=2))
    played = []
    report = strategy.report
    strategy.report = lambda episodes: (played.append({len(e.turns) for e in episodes}), report(episodes))[1]
    data = small.data(env=HouseholdEnv(**LAMP, horizon=4))
    small.fit(strategy, 5, data, limit_val_batches=None, val_check_interval=5)
    assert played == [{1}, {1}, {2}, {2}, {3}]
    assert {len(e.turns) for e in episodes.read(small.folder / "episodes" / "unseen-policy-000005.jsonl.gz")} == {4}


@by_layout
@pytest.mark.parametrize(("iteration", "left"), [(1, 1), (2, 2), (100, None)])
def test_tcod_replays_a_demonstration_up_to_the_students_turns_and_learns_nothing_from_it(small, layout, iteration, left):
    env = HouseholdEnv(**LAMP, horizon=6)
    strategy = small.strategy(TCOD, teacher=external(small), controller=BackToFront(every=2))
    seen = one_step(small, strategy, small.data(env=env, layout=layout, tasks_per_step=1), iteration=iteration)
    for number, e in enumerate(seen.episodes):
        demonstration = env.demonstration(e.task)
        replayed = 0 if left is None else len(demonstration) - left
        assert [t.action for t in e.turns if not t.trainable] == demonstration[:replayed]
        assert [t.trainable for t in e.turns] == [False] * replayed + [True] * (6 - replayed)
        of_it = (seen.batch.episode == number)[:, None] & seen.batch.response_mask
        assert set(seen.batch.turn_ids[of_it].tolist()) == set(range(replayed, 6))
        assert of_it.sum() == sum(len(t.response_ids) for t in e.turns if t.trainable)
        assert seen.batch.advantages[of_it].abs().min() > 0


def with_token(small, monkeypatch, forbid=None, **kwargs):
    """OPD whose student has a token more than its teacher, as Qwen3 has ``<think>`` and Qwen2.5 has not."""
    student, teacher = small.policy(), small.policy()
    student._tokenizer = copy.deepcopy(student.load_tokenizer())
    student._tokenizer.add_tokens(["<thought>"])
    load = teacher.load_model

    def padded():
        model = load()
        model.resize_token_embeddings(len(student._tokenizer), mean_resizing=False)
        return model

    monkeypatch.setattr(teacher, "load_model", padded)
    return small.strategy(
        OPD, policy=student, teacher=ExternalTeacher(teacher), sampler=TorchSampler(max_new_tokens=6, forbid=forbid), **kwargs
    )


def test_an_added_token_that_the_teacher_lacks_is_no_harm_where_no_row_holds_it(small, monkeypatch):
    with pytest.raises(
        PolicyError, match=r"the teacher lacks 1 added tokens of the fresh policy \(<thought>\), and a response may hold them"
    ):
        small.fit(with_token(small, monkeypatch), 1)
    advice = json.loads(re.search(r"sampler.forbid: (\[.*?\])", str(refused(small, with_token(small, monkeypatch))))[1])
    assert advice[-1] == "<thought>" and "<|user|>" in advice
    strategy = with_token(small, monkeypatch, forbid=advice)
    small.fit(strategy, 1)
    assert strategy.teacher.lacks == {len(strategy.chat.tokenizer) - 1: "<thought>"}
    view = PlainView()
    monkeypatch.setattr(type(view), "prompt", lambda self, chat, messages, text: list(chat.encode_control("<thought>")))
    monkeypatch.setattr(type(view), "text", lambda self, *_: "told")
    with pytest.raises(
        PolicyError, match=r"what the teacher reads of task .* holds '<thought>', which its vocabulary has not"
    ):
        small.fit(with_token(small, monkeypatch, forbid=advice, view=view), 1)


def refused(small, strategy):
    with pytest.raises(PolicyError) as error:
        small.fit(strategy, 1)
    return error.value

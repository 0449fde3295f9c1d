"""The student under a prompt that tells more is the teacher: OPSD, Skill-SD, SDPO and SD-Search."""

import math
from dataclasses import replace

import pytest
import torch
from one_step import (
    HEADING,
    ON_ACTIONS,
    SAID,
    Did,
    allowed,
    assert_close,
    assert_equal,
    by_layout,
    double,
    drifted,
    gradient_of,
    jsd,
    log_probs,
    on_support,
    one_step,
    playing,
    rewarded,
    rows,
    shown,
    text_of,
    thinking_data,
    weights,
)

from sdar.errors import ConfigError
from sdar.retrievers import FactRetriever
from sdar.samplers import TorchSampler
from sdar.schedules import LinearSchedule
from sdar.strategies import GRPO, OPSD, SDPO, SDSearch, SkillSD
from sdar.teachers import EMATeacher

# ------------------------------------------------------------------ OPSD


@by_layout
def test_opsd_is_the_jsd_on_full_logits_behind_student_and_teacher_prompts(small, layout):
    strategy = drifted(
        small.strategy(OPSD, policy=double(small.policy()), sampler=TorchSampler(max_new_tokens=6, temperature=1.1))
    )
    seen = one_step(small, strategy, small.data(layout=layout))
    values = []
    for row in rows(seen.batch):
        assert HEADING in text_of(strategy, row.teacher_ids) and HEADING not in text_of(strategy, row.ids)
        student = allowed(log_probs(strategy, strategy.model, row.ids, row.mask))
        teacher = allowed(log_probs(strategy, strategy.initial, row.teacher_ids, row.teacher_mask)).detach()
        values.append(jsd(student, teacher))
    mean = torch.cat(values).mean()
    assert len(torch.cat(values)) == seen.scored.response_mask.sum()
    assert_close(seen.gradient, gradient_of(strategy, mean))
    assert seen.metrics["distill/divergence"] == pytest.approx(mean.item(), rel=1e-5)


# ------------------------------------------------------------------ SkillSD


@by_layout
def test_skill_sd_applies_its_warm_down(small, layout):
    data, play = small.data(layout=layout), playing([Did("go to shelf 1", reward=1.0), "look"], ["open drawer 1", "look"])

    def gradient(cls, iteration, **kwargs):
        strategy = small.strategy(cls, policy=double(small.policy()), **kwargs)
        return one_step(small, strategy, data, play, iteration).gradient

    told = {"retriever": FactRetriever(), "distill_coef": LinearSchedule(0.4, 0.0, 4)}
    full, half, none, plain = *(gradient(SkillSD, i, **told) for i in (0, 2, 4)), gradient(GRPO, 0)
    assert_equal(none, plain)
    assert_close({n: 2 * (half[n] - plain[n]) for n in plain}, {n: full[n] - plain[n] for n in plain}, 1e-3)


def test_skill_sds_divergence_is_the_importance_weighted_k3(small):
    """Student twice as likely as before the update, teacher three times as likely as the student: rho = 2, gap = ln 3."""
    strategy = small.strategy(SkillSD, retriever=FactRetriever(), distill_coef=0.5, kl_coef=0.0, entropy_coef=0.0)
    batch = one_step(small, strategy, play=playing(["look"])).batch  # a group of one without a reward: no advantage
    now = strategy.forward_student(batch)
    logp = now.logp.detach().requires_grad_()
    batch.old_logp, batch.teacher_logp = logp.detach() - math.log(2), logp.detach() + math.log(3)
    loss = strategy.token_loss(batch, replace(now, logp=logp))
    loss = loss[batch.response_mask]
    torch.testing.assert_close(loss, torch.full_like(loss, 0.5 * 2 * (2 - math.log(3))))
    loss.sum().backward()  # of rho k3: rho k3 + rho (1 - exp(gap)) = -rho gap, the reverse KL's
    slope = logp.grad[batch.response_mask]
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5 * -2 * math.log(3)))


# ------------------------------------------------------------------ SDPO

WON, LOST = [Did("go to shelf 1", reward=1.0)], ["open drawer 1", "close drawer 1"]


@by_layout
def test_sdpo_drops_what_there_is_nothing_to_tell_about(small, layout):
    """The only success of a group has no sibling to learn from and no failure to be told."""
    strategy = small.strategy(SDPO)
    batch = one_step(small, strategy, small.data(layout=layout), playing(WON, LOST, LOST)).batch
    assert set(batch.episode.tolist()) == {1, 2} and batch.is_privileged.all()
    assert all("A successful attempt at the task:\ngo to shelf 1" in text_of(strategy, r.teacher_ids) for r in rows(batch))
    assert torch.equal(batch.distill_weights > 0, batch.response_mask)
    alone = small.strategy(SDPO)
    batch = one_step(small, alone, small.data(layout=layout), playing(LOST)).batch
    failure = "> open drawer 1\n    A room.\n> close drawer 1\n    The end."
    assert all(failure in text_of(alone, r.teacher_ids) for r in rows(batch))


def test_an_iteration_with_nothing_to_tell_changes_no_weights(small):
    strategy = small.strategy(SDPO)
    strategy.collect = lambda step: playing(WON)(strategy, step.tasks)
    trainer = small.trainer(1, limit_train_batches=2)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data())
    fresh = weights(small.policy().load_model())
    assert strategy.iteration == 2 and trainer.global_step == 0
    assert torch.equal(weights(strategy.model), fresh) and torch.equal(weights(strategy.teacher.copy), fresh)


def test_sdpos_loss_is_the_jsd_on_the_students_likeliest_tokens_and_a_bucket(small):
    strategy = drifted(small.strategy(SDPO, policy=double(small.policy())))
    collect = strategy.collect
    strategy.collect = lambda step: (collect(step), playing(WON, LOST)(strategy, step.tasks))[1]
    seen = one_step(small, strategy)
    [row] = rows(seen.batch)
    student = log_probs(strategy, strategy.model, row.ids, row.mask)
    fresh = double(small.policy()).load_model()  # what the teacher was before the iteration moved it
    teacher = log_probs(strategy, fresh, row.teacher_ids, row.teacher_mask).detach()
    top = student.detach().topk(100).indices
    assert_close(
        seen.gradient, gradient_of(strategy, jsd(on_support(student, top, True), on_support(teacher, top, True)).mean())
    )


@pytest.mark.parametrize("per", ["iteration", "step"])
def test_sdpos_teacher_is_the_moving_average_of_the_student(small, per):
    """By default it moves once an iteration, after all updates."""
    settings, rate, moves = ({}, 0.05, 2) if per == "iteration" else ({"teacher": EMATeacher(0.25)}, 0.25, 4)
    strategy = small.strategy(SDPO, updates_per_rollout=2, **settings)
    live, move = [], getattr(strategy.teacher, f"after_{per}")
    setattr(strategy.teacher, f"after_{per}", lambda student, *args: (live.append(weights(student)), move(student, *args)))
    small.fit(strategy, steps=4)
    average = weights(small.policy().load_model())
    assert len(live) == moves and not torch.equal(live[0], live[1])
    for student in live:
        average = (1 - rate) * average + rate * student
    torch.testing.assert_close(weights(strategy.teacher.copy), average)


@pytest.mark.parametrize(("cap", "ratios"), [(2.0, [0.5, 1.5, 2.0]), (None, [0.5, 1.5, 3.0])])
def test_sdpo_caps_the_importance_ratio(small, cap, ratios):
    strategy = small.strategy(SDPO, ratio_cap=cap)
    batch = one_step(small, strategy, play=playing(LOST)).batch
    now = strategy.forward_student(batch)
    plain = strategy.token_loss(batch, now)[batch.response_mask]
    for ratio, expected in zip((0.5, 1.5, 3.0), ratios, strict=True):
        batch.old_logp = now.logp.detach() - math.log(ratio)
        loss = strategy.token_loss(batch, now)[batch.response_mask]
        torch.testing.assert_close(loss, expected * plain)


# ------------------------------------------------------------------ SDSearch


@by_layout
def test_sd_search_distils_inside_the_span_only(small, layout):
    actions = [["go to shelf 1", "open drawer 1"], ["look"]]
    strategy = small.strategy(SDSearch, policy=small.policy(context=2048), **ON_ACTIONS, distill_coef=1.0)
    play = playing(*([SAID.format(a) for a in attempt] for attempt in actions))
    batch = one_step(small, strategy, thinking_data(small, layout=layout), play).batch
    expected = [[framed(strategy, a) for a in attempt] for attempt in actions]
    expected = [turn for attempt in expected for turn in attempt] if layout == "turn" else list(map("".join, expected))
    assert shown(strategy, batch, batch.distill_weights > 0) == expected


def framed(strategy, action: str) -> str:
    """A response as `shown` shows it when only the action counts: the three parts share no token."""
    before, after = SAID.split("{}")
    parts = [strategy.chat.encode_text(text) for text in (before, action, after)]
    assert [*parts[0], *parts[1], *parts[2]] == list(strategy.chat.encode_text(SAID.format(action)))
    return "." * len(parts[0]) + action + "." * (len(parts[2]) + 1)


def test_sd_searchs_gradient_is_grpos_and_the_jsd_on_the_teachers_likeliest_tokens(small):
    play = playing([SAID.format("go to shelf 1"), Did(SAID.format("look"), reward=1.0)], [SAID.format("open drawer 1")])

    def step(cls, **kwargs):
        strategy = small.strategy(cls, policy=double(small.policy(context=2048)), **kwargs)
        return strategy, one_step(small, strategy, thinking_data(small), play)

    _, plain = step(GRPO)
    strategy, seen = step(SDSearch, **ON_ACTIONS, distill_coef=0.5)
    values = []
    for row in rows(seen.batch):
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        teacher = log_probs(strategy, strategy.model, row.teacher_ids, row.teacher_mask).detach()
        top = teacher.topk(50).indices
        chosen = seen.batch.distill_weights[row.number][seen.batch.response_mask[row.number]] > 0
        values.append(jsd(on_support(student, top, False), on_support(teacher, top, False))[chosen])
    assert len(torch.cat(values)) < seen.batch.response_mask.sum() / 4
    distilled = gradient_of(strategy, 0.5 * torch.cat(values).mean())
    assert_close({n: seen.gradient[n] - plain.gradient[n] for n in distilled}, distilled, 1e-3)


def test_sd_search_is_grpo_bit_for_bit_before_its_window(small):
    before = one_step(small, rewarded(small.strategy(SDSearch, **ON_ACTIONS)), iteration=49)
    plain = one_step(small, rewarded(small.strategy(GRPO)), iteration=49)
    assert plain.batch.advantages.abs().sum() > 0 and before.metrics["distill/coef"] == 0
    assert_equal(before.gradient, plain.gradient)
    within = one_step(small, rewarded(small.strategy(SDSearch, **ON_ACTIONS)), iteration=50)
    plain = one_step(small, rewarded(small.strategy(GRPO)), iteration=50)
    assert within.metrics["distill/coef"] == pytest.approx(0.001)
    assert any(not torch.equal(within.gradient[n], plain.gradient[n]) for n in plain.gradient)


def test_a_span_that_no_response_has_is_refused(small):
    message = "the span is 'search', but responses of CompactProtocol hold action: no token would be chosen"
    with pytest.raises(ConfigError, match=message):
        one_step(small, small.strategy(SDSearch))


@by_layout
def test_sd_searchs_teacher_knows_what_the_others_asked_and_never_what_it_will_ask_itself(small, layout):
    actions = [["go to shelf 1", "open drawer 1", "look"], ["go to bed 1", Did("use desklamp 1", reward=1.0)]]
    strategy = small.strategy(SDSearch, **ON_ACTIONS, distill_coef=1.0)
    seen = one_step(small, strategy, small.data(layout=layout), playing(*actions))
    outcomes = ["Incorrect: go to shelf 1; open drawer 1; look", "Correct: go to bed 1; use desklamp 1"]
    own = [[None, "go to shelf 1", "go to shelf 1; open drawer 1"], [None, "go to bed 1"]]
    expected = {}
    for e in (0, 1):
        for t in range(len(own[e])) if layout == "turn" else [0]:
            lines = list(outcomes)
            lines[e] = own[e][t] and f"This attempt so far: {own[e][t]}"
            expected[e, t] = "\n".join(line for line in lines if line)
    found = {}
    for row in rows(seen.batch):
        e, t = int(seen.batch.episode[row.number]), int(seen.batch.turn_ids[row.number, 0])
        prompt = text_of(strategy, row.teacher_ids[: int(row.teacher_mask.nonzero()[0])])
        system = prompt.removeprefix("<|system|>").partition("<|end|>")[0]
        found[e, t] = system.removeprefix("Attempts at this task and their outcomes:\n")
        asked = [d if isinstance(d, str) else d.said for d in actions[e][t:]]
        assert not any(a in prompt for a in asked), "the present and the future"
    assert found == expected

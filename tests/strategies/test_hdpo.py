"""HDPO: a second try, with the solution, at what every attempt failed."""

import torch
from one_step import (
    HEADING,
    LAMP,
    Actor,
    assert_close,
    by_layout,
    double,
    drifted,
    gradient_of,
    jsd,
    log_probs,
    on_support,
    one_step,
    rows,
    text_of,
)

from sdar.envs import HouseholdEnv
from sdar.retrievers import FactRetriever
from sdar.strategies import GRPO, HDPO
from sdar.teachers import InitialTeacher, SkillView


def lamp_player(*winners: tuple[int, int]) -> Actor:
    """Plays the demonstration in these attempts (task, attempt), and in attempt 0 where the solution is told; else looks on."""
    env = HouseholdEnv(**LAMP, horizon=5)
    tasks: list[str] = []

    def script(prompt, draw):
        if draw.task not in tasks:
            tasks.append(draw.task)
        told = HEADING in prompt or " is usually in the " in prompt
        won = draw.attempt == 0 if told else (tasks.index(draw.task), draw.attempt) in winners
        return env.demonstration(env.task(draw.task))[draw.turn] if won else "look"

    return Actor(script)


def lamp_data(small, **kwargs):
    return small.data(env=HouseholdEnv(**LAMP, horizon=5), **kwargs)


@by_layout
def test_hdpo_plays_only_tasks_that_every_attempt_failed_once_more_with_the_solution(small, layout):
    sampler = lamp_player((0, 1))
    strategy = small.strategy(HDPO, sampler=sampler, teacher=InitialTeacher())
    seen = one_step(small, strategy, lamp_data(small, layout=layout))
    attempts, extra = seen.episodes[:4], seen.episodes[4:]
    assert [e.success for e in attempts] == [False, True, False, False] and not any(e.extra for e in attempts)
    assert [(e.task, e.attempt, e.success, e.extra) for e in extra] == [
        (attempts[2].task, 0, True, True),
        (attempts[2].task, 1, False, True),
    ]
    told = [(model, HEADING in text) for model, text in sampler.asked]
    assert {model is strategy.initial for model, solution in told if solution} == {True}
    assert {model is strategy.model for model, solution in told if not solution} == {True}
    solution = strategy.env.solution(extra[0].task)
    assert all(solution in text for _, text in sampler.asked if HEADING in text)
    assert seen.metrics["success/train"] == 0.25 and seen.metrics["reward/mean"] == 2.5
    assert seen.metrics["hdpo/cliff_share"] == 0.5
    assert strategy.env_steps == sum(len(e.turns) for e in seen.episodes)

    batch = seen.batch
    of_extra = [row for row in rows(batch) if batch.extra[row.number]]
    assert len(of_extra) == (1 if layout == "trajectory" else len(extra[0].turns))  # the one that failed again carries no loss
    for row in of_extra:
        assert HEADING not in text_of(strategy, row.ids)
        assert HEADING in text_of(strategy, row.teacher_ids) and solution in text_of(strategy, row.teacher_ids)
        assert row.ids[row.mask].tolist() == row.teacher_ids[row.teacher_mask].tolist()
    assert batch.advantages[batch.extra].abs().sum() == 0
    won = torch.tensor([seen.episodes[e].extra and seen.episodes[e].success for e in batch.episode.tolist()])
    assert torch.equal(batch.distill_weights > 0, batch.response_mask & won[:, None]) and won.any()


@by_layout
def test_hdpos_gradient_is_grpos_on_the_attempts_and_the_jsd_on_what_was_verified(small, layout):
    data = lamp_data(small, layout=layout)

    def step(cls, **kwargs):
        strategy = drifted(small.strategy(cls, policy=double(small.policy()), sampler=lamp_player((0, 1)), **kwargs))
        return strategy, one_step(small, strategy, data)

    _, plain = step(GRPO)
    strategy, seen = step(HDPO, teacher=InitialTeacher(), distill_coef=0.3)
    values = []
    for row in rows(seen.batch):
        if not (seen.batch.distill_weights[row.number] > 0).any():
            continue
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        teacher = log_probs(strategy, strategy.initial, row.teacher_ids, row.teacher_mask).detach()
        top = teacher.topk(64).indices
        values.append(jsd(on_support(student, top, True), on_support(teacher, top, True)))
    distilled = gradient_of(strategy, 0.3 * torch.cat(values).mean())
    assert_close({n: seen.gradient[n] - plain.gradient[n] for n in distilled}, distilled)


def test_hdpo_plays_nothing_more_where_every_group_has_a_success(small):
    sampler = lamp_player((0, 1), (1, 0))
    seen = one_step(small, small.strategy(HDPO, sampler=sampler), lamp_data(small))
    assert len(seen.episodes) == 4 and not any(HEADING in text for _, text in sampler.asked)
    assert seen.metrics["hdpo/cliff_share"] == 0 and seen.batch.distill_weights.sum() == 0


def test_hdpo_plays_at_most_so_many_privileged_attempts_and_the_retriever_learns_from_none(small):
    class Watched(FactRetriever):
        def observe(self, task, retrieval, success):
            watched.append((task, success))

    watched = []
    strategy = small.strategy(
        HDPO, sampler=lamp_player(), retriever=Watched(), view=SkillView(), privileged_attempts=1, distill_coef=0.1
    )
    seen = one_step(small, strategy, lamp_data(small))
    assert [e.success for e in seen.episodes] == [False] * 4 + [True] * 2
    assert watched == [(seen.episodes[0].task, 0.0), (seen.episodes[2].task, 0.0)]
    assert all(e.retrieval.text for e in seen.episodes)

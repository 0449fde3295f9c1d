"""TOPD: what the teacher would say from a token on."""

import pytest
import torch
from one_step import (
    assert_close,
    by_layout,
    double,
    external,
    gaps_on_full_logits,
    gradient_of,
    log_probs,
    one_step,
    playing,
    rows,
    sampled,
    with_gaps,
)
from played import batch_of, episode, gathered, turn
from torch import Tensor

from sdar.errors import ConfigError
from sdar.samplers import TorchSampler
from sdar.strategies import TOPD
from sdar.teachers import ExternalTeacher, SolutionView


def test_topds_student_windows_stop_at_the_end_of_the_turn(small):
    """Two turns in a row, each of two prompt tokens and what is said: places 2 to 4 and 7 to 8."""
    batch = batch_of([episode(turn(3), turn(2))], "trajectory")
    strategy = small.strategy(TOPD, teacher=external(small), window=3)
    ids, mask = strategy.student_windows(batch, torch.tensor([0, 0, 0, 0]), torch.tensor([2, 3, 4, 7]))
    assert [i[m].tolist() for i, m in zip(ids, mask, strict=True)] == [[3, 4, 5], [4, 5], [5], [3, 4]]
    assert mask.shape == (4, 3)


def test_topds_soft_targets_are_what_the_plan_sends_and_the_later_place_owns_the_overlap(small):
    batch = batch_of([episode(turn(4)), episode(turn(4))], "trajectory")
    batch.old_logp = torch.zeros(batch.ids.shape)
    strategy = small.strategy(TOPD, teacher=external(small), window=3)
    plan = torch.tensor(
        [
            [[0.30, 0.03, 0.0], [0.0, 0.20, 0.13], [0.11, 0.11, 0.11]],  # from place 2: places 2, 3, 4
            [[0.25, 0.25, 0.0], [0.0, 0.10, 0.40], [0.0, 0.0, 0.0]],  # from place 4: places 4, 5; its turn ends there
        ]
    )
    its = torch.tensor([[10, 11, 12], [20, 21, 22]])
    mine_mask = torch.tensor([[True, True, True], [True, True, False]])
    strategy.soft_targets(batch, torch.tensor([0, 0]), torch.tensor([2, 4]), mine_mask, its, plan)
    targets = [
        {int(i): round(float(p), 4) for i, p in zip(ids, logp.exp(), strict=True) if p > 0}
        for ids, logp in zip(batch.soft_target_ids[0], batch.soft_target_logp[0], strict=True)
    ]
    assert targets == [{}, {}, {10: 0.9091, 11: 0.0909}, {11: 0.6061, 12: 0.3939}, {20: 0.5, 21: 0.5}, {21: 0.2, 22: 0.8}]
    assert not batch.soft_target_logp[1].isfinite().any()


def windows_by_hand(strategy, same: int) -> dict[str, Tensor]:
    """The teacher would say what the student said at the first `same` candidates, and one far token elsewhere."""
    seen = {}

    def teacher_windows(batch, episodes, places_rows, places):
        ids, mask = strategy.student_windows(batch, places_rows, places)
        far = strategy.chat.tokenizer.get_vocab()["<0x00>"]
        seen.update(rows=places_rows, places=places, mask=mask)
        return torch.where(torch.arange(len(ids))[:, None] < same, ids, far), mask

    strategy.teacher_windows = teacher_windows
    return seen


@pytest.mark.parametrize(
    ("share", "same", "suppressed", "covered"),
    [
        (0.4, 1, [1], [4, 5, 6, 7]),
        (0.0, 1, [], [1, 2, 4, 5, 6, 7]),
        (0.7, 3, [1, 4], [6, 7]),  # equal distances: the share is kept
        (1.0, 1, [1, 4, 6], []),
    ],
)
def test_topd_suppresses_surface_mismatches_and_gives_forks_soft_targets(small, share, same, suppressed, covered):
    strategy = small.strategy(TOPD, teacher=external(small), window=2, candidates=3, loss_share=1.0, surface_share=share)
    seen = windows_by_hand(strategy, same)
    # the largest losses: places 1, 4 and 6 of the response; at 8 the teacher endorses the token, which is none
    gaps = [-0.1, -3.0, -0.2, -0.1, -2.0, -0.2, -1.0, -0.1, 5.0, 0.0]
    batch = one_step(small, with_gaps(strategy, [[gaps]]), play=playing(["go to 1 1 1 1 1 1 1 1"])).batch
    first = int(batch.response_mask[0].nonzero()[0])
    assert (seen["places"] - first).tolist() == [1, 4, 6] and seen["rows"].tolist() == [0, 0, 0]
    told = batch.soft_target_logp.isfinite().any(-1)
    assert (told[0].nonzero()[:, 0] - first).tolist() == covered
    mass = batch.soft_target_logp.exp().sum(-1)[told]
    torch.testing.assert_close(mass, torch.ones_like(mass))
    [[kept]] = gathered(batch, batch.distill_weights)
    assert kept == [0.0 if place in suppressed else 1.0 for place in range(10)]


@pytest.mark.parametrize(("largest", "suppressed"), [(0.0, []), (0.1, [1, 4]), (2.0, [1, 4, 6])])
def test_up_to_a_distance_the_share_of_surface_mismatches_is_measured(small, largest, suppressed):
    """At two of three candidates the teacher would say the same as the student; the fourth token of high loss is no candidate."""
    settings = {"window": 2, "candidates": 3, "loss_share": 1.0, "surface_share": None, "surface_distance": largest}
    strategy = small.strategy(TOPD, teacher=external(small), **settings)
    windows_by_hand(strategy, 2)
    gaps = [0.1, -3.0, 0.2, 0.1, -2.0, -0.2, -1.0, 0.1, 5.0, 0.0]
    seen = one_step(small, with_gaps(strategy, [[gaps]]), play=playing(["go to 1 1 1 1 1 1 1 1"]))
    [[kept]] = gathered(seen.batch, seen.batch.distill_weights)
    assert kept == [0.0 if place in suppressed else 1.0 for place in range(10)]
    assert seen.metrics["transport/surface_share"] == pytest.approx(len(suppressed) / 3)
    assert seen.metrics["transport/candidate_share"] == pytest.approx(3 / 4)
    found = seen.metrics.get("transport/surface_distance")
    assert (found is None) == (not suppressed) and (found is None or found <= largest)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"surface_distance": 0.4},
            "model.surface_share is 0.3 and model.surface_distance 0.4: surface mismatches are the nearest",
        ),
        (
            {"surface_share": None},
            "model.surface_share is None and model.surface_distance None: .* e.g. surface_distance 0.4, and the",
        ),
        (
            {"surface_share": None, "surface_distance": 2.5},
            r"model.surface_distance is 2.5: .* lies in \[0, 2\]. Use e.g. 0.4",
        ),
    ],
)
def test_topd_takes_a_share_or_a_distance(small, settings, told):
    with pytest.raises(ConfigError, match=told):
        small.strategy(TOPD, teacher=external(small), **settings)


def test_topd_has_no_candidate_whose_window_would_not_fit_the_context(small):
    """A row of 73 tokens in a context of 80: the tokens of the last turn have the largest gaps, and no room for 20 more."""
    teacher = ExternalTeacher(small.policy(hidden_size=32, context=80))
    settings = {"window": 20, "candidates": 8, "loss_share": 1.0, "surface_share": 0.0}
    strategy = small.strategy(TOPD, policy=small.policy(context=80), teacher=teacher, **settings)
    with_gaps(strategy, [[[-1.0], [-0.1], [-0.1], [-2.0]]])
    batch = one_step(small, strategy, play=playing(["go to shelf 1"] * 4)).batch
    told = batch.soft_target_logp.isfinite().any(-1)
    assert batch.ids.shape == (1, 73) and set(batch.turn_ids[told].tolist()) == {0} and told.sum() == 4


@by_layout
@pytest.mark.parametrize("coef", [0.0, 0.7])
def test_topds_loss_is_k1_on_what_is_not_suppressed_and_the_cross_entropy_of_the_soft_targets(small, layout, coef):
    strategy = small.strategy(
        TOPD, policy=double(small.policy()), teacher=external(small, double), window=4, trajectory_coef=coef, candidates=2
    )
    seen = one_step(small, strategy, small.data(layout=layout))
    batch, gaps = seen.batch, gaps_on_full_logits(strategy, seen.batch)
    k1, entropy = [], []
    for row in rows(batch):
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        k1.append(sampled(student, row))
        targets = zip(batch.soft_target_ids[row.number], batch.soft_target_logp[row.number].exp(), strict=True)
        told = [pair for pair, m in zip(targets, batch.response_mask[row.number], strict=True) if m]
        for logp, (ids, share) in zip(student, told, strict=True):
            entropy += [-p * logp[i] for i, p in zip(ids, share, strict=True) if p > 0]
    kept = batch.distill_weights[batch.response_mask] > 0
    assert 0 < (~kept).sum() < seen.metrics["transport/covered_share"] * len(kept) and len(entropy) > 1
    loss = -(gaps * torch.cat(k1))[kept].mean() + coef * torch.stack(entropy).sum() / len(kept)
    assert_close(seen.gradient, gradient_of(strategy, loss))
    assert ("transport/cross_entropy" in seen.metrics) == (coef > 0)


@by_layout
def test_topds_teacher_goes_on_from_its_own_view_of_the_row(small, layout):
    asked, windows = [], {}

    class Recording(TorchSampler):
        def sample(self, model, prompts, draws):
            asked.append((model, self.max_new_tokens, [list(p) for p in prompts]))
            return super().sample(model, prompts, draws)

    strategy = small.strategy(
        TOPD, teacher=external(small), view=SolutionView(), window=5, sampler=Recording(max_new_tokens=6)
    )
    ask = strategy.teacher_windows

    def spy(batch, episodes, rows, places):
        out = ask(batch, episodes, rows, places)
        windows.update(batch=batch, rows=rows.tolist(), places=places.tolist(), mask=out[1])
        return out

    strategy.teacher_windows = spy
    seen = one_step(small, strategy, small.data(layout=layout))
    model, length, prefixes = asked[-1]
    assert model is strategy.teacher.network and length == 5 and len(asked) > 1
    expected = []
    for row, place in zip(windows["rows"], windows["places"], strict=True):
        e = seen.episodes[int(seen.batch.episode[row])]
        first = int(seen.batch.turn_ids[row, 0])
        messages = e.turn_messages[first] if layout == "turn" else e.first_messages
        told = strategy.view.prompt(strategy.chat, messages, strategy.env.solution(e.task))
        assert len(told) > len(e.turns[first].prompt_ids)
        expected.append(told + seen.batch.ids[row, len(e.turns[first].prompt_ids) : place].tolist())
    assert prefixes == expected and windows["mask"].any(1).all()

"""What is measured: means by name and numbers over tasks, also over ranks."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unread import Unread

import sdar
from sdar.errors import ConfigError
from sdar.evaluate import mean_interval, paired_difference
from sdar.metrics import Mean, Metrics, PassAtK, Score, Success, TeacherLift
from sdar.training.reporting import special_share
from sdar.types import Episode, Status, Task


def test_a_mean_is_over_everything_whatever_the_pieces() -> None:
    metrics = Metrics()
    metrics.add("a", 3.0, 2)
    metrics.add("a", 1.0, 2)
    metrics.add("b", True)
    metrics.add("empty", 0.0, 0)
    assert metrics.compute() == {"a": 1.0, "b": 1.0}
    assert metrics.compute() == {}  # it starts anew


def test_a_sum_may_be_told_before_its_count() -> None:
    """How a loss is told: parts that are already divided by the whole step's tokens, and then one step."""
    metrics = Metrics()
    for part in (0.5, 0.25):
        metrics.add("train/loss", part, 0)
    metrics.add("train/loss", 0.0, 1)
    assert metrics.compute() == {"train/loss": 0.75}


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_token_mean_counts_each_response_token_once(parts: list[list[float]]) -> None:
    metrics = Metrics()
    for values in parts:
        padded = torch.tensor([*values, math.nan])  # padding may hold anything
        metrics.add_tokens("x", padded[None], torch.tensor([[1] * len(values) + [0]]))
    flat = [v for values in parts for v in values]
    assert metrics.compute()["x"] == pytest.approx(sum(flat) / len(flat), abs=1e-5)


def test_no_response_token_is_no_number() -> None:
    metrics = Metrics()
    metrics.add_tokens("x", torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert metrics.compute() == {}


def test_what_is_added_is_read_when_it_is_asked_for() -> None:
    """All at once, to the digit, in the order in which it was added; what happens to a tensor meanwhile changes nothing."""
    metrics, loss = Metrics(), torch.tensor(0.1, requires_grad=True)
    with Unread():
        for number in range(3):
            metrics.add("loss", loss.detach() + number, 0)
            metrics.add_tokens("gap", torch.full((2, 3), 0.1), torch.ones(2, 3))
        metrics.add("loss", 0.0, count := torch.tensor(1.0))
        count += 7
    told = metrics.compute()
    assert told["loss"] == sum(float(torch.tensor(0.1) + number) for number in range(3))
    assert told["gap"] == float(torch.tensor(0.1))
    metrics.add("loss", loss)
    metrics.reset()
    assert metrics.compute() == {}


def test_the_share_of_control_tokens_is_read_when_it_is_asked_for() -> None:
    """Two rows, of which tokens 1 and 2, and token 1, are learned from; 7 is a control token. Gradients of 3, 4 and 5."""
    part = SimpleNamespace(ids=torch.tensor([[1, 7, 2], [7, 2, 7]]), loss_mask=torch.tensor([[0, 1, 1], [0, 1, 0]]).bool())
    hidden = torch.zeros(3, 1, requires_grad=True)
    metrics = Metrics()
    with Unread():
        loss = torch.tensor([[9.0, 1.0, -2.0], [9.0, 5.0, 9.0]])
        special_share(metrics, part, SimpleNamespace(hidden=hidden, predicts=part.loss_mask[:, 1:]), loss, torch.tensor([7]))
        (hidden[:, 0] * torch.tensor([3.0, 4.0, 5.0])).sum().backward()
    assert metrics.compute() == {"loss/special_share": 1 / 8, "grad/special_share": 3 / 12, "grad/top_token_share": 5 / 12}


class TwoRanks:
    """Gathers what the other rank has, too."""

    def __init__(self, other: Metrics) -> None:
        self.other = other

    def all_gather_object(self, sums, what):
        self.other.not_finite()  # reads what was added
        return [sums, self.other._sums]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9), st.integers(0, 5)), max_size=12), st.integers(0, 12))
def test_ranks_together_have_the_means_of_all_that_was_told_to_any_of_them(told, cut: int) -> None:
    """Also of names that one of them never heard."""
    alone, here, there = Metrics(), Metrics(), Metrics()
    for number, (name, total, count) in enumerate(told):
        alone.add(name, total, count)
        (here if number < cut else there).add(name, total, count)
    here.sync(TwoRanks(there))
    assert here.compute() == alone.compute()


def test_names_that_are_no_number_are_told() -> None:
    metrics = Metrics()
    metrics.add("a", 1.0)
    metrics.add("b", math.inf)
    metrics.add("c", math.nan)
    assert metrics.not_finite() == ["b", "c"]


def test_the_old_name_says_the_new_one() -> None:
    with pytest.warns(FutureWarning, match=r"sdar.metrics.means.Tally is called Metrics now"):
        from sdar.tally import Tally
    assert Tally is Metrics is sdar.Metrics
    with pytest.raises(AttributeError, match="has no attribute 'Ledger'"):
        sdar.metrics.means.Ledger  # noqa: B018


# ---------------------------------------------------------------------- over tasks


def attempts(task: str, *successes: bool | None, **kwargs) -> list[Episode]:
    """Attempts at a task; None: its world died."""
    return [
        Episode(Task(task, "put", ""), n, success=bool(s), status=Status.ENV_DIED if s is None else Status.DONE, **kwargs)
        for n, s in enumerate(successes)
    ]


PLAYED = [*attempts("a", True, False, False, False), *attempts("b", True, True, None, True), *attempts("c", None, None)]


def test_success_is_a_mean_over_tasks_with_an_interval() -> None:
    metric = Success()
    metric.update(PLAYED)
    assert metric.compute() == 0.625
    assert metric.estimate() == mean_interval([0.25, 1.0])


def test_pass_at_k_is_of_tasks_with_k_attempts() -> None:
    """Of 4 attempts with 1 success, 2 have it with probability 1 / 2; of 3 attempts at b every pair has one."""
    values = {}
    for k in (1, 2, 4):
        metric = PassAtK(k)
        metric.update(PLAYED)
        values[metric.name] = (metric.compute().item(), metric.estimate().n)
    assert values == {"pass@1": (0.625, 2), "pass@2": (0.75, 2), "pass@4": (1.0, 1)}
    with pytest.raises(ConfigError, match=r"k is 0: it must be at least 1"):
        PassAtK(0)


def test_an_attempt_without_a_score_has_0() -> None:
    metric = Score("f1")
    metric.update([*attempts("a", True, scores={"f1": 0.5}), *attempts("b", False)])
    assert (metric.name, metric.compute()) == ("scores/f1", 0.25)


def test_the_lift_is_paired_by_task() -> None:
    metric = TeacherLift()
    metric.update([*attempts("a", True, True), *attempts("b", True), *attempts("d", True)], PLAYED)
    assert metric.estimate() == paired_difference([1.0, 1.0], [0.25, 1.0])
    assert metric.compute() == 0.375


@pytest.mark.parametrize("make", [Success, lambda: PassAtK(2), lambda: Score("f1"), TeacherLift])
def test_what_no_task_has_is_no_number(make) -> None:
    metric = make()
    metric.update(*[attempts("c", None)] * (2 if isinstance(metric, TeacherLift) else 1))
    assert metric.estimate() is None and math.isnan(metric.compute())


@pytest.mark.parametrize("make", [Mean, Success, lambda: PassAtK(2), lambda: Score("f1"), TeacherLift])
def test_pieces_on_two_ranks_are_the_whole_and_a_reset_begins_anew(make) -> None:
    """By torchmetrics' own merging of states."""
    pieces = [PLAYED[:4], PLAYED[4:]]
    told = [(3.0, 2.0), (1.0, 6.0)] if make is Mean else [(piece,) * (2 if make is TeacherLift else 1) for piece in pieces]
    whole, one, other = make(), make(), make()
    for piece in told:
        whole.update(*piece)
    one.update(*told[0])
    other.update(*told[1])
    other.merge_state(one)
    value = whole.compute()
    assert other.compute() == value
    whole.reset()
    for piece in told:
        whole.update(*piece)
    assert whole.compute() == value

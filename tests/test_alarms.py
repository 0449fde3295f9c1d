"""Alarms: each fires on a series that has its fault and on no healthy one, is told once, and goes on with a run."""

import inspect
import json
import math
from pathlib import Path

import pytest
from fresh import fresh

from sdar import registry
from sdar.alarms import (
    Alarms,
    Bound,
    Finding,
    FlatGroups,
    GapGrows,
    InvalidActions,
    Measured,
    Mismatch,
    TeacherNoBetter,
    TeacherPrefersFailure,
    replay,
)
from sdar.alarms.watch import Watch, alarms
from sdar.errors import ConfigError

registry.load_parts()
NAMES = [alarm.name for alarm in alarms()]
Series = dict[str, list[float]]


def healthy(n: int = 120) -> Series:
    """What a run that goes well measures, in `n` iterations."""
    rise = [0.15 + 0.45 * k / n for k in range(n)]
    gaps = {f"gap/abs/turn/{place}": [0.3 + 0.02 * k] * n for k, place in enumerate(["1", "2", "3", "4", "5-8", "9-16"])}
    return {
        "success/train": rise,
        "train/entropy": [0.4 - 0.2 * k / n for k in range(n)],
        "rollout/response_length": [7.0 - k / n for k in range(n)],
        "rollout/cut_share": [0.01] * n,
        "rollout/valid_action_rate": [0.6 + 0.3 * k / n for k in range(n)],
        "rollout/repeated_action_share": [0.1] * n,
        "reward/flat_group_share": [0.4] * n,
        "gate/mean": [0.5] * n,
        "gap/success": [0.1] * n,
        "gap/failure": [-0.2] * n,
        "turn/weight_capped_share": [0.2] * n,
        "train/clip_share": [0.0, 0.002] * (n // 2),
        "kl/old": [0.01] * n,
        "distill/coef": [0.01] * n,
        "distill/chosen_share": [1.0] * n,
        "teacher/empty_share": [0.0] * n,
        "retrieval/copied_share": [0.0] * n,
        "grad/top_token_share": [0.05] * n,
        "rollout/mismatch": [1e-6] * n,
        "teacher/lift/unseen": [0.6 - 0.3 * k / n for k in range(n)],
        "success/unseen": rise,
        "pass@4/unseen": [value + 0.2 for value in rise],
        **gaps,
    }


N = 120
FAULTS: dict[str, tuple[Series, str]] = {
    "success_collapse": ({"success/train": [0.6] * 60 + [0.1] * 60}, "success/train fell from 60.0% to 25.0%"),
    "entropy_collapse": ({"train/entropy": [0.4] * 60 + [0.003] * 60}, "train/entropy is 0.003 nats a token; it began at 0.4"),
    "length_collapse": ({"rollout/response_length": [200.0] * 60 + [12.0] * 60}, "is 49.6 tokens; it began at 200.0"),
    "length_explosion": ({"rollout/response_length": [20.0] * 60 + [90.0] * 60}, "is 62.0 tokens; it began at 20.0"),
    "invalid_actions": ({"rollout/valid_action_rate": [0.1] * N}, "rollout/valid_action_rate is 0.1 over 10 iterations"),
    "repeated_actions": ({"rollout/repeated_action_share": [0.8] * N}, "rollout/repeated_action_share is 0.8 over 10"),
    "flat_groups": ({"reward/flat_group_share": [0.97] * N}, "reward/flat_group_share is 0.97 over 10 iterations"),
    "narrowing": (
        {"pass@4/unseen": [0.7 - 0.2 * k / N for k in range(N)]},
        "pass@4/unseen fell from 70.0% to 65.0% while success/unseen rose from 15.0% to 26.2%",
    ),
    "gap_grows": (
        {f"gap/abs/turn/{place}": [0.2 * 2**k] * N for k, place in enumerate(["1", "2", "3", "4", "5-8", "9-16"])},
        "gap/abs is 0.2 nats in the first turn and 6.4 in turn 9-16",
    ),
    "gate_saturated": ({"gate/mean": [0.999] * N}, "gate/mean is 0.999 over 5 iterations"),
    "weights_capped": ({"turn/weight_capped_share": [0.95] * N}, "turn/weight_capped_share is 0.95"),
    "clip_never_reached": (
        {"train/clip_share": [0.0] * N},
        "train/clip_share is 0 over 50 iterations, and kl/old 0.01 nats in size",
    ),
    "teacher_silent": ({"distill/coef": [0.0] * N}, "distill/coef is 0 in all 20 iterations"),
    "teacher_no_better": (
        {"teacher/lift/unseen": [-0.02] * N},
        "teacher/lift/unseen is -2.0 points; the student reaches 15.0%",
    ),
    "teacher_prefers_failure": ({"gap/success": [-0.5] * N}, "the mean gap is -0.5 nats on tokens of episodes that reached"),
    "teacher_empty": ({"teacher/empty_share": [0.9] * N}, "teacher/empty_share is 0.9 over 5 iterations"),
    "skills_copied": ({"retrieval/copied_share": [0.3] * N}, "retrieval/copied_share is 0.3 over 5 iterations"),
    "one_token": ({"grad/top_token_share": [0.6] * N}, "grad/top_token_share is 0.6 over 5 iterations"),
    "mismatch": ({"rollout/mismatch": [0.2] * N}, "rollout/mismatch is 0.2 over 5 iterations"),
}


def rows(series: Series) -> list[dict[str, float]]:
    return [{name: values[k] for name, values in series.items()} for k in range(N)]


def told(series: Series, again: int = 1000) -> list[tuple[int, str, Finding]]:
    watch = Watch(alarms(), again)
    return [(k, *found) for k, row in enumerate(rows(series), 1) for found in watch.look(k, row)]


def test_a_run_that_goes_well_is_left_in_peace() -> None:
    assert told(healthy()) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_alarm_tells_its_fault_once_and_no_other(name: str) -> None:
    series, fact = FAULTS[name]
    [(iteration, found, finding)] = told(healthy() | series)
    assert found == name and fact in finding.fact and 1 <= iteration <= N
    assert finding.usual and finding.remedy[-1] in ".?"


@pytest.mark.parametrize(
    ("success", "lift", "called"),
    [
        ([0.1, 0.5, 0.8], [0.7, 0.3, 0.0], False),  # the student caught up
        ([0.1, 0.2, 0.3], [0.7, 0.3, 0.0], True),  # the teacher got worse by more than the student won
        ([0.1, 0.5, 0.8], [0.0, 0.3, 0.0], True),  # it was no better at first
    ],
)
def test_a_student_that_caught_up_with_its_teacher_is_no_fault(success: list[float], lift: list[float], called: bool) -> None:
    measured = Measured()
    for k, (reached, above) in enumerate(zip(success, lift, strict=True)):
        measured.add(k, {"success/unseen": reached, "teacher/lift/unseen": above})
    assert (TeacherNoBetter().look(measured) is not None) == called


def test_a_teacher_that_prefers_nothing_is_not_told_of_for_its_noise() -> None:
    """Half a nat below by chance: the difference of two means over gaps of many nats is no preference."""
    noisy = {
        "gap/success": [-9.0 - 2.0 * (k % 5 == 0) for k in range(N)],
        "gap/failure": [-9.0 - 2.0 * (k % 5 == 2) for k in range(N)],
    }
    below = {"gap/success": [gap - 0.3 for gap in noisy["gap/success"]]}
    assert told(healthy() | noisy | below) == []
    steady = {"gap/success": [-9.3] * N, "gap/failure": [-9.0] * N}
    assert [name for _, name, _ in told(healthy() | steady)] == ["teacher_prefers_failure"]


def test_gaps_are_compared_in_the_iterations_that_have_both() -> None:
    """Where every attempt fails there is no gap on successes: the other series goes on."""
    run, alarm = Measured(), TeacherPrefersFailure(window=2)
    for k in range(1, 9):
        run.add(k, {"gap/failure": 5.0 if k > 4 else -1.0} | ({"gap/success": -1.0} if k <= 4 else {}))
    assert alarm.look(run) is None


def test_a_script_that_imports_nothing_else_asks_every_alarm() -> None:
    count, *_ = fresh("from sdar.alarms.watch import alarms; code = len(alarms())")
    assert count == len(NAMES) == 19


def test_what_is_cut_is_too_long() -> None:
    [(_, name, finding)] = told(healthy() | {"rollout/cut_share": [0.8] * N})
    assert name == "length_explosion" and "rollout/cut_share is 80.0%" in finding.fact


@pytest.mark.parametrize("name", NAMES)
def test_each_alarm_has_its_place_on_the_page(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs/alarms.md").read_text(encoding="utf-8")
    assert f"\n### {name}\n" in page


def test_an_alarm_is_told_again_when_its_reason_stays_and_when_it_comes_back() -> None:
    again = [k for k, *_ in told(healthy() | {"gate/mean": [0.999] * N}, again=40)]
    assert again == [5, 45, 85]
    back = [k for k, *_ in told(healthy() | {"gate/mean": [0.999] * 10 + [0.5] * 30 + [0.999] * 80})]
    assert back == [5, 45]


def test_an_alarm_needs_as_many_values_as_its_window() -> None:
    run = Measured()
    for k in range(9):
        run.add(k, {"rollout/valid_action_rate": 0.0})
    assert InvalidActions().look(run) is None
    run.add(9, {"rollout/valid_action_rate": 0.0})
    assert InvalidActions().look(run) is not None and InvalidActions(least=0).look(run) is None


def test_values_that_are_measured_again_take_the_place_of_the_old_ones() -> None:
    """A run that goes on from an earlier checkpoint repeats iterations."""
    run = Measured()
    for k in (1, 2, 3, 2):
        run.add(k, {"a": float(k * 10 + (k == 2))})
    assert run.values("a") == [10, 21] and run.recent("a", 3) is None and run.recent("a", 2) == 15.5


class Slow(Bound):
    """Iterations take too long."""

    metric, what, remedy, is_share = "time/.*_s", "seconds", "Buy a machine.", False


def test_thresholds_and_alarms_of_ones_own_take_the_place_of_the_defaults_or_are_added() -> None:
    asked = {alarm.name: alarm for alarm in alarms([GapGrows(factor=9), Slow(window=1, most=60)], ["mismatch"])}
    assert asked["gap_grows"].factor == 9 and set(asked) == {*NAMES, "slow"} - {"mismatch"}
    watch = Watch([asked["slow"]], 10)
    [(name, finding)] = watch.look(1, {"time/rollout_s": 99.0})
    assert (name, finding.fact) == ("slow", "time/rollout_s is 99 over 1 iterations: seconds")
    assert finding.usual == "at most 60"


def test_an_alarm_that_is_not_there_cannot_be_silenced() -> None:
    with pytest.raises(ConfigError, match=r"alarms\.silent: there is no alarm 'gap_grow'\. Did you mean 'gap_grows'\?"):
        Alarms(silent=["gap_grow"])
    assert Alarms(enabled=False).watch.asked == []


@pytest.mark.parametrize("cls", dict.fromkeys(registry.parts("alarms").values()), ids=lambda cls: cls.__name__)
def test_a_window_holds_at_least_one_value(cls: type) -> None:
    if "window" in inspect.signature(cls.__init__).parameters:
        with pytest.raises(ConfigError, match=r"window is 0: it must be at least [12]\."):
            cls(window=0)


def test_bounds_that_no_number_could_pass_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"alarm\.most is 2: it is a share in \[0, 1\]"):
        FlatGroups(most=2)
    with pytest.raises(ConfigError, match=r"alarm\.most is 0: it must be more than 0"):
        Mismatch(most=0)


def test_a_run_that_goes_on_knows_what_it_had_measured_and_told() -> None:
    series = rows(healthy() | {"gate/mean": [0.999] * N})
    whole, first, second = Alarms(), Alarms(), Alarms()
    expected = [(k, name) for k, row in enumerate(series, 1) for name, _ in whole.watch.look(k, row)]
    found = [(k, name) for k, row in enumerate(series[:50], 1) for name, _ in first.watch.look(k, row)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [(k, name) for k, row in enumerate(series[50:], 51) for name, _ in second.watch.look(k, row)]
    assert found == expected and second.state_dict() == whole.state_dict()


def test_a_run_that_is_over_can_be_asked(tmp_path: Path) -> None:
    series = healthy() | {"gate/mean": [0.999] * N}
    lines = [",".join(["train/iteration", *series])]
    lines += [",".join(map(str, [k, *row.values()])) for k, row in enumerate(rows(series), 1)]
    lines.insert(3, "2" + "," * len(series))  # a row of a validation, without what an iteration measures
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (iteration, name, finding), (again, *_) = replay(str(tmp_path))
    assert (iteration, name, again) == (5, "gate_saturated", 105) and math.isclose(0.999, float(finding.fact.split()[2]))
    with pytest.raises(ConfigError, match="no folder of a run"):
        replay(str(tmp_path / "none"))

"""What a run leaves behind: means by hand, and lines that a program can read."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import played
import pytest
import torch

from sdar.metrics import Metrics, ToolCalls
from sdar.rollout.groups import by_group, describe_lost, finished, group_numbers
from sdar.training import reporting
from sdar.types import Batch, Episode, Retrieval, Status, Task, Turn


def turn(valid: bool = True, tokens: int = 2, **kwargs) -> Turn:
    return Turn([1], [5] * tokens, [-0.123456789] * tokens, [0.0] * tokens, valid=valid, **kwargs)


def episode(task: str, turns: list[Turn], *skills: str, family: str = "put", **kwargs) -> Episode:
    retrieval = Retrieval(skills, " ".join(skills))
    return Episode(Task(task, family, "do it"), 0, turns, retrieval=retrieval, **kwargs)


def seen() -> list[Episode]:
    """Two attempts at each of three tasks."""
    return [
        episode("a", [turn(), turn(valid=False)], "s1", "s2", success=True, reward=10.0),
        episode("a", [turn(tokens=4)], "s1", "s2", status=Status.HORIZON),
        episode("b", [turn()], "s1", family="heat", success=True, reward=10.0),
        episode("b", [], "s1", family="heat", status=Status.ENV_DIED),
        episode("c", [turn()], status=Status.TIMEOUT),
        episode("c", [turn(valid=False)], status=Status.CONTEXT),
    ]


def test_the_metrics_of_an_iteration_by_hand() -> None:
    metrics = Metrics()
    reporting.episodes(metrics, seen(), retrieves=False)
    assert metrics.compute() == pytest.approx(
        {
            "success/train": 2 / 4,  # two were lost, which is no failure
            "success_by_family/train/put": 1 / 3,
            "success_by_family/train/heat": 1 / 1,
            "reward/mean": 20 / 4,
            "reward_by_family/put": 10 / 3,
            "reward_by_family/heat": 10 / 1,
            "rollout/episode_length": 5 / 4,
            "rollout/response_tokens": (4 + 4 + 2 + 2) / 4,
            "rollout/response_length": (2 + 2 + 4 + 2 + 2) / 5,
            "rollout/response_length_min": 2,
            "rollout/response_length_max": 4,
            "rollout/cut_share": 0.0,
            "reward/group_std": 10 / math.sqrt(2),  # of task a alone: of b and c one attempt is left
            "rollout/valid_action_rate": 3 / 5,  # of the turns, not of the episodes
            "rollout/well_formed_rate": 5 / 5,
            "rollout/repeated_action_share": 0 / 1,  # of turns behind another: one, and neither did anything
            "rollout/horizon_share": 1 / 6,
            "rollout/context_share": 1 / 6,
            "rollout/timeout_share": 1 / 6,
            "rollout/env_error_share": 0.0,
            "rollout/env_died_share": 1 / 6,
        }
    )


def test_what_was_lost_is_told_with_the_first_task_and_error() -> None:
    episodes = seen()
    episodes[3].error = "worker process ended with exit code 3"
    told = "2 of 6 episodes (1 env_died, 1 timeout); the first, of task b: worker process ended with exit code 3"
    assert describe_lost(episodes) == told
    assert describe_lost(finished(episodes)) == ""


def test_retrievals_are_counted_once_a_task() -> None:
    metrics = Metrics()
    reporting.episodes(metrics, seen(), retrieves=True)
    assert {k: v for k, v in metrics.compute().items() if k.startswith("retrieval/")} == pytest.approx(
        {
            "retrieval/empty_share": 1 / 3,
            "retrieval/skills_per_task": (2 + 1 + 0) / 3,
            "retrieval/distinct_skills": 2,
            "retrieval/most_used_share": 2 / 3,
            "retrieval/copied_share": 0 / 4,  # of the turns of played episodes with skills
        }
    )


def test_actions_that_are_taken_again_and_skills_that_are_recited() -> None:
    actions = ["look", "look", "go", "", ""]
    again = [episode("a", [turn(action=action) for action in actions]), episode("b", [turn(action="go")])]
    skill = "First look where things of this kind are found most often, then open it."
    copied = "I think: Look where things of this kind are found  most often, so I go."
    shorter = "look where things of this kind are found"
    for observation, told in (("You see an egg.", [1, 0]), (copied, [0, 0])):
        turns = [turn(text=text, observation=observation) for text in (copied, shorter[:-1])]
        metrics = Metrics()
        reporting.episodes(metrics, [*again, replace(episode("c", turns), retrieval=Retrieval(("s",), skill))], retrieves=True)
        assert [
            reporting.copies(t.text, replace(episode("c", turns), retrieval=Retrieval(("s",), skill))) for t in turns
        ] == told
        numbers = metrics.compute()
        assert numbers["retrieval/copied_share"] == sum(told) / 2
        assert numbers["rollout/repeated_action_share"] == 1 / 5  # five turns behind another


def test_responses_that_the_limit_cut_are_counted_but_not_those_that_nobody_sampled() -> None:
    metrics = Metrics()
    turns = [turn(tokens=9, stopped=False), turn(tokens=3), turn(tokens=1, trainable=False)]
    reporting.episodes(metrics, [episode("a", turns), episode("b", [turn(tokens=4)])], retrieves=False)
    told = metrics.compute()
    assert told["rollout/cut_share"] == pytest.approx(1 / 3)
    assert (told["rollout/response_length_min"], told["rollout/response_length_max"]) == (3, 9)
    assert "reward/group_std" not in told  # no group has two attempts


def test_the_deviation_of_rewards_is_within_groups() -> None:
    """What groups differ by among each other is no signal."""
    metrics = Metrics()
    rewards = {"a": (0.0, 10.0), "b": (100.0, 100.0)}
    reporting.episodes(metrics, [episode(t, [turn()], reward=r) for t, two in rewards.items() for r in two], retrieves=False)
    assert metrics.compute()["reward/group_std"] == pytest.approx((10 / math.sqrt(2) + 0) / 2)


def test_every_skill_is_counted_in_a_table_and_metrics_stay_few(tmp_path) -> None:
    bank = [episode(f"t{n}", [turn()], "often", f"skill {n}") for n in range(200)]
    metrics = Metrics()
    reporting.episodes(metrics, bank, retrieves=True)
    assert len([name for name in metrics.compute() if name.startswith("retrieval/")]) == 5
    for iteration in (1, 2):
        reporting.write_retrievals(SimpleNamespace(default_root_dir=tmp_path), iteration, bank)
    first, second = (json.loads(line) for line in (tmp_path / "retrievals.jsonl").read_text().splitlines())
    assert first | {"iteration": 2} == second and first["groups"] == 200 and len(first["skills"]) == 201
    assert next(iter(first["skills"].items())) == ("often", 200) and first["skills"]["skill 7"] == 1


def test_attempts_at_one_task_with_one_retrieval_are_a_group() -> None:
    episodes = seen()
    assert by_group(episodes) == [episodes[0:2], episodes[2:4], episodes[4:6]]
    again = [episode("a", [], "s1"), episode("a", [], "s1"), episode("a", [], "s2"), episode("a", [], "s2")]
    assert [len(g) for g in by_group(again)] == [2, 2]  # a second visit of a task that had other skills
    assert by_group([]) == []


def numbered(*names: str) -> list[Episode]:
    """Episodes from notes: task, number of the attempt, skill, and "+" for an extra one."""
    return [
        Episode(Task(n[0], "put", "do it"), int(n[1]), retrieval=Retrieval(tuple(n[2:].strip("+"))), extra=n.endswith("+"))
        for n in names
    ]


@pytest.mark.parametrize(
    ("episodes", "groups"),
    [
        ([], []),
        (["a0", "a1", "b0", "b1"], [0, 0, 1, 1]),
        (["a0", "a1", "b0", "b1", "c0", "b0+", "b1+", "a0+"], [0, 0, 1, 1, 2, 1, 1, 0]),  # an extra one: that of its task
        (["a0", "a1", "a0+", "b0", "b1", "b5+"], [0, 0, 0, 1, 1, 1]),  # wherever it stands, whatever its number
        (["a0s", "a1s", "a2r", "a3r", "a1s+", "a2r+", "a3r+"], [0, 0, 1, 1, 0, 1, 1]),  # two visits, two retrievals
        (["a0", "b0", "a1", "b0+", "a0+", "a1+"], [0, 1, 2, 1, 0, 2]),  # two visits that do not follow each other
        (["a0", "a1", "b0", "a2", "a9+"], [0, 0, 1, 2, 2]),  # no attempt's number: the last visit
    ],
)
def test_every_episode_has_the_number_of_its_group(episodes: list[str], groups: list[int]) -> None:
    assert group_numbers(numbered(*episodes)) == groups


def test_without_extra_episodes_the_numbers_count_the_groups() -> None:
    groups = by_group(seen())
    assert group_numbers(seen()) == [number for number, group in enumerate(groups) for _ in group]


def test_the_mismatch_between_two_densities_is_zero_when_they_are_one() -> None:
    """Sampled from a truncated density: behaviour = full + allowed - kept."""
    kept, allowed, old = torch.tensor([[0.0, -0.2, -0.5]]), torch.tensor([[0.0, 0.1, 0.0]]), torch.tensor([[0.0, -1.0, -2.0]])
    batch = Batch(
        ids=torch.ones(1, 3, dtype=torch.long),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        response_mask=torch.tensor([[False, True, True]]),
        turn_ids=torch.zeros(1, 3),
        behaviour_logp=old + allowed - kept,
        kept_logmass=kept,
        spans=torch.zeros(1, 3),
        episode=torch.zeros(1),
        group=torch.zeros(1),
        success=torch.zeros(1),
        group_success=torch.zeros(1),
        is_privileged=torch.zeros(1, dtype=torch.bool),
        extra=torch.zeros(1, dtype=torch.bool),
        old_logp=old,
    )
    metrics = Metrics()
    reporting.sampling_mismatch(metrics, batch, allowed)
    mass = (math.exp(-0.2) + math.exp(-0.5)) / 2
    wanted = dict.fromkeys(["rollout/mismatch", "rollout/mismatch_p99", "rollout/mismatch_max"], 0.0) | {
        "rollout/kept_mass": mass
    }
    assert metrics.compute() == pytest.approx(wanted, abs=1e-6)
    batch.old_logp = old + torch.tensor([[9.0, 0.3, -0.1]])  # the prompt is not compared
    reporting.sampling_mismatch(metrics, batch, allowed)
    far = {"rollout/mismatch": 0.2, "rollout/mismatch_p99": 0.3, "rollout/mismatch_max": 0.3}
    assert metrics.compute() == pytest.approx(wanted | far, abs=1e-6)
    batch.behaviour_logp = torch.zeros(1, 3)  # the only token that top-p kept: it is sampled with certainty, and counts
    reporting.sampling_mismatch(metrics, batch, allowed)
    assert metrics.compute()["rollout/mismatch_max"] == pytest.approx(1.6)  # |-0.7 + 0.1 + 0.2| and |-2.1 + 0.5|
    batch.kept_logmass = torch.zeros(1, 3)  # demonstrations: nobody sampled them
    reporting.sampling_mismatch(metrics, batch, allowed)
    assert metrics.compute() == {}


def test_no_name_out_of_data_falls_on_another_metric_or_between_its_folders() -> None:
    """Families may be called as metrics are; a file store has no room for a name that is a folder of others."""
    from sdar.evaluate.validation import of_panel

    names = [episode("a", [turn()], family=name, success=True, reward=1.0) for name in ("mean", "low", "high", "pass@1")]
    names[0].reward = 5.0
    metrics = Metrics()
    reporting.episodes(metrics, names, retrieves=False)
    told = metrics.compute()
    assert told["reward/mean"] == 2.0 and told["reward_by_family/mean"] == 5.0
    keys = [*told, *of_panel("unseen", names, 1), "success_low/unseen", "success_high/unseen", "pass@1/unseen"]
    assert not [(a, b) for a in keys for b in keys if b.startswith(f"{a}/")]


def taught(*tool_ok: bool | None) -> Episode:
    """An episode whose turns called a tool with an error, with success, or not."""
    return played.episode(*(replace(played.turn(2), tool_ok=ok) for ok in tool_ok))


@pytest.mark.parametrize("layout", played.LAYOUTS)
def test_distance_and_entropy_are_told_by_what_came_before_a_turn(layout: str) -> None:
    """After an error, after a result, before any call; the turn behind a turn without a call that comes after one is none of them."""
    episodes = [taught(None, False, True, None, None), taught(None, None), taught(True, True, None)]
    batch = played.batch_of(episodes, layout)
    sizes = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    gap = played.spread(batch, [[[s, -s] for s in e] for e in sizes])
    batch.teacher_entropy = gap.abs() / 10
    metrics = Metrics()
    reporting.signal(metrics, batch, played.view_of(batch, gap), episodes)
    told = metrics.compute()
    by_what = {"after_error": 3, "after_result": (4 + 9 + 10) / 3, "after_text": (1 + 2 + 6 + 7 + 8) / 5}
    assert {k: v for k, v in told.items() if k.startswith("turn/")} == pytest.approx(
        {f"turn/divergence/{what}": mean for what, mean in by_what.items()}
    )
    by_turn = {"1": (1 + 6 + 8) / 3, "2": (2 + 7 + 9) / 3, "3": (3 + 10) / 2, "4": 4, "5-8": 5}
    by_place = {f"turn/{place}": mean for place, mean in by_turn.items()} | {"position/1": 5.5, "position/2-4": 5.5}
    assert {k: v for k, v in told.items() if k.startswith("teacher/")} == pytest.approx(
        {"teacher/entropy": 0.55} | {f"teacher/entropy/{what}": mean / 10 for what, mean in (by_what | by_place).items()}
    )
    assert {k: v for k, v in told.items() if k.startswith("gap/abs/")} == pytest.approx(
        {f"gap/abs/{place}": mean for place, mean in by_place.items()}
    )
    assert (told["gap/position/1"], told["gap/position/2-4"], told["gap/turn/3"]) == pytest.approx((5.5, -5.5, 0))
    assert told["gap/top10_share"] == pytest.approx(20 / 110) and told["gap/top1_share"] == pytest.approx(10 / 110)
    assert told["gap/effective_share"] == pytest.approx(110**2 / (20 * 770))


def test_without_a_tool_or_a_gap_there_is_nothing_to_divide() -> None:
    episodes = [taught(None, None)]
    batch, metrics = played.batch_of(episodes, "turn"), Metrics()
    reporting.signal(metrics, batch, played.view_of(batch, torch.zeros(batch.ids.shape)), episodes)
    told = metrics.compute()
    assert not any("share" in name or "after_" in name for name in told) and set(map(abs, told.values())) == {0.0, 1.0}


def test_tool_calls_are_counted_where_there_is_a_tool() -> None:
    episodes = [taught(None, False, True), taught(None), replace(taught(True), status=Status.TIMEOUT)]
    found = []
    for tools in ((), {""}):
        metrics = Metrics()
        reporting.episodes(metrics, episodes, retrieves=False, tools=tools)
        found.append(metrics.compute().get("rollout/tool_calls"))
    assert found == [None, 1.0]
    calls = ToolCalls()
    calls.update(episodes)
    assert calls.compute() == 1.0 and calls.name == "tool_calls"

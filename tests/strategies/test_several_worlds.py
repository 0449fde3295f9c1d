"""Training in two worlds: one update from the episodes of both, each told and read as its own world has it; goes on bit for bit."""

import json

import pytest
import torch
from near_servers import Servers
from one_step import one_step

from sdar import episodes
from sdar.cli.trainer import planned
from sdar.data import MultiTaskModule, World
from sdar.envs import CompactProtocol, FencedMathProtocol, HouseholdEnv, MathEnv
from sdar.errors import ConfigError, SkillBankError
from sdar.plan.dry_run import rehearse
from sdar.plan.settings import work_of
from sdar.retrievers import NoRetriever, RoutedRetriever, UCBRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, SkillSD, TopKOPD
from sdar.teachers import ExternalTeacher, InitialTeacher, LiveTeacher, RoutedTeacher, StaleTeacher
from sdar.training.checkpoints import RunCheckpoint

FAMILY = ["modular_arithmetic"]


def two(house=None, maths=None, **settings):
    """A household by turns, and problems of mathematics in one conversation with a short answer."""
    envs = {
        "house": World(
            HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=3), **{"protocol": CompactProtocol()} | (house or {})
        ),
        "math": World(
            MathEnv(level="easy", families=FAMILY, horizon=2),
            **{"protocol": FencedMathProtocol(instructions=""), "layout": "trajectory", "max_new_tokens": 4, "group_size": 3}
            | {"val_splits": ["unseen"]} | (maths or {}),
        ),
    }  # fmt: skip
    small = {"tasks_per_step": 2, "group_size": 2, "train_tasks": 10, "val_tasks": 3, "val_splits": ["unseen"]}
    return MultiTaskModule(envs, **small | settings)


def policy(small):
    return small.policy(context=768)


def sampler():
    return TorchSampler(max_new_tokens=6)


def test_one_update_is_made_of_rows_of_both_worlds(small):
    """Each world's episodes have its layout, horizon, length of a response and number of attempts; groups are of one task."""
    seen = one_step(small, small.strategy(GRPO, policy=policy(small), sampler=sampler()), two())
    by_world = {w: [e for e in seen.episodes if e.task.world == w] for w in ("house", "math")}
    assert {w: len(of) for w, of in by_world.items()} == {"house": 2, "math": 3}
    assert all(len(e.turn_messages) == len(e.turns) == 3 for e in by_world["house"])
    assert all(not e.turn_messages and len(t.response_ids) <= 4 for e in by_world["math"] for t in e.turns)
    assert max(len(t.response_ids) for e in by_world["house"] for t in e.turns) == 6
    batch = seen.scored
    assert batch.world.tolist() == [0] * 6 + [1] * 3 and batch.group.tolist() == [0] * 6 + [1] * 3
    tokens = {w: int(batch.response_mask[batch.world == n].sum()) for n, w in enumerate(by_world)}
    for world, count in tokens.items():
        assert seen.metrics[f"train/token_share/{world}"] == pytest.approx(count / sum(tokens.values()))
        assert seen.metrics[f"rollout/episode_length/{world}"] == sum(len(e.turns) for e in by_world[world]) / len(
            by_world[world]
        )
    loss = sum(seen.metrics[f"train/token_share/{w}"] * seen.metrics[f"train/loss/{w}"] for w in by_world)
    assert loss == pytest.approx(seen.metrics["train/loss"], abs=1e-6)
    assert {"success/house/train", "success/math/train", "success/train", "reward/mean/math"} <= seen.metrics.keys()
    assert f"success_by_family/math/train/{FAMILY[0]}" in seen.metrics and "scores/correct/math/train" in seen.metrics


def test_each_world_is_judged_by_its_own_teacher(small):
    """A teacher of other weights for the household, and the policy itself for mathematics, whose gap is then nothing."""
    teacher = RoutedTeacher({"house": ExternalTeacher(small.policy(seed=9, context=768)), "math": LiveTeacher()})
    seen = one_step(small, small.strategy(TopKOPD, policy=policy(small), teacher=teacher, sampler=sampler()), two())
    assert seen.metrics["gap/abs/house"] > 1e-3 and seen.metrics["gap/abs/math"] < 1e-6
    share = seen.metrics["train/token_share/house"]
    assert seen.metrics["gap/abs"] == pytest.approx(share * seen.metrics["gap/abs/house"], rel=1e-4)


@pytest.mark.parametrize("batching", ["mixed", "sequential"])
def test_a_run_in_two_worlds_that_goes_on_ends_as_one_that_never_stopped(small, batching):
    def run(folder, steps, ckpt_path=None):
        routes = {"house": UCBRetriever("conf/skills/quickstart"), "math": NoRetriever()}
        strategy = small.strategy(
            SkillSD, policy=policy(small), sampler=sampler(), retriever=RoutedRetriever(routes),
            teacher=RoutedTeacher({"house": StaleTeacher(2), "math": InitialTeacher()}),
        )  # fmt: skip
        keeps = {"enable_checkpointing": True, "callbacks": [RunCheckpoint(str(small.folder / folder))]}
        small.fit(strategy, steps, data=two(batching=batching), ckpt_path=ckpt_path, **keeps)
        return torch.load(small.folder / folder / "last.ckpt", weights_only=True)

    straight = run("straight", 4)
    run("stopped", 2)
    resumed = run("stopped", 4, small.folder / "stopped" / "last.ckpt")
    assert straight["state_dict"].keys() == resumed["state_dict"].keys() and straight["sdar"]["iteration"] == 4
    assert all(torch.equal(straight["state_dict"][name], value) for name, value in resumed["state_dict"].items())
    assert straight["sdar"]["retriever"] == resumed["sdar"]["retriever"] and [*straight["sdar"]["retriever"]] == ["house"]
    assert [*straight["sdar"]["panels"]] == ["house/train", "house/unseen", "math/train", "math/unseen"]


def test_validation_plays_each_world_s_panels_and_a_mean_over_worlds(small):
    data = two(maths={"val_attempts": 2}, val_means={"worlds": ["house/unseen", "math/unseen"]})
    strategy = small.strategy(GRPO, policy=policy(small), sampler=sampler())
    [numbers] = [
        {k: v for n in found for k, v in n.items()}
        for found in [small.trainer(1, limit_val_batches=1.0).validate(strategy, data, verbose=False)]
    ]
    assert {"success/house/unseen", "success/math/unseen", "pass@2/math/unseen", "success_mean/worlds"} <= numbers.keys()
    assert "pass@2/house/unseen" not in numbers and "scores/correct/math/unseen" in numbers
    lines = [json.loads(line) for line in (small.folder / "validation.jsonl").read_text().splitlines()]
    assert [line.get("panel") for line in lines] == ["house/unseen", "math/unseen", None]
    written = episodes.read(small.folder, where="world == 'math' and panel == 'math/unseen'")
    assert {e.world for e in written} == {"math"} and len(written) == 6


@pytest.mark.parametrize(
    "cls, options, said",
    [
        (SkillSD, {"retriever": UCBRetriever("conf/skills/quickstart")}, r"has a skill for 0 of 10 tasks of this run"),
        (TopKOPD, {"teacher": RoutedTeacher({"house": LiveTeacher()})}, r"in math, for which teacher.routes names no teacher"),
        (
            TopKOPD,
            {"teacher": LiveTeacher(), "span": "action"},
            r"the span is 'action', but responses of FencedMathProtocol hold",
        ),
    ],
    ids=["skills of one world", "teacher of one world", "span of one world"],
)
def test_what_only_one_of_the_worlds_has_is_refused_before_anything_is_loaded(small, cls, options, said):
    with pytest.raises((ConfigError, SkillBankError), match=said):
        small.fit(small.strategy(cls, policy=policy(small), sampler=sampler(), **options), 1, two())


def test_a_plan_is_of_one_world_s_part_of_an_iteration(small):
    data = two(house={"share": 3}, tasks_per_step=4)
    with pytest.raises(ConfigError, match=r"this run has the worlds house, math: .*e.g. --world house. The memory of the run"):
        planned(data, None)
    with pytest.raises(
        ConfigError, match=r"--world is 'mat', and the worlds of this run are house, math. Did you mean 'math'"
    ):
        planned(data, "mat")
    with pytest.raises(ConfigError, match=r"--world is math, and this run has one world"):
        planned(small.data(), "math")
    assert planned(one := small.data(), None) == (one, None)
    maths, alone = planned(data, "math")
    strategy = small.strategy(GRPO, policy=policy(small), sampler=sampler())
    seen, cut = rehearse(strategy, maths, source=alone)
    work = work_of(strategy, maths, 768, seen)
    assert (work.tasks, work.attempts, work.turns, work.response, work.layout) == (1, 3, 2, 4, "trajectory")
    assert seen.turns <= 2 and "data.envs.math.group_size 2 instead of 3" in cut and maths.group_size == 3


def test_the_next_rollout_of_both_worlds_is_played_ahead(small):
    def episodes(ahead):
        played = []
        servers = Servers(policy(small), 0.0)
        strategy = small.strategy(GRPO, policy=policy(small), sampler=servers, rollouts_ahead=ahead, max_mismatch=None)
        collect = strategy.collect
        strategy.collect = lambda step: played.append(collect(step)) or played[-1]
        small.fit(strategy, 3, data=two())
        return [[(e.task.world, e.task.id, e.attempt, len(e.turns[0].response_ids) <= 4) for e in of] for of in played]

    plain, ahead = episodes(0), episodes(1)
    assert [[each[:3] for each in of] for of in ahead] == [[each[:3] for each in of] for of in plain]
    assert all(short for of in ahead for world, _, _, short in of if world == "math")


def test_a_route_to_no_world_of_the_run_is_told(small):
    teacher = RoutedTeacher({"house": LiveTeacher(), "maths": LiveTeacher()}, LiveTeacher())
    with pytest.warns(UserWarning, match=r"teacher.routes names 'maths', which is no world of this run.* Did you mean 'math'"):
        teacher.check_tasks(two().some_tasks())

"""`sdar plan`: parts that do not come with the package are asked as all others."""

import copy
from dataclasses import replace

import pytest
import torch
from planned import fresh, given, tiny_sizes, tokenizer, untrained
from transformers import AutoModelForCausalLM, Qwen3Config

from sdar import plan
from sdar.distributed import FSDP2Strategy
from sdar.errors import ConfigError
from sdar.parts import Blueprint, ModelCopy, Policy
from sdar.plan import settings as plan_settings
from sdar.plan.dry_run import rehearse
from sdar.samplers import ServerSampler
from sdar.strategies import GRPO, HDPO, OPSD
from sdar.teachers import LiveTeacher


class OwnPolicy(Policy):
    """Weights from a place that this package does not know."""

    name = "own/network"

    def __init__(self):
        self.config = Qwen3Config(**tiny_sizes(vocab_size=len(tokenizer()), max_position_embeddings=1024))

    def load_tokenizer(self):
        return tokenizer()

    def load_model(self):
        raise AssertionError("a plan loads no weights")

    def context(self):
        return self.config.max_position_embeddings

    def blueprint(self):
        with torch.device("meta"):
            return Blueprint(AutoModelForCausalLM.from_config(self.config), torch.bfloat16, options={"dtype": "kind"})


class Pair(LiveTeacher):
    """The student of an iteration ago, and another model."""

    def __init__(self, told=2):
        self.told = told

    def prepare(self, live, tokenizer, name):
        self.nets = {"old": copy.deepcopy(live).requires_grad_(False), "other": fresh().load_model().requires_grad_(False)}

    def networks(self):
        return self.nets

    def copies(self):
        return (ModelCopy("the student of before", follows=True), ModelCopy("the other", fresh(), key="other"))[: self.told]


class Halving(ServerSampler):
    """Has an engine on the GPU that trains."""

    engine_share = 0.5


class OnceMore(HDPO):
    """Plays each task that failed `more` times more, whatever the group's size."""

    def __init__(self, more=3, tell=True, **kwargs):
        super().__init__(**kwargs)
        self.more, self.tell = more, tell

    def extra_requests(self, groups):
        return [
            replace(request, attempt=100 + n)
            for request in self.privileged_requests(groups, 1, extra=True)
            for n in range(self.more)
        ]

    def extra_attempts(self, group_size):
        return self.more if self.tell else 0


def test_a_policy_of_somebody_elses_is_planned_and_runs_the_two_steps():
    module, data = untrained(GRPO, policy=OwnPolicy())
    seen, cut = rehearse(module, data)
    assert seen.notes == () and "own/network: 2 layers of width 64, random weights" in cut
    run = plan_settings.describe(module, data, plan.Launch(precision="bf16-true"), seen)
    real = AutoModelForCausalLM.from_config(module.policy.config)
    assert run.policy.architecture.parameters == run.policy.trained == sum(p.numel() for p in real.parameters())
    assert (run.policy.bytes, [n.role for n in run.others]) == (2, ["initial copy"])
    wide = replace(run, policy=replace(run.policy, bytes=4))
    assert "--model.policy.kind bfloat16" in [what for what, _ in plan.changes(wide)]
    assert not any("gradient_checkpointing" in what for what, _ in plan.changes(wide))  # it has no such argument


def test_the_networks_of_a_teacher_of_somebody_elses_are_those_that_it_tells_of():
    module, data = untrained(OPSD, teacher=Pair())
    seen, _ = rehearse(module, data)
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert [(n.role, n.follows, n.trained) for n in run.others] == [
        ("the student of before", True, 0),
        ("the other", False, 0),
    ]
    assert run.others[0].parameters == run.policy.parameters and seen.notes == ()


def test_a_teacher_that_tells_of_too_few_networks_or_of_none_is_named():
    module, data = untrained(OPSD, teacher=Pair(told=1))
    seen, _ = rehearse(module, data)
    assert seen.notes == ("Pair holds 2 networks of its own, and its `copies` tells of 1.",)

    class Silent(LiveTeacher):
        networks = Pair.networks

    module, data = untrained(OPSD, teacher=Silent())
    notes = " ".join(plan_settings.describe(module, data, plan.Launch()).notes)
    assert "Silent has networks of its own that are not counted here: it has no `copies` that tells of them." in notes


def test_an_engine_of_somebody_elses_takes_the_share_that_it_tells():
    module, data = untrained(GRPO)
    module.sampler = module.val_sampler = Halving(["http://127.0.0.1:9"])
    run = plan_settings.describe(module, data, plan.Launch(), expected=plan_settings.Expected(row_tokens=600))
    assert plan.device_memory(run, plan.GPUS["h100"])["rollout"]["the sampling engine"] == 0.5 * 79.1 * plan.GIB


def test_a_strategy_of_somebody_elses_is_planned_as_it_shares():
    class Own(FSDP2Strategy):
        def launch(self):
            return plan.Launch("fsdp", 3, stays=True)

    assert plan_settings.launch_of(given(devices=2), Own()) == plan.Launch("fsdp", 3, 2, stays=True)
    silent = type("Silent", (), {"sharding": None})()
    with pytest.raises(
        ConfigError, match=r"trainer.strategy is Silent, which has no `launch`: how its 2 ranks share a network"
    ):
        plan_settings.launch_of(given(devices=2), silent)


@pytest.mark.parametrize("tell", [True, False])
def test_further_attempts_are_planned_as_told_and_others_are_named(tell):
    module, data = untrained(OnceMore, tell=tell)
    seen, _ = rehearse(module, data)
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert run.work.extra == (9 if tell else 0)
    silent = "OnceMore wanted 3 further episodes for a task with 2 attempts, and its `extra_attempts` says 0: the others are not counted."
    assert seen.notes == (() if tell else (silent,))


def test_hdpo_plays_at_most_as_often_again_as_before():
    module, data = untrained(HDPO, privileged_attempts=20)
    assert plan_settings.work_of(module, data, 512).extra == data.tasks_per_step * data.group_size

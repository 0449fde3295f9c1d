"""`sdar plan`: what an iteration does, against a real run."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from planned import a_run, fresh, retriever, untrained

from sdar import plan
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.lora import LoRAPolicy
from sdar.plan import settings as plan_settings
from sdar.plan.dry_run import rehearse
from sdar.policies import PretrainedPolicy
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, OPSD, BehaviorCloning
from sdar.teachers import EMATeacher, ExternalTeacher, InitialTeacher


class Babbler(TorchSampler):
    """Never ends a turn by itself: it says as much as it may."""

    def bind(self, tokenizer, stop_ids, context):
        super().bind(tokenizer, stop_ids, context)
        self.forbidden_ids = tuple(sorted({*self.forbidden_ids, *stop_ids}))


class Hasty(TorchSampler):
    """Ends most turns at once."""

    def bind(self, tokenizer, stop_ids, context):
        super().bind(tokenizer, stop_ids, context)
        self.forbidden_ids = tuple(i for i in range(self.vocab_size) if i not in stop_ids and i != 300)


def played(folder, strategy=GRPO, layout="trajectory", sampler=Babbler, **kwargs):
    """A real iteration: the module after it, its tasks, and what was counted in it."""
    policy = fresh()
    env = HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=3)
    data = TaskModule(
        env,
        tasks_per_step=3,
        group_size=2,
        train_tasks=6,
        val_tasks=2,
        val_splits=["unseen"],
        protocol=CompactProtocol(),
        layout=layout,
    )
    module = strategy(
        policy=policy, sampler=sampler(max_new_tokens=5), micro_batch_tokens=2048, updates_per_rollout=2, **kwargs
    )
    seen = SimpleNamespace(turns=0, responses=0, episodes=0, rows=0, tokens=0, row=0, scored=0.0, trained=0.0, passes=0)
    make, fit_start = module.rows, module.on_fit_start

    def rows(episodes):
        seen.episodes, seen.turns = len(episodes), sum(len(e.turns) for e in episodes)
        seen.responses = sum(len(t.response_ids) for e in episodes for t in e.turns)
        batch = make(episodes)
        seen.rows, seen.tokens = len(batch), int(batch.attention_mask.sum())
        seen.row = int(batch.attention_mask.sum(1).max())
        seen.scored, seen.trained, seen.passes = 0.0, 0.0, 0
        return batch

    def hooked():
        fit_start()
        for net in module.networks():
            net.base_model.register_forward_pre_hook(count, with_kwargs=True)

    def count(layer, args, told):
        if hasattr(told.get("row_layout"), "tokens_of_rows"):  # the sampler's passes have another
            tokens = float(told["row_layout"].tokens_of_rows)
            seen.trained += tokens * torch.is_grad_enabled()
            seen.scored += tokens * (not torch.is_grad_enabled())
            seen.passes += torch.is_grad_enabled()

    module.rows, module.on_fit_start = rows, hooked
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=2, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, data, seen


@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_the_plans_counts_are_reached_when_every_episode_goes_to_the_horizon(tmp_path, layout):
    module, data, real = played(tmp_path, layout=layout)
    told = plan.counts(a_run(work=plan_settings.work_of(module, data, 512, expected=plan_settings.Expected(real.row))))
    assert (told["episodes"], told["turns"], told["rows"]) == (real.episodes, real.turns, real.rows)
    assert told["response tokens"] == real.responses == 3 * 2 * 3 * 5
    assert told["optimizer steps"] == 2
    assert told["scoring passes over each row"] == 2  # before the update, and the reference
    first = module.updates_per_rollout  # of so many updates one reads its rows itself, in a run of one process
    assert real.scored / real.tokens == pytest.approx(2 - 1 / first, abs=0.05)
    assert real.trained == real.tokens <= told["tokens of rows"]
    assert real.passes <= told["optimizer steps"] * told["micro-batches of each rank and step"]


def test_a_policy_that_stops_earlier_stays_below_the_plans_counts(tmp_path):
    module, data, real = played(tmp_path, sampler=Hasty)
    told = plan.counts(a_run(work=plan_settings.work_of(module, data, 512, expected=plan_settings.Expected(real.row))))
    assert real.responses < told["response tokens"] and real.turns <= told["turns"] and real.tokens <= told["tokens of rows"]


@pytest.mark.parametrize(
    "strategy, settings, passes",
    [
        (GRPO, {"kl_coef": 0.0}, {"policy"}),
        (GRPO, {}, {"policy", "reference"}),
        (OPSD, {"teacher": InitialTeacher()}, {"policy", "teacher"}),
    ],
)
def test_passes_are_those_that_a_rehearsal_makes(strategy, settings, passes):
    module, data = untrained(strategy, **settings)
    seen, cut = rehearse(module, data)
    assert seen.passes == pytest.approx(len(passes)) and seen.sampled
    assert set(plan_settings.work_of(module, data, 512, seen).passes) == passes
    assert "data.tasks_per_step 2 instead of 3" in cut
    assert (data.tasks_per_step, data.env.horizon, module.sampler.max_new_tokens) == (3, 12, 40)  # put back
    assert module.policy.config["hidden_size"] == 32


@pytest.mark.parametrize(("bound", "row"), [(None, 60 + 12 * 40 + 11 * 10), (200, 260), (9000, 650)])
def test_a_bound_on_an_episode_bounds_its_row(bound, row):
    module, data = untrained()
    data.max_episode_tokens = bound
    seen = plan_settings.TextStats(60, 10, 600, 300.0, 12, 0, passes=2.0, splits=False, sampled=True)
    assert plan_settings.work_of(module, data, 1024, seen).row == row


def test_a_method_that_plays_nothing_and_scores_nothing_is_seen_as_such():
    module, data = untrained(BehaviorCloning, retriever=retriever(), informed_share=0.0)
    seen, _ = rehearse(module, data)
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert not run.work.plays and not run.work.passes
    assert "no network plays them" in " ".join(run.notes)
    assert "score" not in {p for p, parts in plan.device_memory(run).items() if "activations" in parts}
    assert plan.seconds(run, plan.GPUS["h100"])["rollout"] == 0.0


def test_networks_are_those_that_a_method_keeps(tiny_policy_dir):
    def roles(strategy, **settings):
        module, data = untrained(strategy, **settings)
        module.policy.bind_env(data.env)
        return [n.role for n in plan_settings.describe(module, data, plan.Launch()).others]

    assert roles(GRPO, kl_coef=0.0) == []
    assert roles(GRPO) == ["initial copy"]
    assert roles(OPSD, teacher=EMATeacher()) == ["EMATeacher's copy"]
    assert roles(OPSD, teacher=ExternalTeacher(PretrainedPolicy(str(tiny_policy_dir)))) == [f"teacher {tiny_policy_dir}"]
    assert roles(GRPO, policy=LoRAPolicy(fresh())) == []  # its adapters are switched off

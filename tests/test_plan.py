"""`sdar plan`: sizes, memory, counts and the two steps before it."""

import copy
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from sdar import plan
from sdar.cli import main
from sdar.data import TaskModule
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy, ZeROStrategy
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import ConfigError, PolicyError
from sdar.lora import LoRAPolicy
from sdar.parts import Blueprint, Draw, ModelCopy, Policy
from sdar.plan import settings as plan_settings
from sdar.plan.dry_run import rehearse, shrunk, tiny
from sdar.policies import FreshPolicy, PretrainedPolicy
from sdar.samplers import ServerSampler, TorchSampler
from sdar.strategies import GRPO, HDPO, OPSD, SDAR, BehaviorCloning
from sdar.teachers import EMATeacher, ExternalTeacher, InitialTeacher, LiveTeacher
from sdar.types import Payload

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
PUBLISHED = {
    "Qwen/Qwen2.5-3B-Instruct": QWEN2
    | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "tie_word_embeddings": True}
    | {"num_attention_heads": 16, "num_key_value_heads": 2},
    "Qwen/Qwen2.5-7B-Instruct": QWEN2
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "tie_word_embeddings": False}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "head_dim": 128}
    | {"num_attention_heads": 16, "num_key_value_heads": 8},
}
SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64, "context": 512}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_policy_dir) -> Path:
    """What ``--configs`` reads: sizes as published, with a small tokenizer beside them, and no weights."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in PUBLISHED.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tiny_policy_dir / file).exists():
                (folder / name / file).write_bytes((tiny_policy_dir / file).read_bytes())
    return folder


@pytest.fixture
def sdar(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(args))
        return code, *capsys.readouterr()

    return run


def files(*names: str) -> list[str]:
    return [part for name in names for part in ("-c", f"conf/{name}.yaml")]


def network(config, **kwargs) -> plan.Network:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = plan_settings.architecture_of(model, "test")
    return plan.Network("policy", sizes, 4, **({"trained": sizes.parameters} | kwargs))


def work(**kwargs) -> plan.Work:
    usual = dict(tasks=4, attempts=8, extra=0, turns=5, response=64, layout="turn", splits=False, row=512, row_mean=300.0)
    usual |= dict(prompt=448, told=0, updates=2, micro_batch=2048, passes={"policy": 1.0})
    return plan.Work(**(usual | kwargs))


def a_run(launch: plan.Launch | None = None, **kwargs) -> plan.Run:
    policy = kwargs.pop("policy", None) or network(Qwen3Config(**tiny_sizes()))
    return plan.Run(policy, kwargs.pop("others", ()), launch or plan.Launch(), kwargs.pop("work", work()), **kwargs)


def tiny_sizes(**kwargs):
    usual = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)
    return usual | dict(vocab_size=100, max_position_embeddings=1024, head_dim=32) | kwargs


@cache
def tokenizer():
    """The world's, made once: it does not depend on the policy's size."""
    return FreshPolicy(HouseholdEnv(), context=1024).load_tokenizer()


def fresh(**kwargs) -> FreshPolicy:
    policy = FreshPolicy(HouseholdEnv(), **(SMALL | kwargs))
    policy._tokenizer = tokenizer()
    return policy


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
    ],
)
def test_parameters_are_those_of_the_model_cards_and_nothing_is_allocated(hub, name, parameters):
    found = plan_settings.located(PretrainedPolicy(name), str(hub)).blueprint()
    model, adapters = found.network, found.adapters
    sizes = plan_settings.architecture_of(model, name)
    assert (sizes.parameters, sizes.active, adapters) == (parameters, parameters, 0)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sizes.tied == PUBLISHED[name]["tie_word_embeddings"]


def test_adapters_are_counted_as_the_trained_model_has_them():
    policy = LoRAPolicy(fresh(), rank=4)
    found = plan_settings.network_of(policy.blueprint(), policy.name, "policy", trains=True)
    trained = [p for p in policy.load_model().parameters() if p.requires_grad]
    assert found.trained == found.adapters == sum(p.numel() for p in trained) == 4 * found.architecture.sides
    assert found.loaded == sum(p.numel() * p.element_size() for p in policy.load_model().parameters())


def test_a_token_passes_through_its_experts_only():
    config = Qwen3MoeConfig(**tiny_sizes(), num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
    sizes = network(config).architecture
    expert = 3 * 64 * 16
    assert sizes.parameters - sizes.active == 2 * 6 * expert  # six of eight in each of two layers are idle
    assert sizes.intermediate == 32


def test_a_hub_that_cannot_be_reached_is_told_with_what_is_enough(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nmore")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    told = (
        r"the sizes of Nobody/Nothing-1B could not be read: .*We couldn't connect.*config.json is enough, no weights are read: put it to "
        r"FOLDER/Nobody/Nothing-1B/config.json .*--configs FOLDER"
    )
    with pytest.raises(PolicyError, match=told):
        plan_settings.located(PretrainedPolicy("Nobody/Nothing-1B"), str(tmp_path)).blueprint()


def test_a_policy_of_an_unknown_kind_is_refused_with_a_way_out():
    class Own(FreshPolicy.__mro__[1]):  # a Policy
        name = "own"
        load_tokenizer = load_model = context = lambda self: None

    with pytest.raises(
        ConfigError, match=r"Own is a policy whose sizes .* cannot tell without loading it: it has no `blueprint`. Give"
    ):
        Own().blueprint()


@pytest.mark.parametrize(
    "make, numbers",
    [
        (lambda p: torch.optim.AdamW(p), 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (lambda p: torch.optim.SGD(p, lr=1.0), 0),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), 1),
    ],
)
def test_the_optimizers_own_numbers_are_found_by_a_step(make, numbers):
    assert plan_settings.optimizer_numbers(make) == numbers


# ------------------------------------------------------------------ memory


def kept_for_backward(model: nn.Module, tokens: int, autocast: bool) -> int:
    """Bytes of the tensors that autograd saves in a forward pass, weights and their casts not among them."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    found = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known and tuple(t.shape) not in weights:
            found[t.untyped_storage().data_ptr()] = t
        return t

    ids = torch.arange(tokens).remainder(90).view(2, -1)
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False),
    ):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(t.untyped_storage().nbytes() for t in found.values())


@pytest.mark.parametrize("config", [Qwen3Config, Qwen2Config])
@pytest.mark.parametrize("dtype, autocast", [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_a_layer_keeps_what_the_formula_says(config, dtype, autocast):
    kept = []
    for layers in (1, 2):
        settings = tiny_sizes(num_hidden_layers=layers) | ({} if config is Qwen3Config else {"head_dim": 16})
        model = AutoModelForCausalLM.from_config(config(**settings), dtype=dtype)
        kept.append(kept_for_backward(model, 400, autocast))
    told = plan.layer_activations(plan_settings.architecture_of(model, "x"), 400, 200, dtype.itemsize, autocast)
    assert kept[1] - kept[0] == pytest.approx(told, rel=0.005)


@pytest.mark.parametrize("autocast", [False, True])
def test_keys_and_values_are_as_large_as_the_samplers(autocast):
    run = a_run(plan.Launch(precision="bf16-mixed" if autocast else "32-true"), work=work(row=98))
    model = AutoModelForCausalLM.from_config(Qwen3Config(**tiny_sizes()))
    sampler = TorchSampler(max_new_tokens=3)
    sampler.bind_ids([1], [], 100, 1024)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        sampler.sample(model, [[5] * 96] * 32, [Draw(0, str(n), 0, 0) for n in range(32)])
    rooms = [r for layer in sampler._caches[0].layers.layers for r in (layer._key_room, layer._value_room)]
    real = sum(r.untyped_storage().nbytes() for r in rooms)
    assert 0.9 * plan.kv_cache(run) <= real <= plan.kv_cache(run)


def test_strategies_divide_what_they_say():
    """3 B trained in bf16-mixed on 8 ranks, in gigabytes worked by hand: 2 bytes of weights, 2 of gradients, 4 + 8 in the optimizer."""
    big = replace_numbers(3_000_000_000)
    expected = {
        ("ddp", 0): {
            "weights: policy": 12,
            "optimizer": 24,
            "gradients": 12,
            "buffers of gradients": 12,
            "the step's own": 12,
        },
        ("zero", 1): {"weights: policy": 6, "optimizer": 3, "float32 weights": 1.5, "gradients": 6, "the step's own": 3},
        ("zero", 2): {"weights: policy": 6, "optimizer": 3, "float32 weights": 1.5, "gradients": 0.75, "the step's own": 3},
        ("zero", 3): {"weights: policy": 0.75, "optimizer": 3, "float32 weights": 1.5, "gradients": 0.75, "the step's own": 3},
        ("fsdp", 3): {"weights: policy": 1.5, "optimizer": 3, "gradients": 1.5, "the step's own": 1.5},
    }
    for (kind, stage), parts in expected.items():
        run = a_run(plan.Launch(kind, stage, 8, 1, "bf16-mixed"), policy=big, work=work(in_process=False))
        step = plan.device_memory(run)["step"]
        assert {what: round(step[what] / 1e9, 6) for what in parts} == parts
        assert set(step) == set(parts)
        start = plan.device_memory(run)["start"]["weights: policy"]
        assert start == (parts["weights: policy"] * 1e9 if stage == 3 else 12e9)  # made whole, as they are loaded
        made = plan.host_memory(run).get("networks at the start, in every process")
        assert made == (8 * 12e9 if stage == 3 else None)  # ZeRO-3 and FSDP2 make them in main memory


def test_fsdp2_gathers_the_head_and_two_layers_in_two_bytes_or_keeps_all_that_a_pass_has_seen():
    big = replace_numbers(1_000_000_000)
    head, layers = big.architecture.head, big.architecture.layers
    shards, whole = (
        plan.device_memory(a_run(plan.Launch("fsdp", 3, 4, 1, "bf16-mixed", stays=stays), policy=big))["update"][
            "gathered layers"
        ]
        for stays in (False, True)
    )
    assert whole == 2e9 and shards == 2 * (head + 2 * (1e9 - 2 * head) / layers)


def replace_numbers(parameters: int) -> plan.Network:
    small = network(Qwen3Config(**tiny_sizes()))
    sizes = replace(small.architecture, parameters=parameters, active=parameters)
    return replace(small, architecture=sizes, trained=parameters)


def test_offload_takes_the_optimizer_and_the_weights_off_the_gpu():
    run = a_run(plan.Launch("zero", 3, 4, 2, "bf16-mixed", True, True), policy=replace_numbers(1_000_000_000))
    sets = plan.device_memory(run)
    assert not {"optimizer", "float32 weights", "weights: policy", "gradients"} & set(sets["step"])
    assert sets["rollout"]["whole policy for sampling"] == 2e9  # sampling needs it whole all the same
    host = plan.host_memory(run)
    assert host["optimizer, float32 weights and gradients"] == 2 / 4 * 16e9 and host["weights"] == 2 / 4 * 2e9


def test_a_frozen_copy_lies_as_the_policy_does_and_a_judge_whole():
    big = replace_numbers(1_000_000_000)
    others = (replace(big, role="initial copy", trained=0), replace(big, role="judge", trained=0, sharded=False))
    sets = plan.device_memory(a_run(plan.Launch("zero", 3, 4, 1, "bf16-mixed"), policy=big, others=others))
    assert sets["score"]["weights: initial copy"] == 0.5e9
    assert sets["score"]["weights: judge"] == 4e9 and "weights: judge" not in sets["start"]


def test_a_checkpoint_is_gathered_without_what_never_changes():
    big = replace_numbers(1_000_000_000)
    copies = [replace(big, role=f"copy {follows}", trained=0, follows=follows) for follows in (False, True)]
    launch = plan.Launch("zero", 3, 4, 1, "bf16-mixed")
    gathered = [
        plan.host_memory(a_run(launch, policy=big, others=others))["a checkpoint while it is gathered, first process"]
        for others in ((), copies[:1], copies)
    ]
    assert gathered == [12e9, 12e9, 14e9]


@pytest.mark.parametrize(("precision", "average"), [("bf16-mixed", 1e9), ("32-true", None)])
def test_a_moving_teacher_has_an_average_in_float32_beside_a_narrow_copy(precision, average):
    big = replace_numbers(1_000_000_000)
    copied = replace(big, role="EMATeacher's copy", trained=0, follows=True, averages=True)
    run = a_run(plan.Launch("zero", 3, 4, 1, precision), policy=big, others=(copied,))
    assert plan.device_memory(run)["step"].get("average of EMATeacher's copy") == average
    gathered = plan.host_memory(run)["a checkpoint while it is gathered, first process"]
    assert gathered == 12e9 + (6e9 if average else 4e9)


def test_checkpointing_keeps_a_layers_input_instead_of_the_layer():
    full, saved = (
        plan.activations(a_run(checkpointing=c, policy=network(Qwen3Config(**tiny_sizes(num_hidden_layers=20)))), 1000)
        for c in (0, 1)
    )
    each = plan.layer_activations(a_run().policy.architecture, 1000, 512, 4, False)
    assert full - saved == 20 * each - 20 * 1000 * 64 * 4
    again = [plan.backward(a_run(checkpointing=c), 1000) for c in (1, 0)]
    assert again[0] - again[1] == each


def test_vllm_takes_its_share_while_episodes_are_played():
    run = a_run(work=work(in_process=False, engine=0.3))
    card = plan.GPUS["h100"]
    sets = plan.device_memory(run, card)
    assert sets["rollout"]["the sampling engine"] == 0.3 * card.memory * plan.GIB
    assert "the sampling engine" not in sets["update"] and "keys and values" not in sets["rollout"]


def test_a_whole_vocabulary_costs_more_logits():
    sampled, top, full = (
        plan.device_memory(a_run(work=work(payload=p.value)))["head"]["logits"]
        for p in (Payload.SAMPLED, Payload.TOP_K, Payload.FULL)
    )
    assert sampled < top < full
    assert "teacher's head" in plan.device_memory(a_run(work=work(payload="full")))["update"]


# ------------------------------------------------------------------ launches


def given(**kwargs):
    return {"devices": "auto", "num_nodes": 1, "precision": None} | kwargs


def test_a_launch_is_read_off_the_trainers_settings():
    assert plan_settings.launch_of(given(), "auto") == plan.Launch(counted=True)
    assert plan_settings.launch_of(given(devices=4, num_nodes=2, precision="bf16-mixed"), ReplicatedStrategy()) == plan.Launch(
        "ddp", 0, 8, 2, "bf16-mixed"
    )
    assert plan_settings.launch_of(given(devices="0,2", precision=16), ReplicatedStrategy()).ranks == 2
    assert plan_settings.launch_of(given(devices=4), FSDP2Strategy(reshard_after_forward=False)) == plan.Launch(
        "fsdp", 3, 4, stays=True
    )
    found = plan_settings.launch_of(
        given(devices=8, precision="bf16-true"), ZeROStrategy(stage=3, offload_optimizer=True, offload_parameters=True)
    )
    assert found == plan.Launch("zero", 3, 8, 1, "bf16-true", True, True)
    assert found.half and not found.autocast
    with pytest.raises(ConfigError, match=r"trainer.strategy is fsdp with 2 processes: .*several backward passes.*Use ddp"):
        plan_settings.launch_of(given(devices=2), "fsdp")


def test_weights_have_the_bytes_that_the_precision_gives_them():
    def size(kind, precision, loaded=4):
        run = a_run(plan.Launch(kind, 2, 2, 1, precision))
        return plan.stored(run, replace(run.policy, bytes=loaded))

    assert [size("ddp", p) for p in ("32-true", "bf16-mixed", "bf16-true")] == [4, 4, 2]
    assert [size("zero", p) for p in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")] == [4, 2, 2, 2]
    assert size("ddp", "bf16-mixed", loaded=2) == 2


# ------------------------------------------------------------------ counts, against a real run


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
        if not told.get("use_cache"):
            tokens = float(told["attention_mask"].sum())
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
    assert told["scoring passes over each row"] == real.scored / real.tokens == 2  # before the update, and the reference
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


def untrained(strategy=GRPO, **settings):
    env = HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=12)
    data = TaskModule(
        env,
        tasks_per_step=3,
        train_tasks=6,
        val_tasks=2,
        val_splits=["unseen"],
        protocol=CompactProtocol(),
        layout="trajectory",
    )
    policy = settings.pop("policy", None) or fresh(context=1024)
    return strategy(policy=policy, sampler=TorchSampler(max_new_tokens=40), **settings), data


def test_a_method_that_plays_nothing_and_scores_nothing_is_seen_as_such():
    module, data = untrained(BehaviorCloning, retriever=retriever(), informed_share=0.0)
    seen, _ = rehearse(module, data)
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert not run.work.plays and not run.work.passes
    assert "no network plays them" in " ".join(run.notes)
    assert "score" not in {p for p, parts in plan.device_memory(run).items() if "activations" in parts}
    assert plan.seconds(run, plan.GPUS["h100"])["rollout"] == 0.0


def retriever():
    from sdar.retrievers import NoRetriever

    return NoRetriever()


def test_networks_are_those_that_a_method_keeps(tiny_policy_dir):
    def roles(strategy, **settings):
        module, data = untrained(strategy, **settings)
        module.policy.meet(data.env)
        return [n.role for n in plan_settings.describe(module, data, plan.Launch()).others]

    assert roles(GRPO, kl_coef=0.0) == []
    assert roles(GRPO) == ["initial copy"]
    assert roles(OPSD, teacher=EMATeacher()) == ["EMATeacher's copy"]
    assert roles(OPSD, teacher=ExternalTeacher(PretrainedPolicy(str(tiny_policy_dir)))) == [f"teacher {tiny_policy_dir}"]
    assert roles(GRPO, policy=LoRAPolicy(fresh())) == []  # its adapters are switched off


# ------------------------------------------------------------------ parts of somebody else


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
            for request in self.informed_requests(groups, 1, extra=True)
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
    assert run.others[0].numbers == run.policy.numbers and seen.notes == ()


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


# ------------------------------------------------------------------ tiny models


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tiny_model_has_the_architecture_the_tokenizer_and_the_context(hub, name, tmp_path):
    small = tiny(plan_settings.located(PretrainedPolicy(name, gradient_checkpointing=True), str(hub)), tmp_path, [])
    model, real = small.load_model(), plan_settings.located(PretrainedPolicy(name), str(hub)).blueprint().network
    assert type(model) is type(real)
    assert sum(p.numel() for p in model.parameters()) < 300_000
    assert model.get_output_embeddings().weight.shape[0] == len(small.load_tokenizer())
    assert small.context() == PUBLISHED[name]["max_position_embeddings"] and small.name == name
    assert model.config.tie_word_embeddings == PUBLISHED[name]["tie_word_embeddings"]
    groups = PUBLISHED[name]["num_attention_heads"] // PUBLISHED[name]["num_key_value_heads"]
    assert model.config.num_attention_heads // model.config.num_key_value_heads == min(groups, 4)


def test_layers_of_every_kind_and_experts_are_kept():
    config = Qwen3MoeConfig(**tiny_sizes(num_hidden_layers=6), num_experts=16, num_experts_per_tok=8, moe_intermediate_size=96)
    small = shrunk(config, 50)
    assert (small.num_experts, small.num_experts_per_tok, small.moe_intermediate_size, small.num_hidden_layers) == (
        4,
        2,
        32,
        2,
    )
    model = AutoModelForCausalLM.from_config(small)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 50)


# ------------------------------------------------------------------ the command


ALFWORLD = files("env/alfworld", "method/sdar", "policy/qwen2.5-3b", "scale/8gpu_zero2")


def test_the_command_plans_a_run_for_eight_gpus_where_there_is_none(sdar, hub, tmp_path):
    code, out, _ = sdar(
        "plan", *ALFWORLD, "--configs", str(hub), "--json", "plan.json", "--data.train_tasks", "8", "--data.val_tasks", "2"
    )
    assert code == 0
    assert "two steps with tiny models on the CPU: no mistake" in out and "data.env.horizon 5 instead of 50" in out
    assert "8 rank(s) on 1 node(s), ZeRO-2, bf16-mixed" in out
    assert "Qwen2ForCausalLM, 3.09 B parameters, 3.09 B trained; 36 layers" in out
    assert re.search(r"^  weights: initial copy +11.50( +5.75){5}$", out, re.MULTILINE)
    assert re.search(r"^fits: [\d.]+ GiB in the \w+ phase of 79.1 GiB \(h100\), [\d.]+ GiB are left.$", out, re.MULTILINE)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["counts"]["episodes"] == 128 and found["counts"]["turns"] == 6400
    assert found["run"]["work"]["passes"] == {"policy": 1.0, "reference": 1.0, "teacher": 1.0}
    assert found["run"]["work"]["told"] > 0  # the teacher's skills
    assert found["fits"] and sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]  # and nothing else is left


def test_what_does_not_fit_is_told_with_settings_that_make_it_fit(sdar, hub):
    args = ["--configs", str(hub), "--dry_run", "false", "--row_tokens", "4096"]
    one = files("env/alfworld", "method/sdar", "policy/qwen2.5-3b", "scale/1gpu")
    code, out, _ = sdar("plan", *one, *args, "--gpu", "rtx4090", "--model.policy.gradient_checkpointing", "false")
    assert code == 0
    assert re.search(r"does not fit: [\d.]+ GiB in the \w+ phase of 23.5 GiB \(rtx4090\), [\d.]+ GiB too much", out)
    advised = re.findall(r"^ +[\d.]+ GiB  (fits|not enough alone) +(.*)$", out, re.MULTILINE)
    assert {"--model.policy.gradient_checkpointing true", "LoRAPolicy (conf/policy/qwen3-1.7b_lora.yaml), rank 64"} <= {
        w for _, w in advised
    }
    assert "fits" in {verdict for verdict, _ in advised}
    for _, what in advised:  # each is something that `fit` takes
        options = [
            word
            for word in re.sub(r"\(.*?\)|and|on other GPUs|LoRAPolicy.*", "", what).split()
            if word not in ("a", "smaller")
        ]
        if "--model.sampler" in options:
            options += ["--model.sampler.urls", "[http://127.0.0.1:1]"]
        if options and "--data.val_batch" not in options:
            assert sdar("fit", *one, *options, "--print_config")[0] == 0, what


@pytest.mark.parametrize(
    "args, message",
    [
        (["--gpu", "h10"], "--gpu h10: not in the table. Did you mean 'h100'? Known: a100-40"),
        (["--ranks", "0"], "--ranks is 0: a run has at least 1."),
        (["--ranks", "2", "--nodes", "4"], "--ranks 2 on --nodes 4: each node has at least 1 rank."),
        (["--turns", "99"], "--turns is 99: a mean lies above 0 and is at most 12, which data.env.horizon allows."),
        (
            ["--response_tokens", "13"],
            "--response_tokens is 13: a mean lies above 0 and is at most 12, which model.sampler.max_new_tokens",
        ),
        (
            ["--row_tokens", "4096"],
            "--row_tokens is 4096: a row holds a prompt and a response of up to 12 tokens, and fits the context of 1024.",
        ),
        (["--json", "nowhere/plan.json"], "--json nowhere/plan.json: there is no folder nowhere. Make it"),
        (["--trainer.strategy", "fsdp", "--trainer.devices", "2"], "trainer.strategy is fsdp, torch's first FSDP"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_run(sdar, args, message):
    code, _, err = sdar("plan", *files("quickstart/sdar"), *args)
    assert code == 2
    assert message in err and "Traceback" not in err


def test_a_mistake_of_the_settings_ends_with_the_message_of_fit(sdar):
    """Each appears when a run has begun, and not when its settings are read."""
    small = ["--trainer.limit_val_batches", "0", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    for wrong in (
        ["--model.retriever", "null"],
        ["--data.env.receptacles", "6", "--model.sampler.forbid", "[nothing_of_this_name]"],
    ):
        told = []
        for command in ("plan", "fit"):
            code, _, err = sdar(command, *files("quickstart/sdar"), *wrong, *(small if command == "fit" else []))
            assert code == 2
            told.append(next(line for line in err.splitlines() if line.startswith("error: ")))
        assert told[0] == told[1]


def test_ranks_and_means_can_be_given(sdar):
    args = [
        "--dry_run",
        "false",
        "--ranks",
        "16",
        "--nodes",
        "4",
        "--turns",
        "6",
        "--response_tokens",
        "8",
        "--row_tokens",
        "200",
    ]
    code, out, _ = sdar("plan", *files("quickstart/sdar"), *args, "--gpu", "l40s")
    assert code == 0
    assert "16 rank(s) on 4 node(s), ddp, 32-true" in out and "GiB in the main memory of each node (4 process(es))" in out
    assert re.search(r"^  response tokens +3,072$", out, re.MULTILINE)  # 64 episodes x 6 turns x 8
    assert "two steps" not in out and "every row is taken to have 200 tokens" in out


def test_samplers_with_an_engine_of_their_own_are_rehearsed_in_process():
    module, data = untrained(GRPO, kl_coef=0.0)
    module.sampler = module.val_sampler = ServerSampler(["http://127.0.0.1:9"], max_new_tokens=8)
    seen, cut = rehearse(module, data)
    assert seen.sampled and "model.sampler: TorchSampler instead of ServerSampler" in cut
    run = plan_settings.describe(module, data, plan.Launch(), seen)
    assert isinstance(module.sampler, ServerSampler) and not run.work.in_process
    assert "keys and values" not in plan.device_memory(run)["rollout"]


def test_skills_make_the_teachers_rows_longer():
    from sdar.retrievers import KeywordRetriever

    module, data = untrained(SDAR, retriever=KeywordRetriever("conf/skills/quickstart"))
    seen, _ = rehearse(module, data)
    assert seen.told > 0


# ------------------------------------------------------------------ the page


PAGE = Path(__file__).parents[1].joinpath("docs", "scaling.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].split()
    for line in re.sub(r"\\\n\s*", " ", PAGE).splitlines()
    if re.match(r" {4}(srun |torchrun .*-m )?sdar (fit|plan) ", line)
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_of_the_page_parse(sdar, words):
    assert sdar(*words[words.index("sdar") + 1 :], "--print_config")[0] == 0


def test_the_page_names_what_exists():
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`((?:conf|docs|sdar|benchmarks)/[\w./-]+\w)`", PAGE)) | {
        f"docs/{p}" for p in re.findall(r"\]\((\w+\.md)\)", PAGE)
    }
    assert len(COMMANDS) >= 6 and [path for path in sorted(named) if not (root / path).exists()] == []
    assert all(f"`{name}`" in PAGE for name in plan.GPUS)

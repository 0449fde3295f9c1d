"""`sdar plan`: memory of a rank in each phase."""

from dataclasses import replace

import pytest
import torch
from planned import a_run, network, tiny_sizes, work
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from sdar import plan
from sdar.parts import SampleKey
from sdar.plan import settings as plan_settings
from sdar.samplers import TorchSampler
from sdar.types import TeacherSignal


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
        sampler.sample(model, [[5] * 96] * 32, [SampleKey(0, str(n), 0, 0) for n in range(32)])
    real = sum(buffer.untyped_storage().nbytes() for buffer in sampler._slots[1].buffers())
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
        plan.device_memory(a_run(work=work(teacher_signal=p.value)))["head"]["logits"]
        for p in (TeacherSignal.SAMPLED, TeacherSignal.TOP_K, TeacherSignal.FULL)
    )
    assert sampled < top < full
    assert "teacher's head" in plan.device_memory(a_run(work=work(teacher_signal="full")))["update"]

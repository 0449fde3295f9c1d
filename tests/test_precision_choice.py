"""The number formats that a run has where nobody chose them: what is trained in float32, the rest as it is stored and multiplied here."""

from types import SimpleNamespace

import pytest
import torch

from sdar.cli.run import AgentCLI
from sdar.lora import LoRAPolicy
from sdar.paths import resolve
from sdar.plan.memory import adapter_bytes, kept
from sdar.plan.run import Launch
from sdar.plan.settings import network_of
from sdar.policies import PretrainedPolicy
from sdar.precision import bfloat16_unit, placed_on
from sdar.training.probe import number_format

STORED = str(resolve("conf/quickstart/policy"))
"""In bfloat16, like nearly all that is published."""


@pytest.fixture(params=["AVX512_BF16", None])
def unit(request, monkeypatch):
    """A device that multiplies bfloat16, or one that does not; nothing is too small for it."""
    monkeypatch.setattr("sdar.policies.SMALL", 0)
    monkeypatch.setattr("sdar.policies.bfloat16_unit", lambda *_: request.param)
    return request.param


def types(model, trained):
    return {p.dtype for p in model.parameters() if p.requires_grad == trained}


@pytest.mark.parametrize(
    ("told", "unit"),
    [({"amx_bf16": True, "avx512_bf16": True}, "AMX"), ({"avx512_bf16": True}, "AVX512_BF16"), ({"bf16": True}, "bf16 of Arm"),
     ({"avx512_f": True, "amx_bf16": False}, None)],
)  # fmt: skip
def test_a_processor_is_asked_for_its_instructions(monkeypatch, told, unit):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert bfloat16_unit(torch.device("cpu")) == unit


@pytest.mark.parametrize(
    ("capability", "unit"), [((7, 5), None), ((8, 0), "compute capability 8.0"), ((9, 0), "compute capability 9.0")]
)
def test_a_gpu_is_asked_for_its_generation(monkeypatch, capability, unit):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_unit(torch.device("cuda", 0)) == unit
    with placed_on(torch.device("cuda", 0)):
        assert bfloat16_unit() == unit
    assert bfloat16_unit(torch.device("meta")) is None


def test_weights_below_adapters_are_held_as_they_are_stored_where_the_device_multiplies_that(unit, caplog):
    with caplog.at_level("INFO"):
        model = LoRAPolicy(PretrainedPolicy(STORED), rank=2).load_model()
    assert types(model, trained=False) == {torch.bfloat16 if unit else torch.float32}
    assert types(model, trained=True) == {torch.float32}
    assert (
        "held in bfloat16, as they are stored (AVX512_BF16); its dtype" if unit else "held in float32, as this device"
    ) in caplog.text


def test_all_weights_are_trained_in_float32_and_multiplied_in_bfloat16(unit, caplog):
    policy = PretrainedPolicy(STORED)
    assert types(policy.load_model(), trained=True) == {torch.float32}
    assert policy.precision(True) == "bf16-mixed" and policy.precision(False) is None
    assert LoRAPolicy(policy, rank=2).precision(True) is None


def test_the_command_picks_the_precision_that_a_policy_wants_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr("sdar.policies.SMALL", 0)
    monkeypatch.setattr("sdar.cli.run.bfloat16_unit", lambda device: "AMX")
    command = SimpleNamespace(subcommand="fit", model=SimpleNamespace(policy=PretrainedPolicy(STORED)))
    with caplog.at_level("INFO"):
        assert AgentCLI._precision(command, "cpu") == "bf16-mixed"
    assert (
        "trainer.precision is bf16-mixed, as nobody said: weights and optimizer in float32" in caplog.text
        and "(AMX)" in caplog.text
    )
    command.model.policy = PretrainedPolicy(STORED, dtype="float32")
    assert AgentCLI._precision(command, "cpu") is None


def test_settings_win_and_so_does_a_file_in_another_format(unit, tiny_policy_dir):
    for path, dtype in ((STORED, "float32"), (STORED, "bfloat16"), (str(tiny_policy_dir), "auto")):
        policy = PretrainedPolicy(path, dtype=dtype)
        wanted = {torch.bfloat16 if dtype == "bfloat16" else torch.float32}
        assert types(policy.load_frozen(), trained=False) == types(policy.load_model(), trained=True) == wanted
        assert policy.precision(True) is None


def test_a_small_policy_is_left_in_float32(monkeypatch):
    monkeypatch.setattr("sdar.policies.bfloat16_unit", lambda *_: "AMX")
    policy = PretrainedPolicy(STORED)
    assert types(policy.load_frozen(), trained=False) == {torch.float32} and policy.precision(True) is None


def test_the_planner_counts_what_is_loaded(monkeypatch):
    monkeypatch.setattr("sdar.policies.SMALL", 0)
    policy = PretrainedPolicy(STORED)
    blueprints = (policy.blueprint(), True), (policy.blueprint(), False), (LoRAPolicy(policy, rank=2).blueprint(), True)
    assert [network_of(b, "x", "policy", trains=trains).bytes for b, trains in blueprints] == [4, 2, 2]


@pytest.mark.parametrize(
    ("kind", "precision", "adapters", "below"),
    [("one", "bf16-true", 4, 2), ("ddp", "32-true", 4, 2), ("zero", "bf16-mixed", 2, 2), ("zero", "32-true", 4, 4)],
)
def test_the_planner_knows_who_casts_what(kind, precision, adapters, below):
    run = SimpleNamespace(launch=Launch(kind, precision=precision))
    assert (adapter_bytes(run), kept(run, SimpleNamespace(sharded=True, bytes=2))) == (adapters, below)


# ------------------------------------------------------------------ adapters


def test_adapters_stay_in_float32_when_their_network_is_cast(tiny_policy_dir):
    model = LoRAPolicy(PretrainedPolicy(str(tiny_policy_dir)), rank=2).load_model()
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    model.to(torch.bfloat16)
    assert types(model, trained=False) == {torch.bfloat16} and types(model, trained=True) == {torch.float32}
    assert all(map(torch.equal, before, (p for p in model.parameters() if p.requires_grad)))
    model.to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}


# ------------------------------------------------------------------ sampler and trainer


@pytest.mark.parametrize(
    ("weights", "autocast", "engine", "wanted"),
    [(torch.float32, None, None, torch.float32), (torch.bfloat16, None, None, torch.bfloat16),
     (torch.float32, torch.bfloat16, None, torch.bfloat16), (torch.float32, None, "float32", torch.float32),
     (torch.float32, None, "auto", torch.bfloat16), (torch.float32, None, "float16", torch.float16)],
)  # fmt: skip
def test_the_narrowest_format_of_sampler_and_trainer_decides_what_is_ordinary(weights, autocast, engine, wanted):
    model = torch.nn.Linear(2, 2, dtype=weights)
    plugin = SimpleNamespace(
        train_step_context=lambda: torch.autocast("cpu", autocast or torch.bfloat16, autocast is not None)
    )
    sampler = SimpleNamespace(own_engine=engine is not None, dtype=engine)
    module = SimpleNamespace(
        model=model, sampler=sampler, device=torch.device("cpu"), trainer=SimpleNamespace(precision_plugin=plugin)
    )
    assert number_format(module) == wanted

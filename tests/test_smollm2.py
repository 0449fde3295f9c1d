"""A pretrained chat model, whole: SmolLM2-135M-Instruct plays, learns, goes on, and is written as others load it."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from smollm2 import smollm2_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar.cli.trainer import AgentTrainer
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.lora import LoRAPolicy
from sdar.policies import PretrainedPolicy
from sdar.precision import bfloat16_unit
from sdar.retrievers import FactRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import SDAR
from sdar.teachers import InitialTeacher

pytestmark = pytest.mark.slow

WORLD = {"world": 5, "receptacles": 6, "distractors": 2, "horizon": 2}


@pytest.fixture(scope="module")
def folder():
    return smollm2_folder()


def policy_of(kind, folder, **options):
    base = PretrainedPolicy(folder)
    return LoRAPolicy(base, **({"rank": 4} | options)) if kind == "lora" else base


def strategy_of(kind, folder):
    optimizer = partial(torch.optim.AdamW, lr=1e-3 if kind == "lora" else 1e-5)
    return SDAR(
        policy=policy_of(kind, folder), sampler=TorchSampler(max_new_tokens=6), optimizer=optimizer, retriever=FactRetriever(),
        teacher=InitialTeacher(), distill_coef=1.0, micro_batch_tokens=2048, log_episodes_every=0,
    )  # fmt: skip


def fit(tmp_path, kind, folder, steps, ckpt_path=None, **kwargs):
    data = TaskModule(
        HouseholdEnv(**WORLD), tasks_per_step=1, group_size=2, train_tasks=8, val_tasks=2, val_splits=["unseen"],
        protocol=CompactProtocol(), layout="trajectory",
    )  # fmt: skip
    strategy = strategy_of(kind, folder)
    precision = strategy.policy.precision(bfloat16_unit(torch.device("cpu")) is not None)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, limit_val_batches=0, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, precision=precision,
        enable_checkpointing=bool(kwargs.get("callbacks")), **kwargs,
    )  # fmt: skip
    trainer.fit(strategy, data, ckpt_path=ckpt_path)
    return strategy, trainer


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, folder, tmp_path_factory):
    """Two iterations in one go, and a checkpoint after the first."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PL_GLOBAL_SEED", "1")
        fit(tmp_path, request.param, folder, 1, callbacks=[ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)])
        strategy, trainer = fit(tmp_path, request.param, folder, 2)
    return request.param, tmp_path, strategy, trainer


def test_what_learns_moves_in_float32_and_what_lies_below_stays_as_it_is_stored(trained, folder):
    kind, _, strategy, trainer = trained
    narrow = torch.bfloat16 if bfloat16_unit(torch.device("cpu")) else torch.float32
    learning = {p.dtype for p in strategy.model.parameters() if p.requires_grad}
    below = {p.dtype for p in strategy.model.parameters() if not p.requires_grad}
    state = {v.dtype for s in trainer.optimizers[0].state.values() for v in s.values() if v.numel() > 1}
    assert (learning, below, state) == ({torch.float32}, {narrow} if kind == "lora" else set(), {torch.float32})
    before = policy_of(kind, folder).load_model().state_dict()
    moved = {name: not torch.equal(t, before[name]) for name, t in strategy.model.state_dict().items()}
    assert all(was == (kind == "full" or ".lora_" in name) for name, was in moved.items())
    assert 0 < trainer.callback_metrics["rollout/mismatch"] < 0.1


def test_it_goes_on_as_if_it_had_not_stopped(trained, folder, monkeypatch):
    kind, tmp_path, straight, _ = trained
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    resumed, _ = fit(tmp_path, kind, folder, 2, ckpt_path=tmp_path / "last.ckpt")
    expected = straight.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in resumed.model.state_dict().items())


@torch.no_grad()
def greedy(model, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three fruits."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.eval().generate(**told, max_new_tokens=12, do_sample=False)
    return out[0, told["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("trained", ["lora"], indirect=True)
def test_it_is_written_merged_and_as_an_adapter_that_peft_loads(trained, folder):
    _, tmp_path, _, _ = trained
    data, run = TaskModule(HouseholdEnv(**WORLD)), AgentTrainer(logger=False, accelerator="cpu")
    for name, adapter in (("merged", False), ("adapter", True)):
        run.export(strategy_of("lora", folder), data, str(tmp_path / "last.ckpt"), str(tmp_path / name), "float32", adapter)
    assert os.path.getsize(tmp_path / "adapter/adapter_model.safetensors") < 12e6
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 4
    plain = partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    said = greedy(plain(str(tmp_path / "merged")), folder)
    assert said == greedy(PeftModel.from_pretrained(plain(folder), str(tmp_path / "adapter")), folder)
    assert said == greedy(policy_of("lora", folder, rank=None, adapter=str(tmp_path / "adapter")).load_model().float(), folder)
    assert "Apple" in AutoTokenizer.from_pretrained(folder).decode(said) or len(said) == 12


LOADING = """
import sys, torch
import sdar.lora_linear, transformers.models.llama.modeling_llama
from sdar.lora import LoRAPolicy
from sdar.policies import PretrainedPolicy
def kilobytes(*names):
    found = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(found[name].split()[0]) for name in names)
kind, folder, dtype = sys.argv[1:]
base = PretrainedPolicy(folder, dtype=dtype)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
policy = LoRAPolicy(base) if kind == "lora" else base
model = policy.load_model()
frozen = policy.frozen(model) if kind == "lora" else None
weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
print((kilobytes("VmHWM") - before) / weights)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process what it held at most")
@pytest.mark.parametrize(("kind", "dtype", "most"), [("lora", "auto", 1.5), ("full", "bfloat16", 1.5), ("full", "auto", 1.6)])
def test_loading_takes_little_more_than_the_weights(folder, kind, dtype, most):
    """The pages of the file itself, which the system drops when it needs memory, are half of what float32 weights take."""
    done = subprocess.run([sys.executable, "-c", LOADING, kind, folder, dtype], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < most

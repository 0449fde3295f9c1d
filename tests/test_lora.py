"""Adapters on a policy: what learns, what stays, and the frozen model that is the same model."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from sdar.cli.trainer import AgentTrainer
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import CheckpointError, ConfigError
from sdar.lora import LearningDropout, LoRAPolicy, WithoutAdapters, adapted, plain_weights
from sdar.parts import SampleKey, SharedWeights
from sdar.policies import FreshPolicy, PretrainedPolicy
from sdar.registry import parts
from sdar.retrievers import FactRetriever
from sdar.samplers import TorchSampler
from sdar.scoring import Scorer
from sdar.strategies import GRPO, SDAR
from sdar.teachers import EMATeacher, ExternalTeacher, InitialTeacher
from sdar.training.checkpoints import fingerprints
from sdar.training.export import write_policy
from sdar.types import Task

WORLD = {"world": 5, "receptacles": 6, "distractors": 2, "horizon": 3}
IDS = torch.tensor([[270, 300, 281, 290, 301, 7, 264, 299], [299, 270, 265, 281, 300, 280, 0, 0]])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
SAID = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1, 0, 0]]).bool()


@pytest.fixture
def base(tiny_policy_dir):
    return PretrainedPolicy(str(tiny_policy_dir))


def taught(model, seed=3):
    """The model with adapters that say something."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted(model):
        weight = layer.lora_B["default"].weight
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=MASK).logits


def scores(model):
    return Scorer(1.0, (0,), 437).score(model, IDS, MASK, SAID, 1000)


# ------------------------------------------------------------------ what learns


def test_only_adapters_learn_and_training_starts_from_the_base(base):
    policy = LoRAPolicy(base, rank=3, alpha=6)
    model, plain = policy.load_model(), base.load_model()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 7 * 2 and all(".lora_" in name for name in learning)  # A and B, seven layers in two blocks
    assert sum(p.numel() for p in learning.values()) == 2 * 3 * (4 * (32 + 32) + 3 * (32 + 64))
    assert torch.equal(logits(model), logits(plain)) and not torch.equal(logits(taught(model)), logits(plain))
    assert type(model) is type(plain) and model.training
    assert (policy.name, policy.context(), policy.chat_options) == (base.name, 512, base.chat_options)
    assert policy.load_tokenizer().get_vocab() == base.load_tokenizer().get_vocab()
    assert parts("policies")["lora"] is LoRAPolicy


def test_a_seed_decides_the_first_adapters_and_nothing_else_does(base):
    def made(seed):
        return [layer.lora_A["default"].weight for _, layer in adapted(LoRAPolicy(base, rank=2, seed=seed).load_model())]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = made(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert all(map(torch.equal, first, made(1))) and not any(map(torch.equal, first, made(2)))


def test_chosen_layers_get_adapters(base):
    model = LoRAPolicy(base, rank=2, target_modules=["q_proj", "down_proj"]).load_model()
    assert {name.rpartition(".")[2] for name, _ in adapted(model)} == {"q_proj", "down_proj"}
    assert len(list(adapted(model))) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_in_float32_whatever_the_base_is_in(tiny_policy_dir, dtype):
    model = LoRAPolicy(PretrainedPolicy(str(tiny_policy_dir), dtype=dtype), rank=2).load_model()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
    assert logits(taught(model)).dtype == getattr(torch, dtype)


def test_a_gradient_reaches_every_adapter(base):
    model = taught(LoRAPolicy(base, rank=2).load_model())
    Scorer(1.0, (0,), 437)(model, IDS, MASK, SAID).logp.sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == p.requires_grad, name


def test_what_is_scored_or_sampled_is_never_dropped(base):
    still, dropping = (taught(LoRAPolicy(base, rank=2, dropout=d).load_model()) for d in (0.0, 0.5))
    assert dropping.training
    assert torch.equal(scores(dropping).logp, scores(still).logp)
    torch.manual_seed(0)
    learned = [Scorer(1.0, (0,), 437)(m, IDS, MASK, SAID).logp for m in (dropping, dropping, still, still)]
    assert not torch.equal(learned[0], learned[1]) and torch.equal(learned[2], learned[3])
    assert torch.equal(learned[2], scores(still).logp)
    sampler = TorchSampler(max_new_tokens=8)
    sampler.bind(base.load_tokenizer(), [1], 512)
    said = [sampler.sample(m, [[270, 300]], [SampleKey(0, "t", 0, 0)])[0] for m in (dropping, still)]
    assert said[0] == said[1] and dropping.training


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, requires_grad=True)
    assert LearningDropout(0.25)(x).mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(LearningDropout(0.25).eval()(x), x)


# ------------------------------------------------------------------ the frozen model


def test_the_frozen_model_is_the_base_without_a_copy_of_it(base):
    policy = LoRAPolicy(base, rank=2, dropout=0.5)
    model, plain = policy.load_model(), base.load_model().eval()
    frozen = policy.frozen(model)
    taught(model)
    assert torch.equal(logits(frozen), logits(plain))
    for name in ("logp", "entropy", "allowed_logmass"):
        assert torch.equal(getattr(scores(frozen), name), getattr(scores(plain), name))
    assert not torch.equal(scores(model).logp, scores(plain).logp)  # and its adapters are on again
    assert frozen.state_dict() == {} and list(frozen.modules()) == [frozen] and list(frozen.named_parameters()) == []
    assert next(frozen.parameters()) is next(model.parameters()) and frozen.device == model.device
    Scorer(1.0, (0,), 437).check(frozen)
    sampler = TorchSampler(max_new_tokens=8)
    sampler.bind(base.load_tokenizer(), [1], 512)
    said = [
        sampler.sample(m, [[270, 300], [281]], [SampleKey(0, "t", i, 0) for i in range(2)]) for m in (frozen, plain, model)
    ]
    for a, b, c in zip(*said, strict=True):
        assert a.ids == b.ids != c.ids
        assert a.behaviour_logp == pytest.approx(b.behaviour_logp, abs=1e-6) and a.kept_logmass != c.kept_logmass


@pytest.mark.parametrize("training", [True, False])
def test_the_frozen_model_leaves_the_mode_and_the_gradients_as_they_were(base, training):
    policy = LoRAPolicy(base, rank=2)
    model = taught(policy.load_model()).train(training)
    frozen = policy.frozen(model)
    learning = [p.requires_grad for p in model.parameters()]
    Scorer(1.0, (0,), 437).score(frozen, IDS, MASK, SAID, 1000)
    assert not frozen(input_ids=IDS).logits.requires_grad
    with pytest.raises(ValueError, match="input_ids"):
        frozen(no_such_argument=1)
    assert all(m.training is training for m in model.modules()) and frozen.training is training
    assert [p.requires_grad for p in model.parameters()] == learning and any(learning)
    assert model(input_ids=IDS).logits.requires_grad
    assert not torch.equal(logits(frozen), logits(model))
    frozen.eval()
    assert not model.training and frozen.train().training and model.training


def test_other_policies_are_frozen_as_a_copy(base):
    model = base.load_model()
    frozen = base.frozen(model)
    before = logits(model)
    with torch.no_grad():
        model.model.norm.weight += 1
    assert torch.equal(logits(frozen), before) and not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training and all(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------ out of the run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_is_loaded_by_plain_transformers(tiny_policy_dir, tmp_path, dtype):
    policy = LoRAPolicy(PretrainedPolicy(str(tiny_policy_dir), dtype=dtype), rank=3, alpha=5)
    model = taught(policy.load_model())
    before = copy.deepcopy(model.state_dict())
    write_policy(policy, model, model.state_dict().items(), str(tmp_path), dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    assert not (tmp_path / "adapter_config.json").exists()
    close = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    difference = (logits(loaded).float() - logits(model).float())[MASK.bool()].abs().max()
    assert difference < close < (logits(loaded).float() - logits(policy.frozen(model)).float()).abs().max()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())  # the run's model goes on as it was
    plain = dict(plain_weights(model, model.state_dict().items()))
    assert plain.keys() == loaded.state_dict().keys() and all(torch.equal(plain[n], t) for n, t in loaded.state_dict().items())


def test_a_base_of_few_bits_is_merged_in_the_format_that_is_written(tiny_policy_dir, tmp_path):
    policy = LoRAPolicy(PretrainedPolicy(str(tiny_policy_dir), dtype="bfloat16"), rank=2)
    model = taught(policy.load_model())
    write_policy(policy, model, model.state_dict().items(), str(tmp_path), "float32")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(exported)[MASK.bool()], logits(model.float())[MASK.bool()], atol=1e-5)


def test_biases_of_the_base_keep_their_names(tiny_env):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class Biased(FreshPolicy):
        def load_model(self):
            torch.manual_seed(0)
            size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            return Qwen2ForCausalLM(Qwen2Config(vocab_size=500, num_key_value_heads=1, **size))

    policy = LoRAPolicy(Biased(tiny_env), rank=2)
    model = taught(policy.load_model())
    plain = dict(plain_weights(model, model.state_dict().items()))
    assert plain.keys() == policy.base.load_model().state_dict().keys()
    exported = policy.base.load_model()
    exported.load_state_dict(plain)
    assert torch.allclose(logits(exported), logits(model), atol=1e-5)


def test_an_engine_gets_the_weights_of_the_plain_architecture(base):
    policy, plain = LoRAPolicy(base, rank=2), base.load_model()
    model = taught(policy.load_model())
    frozen = dict(plain_weights(policy.frozen(model), model.state_dict().items()))
    assert frozen.keys() == plain.state_dict().keys() and all(torch.equal(frozen[n], t) for n, t in plain.state_dict().items())
    as_it_is = list(plain_weights(plain, plain.named_parameters()))
    assert [(n, id(t)) for n, t in as_it_is] == [(n, id(t)) for n, t in plain.named_parameters()]


# ------------------------------------------------------------------ in a run


def fit(tmp_path, strategy, steps, ckpt_path=None, **kwargs):
    data = TaskModule(
        HouseholdEnv(**WORLD), tasks_per_step=2, group_size=2, train_tasks=8, val_tasks=2, val_splits=["unseen"],
        protocol=CompactProtocol(), layout="trajectory",
    )  # fmt: skip
    torch.manual_seed(7)  # what is dropped
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, limit_val_batches=0, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        enable_checkpointing=bool(kwargs.get("callbacks")), **kwargs,
    )  # fmt: skip
    trainer.fit(strategy, data, ckpt_path=ckpt_path)
    return trainer


def strategy_of(cls, base, **kwargs):
    policy = LoRAPolicy(base, rank=4, dropout=0.1)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    return cls(policy=policy, sampler=TorchSampler(max_new_tokens=6), optimizer=optimizer, log_episodes_every=0, **kwargs)


@pytest.mark.parametrize("teacher", [InitialTeacher, partial(EMATeacher, rate=0.5)])
def test_a_run_changes_the_adapters_and_never_the_base(base, tmp_path, teacher, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    strategy = strategy_of(SDAR, base, retriever=FactRetriever(), teacher=teacher(), distill_coef=1.0)
    fit(tmp_path, strategy, 3)
    before, after = strategy.policy.load_model().state_dict(), strategy.model.state_dict()
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert changed == {name for name in after if ".lora_" in name}
    plain = base.load_model()
    assert torch.equal(scores(strategy.policy.frozen(strategy.model)).logp, scores(plain).logp)


def test_a_run_with_adapters_goes_on_as_if_it_had_not_stopped(base, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    straight = strategy_of(GRPO, base)
    fit(tmp_path / "straight", straight, 4)
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    fit(tmp_path, strategy_of(GRPO, base), 2, callbacks=[keep])
    resumed = strategy_of(GRPO, base)
    fit(tmp_path, resumed, 4, ckpt_path=tmp_path / "last.ckpt")
    stored, expected = resumed.model.state_dict(), straight.model.state_dict()
    assert stored.keys() == expected.keys() and all(torch.equal(stored[n], t) for n, t in expected.items())


def test_a_checkpoint_holds_adapters_only_and_knows_what_they_stand_on(base, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    trained = strategy_of(GRPO, base, kl_coef=0.01)
    fit(tmp_path, trained, 2, callbacks=[ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)])
    path = str(tmp_path / "last.ckpt")
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert stored and all(".lora_" in name for name in stored)
    data, run = TaskModule(HouseholdEnv(**WORLD)), AgentTrainer(logger=False, accelerator="cpu")
    run.export(strategy_of(GRPO, base), data, path, str(tmp_path / "out"), "float32")
    plain = dict(plain_weights(trained.model, trained.model.state_dict().items()))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert exported.keys() == plain.keys() and all(torch.equal(exported[n], t) for n, t in plain.items())
    run.export(strategy_of(GRPO, base), data, path, str(tmp_path / "adapter"), "float32", adapter=True)
    again = LoRAPolicy(base, adapter=str(tmp_path / "adapter")).load_model().state_dict()
    assert all(torch.equal(again[n], t) for n, t in trained.model.state_dict().items())
    with pytest.raises(ConfigError, match=r"--adapter true: PretrainedPolicy has no adapters\. Leave it out"):
        run.export(GRPO(policy=base), data, path, str(tmp_path / "none"), adapter=True)

    other = tmp_path / "other"
    base.load_tokenizer().save_pretrained(other)
    model = base.load_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 0.1
    model.save_pretrained(other)
    elsewhere = PretrainedPolicy(str(other))
    told = (
        "the weights that training started from have the fingerprint .* its adapters or its reference stand on other weights"
    )
    with pytest.raises(CheckpointError, match=told):
        fit(tmp_path, strategy_of(GRPO, elsewhere, kl_coef=0.01), 4, ckpt_path=path)
    with pytest.raises(CheckpointError, match=told):
        run.export(strategy_of(GRPO, elsewhere), data, path, str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_a_fingerprint_is_the_same_in_every_type_that_holds_the_weights(base):
    narrow = {name: t.bfloat16() for name, t in base.load_model().state_dict().items()}
    wide = {name: t.float() for name, t in narrow.items()}
    assert fingerprints(narrow, narrow) == fingerprints(wide, reversed(list(wide))) != fingerprints(wide, list(wide)[1:])
    next(iter(wide.values()))[0, 0] += 0.1
    assert fingerprints(narrow, narrow) != fingerprints(wide, wide)


def test_a_run_has_no_second_copy_of_the_base_and_exports_the_merged_model(base, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    strategy = strategy_of(GRPO, base, export=str(tmp_path / "out"), export_dtype="float32")
    fit(tmp_path, strategy, 2)
    assert isinstance(strategy.initial, WithoutAdapters) and strategy.initial.live is strategy.model
    assert isinstance(strategy.initial, SharedWeights) and not isinstance(strategy.model, SharedWeights)
    assert not any(name.startswith("initial.") for name in strategy.state_dict())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(exported)[MASK.bool()], logits(strategy.model.eval())[MASK.bool()], atol=1e-5)


def test_a_teacher_may_have_adapters_of_its_own(base):
    teacher = ExternalTeacher(LoRAPolicy(base, rank=2))
    live = base.load_model()
    teacher.prepare(live, base.load_tokenizer(), "student")
    network = teacher.model(live, None, Task("t", "family", "do it"))
    assert list(adapted(network)) and not any(p.requires_grad for p in network.parameters()) and not network.training


# ------------------------------------------------------------------ settings that cannot be


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"rank": 0}, r"policy\.rank is 0: an adapter has a width of 1 or more"),
        ({"alpha": 0.0}, r"policy\.alpha is 0\.0: at 0 the adapters would count nothing"),
        ({"dropout": 1.0}, r"policy\.dropout is 1\.0: it is a probability in \[0, 1\)"),
        ({"target_modules": []}, r"policy\.target_modules is empty: no layer would learn"),
    ],
)
def test_adapters_that_cannot_be_are_refused_at_once(base, setting, message):
    with pytest.raises(ConfigError, match=message):
        LoRAPolicy(base, **setting)


def test_adapters_on_adapters_are_refused(base):
    with pytest.raises(ConfigError, match=r"policy\.base is a LoRAPolicy itself: adapters stand on whole weights"):
        LoRAPolicy(LoRAPolicy(base))


@pytest.mark.parametrize(
    "target, message",
    [
        ("q_prj", r"names 'q_prj': Qwen3ForCausalLM has no such linear layer\. Did you mean 'q_proj'\? Layers: down_proj, "),
        ("embed_tokens", r"names 'embed_tokens': Qwen3ForCausalLM has no such linear layer"),
        (
            "lm_head",
            r"names 'lm_head': it turns hidden states into the densities that are scored, and is scored without an adap",
        ),
    ],
)
def test_a_layer_that_cannot_have_an_adapter_is_named(base, target, message):
    with pytest.raises(ConfigError, match=message):
        LoRAPolicy(base, target_modules=["q_proj", target]).load_model()


def test_without_peft_the_error_says_how_to_get_it(base, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"LoRAPolicy needs the package peft, which is not here: pip install .*\[lora\]"):
        LoRAPolicy(base).load_model()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_with_its_adapter_computes_what_peft_computes(base, dtype):
    """In float64 the same; in bfloat16, where peft widens its inputs, but for rounding."""
    model = LoRAPolicy(base, rank=4).load_model().to(dtype)
    _, layer = next(adapted(model))
    peft_layer = copy.deepcopy(layer)
    peft_layer.__class__ = type(layer).__mro__[1]
    x = torch.randn(3, 5, layer.in_features, dtype=dtype)
    found = []
    for each in (layer, peft_layer):
        torch.manual_seed(0)
        for part in (each.lora_A, each.lora_B):
            part.to(dtype if dtype == torch.float64 else torch.float32)
            torch.nn.init.normal_(part["default"].weight, std=0.2)
        inputs = x.clone().requires_grad_()
        out = each(inputs)
        out.square().sum().backward()
        found.append((out, inputs.grad, each.lora_A["default"].weight.grad, each.lora_B["default"].weight.grad))
        assert each.base_layer.weight.grad is None and out.dtype == dtype
    for ours, theirs in zip(*found, strict=True):
        close = (1e-12 if dtype == torch.float64 else 0.02) * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=close)

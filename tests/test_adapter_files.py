"""Adapters in folders: what is written is what peft loads, and what a policy goes on from."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sdar.adapter_files import read_adapter_config
from sdar.errors import ConfigError, PolicyError
from sdar.lora import LoRAPolicy, adapted, plain_weights
from sdar.parts import Policy
from sdar.paths import installed_settings
from sdar.policies import PretrainedPolicy

IDS = torch.tensor([[5, 9, 2, 30, 7]])


@pytest.fixture
def base(tiny_policy_dir):
    return PretrainedPolicy(str(tiny_policy_dir))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def written(base, tmp_path):
    """A model whose adapters say something, and the folder of these."""
    policy = LoRAPolicy(base, rank=3, alpha=7.0, target_modules=["q_proj", "down_proj"])
    model = policy.load_model()
    generator = torch.Generator().manual_seed(0)
    for _, layer in adapted(model):
        weight = layer.lora_B["default"].weight
        weight.data = torch.randn(weight.shape, generator=generator)
    folder = tmp_path / "adapter"
    policy.write_adapter(model.state_dict().items(), str(folder), "float32")
    return model, folder


def test_peft_loads_what_is_written_on_the_plain_model(base, written):
    model, folder = written
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    untaught = logits(plain)
    loaded = PeftModel.from_pretrained(plain, str(folder))
    torch.testing.assert_close(logits(loaded), logits(model))
    assert (logits(loaded) - untaught).abs().max() > 0.01
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base.path


def test_a_policy_goes_on_from_what_is_written(base, written):
    model, folder = written
    policy = LoRAPolicy(base, adapter=str(folder))
    assert (policy.rank, policy.alpha, policy.target_modules) == (3, 7.0, ["down_proj", "q_proj"])
    again = policy.load_model()
    assert torch.equal(logits(again), logits(model))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_frozen_model_of_such_a_policy_is_what_it_began_with(base, written):
    model, folder = written
    policy = LoRAPolicy(base, adapter=str(folder))
    again = policy.load_model()
    frozen = policy.frozen(again)
    began = logits(model)
    assert torch.equal(logits(frozen), began)
    for _, layer in adapted(again):
        layer.lora_A["default"].weight.data += 0.1
    learned = logits(again)
    assert not torch.equal(learned, began) and torch.equal(logits(frozen), began) and torch.equal(logits(again), learned)
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    plain.load_state_dict(dict(plain_weights(frozen, again.state_dict().items())), strict=False)
    torch.testing.assert_close(logits(plain), began)
    for _, layer in adapted(again):
        layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data[:1]
    with pytest.raises(ConfigError, match=r"a process holds \(1, 3\) of \(\d+, 3\) of one: they are divided among the ranks"):
        frozen(IDS)


class Skeleton(Policy):
    """SmolLM2-135M without numbers, and with a small vocabulary."""

    name = "skeleton"

    def load_model(self):
        sizes = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(intermediate_size=1536, vocab_size=8, tie_word_embeddings=True, **sizes))

    def load_tokenizer(self):
        raise NotImplementedError

    def context(self):
        return 8192


def test_the_adapter_that_is_shipped_fits_its_model_and_is_small():
    folder = installed_settings() / "real" / "adapter"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    model = LoRAPolicy(
        Skeleton(), adapter="conf/real/adapter"
    ).load_model()  # every weight has its place, and no place is empty
    assert len([*adapted(model)]) == 30 * 7
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(weight.isfinite().all() and weight.any() for weight in weights.values())


def test_a_policy_goes_on_from_what_peft_wrote(base, tmp_path):
    torch.manual_seed(0)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.path),
        LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj"], init_lora_weights=False),
    )
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits(LoRAPolicy(base, adapter=str(tmp_path / "theirs")).load_model()), logits(theirs))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rank": 4}, r"policy\.rank is 4, and the adapter .* was made with 3\. Leave it out"),
        ({"alpha": 3.0}, r"policy\.alpha is 3\.0, and the adapter .* was made with 7\.0"),
        ({"target_modules": ["q_proj"]}, r"policy\.target_modules is \['q_proj'\], and .* has \['down_proj', 'q_proj'\]"),
    ],
)
def test_settings_that_are_not_the_adapters_are_refused(base, written, given, told):
    with pytest.raises(ConfigError, match=told):
        LoRAPolicy(base, adapter=str(written[1]), **given)
    LoRAPolicy(base, adapter=str(written[1]), rank=3, alpha=7.0)


def test_a_folder_without_an_adapter_is_refused(base, tmp_path, written):
    with pytest.raises(PolicyError, match=r"policy\.adapter is '.*nowhere', which has no adapter_config\.json: give a folder"):
        LoRAPolicy(base, adapter=str(tmp_path / "nowhere"))
    (written[1] / "adapter_model.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"which has no adapter_model\.safetensors"):
        LoRAPolicy(base, adapter=str(written[1]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"use_dora": True},
            r"adapter_config\.json is of a kind that is not trained here \(.*use_dora.*\): adapters are plain LoRA",
        ),
        ({"peft_type": "IA3"}, r"of a kind that is not trained here \(IA3\)"),
        ({"r": 0}, r"adapter_config\.json: Expected `int` >= 1 .*It is peft's: peft_type LORA"),
        ({"target_modules": "all-linear"}, r"adapter_config\.json: Expected `array`"),
    ],
)
def test_another_kind_of_adapter_is_refused(written, changed, told):
    file = written[1] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(PolicyError, match=told):
        read_adapter_config(str(written[1]))


def test_an_adapter_for_another_model_is_refused(base, written, tmp_path):
    file = written[1] / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"r": 5}))
    with pytest.raises(
        PolicyError,
        match=r"has \(3, \d+\) for base_model\.model\.model\.layers.*, and the model has \(5, \d+\): it is an adapter for",
    ):
        LoRAPolicy(base, adapter=str(written[1])).load_model()
    file.write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(
        PolicyError, match=r"weights more than the model has a place for, the first is base_model\.model\..*down_proj"
    ):
        LoRAPolicy(base, adapter=str(written[1])).load_model()
    file.write_text(json.dumps(config | {"target_modules": ["q_proj", "down_proj", "v_proj"]}))
    with pytest.raises(PolicyError, match=r"has nothing for base_model\.model\..*v_proj"):
        LoRAPolicy(base, adapter=str(written[1])).load_model()
    shutil.rmtree(written[1])

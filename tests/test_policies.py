"""Where weights, tokenizers and files come from."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

import sdar.conf
from sdar.envs.household import HouseholdEnv
from sdar.errors import ConfigError, PolicyError
from sdar.parts import SampleKey
from sdar.paths import resolve
from sdar.policies import FreshPolicy, PretrainedPolicy, world_tokenizer
from sdar.rollout.chat import ChatFormat
from sdar.samplers import TorchSampler
from sdar.scoring import Scorer

SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 16, "context": 128}


@pytest.fixture
def folder(tiny_policy_dir, tmp_path) -> Path:
    """A copy of a policy directory, to be spoilt."""
    return Path(shutil.copytree(tiny_policy_dir, tmp_path / "policy"))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ PretrainedPolicy


def test_a_saved_directory_is_loaded_as_it_was_saved(tiny_policy_dir):
    policy = PretrainedPolicy(str(tiny_policy_dir))
    model, stored = policy.load_model(), load_file(tiny_policy_dir / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
    assert policy.context() == 512
    tokenizer = policy.load_tokenizer()
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode("You open the drawer 1.")) == "You open the drawer 1."
    assert ChatFormat(tokenizer).end_of_turn == model.config.eos_token_id


def test_the_context_is_looked_up_once(tiny_policy_dir, monkeypatch):
    policy = PretrainedPolicy(str(tiny_policy_dir))
    assert policy.context() == 512
    monkeypatch.setattr("sdar.policies.AutoConfig.from_pretrained", None)  # of a hub id it would ask the hub
    assert policy.context() == 512


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_loaded_in_the_type_that_is_asked_for(tiny_policy_dir, dtype):
    model = PretrainedPolicy(str(tiny_policy_dir), dtype=dtype).load_model()
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    full = load_file(tiny_policy_dir / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, full.to(getattr(torch, dtype)))


def test_the_attention_implementation_is_passed_on(tiny_policy_dir):
    assert PretrainedPolicy(str(tiny_policy_dir), attention="eager").load_model().config._attn_implementation == "eager"


def stored(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def capped(tmp_path) -> str:
    """A model whose attention logits are capped, which the fastest kernels cannot do."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    return stored(Gemma2ForCausalLM(Gemma2Config(vocab_size=64, num_key_value_heads=1, **size)), tmp_path / "capped")


def test_an_architecture_gets_the_fastest_attention_that_is_right(tiny_policy_dir, capped):
    assert PretrainedPolicy(str(tiny_policy_dir)).load_model().config._attn_implementation == "sdpa"
    assert PretrainedPolicy(capped).load_model().config._attn_implementation == "eager"
    with pytest.raises(
        PolicyError, match=r"policy\.attention is 'sdpa', which .*capped cannot be loaded with: .* Leave it out for the"
    ):
        PretrainedPolicy(capped, attention="sdpa").load_model()


def test_activations_that_are_computed_again_change_neither_gradients_nor_what_is_sampled(tiny_policy_dir):
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(270, 400, (3, 12), generator=generator), torch.ones(3, 12, dtype=torch.long)
    runs = []
    for again in (False, True):
        policy = PretrainedPolicy(str(tiny_policy_dir), gradient_checkpointing=again)
        model, calls = policy.load_model(), []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        loss = Scorer(1.0, (0,), 400)(model, ids, mask, mask.bool()).logp.sum()
        loss.backward()
        sampler = TorchSampler(max_new_tokens=6)
        sampler.bind(policy.load_tokenizer(), [1], 512)
        said = sampler.sample(model, ids.tolist(), [SampleKey(0, "t", i, 0) for i in range(3)])
        runs.append((loss, {n: p.grad for n, p in model.named_parameters()}, said))
        assert calls[: 1 + again] == [True] * (1 + again) and not any(calls[1 + again :])  # once more in the backward pass
        assert model.training is again
    (loss, gradients, said), (other_loss, other_gradients, other_said) = runs
    assert torch.equal(loss, other_loss) and said == other_said
    assert gradients.keys() == other_gradients.keys() and all(torch.equal(g, other_gradients[n]) for n, g in gradients.items())


@pytest.mark.parametrize("again", [False, True])
def test_what_is_scored_and_what_is_trained_is_one_density_in_models_with_dropout(tmp_path, stored_tokenizer, again):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(stored_tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)).save_pretrained(tmp_path)
    stored_tokenizer.save_pretrained(tmp_path)
    model = PretrainedPolicy(str(tmp_path), gradient_checkpointing=again).load_model().train()
    ids, mask = torch.arange(2, 26).view(2, 12), torch.ones(2, 12, dtype=torch.long)
    scorer = Scorer(1.0, (), len(stored_tokenizer))
    once, twice = (scorer(model, ids, mask, mask.bool()).logp for _ in range(2))
    assert torch.equal(once, twice) and torch.allclose(once, scorer(model.eval(), ids, mask, mask.bool()).logp, atol=1e-6)


def test_a_model_that_cannot_compute_activations_again_is_refused(tiny_policy_dir, monkeypatch):
    monkeypatch.setattr(Qwen3ForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(
        PolicyError, match=r"policy\.gradient_checkpointing is set, but Qwen3ForCausalLM cannot compute activations"
    ):
        PretrainedPolicy(str(tiny_policy_dir), gradient_checkpointing=True).load_model()


def test_a_template_file_replaces_the_template(tiny_policy_dir, tmp_path):
    file = tmp_path / "bare.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}é", encoding="utf-8")
    policy = PretrainedPolicy(str(tiny_policy_dir), chat_template=str(file))
    tokenizer = policy.load_tokenizer()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi<|end|>é"


@pytest.mark.parametrize("path", ["nowhere/at/all", "Qwen/Qwen2.5-3B-Instruct"])
def test_a_hub_id_is_not_touched_at_construction(path, monkeypatch):
    def unplugged(*args, **kwargs):
        raise AssertionError("a constructor opened a connection")

    monkeypatch.setattr("socket.socket.connect", unplugged)
    assert PretrainedPolicy(path).path == path


def test_a_directory_without_a_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(PolicyError, match=r"policy path '.*policy' has no config\.json: it is no model directory"):
        PretrainedPolicy(str(folder))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere", "conf/nowhere", "runs/nowhere/export"])
def test_a_path_that_can_be_no_hub_id_must_exist(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        PolicyError, match=r"policy path '.*nowhere.*' has no config\.json: .* a GGUF file, or a hub id such as"
    ):
        PretrainedPolicy(path)


def test_weights_that_could_run_code_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PolicyError, match=r"holds no \.safetensors file: other weight formats can run code"):
        PretrainedPolicy(str(folder))


def test_a_missing_template_file_is_an_error(tiny_policy_dir):
    with pytest.raises(PolicyError, match=r"chat_template file 'templates/none\.jinja' does not exist"):
        PretrainedPolicy(str(tiny_policy_dir), chat_template="templates/none.jinja")


# ------------------------------------------------------------------ paths


@pytest.fixture
def installed(monkeypatch, tmp_path) -> Path:
    """Stands for the settings of an installation."""
    settings = tmp_path / "site-packages" / "conf"
    settings.mkdir(parents=True)
    monkeypatch.setattr(sdar.conf, "__file__", str(settings / "__init__.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return settings


def test_a_policy_is_found_among_the_installed_settings(installed, tiny_policy_dir):
    shutil.copytree(tiny_policy_dir, installed / "quickstart" / "policy")
    shutil.copy(tiny_policy_dir / "chat_template.jinja", installed / "own.jinja")
    for path in ("conf/quickstart/policy", "quickstart/policy"):
        policy = PretrainedPolicy(path, chat_template="conf/own.jinja")
        assert policy.load_model().config.hidden_size == 32
        assert policy.load_tokenizer().chat_template == (installed / "own.jinja").read_text()


def test_a_path_is_looked_up_as_written_first(installed):
    (installed / "a.yaml").touch()
    assert resolve("conf/a.yaml") == resolve("a.yaml") == installed / "a.yaml"
    Path("conf").mkdir()
    Path("conf/a.yaml").touch()
    assert resolve("conf/a.yaml") == Path("conf/a.yaml")
    assert resolve("conf/b.yaml") == Path("conf/b.yaml")
    assert resolve("/nowhere/a.yaml") == Path("/nowhere/a.yaml")


def test_a_path_may_begin_at_home(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/policy") == folder
    assert PretrainedPolicy("~/policy").context() == 512


# ------------------------------------------------------------------ FreshPolicy


def test_a_seed_decides_the_weights_and_the_tokenizer(tiny_env):
    def made(seed):
        policy = FreshPolicy(tiny_env, **SMALL, seed=seed)
        return policy.load_tokenizer().backend_tokenizer.to_str(), weights(policy.load_model())

    (tokenizer, model), again, other = made(3), made(3), made(4)
    assert again[0] == tokenizer and same(again[1], model)
    assert other[0] != tokenizer or not same(other[1], model)


def test_a_fresh_policy_without_a_world_takes_that_of_the_run(tiny_env):
    policy = FreshPolicy(**SMALL)
    with pytest.raises(ConfigError, match=r"policy.env is not set and no run has said what its world is"):
        policy.load_tokenizer()
    policy.bind_env(tiny_env)
    assert policy.load_tokenizer().get_vocab() == FreshPolicy(tiny_env, **SMALL).load_tokenizer().get_vocab()
    policy.bind_env(None)
    assert policy.env is tiny_env


def test_fresh_weights_neither_follow_nor_disturb_the_global_random_state(tiny_env):
    policy = FreshPolicy(tiny_env, **SMALL)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = weights(policy.load_model())
    assert torch.equal(torch.rand(1), expected)
    assert same(weights(policy.load_model()), first)


def test_a_fresh_policy_is_the_same_from_its_directory(tiny_env, tmp_path):
    fresh = FreshPolicy(tiny_env, **SMALL)
    model, tokenizer = fresh.load_model(), fresh.load_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stored = PretrainedPolicy(str(tmp_path))
    assert same(weights(stored.load_model()), weights(model))
    assert stored.context() == fresh.context() == 128
    again = stored.load_tokenizer()
    messages = [{"role": "user", "content": "You open the drawer 1.\n\x00 ñ"}]
    for t in (again, tokenizer):
        assert t.get_vocab() == tokenizer.get_vocab() and t.all_special_ids == tokenizer.all_special_ids
        assert ChatFormat(t).prompt(messages) == ChatFormat(tokenizer).prompt(messages)
    assert again.padding_side == "left" and again.model_max_length == 128


@pytest.fixture(scope="module")
def stored_tokenizer(tiny_policy_dir):
    return PretrainedPolicy(str(tiny_policy_dir)).load_tokenizer()


@given(text=st.text())
def test_a_fresh_tokenizer_gives_every_text_back(stored_tokenizer, text):
    assert stored_tokenizer.decode(stored_tokenizer.encode(text, split_special_tokens=True)) == text


def test_texts_of_the_world_are_short(tiny_env):
    tokenizer = FreshPolicy(tiny_env, **SMALL).load_tokenizer()
    text = tiny_env.reset(tiny_env.task(tiny_env.task_ids("train", 1, 0)[0]))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.split())
    assert not {f"<0x{b:02X}>" for b in range(256)}.intersection(tokenizer.convert_ids_to_tokens(ids))


def pieces(texts: list[str], phrases: list[str], room: int) -> list[str]:
    """What a vocabulary with this much room beyond control tokens and bytes holds."""
    tokenizer = world_tokenizer(texts, phrases, vocab_size=261 + room, context=64)
    return [token for token in tokenizer.get_vocab() if not (token.startswith("<0x") or token in tokenizer.all_special_tokens)]


def test_the_commonest_words_and_phrases_get_a_token():
    texts = ["one two, two three"] * 3  # ties go by the alphabet
    assert sorted(pieces(texts, [], 2)) == [" three", " two"]
    assert sorted(pieces(texts, [", two three"], 2)) == [" two", ", two three"]
    assert sorted(pieces(texts, [], 99)) == [" three", " two", ",", "one"]


def test_punctuation_in_a_phrase_is_no_pattern():
    phrases = [" (b|c)* [d]?", " a.b", " $1 ^ {2} \\w+"]
    assert set(pieces(["x (b|c)* [d]? a.b acb $1 ^ {2} \\w+"], phrases, 99)) == {"x", *phrases, " acb"}


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"hidden_size": 30, "heads": 2}, "policy.hidden_size is 30 and policy.heads is 2: .* a multiple of 4"),
        ({"hidden_size": 32, "heads": 2, "key_value_heads": 4}, "policy.heads is 2 and policy.key_value_heads is 4"),
        ({"vocab_size": 260}, "policy.vocab_size is 260: control tokens and bytes alone are 261"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_at_once(tiny_env, setting, message):
    with pytest.raises(ConfigError, match=message):
        FreshPolicy(tiny_env, **setting)


def test_a_smallest_vocabulary_spells_everything_in_bytes(tiny_env):
    tokenizer = FreshPolicy(tiny_env, **SMALL, vocab_size=261).load_tokenizer()
    assert len(tokenizer) == 261
    assert tokenizer.decode(tokenizer.encode("drawer é 1")) == "drawer é 1"


def test_worlds_with_other_settings_have_one_tokenizer():
    worlds = HouseholdEnv(world=5, receptacles=6, horizon=6), HouseholdEnv(world="fresh", receptacles=12, horizon=24)
    assert worlds[0].corpus(random.Random(0)) == worlds[1].corpus(random.Random(0))


@pytest.mark.parametrize("load", ["load_tokenizer", "load_model", "context"])
def test_a_mistyped_path_says_that_no_such_folder_exists(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "qwen2-small").mkdir()
    (tmp_path / "qwen2-small" / "config.json").write_text("{}")
    with pytest.raises(PolicyError, match=r"'qwen2-smal': there is no such folder here .*Did you mean 'qwen2-small'\?"):
        getattr(PretrainedPolicy("qwen2-smal"), load)()

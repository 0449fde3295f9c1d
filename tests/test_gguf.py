"""GGUF files: converted once, to a policy with the same weights, tokens and chat template."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sdar.errors import PolicyError
from sdar.gguf import converted
from sdar.policies import PretrainedPolicy

CONTROL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADS, KEY_VALUE_HEADS, WIDTH = 4, 2, 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=128, tie_word_embeddings=False, eos_token_id=259,
    )  # fmt: skip
    return LlamaForCausalLM(config).bfloat16().float()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp has queries and keys: the two halves of a head's width take turns."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def written(file: Path, model: LlamaForCausalLM) -> Path:
    """The model as a GGUF file, with a tokenizer of bytes."""
    out = gguf.GGUFWriter(str(file), "llama")
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(32)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KEY_VALUE_HEADS)
    out.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    out.add_vocab_size(260)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([*bytes_to_unicode().values(), "he", "hel", *CONTROL])
    out.add_token_types([1] * 258 + [3, 3])
    out.add_token_merges(["h e", "he l"])
    out.add_bos_token_id(258)
    out.add_eos_token_id(259)
    out.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, tensor in model.state_dict().items():
        short = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }
        part = name.removeprefix("model.layers.0.").removesuffix(".weight")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = interleaved(tensor, HEADS if "q_proj" in part else KEY_VALUE_HEADS)
        out.add_tensor(short.get(name) or f"blk.0.{names[part]}.weight", tensor.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


@pytest.mark.parametrize("named", ["the file", "its folder"])
def test_a_policy_of_a_gguf_file_has_its_weights_tokens_and_template(tmp_path, cache, named):
    model = small_llama()
    file = written(tmp_path / "small.gguf", model)
    policy = PretrainedPolicy(str(file if named == "the file" else tmp_path))
    loaded, tokenizer = policy.load_model(), policy.load_tokenizer()
    ids = torch.tensor([[5, 250, 17, 3]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (
        policy.context() == 128
        and tokenizer.eos_token == "<|im_end|>"
        and tokenizer.encode("hello") == [257, *tokenizer.encode("lo")]
    )
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hel"}], add_generation_prompt=True, tokenize=False)
    assert said == "<|im_start|>user\nhel<|im_end|>\n<|im_start|>assistant\n"
    again = tmp_path / "again"
    loaded.save_pretrained(again)  # what transformers refuses of a model that it read from such a file
    assert torch.equal(AutoModelForCausalLM.from_pretrained(again)(input_ids=ids).logits, loaded(input_ids=ids).logits)
    [folder] = (cache / "gguf").iterdir()
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_it_is_converted_once_and_again_when_the_file_is_another(tmp_path, cache, monkeypatch):
    model = small_llama()
    first = converted(written(tmp_path / "small.gguf", model))
    with monkeypatch.context() as without:
        without.setattr("sdar.gguf._convert", lambda *_: pytest.fail("converted twice"))
        assert converted(tmp_path / "small.gguf") == first
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    other = converted(written(tmp_path / "small.gguf", model))
    assert other != first and len(list((cache / "gguf").iterdir())) == 2


def test_what_is_no_model_is_refused_and_leaves_nothing(tmp_path, cache):
    (tmp_path / "bad.gguf").write_bytes(b"GGUFnothing")
    with pytest.raises(PolicyError, match=r"bad\.gguf cannot be read as a GGUF model: "):
        PretrainedPolicy(str(tmp_path / "bad.gguf"))
    assert not list((cache / "gguf").iterdir())
    (tmp_path / "other.gguf").touch()
    with pytest.raises(PolicyError, match=r"holds 2 GGUF files: bad\.gguf, other\.gguf\. Name the one that is meant"):
        PretrainedPolicy(str(tmp_path))

"""How a policy is spoken to, and where it stops, stay with its exported folder."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, tokenizer_of
from scripted import byte_chat
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from sdar.envs import CompactProtocol, HermesMathProtocol, ThinkActProtocol
from sdar.errors import PolicyError
from sdar.policies import PretrainedPolicy
from sdar.rollout.chat import ChatFormat
from sdar.training import probe
from sdar.training.export import write_policy
from sdar.training.manner import compare_manner, manner, write_manner


def data(protocol=None, layout="turn", history=2) -> SimpleNamespace:
    world = SimpleNamespace(protocol=protocol or CompactProtocol(), layout=layout, history=history, has_world=True)
    return SimpleNamespace(worlds={"": world})


def policy(folder: Path, **chat_options: object) -> SimpleNamespace:
    return SimpleNamespace(path=str(folder), name="mine", chat_options=chat_options)


def test_another_protocol_layout_or_template_option_is_told_with_both_sides(tmp_path: Path) -> None:
    known = policy(tmp_path, enable_thinking=False)
    write_manner(str(tmp_path), manner(known, data()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_manner(known, data())
        compare_manner(policy(tmp_path / "elsewhere"), data(ThinkActProtocol()))  # nothing is known of it
    with pytest.warns(
        UserWarning, match=r"mine was trained with protocol 'CompactProtocol', here 'ThinkActProtocol' \(.*sdar.json"
    ):
        compare_manner(known, data(ThinkActProtocol()))
    with pytest.warns(UserWarning, match=r"tools None, here \['code_interpreter'\]"):
        compare_manner(known, data(HermesMathProtocol(tools="template")))
    with pytest.warns(UserWarning, match=r"history 2, here None; layout 'turn', here 'trajectory'"):
        compare_manner(known, data(layout="trajectory"))
    with pytest.warns(UserWarning, match=r"chat_options \{'enable_thinking': False\}, here \{\}"):
        compare_manner(SimpleNamespace(base=policy(tmp_path), name="lora", chat_options={}), data())


@pytest.mark.parametrize("text", ["[1]", "{", "NaN"])
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sdar.json").write_text(text)
    with pytest.raises(PolicyError, match=r"sdar.json"):
        compare_manner(policy(tmp_path), data())


@pytest.mark.parametrize("name", ["gemma", "qwen3"])
def test_an_exported_policy_stops_where_training_stopped(tmp_path: Path, name: str) -> None:
    """Gemma's form has another end of turn than end of text: both are in the files that generation reads."""
    tokenizer = tokenizer_of(FAMILIES[name])
    size = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    network = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), head_dim=8, eos_token_id=tokenizer.eos_token_id, **size))
    mine = SimpleNamespace(load_tokenizer=lambda: tokenizer, chat_options={}, name=name)
    write_policy(mine, network, network.state_dict().items(), str(tmp_path), "float32")
    stops = list(ChatFormat(tokenizer).stop_ids)
    for config in (GenerationConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        said = config.eos_token_id
        assert (said if isinstance(said, list) else [said]) == stops
    assert network.config.eos_token_id == tokenizer.eos_token_id  # the run's own model is as it was
    assert list(ChatFormat(AutoTokenizer.from_pretrained(tmp_path)).stop_ids) == stops
    assert PretrainedPolicy(str(tmp_path)).load_model().generation_config.eos_token_id == (
        stops if len(stops) > 1 else stops[0]
    )


def test_a_model_that_speaks_in_special_tokens_is_told_of_before_training() -> None:
    chat = byte_chat()
    module = SimpleNamespace(chat=chat, sampler=SimpleNamespace(forbidden_ids=(0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe._look_at_forbidden(module, torch.tensor([0.0, -0.01]))
        probe._look_at_forbidden(module, torch.zeros(0))
    with pytest.warns(
        UserWarning, match=r"gives 50% of its probability to tokens that sampler.forbid takes from it \(.*\[\] forbids none"
    ):
        probe._look_at_forbidden(module, torch.tensor([0.5, 0.5]).log())


def test_of_conversations_that_nobody_plays_only_the_template_s_options_are_kept_and_compared(tmp_path):
    files = SimpleNamespace(worlds={"": SimpleNamespace(has_world=False)})
    thinking = policy(tmp_path, enable_thinking=True)
    write_manner(str(tmp_path), manner(thinking, files))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_manner(thinking, data())
        compare_manner(thinking, files)
    with pytest.warns(UserWarning, match="chat_options"):
        compare_manner(policy(tmp_path, enable_thinking=False), data())

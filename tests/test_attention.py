"""Rows one behind the other: a layout says which tokens see which, and the model gives what it gives each row alone."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from sdar.attention import NAME, RowLayout, can_lay_out, kind_of, read_rows
from sdar.errors import PolicyError

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROWS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9, 7]]
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral, window 3": MistralConfig(**SMALL, sliding_window=3),
}


class RowByRow(RowLayout):
    """Each row by itself."""

    def __init__(self, lengths):
        self.lengths = lengths

    def attend(self, layer, query, key, value, scaling, window):
        out = []
        pieces = (part.split(self.lengths, dim=1) for part in (query, key, value))
        for q, k, v in zip(*pieces, strict=True):
            place = torch.arange(q.shape[1])
            back = place[:, None] - place
            mask = (back >= 0) & (back < (window or len(place)))
            out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True))
        return torch.cat(out, 1).transpose(0, 1)


def small(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_read_together_are_the_rows_read_alone(name, checkpointing):
    model = small(CONFIGS[name])
    assert can_lay_out(model)
    alone = torch.cat([model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
    alone.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.train()
    ids, positions = (torch.tensor([i for part in parts for i in part]) for parts in (ROWS, [range(len(row)) for row in ROWS]))
    together = read_rows(model, ids, positions, RowByRow([len(row) for row in ROWS]))
    torch.testing.assert_close(together, alone)
    together.square().sum().backward()
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_without_a_layout_a_model_attends_as_before(name, tmp_path):
    model = small(CONFIGS[name])
    ids, mask = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 6, 5]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    before = model(input_ids=ids, attention_mask=mask).logits
    model.set_attn_implementation(NAME)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits[mask.bool()], before[mask.bool()])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"  # others that read the files know no such attention


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SMALL, attn_implementation="eager"), Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])],
    ids=["eager", "convolutions"],
)
def test_what_cannot_be_laid_out_says_so(config):
    assert not can_lay_out(small(config))


def test_a_model_that_hands_nothing_on_is_refused():
    model = small(CONFIGS["llama"])
    forward = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = lambda *args, row_layout, **kwargs: forward(*args, **kwargs)
    with pytest.raises(PolicyError, match=r"LlamaAttention does not hand on what it is told.*model\.packed to false"):
        read_rows(model, torch.tensor([1, 2]), torch.tensor([0, 1]), RowByRow([2]))


def test_what_was_found_out_of_a_model_holds_for_others_of_its_kind_alone():
    def made(config=CONFIGS["qwen3"], **settings):
        settings = {
            "attn_implementation": "sdpa",
            "dtype": torch.float32,
        } | settings  # configurations keep what was asked last
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), **settings)

    kind = kind_of(made())
    assert kind_of(made()) == kind  # with other weights
    others = {
        made(CONFIGS["qwen2"]),
        made(Qwen3Config(**SMALL, head_dim=16)),
        made(attn_implementation="eager"),
        made().double(),
    }
    assert len({kind, *map(kind_of, others)}) == 5
    hooked, changed = made(), made()
    hooked.lm_head.register_forward_hook(lambda *_: None)
    changed.model.forward = lambda **_: None
    assert kind_of(hooked) is kind_of(changed) is None

"""Attention among tokens of many rows that lie one behind the other, without padding, in any model of transformers.

transformers asks a registered function for the attention of each layer; this one asks a `RowLayout`, which knows which tokens see
which (rows, prefixes that rows share, keys and values of earlier passes). Whoever gives none gets transformers' own ``sdpa``.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sdar.errors import PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sdar"
"""Of the attention in transformers' registry."""
SEES_ALL_BEFORE = {"full_attention", "sliding_attention"}


class RowLayout(ABC):
    """Which tokens of a pass see which; one object for all layers of one pass."""

    @abstractmethod
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """What each token of the pass gathers from those that it sees, ``[tokens, heads, width]``.

        Args:
            layer: Number of the attention layer.
            query: ``[heads, tokens, width]``, with their positions.
            key, value: ``[key_value_heads, tokens, width]``.
            scaling: Of the products; None: one over the root of the width.
            window: How many positions a token sees, itself included; None: all.
        """


def can_lay_out(model: "PreTrainedModel") -> bool:
    """Whether the attention of a model asks the registry and nothing but attention connects its tokens."""
    config: Any = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    asks = getattr(model, "_supports_attention_backend", False) and not getattr(model, "_is_stateful", False)
    asks &= not getattr(config, "attention_dropout", 0)
    return bool(asks) and config._attn_implementation in ("sdpa", NAME) and layers <= SEES_ALL_BEFORE


def kind_of(model: "PreTrainedModel") -> Hashable:
    """What decides how a model computes, but for its weights: what was found out of one model holds for every other of its kind.

    None where somebody has put functions of their own into the model: it is like no other.
    """
    modules = [*model.modules()]
    if any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in modules):
        return None
    config: Any = model.config
    classes = tuple((type(m), type(m).forward) for m in modules)
    weights = tuple((name, p.shape, p.dtype, p.device) for name, p in model.named_parameters())
    return classes, weights, config.get_text_config()._attn_implementation, config.to_json_string(use_diff=False)


def read_rows(model: "PreTrainedModel", ids: Tensor, positions: Tensor, layout: RowLayout) -> Tensor:
    """Last hidden states ``[tokens, hidden]`` of a model that `can_lay_out`; carries its gradient.

    Args:
        ids, positions: ``[tokens]``; a position is a token's place in its row.
    """
    states: Tensor = model.base_model(**_laid_out(model, ids, positions, layout)).last_hidden_state
    return states[0]


def read_logits(model: "PreTrainedModel", ids: Tensor, positions: Tensor, layout: RowLayout, keep: Tensor) -> Tensor:
    """Logits ``[kept, vocab]`` behind the tokens `keep` of a pass, by the model's own head; the others as for `read_rows`."""
    logits: Tensor = model(**_laid_out(model, ids, positions, layout), logits_to_keep=keep).logits
    return logits[0]


def _laid_out(model: "PreTrainedModel", ids: Tensor, positions: Tensor, layout: RowLayout) -> dict[str, Any]:
    """What a model is called with, once its attention asks here."""
    if model.config.get_text_config()._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    prepared = torch.empty(1, 1, 0, 0, device=ids.device)  # a mask of four axes is taken as it is: none is made
    return {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "attention_mask": prepared,
        "use_cache": False,
        "row_layout": layout,
    }


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_layout: RowLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: ``[batch, heads, tokens, width]`` to ``[batch, tokens, heads, width]``."""
    if row_layout is None:
        if attention_mask is not None and attention_mask.shape[-1] == 0:
            raise PolicyError(
                f"{type(module).__name__} does not hand on what it is told about the rows of a pass: they cannot be read without padding. "
                "Set model.packed to false."
            )
        window: dict[str, Any] = {} if sliding_window is None else {"sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **window, **kwargs)
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise PolicyError(
            f"{type(module).__name__} caps its attention, biases it or gives some of it away, which rows without padding do not have. "
            "Set model.packed to false."
        )
    layer: Any = module.layer_idx
    return row_layout.attend(layer, query[0], key[0], value[0], scaling, sliding_window)[None], None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

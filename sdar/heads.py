"""The last layer of a language model: what lies between its hidden states and its logits, in every architecture that is known."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTORS = {
    "logit_scale": 1,  # Cohere
    "lm_head_multiplier": 1,  # Falcon-H1
    "output_multiplier": 1,  # Muse
    "logits_scaling": -1,  # Granite, MiniCPM3
    "logits_mup_width_multiplier": -1,  # Inkling
}
"""Settings of a configuration that multiply the head's product (1) or divide it (-1)."""
EXCEPTIONS = {("hyperclovax", "logits_scaling"): 1, ("mpt", "logit_scale"): 0}
"""Model types that multiply where others divide, or do not read the setting at all (0)."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings that bound the scaled product: Gemma and others; RecurrentGemma; xLSTM."""


class Head(NamedTuple):
    """Logits are cap(scale * hidden @ weight.T + bias) of the first `vocab` rows."""

    weight: Tensor
    """``[vocab or more, hidden]``; rows behind `vocab` pad it. Whole, so that its gradient is made once, in its own shape."""
    bias: Tensor | None
    softcap: float | None
    scale: float = 1.0
    vocab: int | None = None

    def to(self, device: torch.device) -> "Head":
        return self._replace(weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def kept(self) -> "Head":
        """A copy, without the padding, that later optimizer steps do not change."""
        weight, bias = (None if t is None else t.detach()[: self.vocab].clone() for t in (self.weight, self.bias))
        assert weight is not None
        return self._replace(weight=weight, bias=bias)

    def settings(self) -> dict[str, Any]:
        """What functions of hidden states and weight are told besides."""
        return {"bias": self.bias, "softcap": self.softcap, "scale": self.scale, "vocab": self.vocab}


def head_of(model: "PreTrainedModel", vocab_size: int) -> Head:
    """That of a model, for a tokenizer's ids."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    caps = [cap for name in SOFTCAPS if (cap := getattr(config, name, None)) is not None]
    return Head(layer.weight, layer.bias, caps[0] if caps else None, _scale(config), vocab_size)


def _scale(config: Any) -> float:
    scale = 1.0
    for name, power in FACTORS.items():
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            scale *= float(value) ** EXCEPTIONS.get((config.model_type, name), power)
    return scale

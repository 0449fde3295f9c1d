"""What FSDP2 refuses, before any process is started; that it computes the same is in test_ranks.py."""

from types import SimpleNamespace

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from sdar.distributed import FSDP2Strategy
from sdar.distributed.fsdp import POLICIES, FullyShardedParameters
from sdar.errors import ConfigError


def test_a_precision_that_needs_scaled_losses_is_refused():
    strategy = FSDP2Strategy()
    strategy.precision_plugin = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ConfigError, match=r"trainer\.precision is 16-mixed: .* Use 32-true, bf16-mixed, bf16-true."):
        strategy.sharding(None)


def test_a_deadline_is_positive():
    with pytest.raises(ConfigError, match=r"trainer\.strategy\.deadline is 0 seconds"):
        FSDP2Strategy(deadline=0)


def test_a_network_whose_layers_are_not_known_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    network = Qwen3ForCausalLM(Qwen3Config(**sizes))
    network._no_split_modules = None
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM does not say which of its modules are layers"):
        FullyShardedParameters(None, None, POLICIES["32-true"], True).register(network)

"""What tests of the agent loop share."""

import pytest
import torch
from scripted import word_chat
from transformers import Qwen3Config, Qwen3ForCausalLM


@pytest.fixture(scope="session")
def small_model() -> Qwen3ForCausalLM:
    """A random policy of the word tokenizer whose next token depends on all that it was told."""
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    vocabulary = len(word_chat().tokenizer)
    config = Qwen3Config(vocab_size=vocabulary, num_key_value_heads=1, max_position_embeddings=2048, **size)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5)
    return model

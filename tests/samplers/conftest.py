"""Networks whose weights servers are given."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_policy_dir):
    return AutoTokenizer.from_pretrained(tiny_policy_dir)


@pytest.fixture(scope="session")
def network_of(tiny_policy_dir):
    def make(seed):
        """Other weights for each seed, sharp enough that tokens depend on them."""
        model = AutoModelForCausalLM.from_pretrained(tiny_policy_dir, dtype=torch.float32).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.normal_(0, 0.2)
        return model

    return make

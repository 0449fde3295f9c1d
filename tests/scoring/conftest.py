"""Models that a file's tests share."""

import pytest
from scored import network
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def wide():
    """A student and two teachers of other sizes, in float64."""
    other = {"hidden_size": 24, "num_hidden_layers": 1}
    return network().double(), network(seed=1).double(), network(LlamaConfig, seed=2, **other).double()

"""What samplers are asked, and how two of them are compared."""

import pytest
import torch


def told(seed, length, size=400):
    """Ids of a prompt."""
    return torch.randint(5, size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_same(one, other):
    """The same tokens, with densities that differ by rounding."""
    assert [c.ids for c in one] == [c.ids for c in other]
    for a, b in zip(one, other, strict=True):
        assert a.stopped == b.stopped
        assert a.behaviour_logp == pytest.approx(b.behaviour_logp, abs=1e-4)
        assert a.kept_logmass == pytest.approx(b.kept_logmass, abs=1e-4)

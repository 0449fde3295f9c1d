"""Weights as buckets of bytes: what is seen in a bucket is what was packed."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdar.serving.buckets import checksum, pack, view
from sdar.serving.protocol import BadMessage, Place

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float64]


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), max_size=8), st.integers(1, 300))
def test_every_tensor_is_seen_whatever_the_size_of_the_buckets(given_, bucket_bytes):
    state = {f"w{i}": (torch.randn(shape) * 9).to(dtype) for i, (shape, dtype) in enumerate(given_)}
    seen = {}
    for bucket, flat in pack(state.items(), bucket_bytes):
        assert len(flat) == bucket.size and checksum(flat) == bucket.checksum
        alone = max(state[place.name].nbytes for place in bucket.tensors)
        assert sum(state[place.name].nbytes for place in bucket.tensors) <= bucket_bytes + alone
        seen |= {place.name: view(flat, place) for place in bucket.tensors}
    assert list(seen) == list(state)
    for name, tensor in state.items():
        assert seen[name].dtype == tensor.dtype and torch.equal(seen[name], tensor)


def test_a_bucket_that_is_another_one_has_another_checksum():
    flat = torch.randint(0, 256, (5 * 4096,), dtype=torch.uint8)
    told = checksum(flat)
    for byte in (0, 4095, 4096, 5 * 4096 - 1):
        for bit in (1, 128):
            changed = flat.clone()
            changed[byte] ^= bit
            assert checksum(changed) != told
    exchanged = flat.view(5, 4096)[[0, 3, 2, 1, 4]].reshape(-1)
    emptied = flat.clone()
    emptied[2 * 4096 :] = 0  # the end never arrived
    assert len({told, checksum(exchanged), checksum(emptied)}) == 3
    assert checksum(torch.zeros(0, dtype=torch.uint8)) == 0


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place("w", "float32", (1025,), 0), '"w" lies at bytes 0 to 4100 of a bucket of 4096'),
        (Place("w", "float32", (4,), 4096), '"w" lies at bytes 4096 to 4112 of a bucket of 4096'),
        (Place("w", "float32", (4,), 8), '"w" lies at bytes 8 to 24 of a bucket of 4096'),
        (Place("w", "float33", (4,), 0), "\"w\" has the type 'float33', which is none of torch"),
        (Place("w", "nn", (4,), 0), "\"w\" has the type 'nn', which is none of torch"),
    ],
)
def test_a_place_outside_of_the_bucket_is_refused(place, words):
    with pytest.raises(BadMessage, match=re.escape(words)):
        view(torch.zeros(4096, dtype=torch.uint8), place)

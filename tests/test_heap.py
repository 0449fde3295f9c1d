"""Memory that was freed goes back to the system between the parts of an iteration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdar.precision import bfloat16_unit
from sdar.training import heap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(heap._trim() is None, reason="the C library cannot give memory back")
def test_what_lies_free_between_blocks_in_use_is_given_back():
    blocks = [bytearray(100_000) for _ in range(1000)]
    kept = blocks[::50]
    before = resident()
    del blocks
    heap.return_freed()
    assert before - resident() > 80_000_000 and all(len(block) == 100_000 for block in kept)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.return_freed()


PRODUCTS = """
import torch
from sdar.training import heap
from pathlib import Path
def resident():
    heap.return_freed()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
weight = torch.ones(1536, 576, dtype=torch.bfloat16)
for rows in range(100, 370):
    torch.nn.functional.linear(torch.ones(rows, 576, dtype=torch.bfloat16), weight)
    if rows == 240:
        before = resident()
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(
    heap._trim() is None or not bfloat16_unit(torch.device("cpu")), reason="nothing is compiled for bfloat16 here"
)
def test_products_of_ever_new_shapes_do_not_pile_up():
    """What oneDNN compiled for each of 130 shapes would be some 75 MB."""
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30

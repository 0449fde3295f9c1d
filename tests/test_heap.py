"""Memory that was freed goes back to the system between the parts of an iteration."""

import os
from pathlib import Path

import pytest

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

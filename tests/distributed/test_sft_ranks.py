"""Supervised fine-tuning by two ranks: the losses, held-out numbers and weights of one process."""

import pytest
import torch
from chats import sums, written
from launch import run

KINDS = ["ddp", "zero3"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft_ranks")
    files = [written(folder / "learned.jsonl", *sums(7)), written(folder / "held_out.jsonl", *sums(3, 50))]
    for world, kinds in ((1, ["one"]), (2, KINDS)):
        run(world, "rank_sft.py", folder / "out", *files, *kinds, folder=folder, deadline=200)
    return {kind: torch.load(f"{folder}/out.{kind}") for kind in ("one", *KINDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_from_conversations_what_one_process_learns(learned, kind):
    """Packed (zero3) or with padding (ddp); the second step takes the last two conversations and begins again."""
    one, two = learned["one"], learned[kind]
    assert len(one["losses"]) == 3 and one["losses"][0] > one["losses"][-1] > 0 and len(one["held_out"]) == 2
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-5, atol=1e-6)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-5)

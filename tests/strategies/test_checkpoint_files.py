"""A checkpoint that was damaged, or that somebody else made: one error with its path and reason, and nothing in it runs."""

import copy
import os
import zipfile
from functools import partial

import pytest
import torch

from sdar.cli.trainer import read_run
from sdar.errors import CheckpointError
from sdar.retrievers import FullRetriever, UCBRetriever
from sdar.strategies import GRPO, SDAR
from sdar.training.checkpoint_files import read_checkpoint, tensors_only
from sdar.training.checkpoints import AtomicCheckpointIO, RunCheckpoint

BANK = "conf/skills/quickstart"


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


KEPT = []


@pytest.fixture
def written(small, tmp_path):
    """The file that a run of one step left (made once)."""
    if not KEPT:
        keep = RunCheckpoint(str(tmp_path / "kept"))
        strategy = small.strategy(SDAR, retriever=UCBRetriever(BANK))
        small.fit(strategy, 1, enable_checkpointing=True, callbacks=[keep], plugins=[AtomicCheckpointIO()])
        KEPT.append((tmp_path / "kept" / "last.ckpt").read_bytes())
    path = tmp_path / "last.ckpt"
    path.write_bytes(KEPT[0])
    return path


def refused(path, reason="", read=read_run):
    with pytest.raises(CheckpointError) as caught:
        read(str(path))
    told = str(caught.value)
    assert str(path) in told and reason in told and len(told) < 700
    assert "weights_only" not in told  # torch's advice is to run it


def test_a_file_that_was_cut_or_changed_is_refused(written, tmp_path):
    whole = written.read_bytes()
    path = tmp_path / "changed.ckpt"
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "copy it anew")
    with zipfile.ZipFile(written) as archive:
        info = max(archive.infolist(), key=lambda part: part.file_size)
    at = info.header_offset + 30 + len(info.filename) + 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(path, f"the sum of its part {info.filename} is wrong")
    for other in ([1, 2], "text", torch.zeros(3), {}, {"state_dict": {}}):
        torch.save(other, path)
        refused(path, "not" if isinstance(other, dict) else "not a checkpoint of a run")
    path.write_text("model: {class_path: SDAR}\n")
    refused(path)


LATE = ("asked", "settings", "parts", "measured", "metrics")
"""What earlier checkpoints do not hold: nothing is lost without it."""


def test_what_a_run_needs_of_a_checkpoint_has_its_form(written, tmp_path):
    good, path = read_checkpoint(written), tmp_path / "changed.ckpt"
    assert good["sdar"]["retriever"]["rounds"]  # there is something to lose
    places = [("sdar", key) for key in good["sdar"]] + [(key,) for key in ("state_dict", "epoch", "global_step", "sdar")]
    mutations = [(place, value) for place in places for value in (None, "x", [3.5])]
    mutations = [(place, value) for place, value in mutations if value or place[-1] not in LATE]
    mutations += [(("sdar", "iteration"), -5), (("sdar", "iteration"), 1e30), (("sdar", "iteration"), 10**30)]
    mutations += [(("sdar", "ranks"), {"world": 0, "strategy": "ddp"}), (("sdar", "origin"), {"model": 3})]
    mutations += [(("sdar", "rng"), {"torch": torch.zeros(3)}), (("state_dict", "model.x"), "not a tensor")]
    for place, value in mutations:
        changed = {key: copy.copy(content) if isinstance(content, dict) else content for key, content in good.items()}
        node = changed if len(place) == 1 else changed[place[0]]
        if value is None:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        torch.save(changed, path)
        refused(path, place[-1])


def test_weights_that_are_no_numbers_are_refused_with_the_name_of_the_first(written, tmp_path):
    good, path = torch.load(written, weights_only=True), tmp_path / "changed.ckpt"
    name = next(iter(good["state_dict"]))
    good["state_dict"][name].view(-1)[1] = torch.nan
    torch.save(good, path)
    refused(path, f"1 of {good['state_dict'][name].numel()} numbers of {name} are NaN or infinite")


@pytest.mark.parametrize("other", [lambda s: None, lambda s: FullRetriever(BANK), lambda s: s])
def test_the_state_of_another_retriever_is_refused(small, written, other, tmp_path):
    path, retriever = tmp_path / "changed.ckpt", other(UCBRetriever(BANK))
    state = torch.load(written, weights_only=True)
    if isinstance(retriever, UCBRetriever):
        state["sdar"]["retriever"] = {"tried": 3}
    torch.save(state, path)
    strategy = small.strategy(GRPO) if retriever is None else small.strategy(SDAR, retriever=retriever)
    with pytest.raises(CheckpointError, match=r"changed\.ckpt.*Use the (retriever|part) of the"):
        small.fit(strategy, 2, ckpt_path=path)


def test_training_does_not_go_on_without_the_optimizers_state(small, written, tmp_path):
    state = torch.load(written, weights_only=True) | {"optimizer_states": []}
    torch.save(state, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError, match="holds the state of 0 optimizers"):
        small.fit(small.strategy(SDAR, retriever=UCBRetriever(BANK)), 2, ckpt_path=tmp_path / "changed.ckpt")


def test_no_pickle_runs_wherever_the_file_lies(written, tmp_path):
    mark, path = tmp_path / "CODE_RAN", tmp_path / "hostile.ckpt"
    torch.save(torch.load(written, weights_only=True) | {"callbacks": Hostile(mark)}, path)
    refused(path, "would run code")
    refused(f"file://{path}", "would run code")  # Lightning reads what comes from an address without looking
    assert AtomicCheckpointIO().load_checkpoint(f"file://{written}", weights_only=False).keys() >= {"sdar", "state_dict"}
    assert not mark.exists()


@pytest.mark.parametrize("part", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_no_pickle_runs_out_of_the_parts_of_ranks(tmp_path, part):
    mark, folder = tmp_path / "CODE_RAN", tmp_path / "parts" / "checkpoint"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("checkpoint")
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": Hostile(mark)} if name == part else {"optimizer_state_dict": {}}, folder / name)
    before = dict(os.environ)
    refused(folder.parent)
    with pytest.raises(CheckpointError, match="would run code"), tensors_only(folder):
        partial(torch.load, weights_only=False)(folder / part)  # as DeepSpeed does when a run goes on
    assert not mark.exists() and dict(os.environ) == before

"""Weights as files: what is read is what was written, or nothing is."""

import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdar.errors import EngineFault, PolicyError
from sdar.serving.engine import Abandoned
from sdar.serving.weights import FileTransport, complete, forget_others, read_weights, write_weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([torch.float32, torch.bfloat16])), max_size=6), st.integers(1, 60)
)
def test_every_tensor_comes_back_whatever_the_size_of_the_files(tmp_path_factory, given_, file_bytes):
    folder = tmp_path_factory.mktemp("weights")
    state = {f"w{i}": torch.randn(size, 2).to(dtype) for i, (size, dtype) in enumerate(given_)}
    request = write_weights(folder, "0@1.1", state.items(), file_bytes)
    equal(dict(read_weights(request)), state)
    assert sum(1 for _ in folder.glob("0@1.1/*")) == len(request.files) <= max(1, len(state))


def test_tied_tensors_are_written_once(tmp_path):
    network = Tied()
    request = write_weights(tmp_path, "v", network.state_dict().items())
    assert request.tied == {"head.weight": "embed.weight"}
    equal(dict(read_weights(request)), dict(network.state_dict()))


def test_tensors_that_use_the_same_memory_after_each_other_are_not_tied(tmp_path):
    """As parameters do that are gathered one by one."""
    room, parameters = torch.empty(4), [nn.Parameter(torch.empty(0)) for _ in range(3)]

    def gathered():
        for value, parameter in enumerate(parameters):
            parameter.data = room.fill_(value)
            yield f"w{value}", parameter.data
            parameter.data = torch.empty(0)

    request = write_weights(tmp_path, "v", gathered())
    assert request.tied == {}
    assert {n: t.tolist() for n, t in read_weights(request)} == {f"w{i}": [float(i)] * 4 for i in range(3)}


def test_tensors_of_many_forms_are_written(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    state = {"transposed": base.t(), "part": base[:, 1:3], "scalar": torch.tensor(3.0), "leaf": nn.Parameter(base.clone())}
    equal(dict(read_weights(write_weights(tmp_path, "v", state.items()))), {n: t.detach() for n, t in state.items()})


def test_a_file_that_is_gone_or_another_is_not_read(tmp_path):
    request = write_weights(tmp_path, "0@1.1", Tied().state_dict().items())
    path = tmp_path / "0@1.1" / "00000.safetensors"
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(EngineFault, match=r"it is not what the trainer wrote as 0@1.1"):
        next(read_weights(request))
    path.unlink()
    with pytest.raises(EngineFault, match=re.escape(f"the weights of 0@1.1 are not at {path}: the folder is not shared")):
        next(read_weights(request))


def test_each_user_has_a_folder_in_shared_memory_and_a_foreign_one_is_a_matter_of_permission(tmp_path, monkeypatch):
    assert FileTransport(None).root.name == f"sdar-{os.getuid()}"

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sdar.serving.weights.write_weights", forbidden)
    with pytest.raises(
        EngineFault, match=r"Permission denied\. This user has no permission to write there: give sampler\.weights_folder"
    ):
        FileTransport(str(tmp_path)).stage("host.1.a", "v", [("a", torch.ones(9))])


def test_files_that_nobody_waits_for_are_not_digested(tmp_path):
    request = write_weights(tmp_path, "0@1.1", Tied().state_dict().items())
    with pytest.raises(Abandoned):
        list(read_weights(request, lambda: False))
    with pytest.raises(PolicyError, match=r"are \d+ bytes, and the engine's model has 1 numbers"):
        with open(request.files[0].path, "ab") as file:
            file.truncate(2**25)
        list(read_weights(request, parameters=1))


def test_versions_do_not_meet_and_old_ones_go(tmp_path):
    first = write_weights(tmp_path, "a/b c@1", [("w", torch.ones(2))])
    (tmp_path / "a_b_c@2.part").mkdir()  # of a writer that was killed
    second = write_weights(tmp_path, "a/b c@2", [("w", torch.zeros(2))])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_b_c@1", "a_b_c@2"]
    forget_others(tmp_path, "a/b c@2")
    assert [p.name for p in tmp_path.iterdir()] == ["a_b_c@2"]
    assert dict(read_weights(second))["w"].tolist() == [0.0, 0.0]
    with pytest.raises(EngineFault, match="a newer version replaced them"):
        next(read_weights(first))


@pytest.mark.parametrize("left_out", [None, "head.weight", "embed.weight"])
def test_a_tied_name_may_be_left_out(left_out):
    network = Tied()
    given = {n: t for n, t in network.state_dict().items() if n != left_out}
    equal(dict(complete("v", given.items(), network)), dict(network.state_dict()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"norm.bias": torch.ones(4)}, "have norm.bias of shape (4,), the engine's Tied has shape (3,)"),
        (lambda s: s | {"extra": torch.ones(4)}, "have extra of shape (4,), the engine's Tied has no such tensor"),
        (lambda s: {n: t for n, t in s.items() if "norm" not in n}, "lack norm.bias and 1 more of the 4 tensors"),
        (lambda s: {n: t for n, t in s.items() if "weight" not in n}, "lack embed.weight and 2 more of the 4 tensors"),
    ],
)
def test_weights_of_another_model_are_told(change, words):
    network = Tied().to("meta")
    network.head.weight = network.embed.weight
    with pytest.raises(PolicyError, match=re.escape(words)):
        list(complete("v", change(dict(Tied().state_dict())).items(), network))
    with pytest.raises(PolicyError, match=r"have norm.bias twice"):
        list(complete("v", [("norm.bias", torch.ones(3))] * 2, network))

"""Triton's kernels of the vocabulary head: what they are told and do, by an emulation, and the kernels themselves where Triton is there."""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sdar.functional import chunked_token_stats, token_stats, triton_tiles

HERE = Path(__file__).parent
SETTINGS = [
    {},
    {"temperature": 0.6, "scale": 2.0},
    {"forbidden_ids": (0, 7, 41), "softcap": 2.0},
    {"forbidden_ids": tuple(range(9)), "temperature": 1.7, "biased": True},
]


def statistics(kernels, setting):
    """All outputs, and the gradients of all inputs, of a few tokens that have a loss and one that has none."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator).requires_grad_() for s in ((7, 5), (50, 5), (50,)))
    setting = dict(setting)
    if setting.pop("biased", False):
        bias.data[12] = -torch.inf
        setting["bias"] = bias
    told = token_stats._KERNELS.set(kernels)
    try:
        found = torch.stack(chunked_token_stats(hidden, weight, torch.arange(10, 45, 5), vocab=48, **setting))
        inputs = [hidden, weight, *([bias] if "bias" in setting else [])]
        upstream = torch.randn(found.shape, generator=generator)
        upstream[:, 2] = 0
        return [found.detach(), *torch.autograd.grad((found * upstream).sum(), inputs)]
    finally:
        token_stats._KERNELS.reset(told)


def fold(z, excluded, start, tokens):
    """What `_fold_kernel` does, a token after the other."""
    targets, wanted, top, total, weighted, lost_top, lost = tokens
    for row in range(len(z)):
        banned = excluded[start : start + z.shape[1]] if len(excluded) else torch.zeros(z.shape[1], dtype=torch.bool)
        counts = z[row][~banned]
        higher = torch.cat([counts, top[row : row + 1]]).max()
        change, e = top[row] - higher, (counts - higher).exp()
        weighted[row] = (weighted[row] + change * total[row]) * change.exp() + (e * (counts - higher)).sum()
        total[row] = total[row] * change.exp() + e.sum()
        top[row] = higher
        if banned.any():
            higher = torch.cat([z[row][banned], lost_top[row : row + 1]]).max()
            lost[row] = lost[row] * (lost_top[row] - higher).exp() + (z[row][banned] - higher).exp().sum()
            lost_top[row] = higher
        if 0 <= (place := targets[row] - start) < z.shape[1]:
            wanted[row] = z[row, place]


def unfold(z, excluded, start, tokens):
    """What `_unfold_kernel` does."""
    targets, normalizer, lost, of_p, of_entropy, of_logp, of_mass = tokens
    for row in range(len(z)):
        logp = z[row] - normalizer[row]
        grad = logp.exp() * of_p[row] - of_entropy[row] * (logp.exp() * logp)
        if len(excluded):
            banned = excluded[start : start + z.shape[1]]
            grad[banned] = -of_mass[row] * (z[row][banned] - lost[row]).exp()
        if 0 <= (place := targets[row] - start) < z.shape[1]:
            grad[place] += of_logp[row]
        z[row] = grad


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_the_kernels_are_told_is_enough(monkeypatch, setting):
    monkeypatch.setattr(triton_tiles, "fold", fold)
    monkeypatch.setattr(triton_tiles, "unfold", unfold)
    for a, b in zip(statistics(True, setting), statistics(False, setting), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_the_kernels_give_what_torch_gives():
    """In Triton's interpreter, which has to be asked for before the first import: in a process of its own."""
    code = (
        "import test_triton_tiles as t, torch\n"
        "from sdar.functional import triton_tiles; triton_tiles.BLOCK = 16\n"
        "for s in t.SETTINGS:\n"
        "    for a, b in zip(t.statistics(True, s), t.statistics(False, s), strict=True):\n"
        "        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)\n"
    )
    path = os.pathsep.join([str(HERE), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path})


def test_on_a_processor_torchs_operations_are_used(monkeypatch):
    monkeypatch.setattr(triton_tiles, "fold", None)
    assert all(t.isfinite().all() for t in statistics(None, {}))


def test_kernels_that_fail_or_differ_are_left_out_with_a_word():
    wanted = [torch.tensor([1.0, 2.0])]

    def broken():
        raise RuntimeError("PTX")

    with pytest.warns(UserWarning, match=r"do not run here \(PTX\): torch's operations are used"):
        assert not triton_tiles.agree(broken, wanted)
    with pytest.warns(UserWarning, match=r"give other numbers than torch's operations \(0\.03\d* apart\): torch's are used"):
        assert not triton_tiles.agree(lambda: [torch.tensor([1.0, 2.1])], wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert triton_tiles.agree(lambda: [torch.tensor([1.0, 2.0 + 1e-6])], wanted)

"""The study of docs/variance.md: its core against autograd on a tiny chain, and that the page shows what it gives."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("estimator_variance", ROOT / "benchmarks/estimator_variance.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
LENGTH, COUPLING = 3, 1.5


def test_the_enumerated_moments_are_those_of_autograd_on_a_tiny_chain() -> None:
    """Response by response, with the gradient of student_logp from autograd, returns summed by hand and the KL differentiated."""
    words, probability, gap = benchmark.chain(LENGTH, COUPLING)
    logits = torch.tensor(benchmark.STUDENT, dtype=torch.double).log().requires_grad_()
    logp = logits.log_softmax(0)[words]  # [27, 3]
    assert torch.allclose(logp.sum(1).exp(), probability) and probability.sum() == pytest.approx(1.0)
    teacher = (logp + gap).detach()
    assert torch.allclose(teacher.sum(1).exp().sum(), torch.ones((), dtype=torch.double))  # of all responses
    divergence = (logp.sum(1).exp() * (logp - teacher).sum(1)).sum()
    (exact,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    found = benchmark.study(LENGTH, COUPLING)
    for discount in (0.0, 0.5, 1.0):
        estimates = []
        for row, gaps in zip(logp, gap.tolist(), strict=True):
            credit = [sum(discount ** (k - t) * gaps[k] for k in range(t, LENGTH)) for t in range(LENGTH)]
            loss = -sum(c * r for c, r in zip(credit, row, strict=True))
            estimates.append(torch.autograd.grad(loss, logits, retain_graph=True)[0])
        each = torch.stack(estimates)
        mean = probability @ each
        variance = (probability * (each - mean).square().sum(1)).sum() / exact.square().sum()
        assert found[discount].bias == pytest.approx(float((mean - exact).norm() / exact.norm()), abs=1e-12)
        assert found[discount].variance == pytest.approx(float(variance))
        longest = float(each.norm(dim=1).max() / exact.norm()) ** 2
        assert longest <= found[discount].bound
    assert found[1.0].bias < 1e-12 < 0.1 < found[0.9].bias + found[0.0].bias


def test_without_coupling_nothing_is_biased_and_the_sequence_level_only_adds_noise() -> None:
    found = benchmark.study(4, 0.0)
    assert all(e.bias < 1e-12 for e in found.values())
    variances = [found[d].variance for d in benchmark.DISCOUNTS]
    assert variances == sorted(variances) and variances[0] < variances[-1] / 2
    assert benchmark.break_even(found[0.0], found[1.0]) == float("inf")


def test_coupling_and_length_raise_the_bias_and_the_gap_in_variance() -> None:
    grid = {key: benchmark.study(*key, discounts=(0.0, 1.0)) for key in itertools.product((2, 6), (0.5, 2.0))}
    bias = {key: found[0.0].bias for key, found in grid.items()}
    assert bias[2, 0.5] < bias[6, 0.5] < bias[6, 2.0] and bias[2, 0.5] < bias[2, 2.0] < bias[6, 2.0]
    ratio = {key: found[1.0].variance / found[0.0].variance for key, found in grid.items()}
    assert ratio[6, 0.5] > 3 * ratio[2, 0.5] and ratio[6, 2.0] > 1.5 * ratio[2, 2.0]
    assert grid[6, 2.0][0.0].bound * (7 / 2) ** 2 == pytest.approx(grid[6, 2.0][1.0].bound)  # (T + 1) / 2, squared


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def number(cell: str) -> float:
    return float(cell.removesuffix(" %"))


def last_digit(cell: str) -> float:
    return 10.0 ** -len(cell.removesuffix(" %").partition(".")[2])


def test_the_page_shows_the_table_that_the_study_gives() -> None:
    page = (ROOT / "docs/variance.md").read_text(encoding="utf-8")
    head, _, *rows = (cells(line) for line in benchmark.table(lengths=(1, 2, 4)).splitlines())
    shown = {tuple(found[:2]): found for found in map(cells, page.splitlines()) if len(found) == len(head)}
    assert len(rows) == 3 * len(benchmark.COUPLINGS) and tuple(head[:2]) in shown
    for row in rows:  # the last digit depends on the processor
        for ours, theirs in zip(row, shown[tuple(row[:2])], strict=True):
            assert ours == theirs or number(ours) == pytest.approx(number(theirs), rel=0, abs=1.01 * last_digit(ours)), row
    assert "length 10; dotted: squared bias" in (ROOT / "docs/variance.svg").read_text(encoding="utf-8")

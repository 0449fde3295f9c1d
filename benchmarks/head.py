"""The vocabulary head and a loss over it, forward and backward: time and memory against full logits, TRL's kernels and Liger's.

    python benchmarks/head.py [--losses statistics reverse] [--tokens 1024] [--hidden 1024] [--rounds 5] [--device cpu] [--quick]

`statistics` are log-probability and entropy of each token; `forward`, `reverse` and `jensen_shannon` a divergence from a teacher with a
head of its own. All take the same hidden states and give the gradient of hidden states and head. "Told" is told what the loss multiplies
the divergences with, as every strategy tells; "not told" is not. Memory is the peak beside the gradient of the head, which all must make,
and the states. The limit is arithmetic: three matrix products of tokens, hidden and vocabulary, four with a teacher, at the rate that a
large one reaches here. Without full logits a fourth (a fifth and a sixth) is needed, unless the gradient is made in the forward pass.
"""

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Times, ratios, spread, timed
from torch import Tensor

from sdar import functional
from sdar.divergences import ForwardKL, JensenShannon, ReverseKL
from sdar.functional.divergence_pass import Comparison, Teacher, head_divergence
from sdar.functional.head import projection

VOCAB = 151_936
PLAIN = {
    "forward": functional.forward_kl,
    "reverse": functional.reverse_kl,
    "jensen_shannon": lambda s, t: functional.jsd(s, t, 0.5),
}
OURS = {"forward": ForwardKL(), "reverse": ReverseKL(), "jensen_shannon": JensenShannon()}
BETA = {"forward": 0.0, "reverse": 1.0, "jensen_shannon": 0.5}
PLAINLY = {"bias": None, "vocab": None, "forbidden_ids": (), "temperature": 1.0, "softcap": None, "scale": 1.0}
COPIES = {"statistics": 5, "forward": 9, "reverse": 9, "jensen_shannon": 14}
"""Tensors of the size of full logits that the plain loss holds at its peak."""


class Case:
    """Hidden states, heads and targets of one size."""

    def __init__(self, loss: str, tokens: int, hidden: int, vocab: int, device: str, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.25).to(device, dtype)

        self.loss, self.tokens, self.vocab = loss, tokens, vocab
        self.hidden, self.weight = random(tokens, hidden).requires_grad_(), random(vocab, hidden).requires_grad_()
        if loss != "statistics":
            self.its_hidden, self.its_weight = random(tokens, hidden), random(vocab, hidden)
        self.targets = torch.randint(0, vocab, (tokens,), generator=generator).to(device)
        self.factors = torch.rand(tokens, generator=generator).to(device)

    def products(self) -> int:
        return 3 if self.loss == "statistics" else 4

    def operations(self) -> float:
        return 2.0 * self.products() * self.tokens * self.vocab * self.hidden.shape[1]

    def plain(self) -> Tensor:
        logits = (self.hidden @ self.weight.t()).float()
        if self.loss == "statistics":
            logp = logits.log_softmax(-1)
            return self.statistics(logp.gather(1, self.targets[:, None])[:, 0], -(logp.exp() * logp).sum(1))
        return self.divergence(PLAIN[self.loss](logits, (self.its_hidden @ self.its_weight.t()).float()))

    def ours(self, told: bool = True) -> Tensor:
        if self.loss == "statistics":
            found = functional.chunked_token_stats(self.hidden, self.weight, self.targets)
            return self.statistics(found.logp, found.entropy)
        student, its = (
            projection(h, w, **PLAINLY) for h, w in ((self.hidden, self.weight), (self.its_hidden, self.its_weight))
        )
        zero = torch.zeros_like(self.factors)
        teachers = [Teacher(torch.arange(self.tokens, device=zero.device), its, self.its_hidden)]
        comparison = Comparison(OURS[self.loss].per_id(), teachers, 1024)
        return self.divergence(head_divergence(self.hidden, zero, zero, student, comparison, self.factors if told else None))

    def trl(self) -> Tensor:
        if self.loss == "statistics":
            from trl.kernels.chunked_logprob import ChunkedLogProbFunction

            found = ChunkedLogProbFunction.apply(
                self.hidden, self.weight, None, self.targets, 1.0, 8192, None, 1.0, ("entropy",)
            )
            return self.statistics(found[0], found[1])
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        told = self.hidden, self.weight, None, self.its_hidden, self.its_weight, None, BETA[self.loss]
        return self.divergence(ChunkedDivergenceFunction.apply(*told)[0])

    def liger(self) -> Tensor:
        if self.loss == "statistics":
            from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Fused

            loss, entropy = Fused.apply(self.hidden, self.weight, self.targets, 1.0, -100, 1, True)
            return self.statistics(-loss, entropy)
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        fused = LigerFusedLinearJSDLoss(0.0, 1.0, BETA[self.loss], compiled=False)
        return fused(self.hidden, self.weight, self.its_hidden, self.its_weight, self.targets)

    def statistics(self, logp: Tensor, entropy: Tensor) -> Tensor:
        return (self.factors * logp - 0.001 * entropy).sum() / self.tokens

    def divergence(self, values: Tensor) -> Tensor:
        return (self.factors * values).sum() / self.tokens

    def works(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        if self.hidden.is_cuda or 4.0 * COPIES[self.loss] * self.tokens * self.vocab < 0.8 * memory_left():
            yield "full logits", self.plain
        yield "ours", self.ours
        if self.loss != "statistics":
            yield "ours, not told", lambda: self.ours(told=False)
        if find_spec("trl"):
            yield "TRL", self.trl
        if find_spec("liger_kernel") and find_spec("triton"):
            yield "Liger", self.liger

    def run(self, work: Callable[[], Tensor]) -> tuple[tuple[float, float], float]:
        """Seconds of one loss with its gradients, and the peak of memory in MB beside the gradients and what was there before."""
        peak = peak_of(self.hidden.device)

        def both() -> int:
            grads = torch.autograd.grad(work(), (self.hidden, self.weight))
            if self.hidden.is_cuda:
                torch.cuda.synchronize()
            return sum(g.nbytes for g in grads)

        taken, gradients = timed(both)
        if self.hidden.is_cuda:
            taken = taken[1], taken[1]
        return taken, (peak() - gradients) / 1e6


def memory_left() -> float:
    """Bytes."""
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024.0 * int(line.split()[1])


def peak_of(device: torch.device) -> Callable[[], float]:
    """What gives the bytes that were held beside today's since now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: float(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)  # what earlier ones left is no memory that this one may use unseen
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the largest resident set starts again
    before = resident("VmRSS")
    return lambda: float(resident("VmHWM") - before)


def resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def rows(case: Case, rounds: int, rate: float) -> Iterator[list[object]]:
    works = dict(case.works())
    times: dict[str, Times] = {name: Times() for name in works}
    peaks: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works):
            try:
                taken, peak = case.run(works[name])
            except torch.OutOfMemoryError:
                print(f"{name} does not fit", file=sys.stderr)
                del works[name], times[name], peaks[name]
                continue
            if number:
                times[name].append(taken)
                peaks[name].append(peak)
    full = 4 * case.tokens * case.vocab / 1e6
    for name, found in times.items():
        ratio = spread(ratios(times["ours"].cpu, found.cpu)) if name != "ours" else ""
        limit = f"{statistics.median(found.cpu) / (case.operations() / rate):.2f}"
        size = f"{case.tokens:,} x {case.hidden.shape[1]:,}"
        peak = statistics.median(peaks[name])
        yield [
            case.loss,
            size,
            name,
            f"{statistics.median(found.cpu):.2f}",
            ratio,
            limit,
            f"{peak:,.0f}",
            f"{peak / full:.3f}",
        ]


def rate_of(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product."""
    if device == "cpu":
        return measuring.matrix_rate(dtype)
    a = torch.ones(8192, 8192, device=device, dtype=dtype)

    def product() -> None:
        a @ a
        torch.cuda.synchronize()

    return 2 * 8192**3 / min([timed(product)[0][1] for _ in range(6)][1:])


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--losses", nargs="+", choices=["statistics", *OURS], default=["statistics", "reverse"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024])
    parser.add_argument("--hidden", nargs="+", type=int, default=[1024])
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given: argparse.Namespace = parser.parse_args()
    measuring.begin(given)
    if given.quick:
        given.tokens, given.hidden, given.vocab = [256], [256], 32_000
    dtype: Any = getattr(torch, given.dtype)
    rate = rate_of(given.device, dtype)
    found = [
        row
        for loss in given.losses
        for hidden in given.hidden
        for tokens in given.tokens
        for row in rows(Case(loss, tokens, hidden, given.vocab, given.device, dtype), given.rounds, rate)
    ]
    measuring.tell(
        given,
        "The vocabulary head and its losses, forward and backward",
        f"{given.dtype} on {given.device}, vocabulary {given.vocab:,}; medians of {given.rounds} interleaved rounds, seconds of "
        f"{'the clock' if given.device != 'cpu' else 'processor time'}; ratio: ours over this one. Share: of full logits in float32.",
        measuring.table(
            [
                "loss",
                "tokens x hidden",
                "who",
                "seconds",
                "ratio",
                "times the limit",
                "memory beside the gradients, MB",
                "share",
            ],
            found,
        ),
    )


if __name__ == "__main__":
    measuring.run(main)

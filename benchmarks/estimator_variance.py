"""Token level against sequence level: bias and variance of the gradient of on-policy distillation, by enumeration of a small chain.

    python benchmarks/estimator_variance.py                            # prints the table
    python benchmarks/estimator_variance.py --page docs/variance.md    # writes it there, and the picture beside it

Three words, `length` places. The student says each word with the same probabilities in every place; its logits are what is learned.
Word 0 leads off the teacher's path: from there on the teacher finds word 1, the student's favourite, `coupling` nats less likely
before it is normalised. So at coupling 0 no token changes what a later one is worth, and above it all later gaps are the doing of
the first word 0. All 3^length responses are enumerated in float64: nothing is sampled, and the numbers are exact.
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdar.functional import gap_returns

STUDENT = (0.15, 0.55, 0.3)
TEACHER = (0.1, 0.45, 0.45)
LENGTHS, COUPLINGS, DISCOUNTS = (1, 2, 4, 6, 8, 10), (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 0.9, 1.0)
MARKS = ("<!-- table: written by benchmarks/estimator_variance.py -->", "<!-- end of table -->")


class Estimator(NamedTuple):
    """The gradient estimate of one sampled response, in units of the length of the gradient of the sequence's KL."""

    bias: float
    """Distance of its mean from that gradient."""
    variance: float
    """Mean squared distance from its own mean."""
    bound: float
    """No estimate is longer, squared: (largest |gap| * longest score * sum of the weights of the gaps in the returns)^2."""
    size: float
    """Of that gradient itself, in nats."""


def chain(length: int, coupling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of all responses: words ``[responses, length]``, their probability ``[responses]`` and gaps ``[responses, length]``, in nats."""
    words = torch.tensor(list(itertools.product(range(3), repeat=length)))
    student = torch.tensor(STUDENT, dtype=torch.double).log()
    on_path = torch.tensor(TEACHER, dtype=torch.double).log()
    off_path = (on_path - torch.tensor([0.0, coupling, 0.0])).log_softmax(0)
    left = (words == 0).cumsum(1) - (words == 0).long() > 0  # a word 0 stands before
    teacher = torch.where(left, off_path[words], on_path[words])
    return words, student[words].sum(1).exp(), teacher - student[words]


def study(length: int, coupling: float, discounts: Sequence[float] = DISCOUNTS) -> dict[float, Estimator]:
    """Bias and variance of -sum_t G_t grad student_logp_t with `gap_returns` of each discount."""
    words, probability, gap = chain(length, coupling)
    score = torch.eye(3, dtype=torch.double)[words] - torch.tensor(STUDENT, dtype=torch.double)  # [responses, length, 3]
    everything, rows = torch.ones_like(words), torch.arange(len(words))

    def estimates(discount: float) -> Tensor:
        returns = gap_returns(gap, everything, torch.zeros_like(words), rows, discount)
        return -(returns[..., None] * score).sum(1)  # [responses, 3]

    exact = probability @ (-gap.sum(1, keepdim=True) * score.sum(1))  # of KL(student || teacher) over responses
    size = float(exact.norm())
    found = {}
    for discount in discounts:
        each = estimates(discount)
        mean = probability @ each
        variance = float(probability @ (each - mean).square().sum(1)) / size**2
        weights = sum(discount**k for t in range(length) for k in range(t + 1))
        longest = float(gap.abs().max() * score.norm(dim=-1).max()) * weights
        found[discount] = Estimator(float((mean - exact).norm()) / size, variance, (longest / size) ** 2, size)
    return found


def break_even(token: Estimator, sequence: Estimator) -> float:
    """Responses in a step from which the sequence level has the smaller mean squared error; infinite where neither has a bias."""
    return (sequence.variance - token.variance) / token.bias**2 if token.bias > 1e-9 else float("inf")


def table(lengths: Sequence[int] = LENGTHS, couplings: Sequence[float] = COUPLINGS) -> str:
    """One line a coupling and length."""
    biased = DISCOUNTS[:-1]
    heads = ["coupling", "length", *(f"bias at {d:g}" for d in biased), *(f"variance at {d:g}" for d in DISCOUNTS)]
    heads += ["variance, 1 to 0", "bound, 1 to 0", "break-even"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for coupling, length in itertools.product(couplings, lengths):
        found = study(length, coupling)
        token, sequence = found[0.0], found[1.0]
        even = break_even(token, sequence)
        cells = [f"{coupling:g}", str(length), *(f"{100 * found[d].bias:.0f} %" for d in biased)]
        cells += [f"{found[d].variance:.2f}" for d in DISCOUNTS]
        cells += [f"{sequence.variance / token.variance:.1f}", f"{sequence.bound / token.bound:.1f}"]
        cells.append("-" if even == float("inf") else f"{even:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, lengths: Sequence[int] = LENGTHS, couplings: Sequence[float] = COUPLINGS) -> None:
    """Variance and worst-case bound over the length; bias and variance over the coupling."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    grey, blue = "#7d8590", "#2f81d7"
    shown = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings = {"svg.hashsalt": "sdar", "svg.fonttype": "none", "font.size": 9} | dict.fromkeys(shown, grey)
    colours = dict(zip(DISCOUNTS, (grey, "#bf8700", "#8250df", blue), strict=True))
    with matplotlib.rc_context(settings):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        by_length = {n: study(n, 1.0) for n in lengths}
        by_coupling = {c: study(max(lengths), c) for c in couplings}
        for discount, colour in colours.items():
            word = {0.0: "0, token level", 1.0: "1, sequence level"}.get(discount, f"{discount:g}")
            of = [by_length[n][discount] for n in lengths]
            label = f"discount {word}"
            left.plot(lengths, [x.variance * x.size**2 for x in of], "o-", ms=3, color=colour, label=label)
            if discount in (0.0, 1.0):
                left.plot(lengths, [x.bound * x.size**2 for x in of], "--", lw=1, color=colour)
            strong = [c for c in couplings if c > 0]  # without coupling there is no bias
            right.plot(couplings, [by_coupling[c][discount].variance for c in couplings], "o-", ms=3, color=colour)
            if discount < 1:
                right.plot(strong, [by_coupling[c][discount].bias ** 2 for c in strong], "o:", ms=2, color=colour)
        left.set(xlabel="length", xscale="log", yscale="log", title="coupling 1; dashed: worst case")
        left.set_xticks(lengths, [str(n) for n in lengths], minor=False)
        left.minorticks_off()
        left.set_ylabel("variance of one response's\ngradient, nats squared")
        right.set_ylabel("the same over the squared\nlength of the mean at 1")
        right.set(xlabel="coupling, nats", yscale="log", title=f"length {max(lengths)}; dotted: squared bias")
        for axes in (left, right):
            axes.grid(lw=0.3, alpha=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=8, handlelength=1.2)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", type=Path, help="write the table between the marks of this page, and a picture of its name beside it"
    )
    args = parser.parse_args()
    made = table()
    print(made)
    if args.page is not None:
        text = args.page.read_text(encoding="utf-8")
        between = re.compile(f"(?<={re.escape(MARKS[0])}).*(?={re.escape(MARKS[1])})", re.DOTALL)
        args.page.write_text(between.sub(f"\n{made}\n", text), encoding="utf-8")
        draw(args.page.with_suffix(".svg"))


if __name__ == "__main__":
    main()

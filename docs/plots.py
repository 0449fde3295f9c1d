"""Draw every registered gate and divergence for docs/parts.md: one that is new appears by being registered.

python docs/plots.py FOLDER     # `make docs` draws into build/plots
"""

import inspect
import math
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdar.contracts.estimands import VOCAB, K, every_setting, losses
from sdar.parts import Divergence, Gate
from sdar.registry import load_parts, parts
from sdar.types import TokenView

Curves = dict[str, tuple[Tensor, Tensor, Tensor]]
"""Label -> places, values there, and what the second panel shows."""
STEEPNESS = {"beta": (1.0, 5.0, 10.0), "value": (0.5, 1.0)}
"""Settings of gates of which each is a line."""
DOUBT = (0.1, 0.5)
"""Entropies of the student, as shares of ln(vocabulary)."""
LIKED = 0.7
"""What the teacher gives the token that the student's probability is drawn for; the others share the rest alike."""


def registered(kind: str) -> dict[str, type]:
    """Short name -> class of the parts of this package."""
    load_parts()
    return {name: cls for name, cls in parts(kind).items() if cls.__module__.startswith("sdar.")}


def tokens_of(student: Tensor, teacher: Tensor, entropy: Tensor, **others: Any) -> TokenView:
    """What is known about tokens ``[...]`` by log-probabilities and the student's entropy."""
    return TokenView(
        student_logp=student, teacher_logp=teacher, gap=teacher - student, entropy=entropy, old_logp=student,
        response_mask=torch.ones_like(student, dtype=torch.bool), turn_ids=torch.zeros_like(student, dtype=torch.long),
        advantages=torch.zeros_like(student), group_success=torch.full_like(student, 0.5), vocab_size=VOCAB, **others,
    )  # fmt: skip


def gate_curves(cls: type[Gate]) -> Curves:
    """The gate over the gap in nats, and its slope, for each steepness; for each entropy where that matters."""
    gap, found = torch.linspace(-3, 3, 241, dtype=torch.double), {}
    known = inspect.signature(cls).parameters
    names = [name for name in STEEPNESS if name in known]
    for settings in [{name: value} for name in names for value in STEEPNESS[name]] or [{}]:
        lines = {}
        for doubt in DOUBT:
            student = torch.full_like(gap, -4.0)
            told = tokens_of(student, student + gap, torch.full_like(gap, doubt * math.log(VOCAB)))
            lines[doubt] = cls(**settings)(told.at((slice(None), None)))[:, 0].double()
        alike = torch.equal(*lines.values())
        for doubt, values in lines.items():
            words = [f"{k} {v:g}" for k, v in settings.items()] + [f"entropy {doubt:.0%}"] * (not alike)
            found[", ".join(words)] = gap, values, torch.gradient(values, spacing=(gap,))[0]
    return found


def divergence_curves(cls: type[Divergence]) -> Curves:
    """The expected value over the student's probability of one token, and how its expected gradient pulls at that token's logit."""
    share = torch.linspace(0.01, 0.99, 99, dtype=torch.double)
    teacher = _two_outcomes(torch.tensor(LIKED, dtype=torch.double))
    top, places, found = teacher.topk(K), (len(share), VOCAB), {}
    for settings in every_setting(cls):
        logits = _two_outcomes(share).requires_grad_()
        student = logits.log_softmax(-1)
        fixed = student.detach()
        told = tokens_of(
            fixed, teacher.expand(places), -(fixed.exp() * fixed).sum(-1, keepdim=True).expand(places),
            ids=torch.arange(VOCAB).expand(places), teacher_logits=teacher.expand(*places, VOCAB),
            teacher_top_ids=top.indices.expand(*places, K), teacher_top_logp=top.values.expand(*places, K),
        )  # fmt: skip
        loss = (fixed.exp() * losses(cls(**settings), student, told)).sum(-1)
        pull = -torch.autograd.grad(loss.sum(), logits)[0][:, 0]
        found[", ".join(f"{k} {v}" for k, v in settings.items())] = share, loss.detach(), pull
    return found


def _two_outcomes(p: Tensor) -> Tensor:
    """Log-probabilities ``[..., VOCAB]``: the first token has `p`, the others share the rest, each a little more than the next."""
    rest = torch.linspace(1.2, 0.8, VOCAB - 1, dtype=p.dtype)
    return torch.cat([p[..., None], (1 - p[..., None]) * rest / rest.sum()], -1).log()


PANELS = {
    "gates": (gate_curves, "gap, nats", "gate", "slope, 1 / nat", 0.0),
    "divergences": (
        divergence_curves,
        "student's probability of the token",
        "expected value, nats",
        "pull at its logit",
        LIKED,
    ),
}
"""Kind -> its curves, the words of the axes, and where teacher and student agree."""


def figure(kind: str, cls: type) -> Figure:
    """Both panels of a part."""
    curves_of, across, *words, agreed = PANELS[kind]
    curves = curves_of(cls)
    drawn = Figure(figsize=(8, 2.7), layout="constrained")
    for panel, (axes, word) in enumerate(zip(drawn.subplots(1, 2), words, strict=True)):
        for n, (label, (places, *values)) in enumerate(curves.items()):
            axes.plot(places, values[panel].round(decimals=12), ["-", "--", ":", "-."][n % 4], label=label)
        axes.axvline(agreed, color="0.6", linewidth=0.8)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel=across, ylabel=word)
        if panel == 0 and all(curves):
            axes.legend(fontsize="small")
    return drawn


def sections(kind: str, folder: str) -> str:
    """Markdown with a heading, the first line of the docstring and the picture of each part."""
    return "\n".join(
        f"### {name}\n\n`{cls.__name__}`. {(inspect.getdoc(cls) or '').splitlines()[0]}\n\n"
        f"![{cls.__name__}: {', '.join(PANELS[kind][2:4])}]({folder}/{kind}-{name}.svg)\n"
        for name, cls in registered(kind).items()
    )


def write(folder: Path) -> None:
    """A file for each registered gate and divergence."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in PANELS:
        for name, cls in registered(kind).items():
            figure(kind, cls).savefig(folder / f"{kind}-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""Charts of a report, as SVG that fits into a page: readable in light and dark, and without colours."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from sdar.errors import ConfigError
from sdar.evaluate.curves import aligned
from sdar.evaluate.picture import COLOURS, GREY, LINES
from sdar.versions import install

Series = tuple[Sequence[float], Sequence[float]]
"""x and y of a line."""
POINTS = 101
_numbers = count()


def check_drawing() -> None:
    """
    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"sdar report draws with matplotlib, which is not installed: {install('report')}.") from error


def lines(
    title: str, of: Mapping[str, Sequence[Series]], unit: str = "", percent: bool = False, x: str = "iteration",
    bands: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]]] | None = None,
) -> str:  # fmt: skip
    """A line a setting; of several seeds their mean, with a band from the lowest to the highest.

    Args:
        of: Setting -> a line a seed.
        percent: Values are shares.
        bands: Setting -> x, low and high, of intervals that were measured.
    """
    figure, axes = _figure()
    scale = 100.0 if percent else 1.0
    for number, (label, seeds) in enumerate(of.items()):
        colour, style = COLOURS[(number + 1) % len(COLOURS)], LINES[number % len(LINES)]
        told: list[tuple[Any, Any]] = [(xs, [scale * y for y in ys]) for xs, ys in seeds if len(xs)]
        if len(told) > 1 and all(len(xs) > 1 for xs, _ in told):
            at, values = aligned(told, POINTS)
            axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            told = [(at, values.mean(0))]
        for nth, (xs, ys) in enumerate(told):
            marker = "o" if len(xs) < 12 else None
            axes.plot(xs, ys, color=colour, ls=style, lw=1.6, marker=marker, ms=3, label=None if nth else label)
        for xs, low, high in (bands or {}).get(label, ()):
            axes.fill_between(xs, [scale * y for y in low], [scale * y for y in high], color=colour, alpha=0.12, lw=0)
    axes.set(title=title, xlabel=x, ylabel="%" if percent else unit)
    if len(of) > 1:
        axes.legend(frameon=False, fontsize=7)
    return _svg(figure)


def places(title: str, names: Sequence[str], of: Mapping[str, Sequence[float | None]], unit: str = "") -> str:
    """A line over named places (turns, positions), one for each label."""
    figure, axes = _figure()
    for number, (label, values) in enumerate(of.items()):
        colour, style = COLOURS[(number + 1) % len(COLOURS)], LINES[number % len(LINES)]
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        axes.plot(*zip(*known, strict=True), color=colour, ls=style, lw=1.6, marker="o", ms=3, label=label)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0, fontsize=7)
    axes.set(title=title, ylabel=unit)
    axes.axhline(0, color=GREY, lw=0.5)
    if len(of) > 1:
        axes.legend(frameon=False, fontsize=7)
    return _svg(figure)


def spread(title: str, xs: Sequence[float], quantiles: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """How a quantity is distributed over time: its quantiles, the outermost first."""
    figure, axes = _figure()
    names = [*quantiles]
    for depth in range(len(names) // 2):
        low, high = quantiles[names[depth]], quantiles[names[-1 - depth]]
        axes.fill_between(xs, low, high, color=COLOURS[1], alpha=0.15, lw=0.6, label=f"{names[depth]} to {names[-1 - depth]}")
    axes.plot(xs, quantiles[names[len(names) // 2]], color=COLOURS[1], lw=1.6, label=names[len(names) // 2])
    axes.set(title=title, xlabel="iteration", ylabel=unit)
    axes.axhline(0, color=GREY, lw=0.5)
    axes.legend(frameon=False, fontsize=7)
    return _svg(figure)


def stacked(title: str, xs: Sequence[float], parts: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """Parts of a whole over time."""
    figure, axes = _figure()
    hatches = ["", "//", "..", "xx", "\\\\", "++"]
    for number, (collection, name) in enumerate(zip(axes.stackplot(xs, *parts.values(), alpha=0.6), parts, strict=True)):
        collection.set(
            facecolor=COLOURS[(number + 1) % len(COLOURS)], hatch=hatches[number % 6], edgecolor=GREY, lw=0.3, label=name
        )
    axes.set(title=title, xlabel="iteration", ylabel=unit)
    axes.legend(frameon=False, fontsize=7, loc="upper right")
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    shown = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
        "legend.labelcolor",
    )
    plain: dict[Any, Any] = {
        "svg.hashsalt": "sdar", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9, "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(plain | dict.fromkeys(shown, GREY)):
        figure = Figure(figsize=(3.5, 2.4), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", lw=0.3, alpha=0.6)
    return figure, axes


def _svg(figure: Any) -> str:
    """The element alone, with ids of its own: a page holds many."""
    import matplotlib

    with io.StringIO() as out, matplotlib.rc_context({"svg.hashsalt": "sdar", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    name = f"c{next(_numbers)}-"
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}", text)


def quantiles(values: Sequence[float], at: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
    return [float(q) for q in np.quantile(np.asarray(values), at)]

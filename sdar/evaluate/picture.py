"""A comparison as a picture: learning curves over each cost, and the differences of panels and families with their intervals."""

from pathlib import Path
from typing import Any

from sdar.errors import ConfigError
from sdar.evaluate.tables import UNITS
from sdar.versions import install

GREY = "#7d8590"
COLOURS = ("#7d8590", "#2f81d7", "#d1700b", "#2da44e", "#a371f7", "#bf4b8a")
"""Of the first setting, the second, and so on: each can be told from white and from black."""
MARKERS, LINES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""So that they can be told apart without colours."""
FORMS = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """
    Raises:
        ConfigError: it could not be drawn, or not written: told before anything is read.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--picture needs matplotlib, which is not installed: {install('report')}. Markdown and --json need nothing further."
        ) from error
    if path.suffix not in FORMS:
        raise ConfigError(f"--picture {path}: its name says which form it has. End it with {', '.join(FORMS)}.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no folder {path.parent}. Make it, or give another file.")


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw what `sdar.evaluate.compare.compare` returned. The same numbers give the same file."""
    import matplotlib
    from matplotlib.figure import Figure

    plain: dict[Any, Any] = {"svg.hashsalt": "sdar", "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    shown = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    panels, curves = found["panels"], found["curves"]
    with matplotlib.rc_context(plain | dict.fromkeys(shown, GREY)):
        columns = len(curves) + 1
        most = max(sum(2 + len(of["families"]) for of in panel["differences"]) for panel in panels)
        figure = Figure(figsize=(1 + 3.4 * columns, max(3.0, 0.28 * most * len(panels))), layout="constrained")
        grid = figure.add_gridspec(len(panels), columns)
        for place, (cost, curve) in enumerate(curves.items()):
            _draw_curve(figure.add_subplot(grid[:, place]), cost, curve)
        for row, panel in enumerate(panels):
            _draw_differences(figure.add_subplot(grid[row, -1]), panel)
        handles = figure.axes[0].get_legend_handles_labels()
        if curves:
            figure.legend(*handles, frameon=False, loc="outside lower center", ncols=4, fontsize=8)
        told = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, metadata=told, transparent=True, dpi=150)


def _draw_curve(axes: Any, cost: str, curve: dict[str, Any]) -> None:
    for number, (label, of) in enumerate(curve["settings"].items()):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        mean, low, high = zip(*of["mean"], strict=True)
        several = low[0] is not None
        axes.plot(curve["at"], [100 * y for y in mean], color=colour, ls=line, lw=2, label=f"{label} ({len(of['seeds'])})")
        for seed in of["seeds"] if several else ():
            axes.plot(curve["at"], [100 * y for y in seed], color=colour, lw=0.5, alpha=0.5)
        if several:
            band = [[100 * min(1.0, max(0.0, y)) for y in end] for end in (low, high)]
            axes.fill_between(curve["at"], *band, color=colour, alpha=0.12, lw=0)
    axes.set(xlabel=UNITS[cost], xlim=(0, None), ylim=(0, None))
    axes.set_ylabel("training success, %\n(last 5 iterations)")
    axes.grid(axis="y", lw=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_differences(axes: Any, panel: dict[str, Any]) -> None:
    names, place = [], 0
    for number, of in enumerate(panel["differences"], 1):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        families = of["families"] if len(of["families"]) > 1 else {}
        for name, one in [(of["label"], of["success"]), *((f"  {name}", one) for name, one in families.items())]:
            mean, low, high = (100 * x for x in one["difference"])
            axes.plot([low, high], [place, place], color=colour, lw=2 if one is of["success"] else 1)
            axes.plot(mean, place, marker, color=colour, ms=6 if one is of["success"] else 4)
            names.append(name)
            place += 1
    axes.axvline(0, color=GREY, lw=0.8, ls=":")
    axes.set_yticks(range(place), names)
    axes.set_ylim(place - 0.5, -0.5)
    axes.set_xlabel(f"success on {panel['panel']}, points more than {panel['differences'][0]['reference']}")
    axes.spines[["top", "right"]].set_visible(False)

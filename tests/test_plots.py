"""The pictures of docs/parts.md: every registered gate and divergence has one, of finite numbers that say what the page reads off them."""

import importlib.util
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("plots_of_parts", ROOT / "docs/plots.py")
plots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plots)
PARTS = [(kind, name) for kind in plots.PANELS for name in plots.registered(kind)]


def curves(kind: str, name: str) -> "plots.Curves":
    return plots.PANELS[kind][0](plots.registered(kind)[name])


@pytest.mark.parametrize("part", PARTS, ids="-".join)
def test_a_part_has_a_picture_and_a_section(part: tuple[str, str]) -> None:
    kind, name = part
    drawn = plots.figure(kind, plots.registered(kind)[name])
    drawn.savefig(out := BytesIO(), format="svg")
    assert len(out.getvalue()) > 5000
    for axes, words in zip(drawn.axes, plots.PANELS[kind][2:4], strict=True):
        assert axes.get_ylabel() == words and len(axes.lines) == len(curves(*part)) + 2
    section = plots.sections(kind, "folder")
    assert f"### {name}\n" in section and f"(folder/{kind}-{name}.svg)" in section


@pytest.mark.parametrize("part", PARTS, ids="-".join)
def test_what_is_drawn_is_finite(part: tuple[str, str]) -> None:
    for places, *values in curves(*part).values():
        assert len(places) > 50 and all(line.shape == places.shape and bool(line.isfinite().all()) for line in values)
    if part[0] == "gates":
        assert all(float(line.min()) >= 0 and float(line.max()) <= 1 for _, line, _ in curves(*part).values())


def test_the_pull_is_that_of_the_formula() -> None:
    """Of k1 and k3 behind one token with p against q = 0.7: p (KL - log(p / q)) and q - p. The lift's is nothing."""
    ((places, value, pull),) = curves("divergences", "k1").values()
    log_ratio = (places / 0.7).log()
    kl = places * log_ratio + (1 - places) * ((1 - places) / 0.3).log()
    assert (pull - places * (kl - log_ratio)).abs().max() < 1e-9
    ((places, _, pull),) = curves("divergences", "k3").values()
    assert (pull - (0.7 - places)).abs().max() < 1e-9
    ((_, value, pull),) = curves("divergences", "lift").values()
    assert pull.abs().max() < 1e-9 and float(value.max()) < 1e-9


def test_a_gate_that_is_registered_is_drawn(own_folder: Path) -> None:
    (own_folder / "my_gates.py").write_text(
        "from sdar import Gate, register\n\n\n@register('square')\nclass Square(Gate):\n"
        "    '''The square of the gap.'''\n\n    def __call__(self, tokens):\n        return tokens.gap.square().clamp(0, 1)\n"
    )
    square = importlib.import_module("my_gates").Square
    ((gap, value, slope),) = plots.gate_curves(square).values()
    assert float(value[abs(gap - 0.5).argmin()]) == pytest.approx(0.25) and float(
        slope[abs(gap - 0.5).argmin()]
    ) == pytest.approx(1.0, abs=0.05)
    assert len(plots.figure("gates", square).axes) == 2

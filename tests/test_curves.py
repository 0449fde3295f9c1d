"""The pictures of docs/methods: what their lines are, and that pictures and pages show the runs of benchmarks/results."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("benchmark_of_methods", ROOT / "benchmarks/methods.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)
RESULTS = benchmark.stored(ROOT / "benchmarks/results/methods")


def run(*curve: tuple[int, float], before: float = 0.1, after: float = 0.2) -> dict:
    return {"env_steps": curve[-1][0], "before": [before, 0, 1], "after": [after, 0, 1], "curve": [list(p) for p in curve]}


def test_a_curve_is_the_mean_of_the_last_five_iterations() -> None:
    assert benchmark.smooth([0.0, 0.5, 0.25, 0.25, 0.5, 1.0, 1.0]) == [0.0, 0.25, 0.25, 0.25, 0.3, 0.5, 0.6]


def test_the_mean_of_seeds_is_taken_where_all_of_them_have_been() -> None:
    """The first run stands at 20 and 40 % (30 % smoothed) after 100 and 300 steps, the second at 10 % all the time."""
    steps, success = benchmark.mean_curve([run((100, 0.2), (300, 0.4)), run((200, 0.1), (400, 0.1))])
    assert (steps[0], steps[-1]) == (200, 300)
    assert success[[0, -1]] == pytest.approx([(25 + 10) / 2, (30 + 10) / 2])


def test_a_picture_says_what_it_shows_and_what_it_was_drawn_from(tmp_path: Path) -> None:
    lines = run((100, 0.1), (200, 0.3)), run((110, 0.2), (210, 0.2))
    results = {"grpo": [*lines, None], "high": [run((100, 0.9), (200, 0.9))], "none": [None]}
    benchmark.draw(results, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grpo.svg", "high.svg"]
    low, high = ((tmp_path / f"{name}.svg").read_text(encoding="utf-8") for name in ("grpo", "high"))
    for text in ("training success, %", "(last 5 iterations)", "environment steps", "validation before and after"):
        assert text in low and text in high
    assert "grpo: mean of 2 seeds" in low and "grpo: mean of 2 seeds" in high and "high: mean of 1 seeds" in high
    assert "high, up to 100 %" in high and "up to" not in low and ">50<" in low and ">100<" in high
    assert benchmark.drawn_from(results, "high") in high
    assert benchmark.drawn_from({**results, "high": [lines[0]]}, "high") not in high
    first = (tmp_path / "high.svg").read_bytes()
    benchmark.draw(results, tmp_path)
    assert (tmp_path / "high.svg").read_bytes() == first, "drawn again it is the same file"


@pytest.mark.parametrize("method", RESULTS)
def test_the_numbers_beside_a_curve_are_those_of_its_runs(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text(encoding="utf-8")
    after = {name: ", ".join(f"{100 * r['after'][0]:.1f}" for r in RESULTS[name]) for name in (method, "grpo")}
    assert f"20,000 environment steps: {after[method]} % (seeds 0, 1, 2)" in page
    assert set(re.findall(r"GRPO: ([\d., ]+) %", page)) <= {after["grpo"]}


@pytest.mark.parametrize("method", RESULTS)
def test_a_picture_shows_the_runs_that_are_there(method: str) -> None:
    picture = (ROOT / f"docs/methods/curves/{method}.svg").read_text(encoding="utf-8")
    command = "python benchmarks/methods.py --table-only --pictures docs/methods/curves"
    assert benchmark.drawn_from(RESULTS, method) in picture, f"draw it again: {command}"

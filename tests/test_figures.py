"""`sdar figures`: each has the numbers of the runs' files in it, says what a run lacks, and stands on its page."""

import csv
import gzip
import json
import math
from pathlib import Path
from shutil import copytree

import pytest
from left_run import left_run

from sdar import registry
from sdar.cli.roots import checked_settings
from sdar.errors import ConfigError
from sdar.figures.base import FIGURES, Table
from sdar.figures.command import ELSEWHERE, drawn, main
from sdar.figures.making import make, words_of

ROOT = Path(__file__).parents[1]
METRICS = {
    "gap/negative_share": 0.6, "gate/active_share": 0.3, "advantage/reshaped_by": 0.2, "advantage/evidence_clipped_share": 0.1,
    "rollout/tool_calls": 1.5, "judge/agreement": 0.7, "judge/label_success": 0.4, "judge/label_failure": -0.2,
    "transport/surface_share": 0.29, "transport/distance": 0.8, "train/env_steps": 100, "rollout/tokens_per_second": 10,
}  # fmt: skip
WEIGHTS = {1: [1.0], 2: [1.0, 1.2], 3: [1.0, 0.5, 1.0], 4: [1.0, 1.0, 1.0, 0.9]}
"""Turn weights of an episode by its turns: too short for a pattern, aligned, recovered, drifted."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has what every figure needs: metric m of iteration i is METRICS[m] times i, or as `left_run` has it."""
    folder = left_run(tmp_path_factory.mktemp("figures") / "version_0")
    head, *lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    more = [",".join([line, *(str(i * value) for value in METRICS.values())]) for i, line in enumerate(lines, 1)]
    (folder / "metrics.csv").write_text("\n".join([",".join([head, *METRICS]), *more]) + "\n", encoding="utf-8")
    for file in (folder / "episodes").glob("train-*"):
        episodes = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        for e in episodes:
            for turn, weight in zip(e["turns"], WEIGHTS[len(e["turns"])], strict=True):
                turn["turn_weight"] = weight
            e["turns"][0]["tool_ok"] = e["attempt"] == 0  # the first attempt's first call works, the second one's does not
        file.write_bytes(gzip.compress("".join(json.dumps(e) + "\n" for e in episodes).encode()))
    return folder


def rows(name: str, *runs: str) -> list[dict]:
    return [row for chart in drawn(FIGURES[name], runs) for row in chart.rows()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_a_run_has_numbers_and_a_picture_of_each_chart(name: str, run: Path) -> None:
    charts = drawn(FIGURES[name], [f"ours={run}"])
    for chart in charts:
        told = [*chart.rows()]
        values = [row["value"] for row in told if "value" in row]
        assert told and all(math.isfinite(value) for value in values) and (values or isinstance(chart, Table))
        if not isinstance(chart, Table):
            assert chart.title in chart.svg()


EACH = range(1, 7)


def value(name: str, run: Path, title: str, **place: object) -> list[float]:
    """The values of a chart at a place."""
    found = [row for row in rows(name, f"ours={run}") if row["chart"] == title and all(row[k] == v for k, v in place.items())]
    return [row["value"] for row in found]


def test_gaps_by_turn_are_means_over_the_stored_tokens(run: Path) -> None:
    """`left_run`: token k of turn t has the gap (-1)^k 0.1 (k + 1) (t + 1), and five tokens each."""
    sizes = [sum(0.1 * (k + 1) * t for k in range(5)) / 5 for t in (1, 2, 3, 4)]
    signed = [sum((-1) ** k * 0.1 * (k + 1) * t for k in range(5)) / 5 for t in (1, 2, 3, 4)]
    assert value("gap_by_turn", run, "size of the gap by turn", setting="ours") == pytest.approx(sizes)
    assert value("gap_by_turn", run, "gap by turn", setting="ours") == pytest.approx(signed)
    assert value("gap_by_turn", run, "gap by turn", setting="goal reached", place="1") == pytest.approx(signed[:1])
    assert [row["place"] for row in rows("guidance_by_position", f"ours={run}") if row["setting"] == "ours"][:3] == [
        "1",
        "2-4",
        "5-16",
    ]


def test_the_signal_s_concentration_is_the_share_of_the_largest_tokens(run: Path) -> None:
    counted = [(1, 2, 3, 4)[task % 4] for task in range(6)]
    sizes = sorted((0.1 * (k + 1) * t for turns in counted for t in range(1, turns + 1) for k in range(5)), reverse=True)
    assert value("signal_concentration", run, "share of the gap on the largest tokens", place="100 %") == [1.0]
    [tenth] = value("signal_concentration", run, "share of the gap on the largest tokens", place="10 %")
    assert tenth == pytest.approx(sum(sizes[: round(0.1 * len(sizes))]) / sum(sizes), abs=0.02)


def test_what_came_before_a_turn_is_told_as_the_metrics_tell_it(run: Path) -> None:
    table = [row for row in rows("distance_after_error", f"ours={run}") if "behind" in row]
    found = {row["behind"]: (row["turns"], row["mean"]) for row in table}
    # of six tasks four have a second turn, two attempts each, in six iterations; every episode has a first one
    assert found["no call yet"] == (72, pytest.approx(0.3)) and found["a call with an error"] == (24, pytest.approx(0.6))
    assert found["a call that worked"] == (24, pytest.approx(0.6))
    assert value("teacher_entropy_after_error", run, "entropy of the teacher by turn", setting="no call yet") == pytest.approx(
        [0.3]
    )


def test_patterns_are_told_apart_by_the_stored_weights(run: Path) -> None:
    shares = {
        name: value("weight_patterns", run, "share of the episodes", setting=name)
        for name in ("aligned", "recovered", "drifted")
    }
    assert shares == {"aligned": [0.5] * 6, "recovered": [0.25] * 6, "drifted": [0.25] * 6}  # tasks 1 and 5, 2, 3
    assert value("weight_patterns", run, "weight of a turn (w_k)", setting="recovered") == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "title", "metric"),
    [
        ("gap_and_gate", "tokens with a negative gap", "gap/negative_share"),
        ("gap_and_gate", "tokens with a gate above 0.5", "gate/active_share"),
        ("early_updates", "mean change of advantages", "advantage/reshaped_by"),
        ("tool_use", "tool calls an episode", "rollout/tool_calls"),
        ("critic_agreement", "mean label where it was missed", "judge/label_failure"),
        ("surface_mismatches", "surface mismatches among the candidates", "transport/surface_share"),
    ],
)
def test_curves_are_the_metrics_of_the_iterations(name: str, title: str, metric: str, run: Path) -> None:
    assert value(name, run, title) == pytest.approx([i * METRICS[metric] for i in EACH])


def test_training_curves_are_over_environment_steps_and_smoothed(run: Path) -> None:
    found = rows("learning_curves", f"ours={run}")
    assert [row["environment steps"] for row in found] == [100.0 * i for i in EACH]
    assert found[0]["value"] == pytest.approx(0.15) and found[1]["value"] == pytest.approx((0.15 + 0.2) / 2)


@pytest.mark.parametrize("name", ["methods", "retrieval", "gates", "gate_sharpness", "distillation_weight", "objectives"])
def test_tables_have_the_last_measurement_of_each_setting(name: str, run: Path) -> None:
    table = [row for row in rows(name, f"A={run}") if "panel" in row]
    assert [(row["setting"], row["panel"], row["runs"]) for row in table] == [("A", "unseen", 1)]
    assert table[0]["success"] == "60.0 [50.0, 70.0]" and table[0]["teacher/lift"] == "20.0 [10.0, 90.0]"
    assert table[0]["iteration"] == 6 and (name != "methods" or table[0]["heat"] == "60.0 [50.0, 70.0]")


def test_several_seeds_of_a_setting_have_their_mean_and_each_curve(run: Path, tmp_path: Path) -> None:
    other = copytree(run, tmp_path / "version_1")
    lines = (
        (other / "validation.jsonl")
        .read_text(encoding="utf-8")
        .replace('"success/unseen": [0.6, ', '"success/unseen": [0.8, ')
    )
    (other / "validation.jsonl").write_text(lines, encoding="utf-8")
    found = rows("gates", f"A={run},{other}")
    [row] = [row for row in found if "panel" in row]
    assert (row["runs"], row["success"]) == (2, "70.0") and {r["run"] for r in found if "run" in r} == {0, 1}


def test_the_command_writes_pictures_and_their_numbers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["distance_after_error", f"ours={run}", "--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "| behind | turns | mean |" and said[-1] == str(tmp_path / "distance_after_error.csv")
    with (tmp_path / "distance_after_error.csv").open() as lines:
        told = list(csv.DictReader(lines))
    assert len(told) == len(rows("distance_after_error", f"ours={run}"))
    assert (tmp_path / "distance_after_error.svg").read_text().startswith("<svg")
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"{figure.name}" in listed and figure.differs in listed for figure in FIGURES.values())


LACKING = {
    "gap_and_gate": r"has no gap/mean, which this figure draws\. Train a method with a teacher and a gate",
    "tool_use": r"has no success/train, .* Train in a world with a tool",
    "learning_curves": r"has no success/train with train/env_steps, .*\(sdar fit\), not of a measurement",
    "weight_patterns": r"none of its stored episodes has turn_weight, .* Train SOD \(--model SOD\)",
    "gap_by_turn": r"none of its stored episodes has gap, .* or let `sdar score \S+ -c \.\.\.` write the episodes anew",
    "methods": r"has no measurement \(validation\.jsonl\), .* sdar validate -c ",
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_without_what_a_figure_needs_is_told_what_and_how_to_get_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {class_path: GRPO}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=LACKING.get(name, "which this (figure draws|table is made of)")):
        drawn(FIGURES[name], [str(tmp_path)])


def test_what_cannot_be_drawn_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no figure 'gap_by_turns'\. Did you mean 'gap_by_turn'\?"):
        main(["gap_by_turns", str(run)])
    with pytest.raises(ConfigError, match=r"gates names no run\. Give folders of runs, or --make to train Gap, Entropy, "):
        main(["gates"])
    with pytest.raises(ConfigError, match=r"names runs and says --make: one of the two"):
        main(["gates", str(run), "--make"])
    with pytest.raises(ConfigError, match=r"the quickstart's world has not what tool_use shows"):
        main(["tool_use", "--make"])
    (tmp_path / "config.yaml").write_text("model: {class_path: TOPD, init_args: {surface_share: 0.3}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"its model\.surface_share was given"):
        drawn(FIGURES["surface_mismatches"], [str(tmp_path)])


MADE = {tuple(words) for figure in FIGURES.values() for words in figure.made.values()}


@pytest.mark.parametrize("words", sorted(MADE), ids=" ".join)
def test_what_make_trains_is_a_configuration(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load_parts()
    monkeypatch.chdir(ROOT)
    checked_settings(words_of(*words))


def test_a_run_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    for seed in (0, 1):
        place = tmp_path / "sdar" / f"seed_{seed}" / "version_0"
        place.mkdir(parents=True)
        (place / "validation.jsonl").write_text('{"env_steps": 0}\n{"env_steps": 50}\n', encoding="utf-8")
    places = ",".join(str(tmp_path / "sdar" / f"seed_{seed}" / "version_0") for seed in (0, 1))
    assert make(FIGURES["gap_by_turn"], tmp_path, (0, 1), 50) == [f"SDAR={places}"]


def test_the_page_has_every_figure() -> None:
    page = (ROOT / "docs/figures.md").read_text(encoding="utf-8").splitlines()
    lines = [
        f"| `{f.name}` | {f.shows} | {f.differs} | {', '.join(f.made) or 'nothing: give runs'} |" for f in FIGURES.values()
    ]
    assert [line for line in lines if line not in page] == []
    assert [line for line in page if line.startswith("| `") and "python" not in line and line not in lines] == []
    for shows, where, command in ELSEWHERE:
        assert (
            f"| [{Path(where).stem}]({Path(where).name}) | {shows} | `{command}` |" in page
            and command in (ROOT / where).read_text()
        )

"""What the last release left on disk is read: settings, checkpoints, and the numbers of a run that goes on from them.

``saved/`` was written at commit 48d5308: ``config.yaml`` and ``last.ckpt`` by a run of two iterations (SDAR with a reference, a moving
average as its teacher and a retriever that learns), ``metrics.csv`` by that commit's own third iteration, its timings left out.
"""

import csv
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from sdar.cli import main
from sdar.data import TaskModule

SAVED = Path(__file__).parent / "saved"


def test_a_run_of_the_last_release_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # put back afterwards
        monkeypatch.setenv(name, "0")
    further = ["--ckpt_path", str(SAVED / "last.ckpt"), "--trainer.max_steps", "6"]
    assert main(["fit", "-c", str(SAVED / "config.yaml"), *further]) == 0
    (file,) = tmp_path.rglob("metrics.csv")
    trained = ([row for row in csv.DictReader(path.open()) if row["train/loss"]] for path in (SAVED / "metrics.csv", file))
    expected, found = trained  # a run ends with a validation now, which has a row of its own
    assert len(found) == len(expected) == 1
    for name, value in expected[0].items():
        assert float(found[0][name]) == pytest.approx(float(value), rel=1e-4, abs=2e-6), name


def paths(node) -> list[str]:
    """Every class path of some settings."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [
        *([node["class_path"]] if isinstance(node, dict) and "class_path" in node else []),
        *(p for n in inner for p in paths(n)),
    ]


def test_class_paths_of_saved_settings_are_those_that_are_written_today(capsys):
    code = main(["fit", "-c", str(SAVED / "config.yaml"), "--print_config"])
    out = capsys.readouterr().out
    saved = yaml.safe_load((SAVED / "config.yaml").read_text())
    assert code == 0 and paths(yaml.safe_load(out)) == paths(saved)
    assert import_module("sdar").TaskModule is TaskModule  # both paths stand in saved settings

"""The pretrained model on original data, as conf/real/ runs it."""

import csv
import gzip
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from sdar import episodes
from sdar.cli import main
from sdar.envs import HouseholdEnv
from sdar.gguf import gguf_file
from sdar.paths import resolve

pytestmark = pytest.mark.slow
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory):
    """GSM8K's files where `sdar fetch gsm8k` put them, or here; split -> file."""
    files = {"train": resolve("gsm8k/train.jsonl"), "unseen": resolve("gsm8k/test.jsonl")}
    if not all(file.is_file() for file in files.values()):
        packed = {"train": SHARED / "gsm8k_train.jsonl.gz", "unseen": SHARED / "gsm8k_test.jsonl.gz"}
        if not all(file.is_file() for file in packed.values()):
            pytest.skip("GSM8K is not here: sdar fetch gsm8k")
        files = {split: tmp_path_factory.mktemp("gsm8k") / f"{split}.jsonl" for split in packed}
        for split, file in packed.items():
            with gzip.open(file) as rows, files[split].open("wb") as out:
                shutil.copyfileobj(rows, out)
    return files


@pytest.fixture(scope="module")
def run(gsm8k, tmp_path_factory):
    if gguf_file(resolve("smollm2-135m-gguf")) is None:
        pytest.skip("SmolLM2 is not here: sdar fetch smollm2-135m-gguf")
    folder = tmp_path_factory.mktemp("gsm8k_run")
    files = json.dumps({split: str(file) for split, file in gsm8k.items()})
    main(["fit", "-c", "conf/real/gsm8k.yaml", "--data.env.files", files, "--trainer.default_root_dir", str(folder)])
    return folder / "version_0"


@pytest.fixture(scope="module")
def trained(run):
    return episodes.read(run, where="kind == 'train'")


def test_ten_iterations_and_each_loss_again_from_its_tokens(run, trained):
    logged = {
        int(float(row["train/iteration"])): row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/loss"]
    }
    assert sorted(logged) == list(range(1, 11)) and len(trained) == 80
    for n, row in logged.items():
        loss = episodes.recomputed_loss([e for e in trained if e.iteration == n])
        assert math.isfinite(loss) and loss == pytest.approx(float(row["train/loss"]), abs=1e-5)


def test_the_teacher_sees_the_worked_solution_and_the_student_does_not(trained, gsm8k):
    rows = {row["question"].strip(): row["answer"] for row in map(json.loads, gsm8k["train"].read_text().splitlines())}
    for e in trained:
        told = re.sub(r"<<.*?>>", "", rows[e.instruction.strip()].partition("####")[0]).strip()
        assert told in e.turns[0].teacher_prompt and all(told not in turn.prompt for turn in e.turns)
        for turn in e.turns:
            gaps = zip(turn.gap, turn.teacher_logp, turn.old_logp, strict=True)
            assert all(gap == pytest.approx(teacher - old, abs=1e-4) for gap, teacher, old in gaps)


def test_success_is_the_answer_behind_gsm8ks_mark(trained, gsm8k):
    rows = {row["question"].strip(): row["answer"] for row in map(json.loads, gsm8k["train"].read_text().splitlines())}
    for e in trained:
        gold = rows[e.instruction.strip()].partition("####")[2].strip().replace(",", "")
        found = [answer.replace(",", "") for answer in re.findall(r"\\boxed\{(-?[\d,]+)\}", e.turns[-1].response)]
        assert e.success == (found[-1:] == [gold]) == (e.reward > 0)


def test_the_shipped_settings_are_whole():
    """Games, places and adapter belong together: each wanted thing of the panel has its usual places."""
    if not resolve("alfworld").is_dir():
        pytest.skip("ALFWorld's games are not here: sdar fetch alfworld")
    env = HouseholdEnv(data="official", horizon=20, usual="conf/real/places.yaml")
    tasks = [env.task(name) for name in env.task_ids("unseen", 134, 0)]
    assert len(tasks) == 134 and all(task.facts for task in tasks)

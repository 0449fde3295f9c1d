"""The code of docs/extending.md does what the page says."""

import re
from pathlib import Path

from sdar.cli import main
from sdar.contracts.check import check
from sdar.listing import interface
from sdar.registry import load_parts

PAGE = Path(__file__).parents[1].joinpath("docs", "extending.md").read_text(encoding="utf-8")
SMALL = (
    "--trainer.max_steps 4 --trainer.val_check_interval 1 --data.val_tasks 4 --data.tasks_per_step 2 --data.group_size 2 "
    "--data.env.horizon 3 --model.updates_per_rollout 2 --trainer.default_root_dir run"
)


def blocks(language):
    """File name (in the first line) -> text of each code block."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    return {name: text for name, text in found}


def test_the_method_of_the_page_trains_and_logs_what_explains_it(own_folder, capfd, recwarn):
    for name, text in {**blocks("python"), **blocks("yaml")}.items():
        (own_folder / name).write_text(text)
    command = re.search(r"^    sdar (fit --plugin atod .*)$", PAGE, re.MULTILINE)[1]
    assert main(f"{command} {SMALL}".split()) == 0
    told = capfd.readouterr()
    assert "teacher/lift/unseen" in told.out
    assert "arning" not in told.out + told.err
    assert [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)] == []  # nobody is shown those
    assert main(f"{command} {SMALL} --trainer.max_steps 6 --ckpt_path last".split()) == 0


def test_the_divergence_and_the_metrics_of_the_page_are_used_by_name(own_folder):
    for name in ("my_divergences.py", "my_metrics.py"):
        (own_folder / name).write_text(blocks("python")[name])
    (own_folder / "metrics.yaml").write_text(re.search(r"```yaml\n(model: \{metrics: .*?)```", PAGE, re.DOTALL)[1])
    files = "-c conf/env/quickstart.yaml -c conf/method/opsd.yaml -c conf/scale/quickstart.yaml"
    assert main(f"fit --plugin my_divergences {files} -c metrics.yaml --model.divergence half_reverse {SMALL}".split()) == 0
    assert "half_reverse" in next(own_folder.rglob("config.yaml")).read_text()
    columns = next(own_folder.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"turns_to_success/train", "turns_to_success/unseen", "largest_gap"} & {*columns} == {
        "largest_gap"
    }  # without a success


def test_the_parts_of_the_page_keep_their_promises(own_folder, capsys):
    for name in ("my_divergences.py", "my_gates.py"):
        (own_folder / name).write_text(blocks("python")[name])
        load_parts([name.removesuffix(".py")])
    check(["half_reverse", "running_median"])
    assert capsys.readouterr().out.count(" ok") == 7
    exec(blocks("python")["test_my_gates.py"] + "\ntest_half_open_at_the_median()", {})


def test_what_the_page_imports_is_told_by_the_command():
    imported = re.findall(r"^from (sdar|sdar\.functional) import (.+)$", PAGE, re.MULTILINE)
    names = {name for _, line in imported for name in line.split(", ")} | {"Turns", "Batch", "Episode", "ConfigError"}
    told = {name: interface(name) for name in names}
    assert len(names) > 12 and [name for name, text in told.items() if not text or "  Python:  from sdar" not in text] == []
    assert "in_span: Tensor\n          Bool: the response tokens that a transform reshapes" in told["TokenView"]
    assert (
        "__call__(self, tokens: TokenView) -> Float[Tensor, '*tokens']" in told["Gate"]
        and "Of Part:\n      state_dict(self)" in told["Gate"]
    )
    assert "SAMPLED = 'sampled'\n          The log-probability of the sampled token." in told["TeacherSignal"]
    assert interface("nothing") is None


def test_what_the_page_names_exists():
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`((?:conf|docs|sdar|strategies|tests)/[\w./-]+)`", PAGE))
    assert [path for path in sorted(named) if not (root / path).exists()] == []

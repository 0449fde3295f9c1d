"""The README's code does what the README says."""

import re
from pathlib import Path

from sdar.cli import main

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")


def test_the_two_commands_open_the_readme():
    assert README.split("\n")[2:4] == [line for line in README.split("\n")[2:4] if line.startswith("    make ")]


def test_the_gate_of_the_readme_is_used_by_name_from_the_command_line(own_folder):
    (own_folder / "my_gates.py").write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1])
    command = re.search(r"^    sdar (fit --plugin my_gates .*)$", README, re.MULTILINE)[1].split()
    small = (
        "--trainer.max_steps 2 --trainer.limit_val_batches 0 --data.tasks_per_step 2 --data.group_size 2 --data.env.horizon 2"
    )
    assert main([*command, *small.split()]) == 0
    saved = next(own_folder.rglob("config.yaml")).read_text()
    assert "hinge" in saved.lower() and "width: 0.5" in saved


def test_paths_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    named = set(re.findall(r"(?:`|\s)((?:conf|docs|sdar|strategies|gates|retrievers)/[\w./-]*)", README)) | {
        "LOG.md",
        "CONTRIBUTING.md",
    }
    assert [path for path in sorted(named) if not (root / path).exists()] == []

"""The code of docs/environments.md does what the page says."""

import importlib
import re
from inspect import signature
from pathlib import Path

import pytest

import sdar.envs
from sdar.cli import main
from sdar.cli.parser import Parser
from sdar.data import TaskModule, TaskSource
from sdar.errors import ConfigError
from sdar.module import AgentModule
from sdar.reading import parse_yaml
from sdar.registry import load_parts, parts

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


def test_the_world_of_the_page_trains(own_folder, capfd, recwarn):
    for name, text in BLOCKS.items():
        (own_folder / name).write_text(text)
    command = re.search(r"^    sdar (fit --plugin guessing .*)$", PAGE, re.MULTILINE)[1]
    small = "--trainer.max_steps 2 --trainer.val_check_interval 1 --data.val_tasks 16"
    assert main([*command.split(), *small.split()]) == 0
    told = capfd.readouterr()
    assert "arning" not in told.out + told.err
    assert [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)] == []  # nobody is shown those
    for metric in ("success/unseen", " low ", "scores/near/unseen"):
        assert metric in told.out, told.out


def test_the_world_of_the_page_keeps_its_promises(own_folder):
    (own_folder / "guessing.py").write_text(BLOCKS["guessing.py"])
    page = importlib.import_module("guessing")
    with pytest.raises(ConfigError, match="there is nothing to guess"):
        page.GuessEnv(largest=1)
    env, other = page.GuessEnv(), page.GuessEnv()
    for task_id in env.task_ids("unseen", 30, 0):
        task = env.task(task_id)
        env.reset(task)
        *missed, found = [env.step(guess) for guess in env.demonstration(task)]
        assert found.success and not any(r.done for r in missed)
    env.reset(task)
    env.step("1")
    other.restore(env.save())
    assert [other.step(text) for text in ("\x00", "9" * 100_000, "")] == [
        env.step(text) for text in ("\x00", "9" * 100_000, "")
    ]


def test_the_two_worlds_of_the_page_share_an_iteration_as_it_says():
    load_parts()
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(AgentModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(TaskSource, "data", subclass_mode=True)
    made = parser.instantiate(parser.parse_string(BLOCKS["two_worlds.yaml"]))
    step = made.data.step(0, 0)
    assert [len(part.tasks) for part in step.parts] == [6, 2] and [*made.model.teacher.routes] == ["house", "math"]
    assert [p.name for p in made.data.panels()][1:] == ["house/seen", "house/unseen", "math/train", "math/unseen"]
    assert {name: len(world.protocol.tags) for name, world in made.data.worlds.items()} == {"house": 1, "math": 2}


def test_what_gymnasium_is_shown_on_the_page_runs():
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "gymnasium.make" in block)
    told = {}
    exec(code, told)
    assert told["info"]["instruction"] and told["observation"]


def test_what_the_page_names_exists():
    named = set(re.findall(r"`((?:conf|docs|sdar|strategies|tests|benchmarks)/[\w./-]+)`", PAGE))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def lines_of_data_sets():
    part = PAGE.split("## The data sets of the papers")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.split(" | ")]
        for row in part.splitlines()
        if row.startswith("| ") and "data set |" not in row
    ]
    return [(name.removeprefix("| "), where, line.removesuffix(" |").strip("`")) for name, where, line in rows]


def test_the_lines_of_the_data_sets_are_settings():
    """Each parses below `data`, and every world of problems, questions, ALFWorld and WebShop that reads files has one."""
    load_parts()
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(TaskModule, "data", subclass_mode=True)
    worlds = set()
    for name, where, line in lines_of_data_sets():
        given = parse_yaml(line, name)
        parsed = parser.parse_object({"data": {"class_path": "TaskModule", "init_args": given}})
        env = parsed.data.init_args.env
        assert (
            name
            and "`" in where
            and vars(env.init_args).items() >= {k: v for k, v in given["env"]["init_args"].items() if k != "backend"}.items()
        )
        worlds.add(env.class_path.rpartition(".")[2])
    reading = {
        cls.__name__ for cls in parts("environments").values() if {"files", "data", "url"} & signature(cls).parameters.keys()
    }
    assert worlds == {name for name in reading if name in dir(sdar.envs)}
    assert len(lines_of_data_sets()) > 15

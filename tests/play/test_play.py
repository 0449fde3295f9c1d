"""`sdar play`: a person plays a world by lines, stored episodes are shown turn by turn."""

import io
import re
import sys
from pathlib import Path

import pytest

from sdar.cli import main
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv, ThinkActProtocol
from sdar.episodes import StoredEpisode, StoredTurn
from sdar.episodes.files import encode_line
from sdar.episodes.tables import _plain
from sdar.errors import ConfigError, EnvironmentFault
from sdar.parts import Environment, StepResult
from sdar.play import person
from sdar.play.chosen import task_of, world_of
from sdar.play.screen import has_colours, legend, spoken
from sdar.types import Task

WORLD = {"world": 5, "receptacles": 6, "distractors": 1, "horizon": 3}


class Counting(Environment):
    """Counts actions; "win" wins, "break" breaks; half a point for whoever stops. Its texts try to drive the terminal."""

    horizon = 3
    world_kind = "household"  # as the words of ThinkActProtocol

    def task_ids(self, split, count, seed):
        return [f"{split}-{n}" for n in range(count)]

    def task(self, task_id):
        return Task(task_id, "fam\x1b[2J", "win\x07 soon")

    def reset(self, task):
        self.running = 0
        return "a \x1b[31mred\x1b[0m room\rgone"

    def step(self, action):
        self.running += 1
        if action == "break":
            raise EnvironmentFault("pipe \x1b[5m broke")
        won = action == "win"
        return StepResult(
            f"step {self.running}: {action!r}", 1.0 if won else 0.25, won, won, valid=action != "bad", scores={"f1": 0.5}
        )

    def admissible(self):
        return ["win", f"wait \x1b[31m{self.running}"]

    def unfinished(self):
        return StepResult("", 0.5, done=True, truncated=True)


def play(monkeypatch, capsys, text, protocol=None, prompts=False, **settings):
    """What a person sees who gives these lines."""
    world = TaskModule(Counting(), protocol=protocol or CompactProtocol(), train_tasks=2, val_tasks=2, **settings)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    person.play(world, world.task("unseen-0"), prompts)
    return capsys.readouterr().out


def test_a_person_acts_by_a_line_or_by_a_number_of_the_list(monkeypatch, capsys):
    said = play(monkeypatch, capsys, "7\n2\nbad\n?\n1\n")
    assert "There is no action 7: the list has 1 to 2." in said
    assert "reward 0.25 (so far 0.25) for action 1\n" in said and "'wait \\x1b[31m0'" in said  # the action itself is unchanged
    assert "for action 2, and the world did not accept it" in said
    assert said.endswith("success after 3 actions, reward 1.5, f1 0.5\n")
    assert all(c.isprintable() or c == "\n" for c in said)
    assert "    a  [31mred [0m room\n    gone\n" in said


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", "The input ended after 0 actions.\nThe goal was not reached; reward 0 after 0 actions.\n"),
        ("go\n", "The input ended after 1 action.\nThe goal was not reached; reward 0.75 after 1 action.\n"),
        ("go\nquit\nwin\n", "The goal was not reached; reward 0.75 after 1 action.\n"),
        ("a\nb\nc\nwin\n", "This was the last of 3 actions.\nThe goal was not reached; reward 1.25 after 3 actions.\n"),
        ("break\nwin\n", "A fault of the world ended the episode (env_error): EnvironmentFault: pipe  [5m broke\n"),
        ("one \\\ntwo\n", "The input ended after 1 action.\nThe goal was not reached; reward 0.75 after 1 action.\n"),
    ],
)
def test_the_end_is_told_in_a_sentence(monkeypatch, capsys, text, end):
    said = play(monkeypatch, capsys, text)
    assert said.endswith(end) and said.count("success") == 0
    assert ("'one \\ntwo'" in said) == ("two" in text)


def test_a_line_is_an_action_alone_or_a_whole_response(monkeypatch, capsys):
    said = play(monkeypatch, capsys, "go\n<action>go</action>\n", ThinkActProtocol(), prompts=True)
    assert said.count("step 1: 'go'") and said.count("step 2: 'go'")
    assert said.count("has not the form that the protocol asks for") == 1  # no <think>
    assert "user: " in said  # what a policy is told


@pytest.mark.parametrize(
    ("task", "split", "told"),
    [
        ("0", None, "--task is 0: tasks of a split are numbered from 1."),
        ("3", None, "--task is 3, and the panel 'unseen' has 2 tasks. Give a number from 1 to 2."),
        ("1", "unsen", "--split unsen: HouseholdEnv has no split 'unsen'. Did you mean 'unseen'?"),
        ("nothing", "train", "--task nothing: the world has no such task ("),
    ],
)
def test_a_task_that_is_not_there_is_told(task, split, told):
    world = TaskModule(HouseholdEnv(**WORLD), train_tasks=2, val_tasks=2, val_splits=["unseen"])
    with pytest.raises(ConfigError, match=re.escape(told)):
        task_of(world, task, split)


def test_a_task_is_found_by_number_in_a_panel_or_another_split_and_by_id():
    world = TaskModule(HouseholdEnv(**WORLD), train_tasks=2, val_tasks=2, val_splits=["unseen"])
    assert task_of(world, "2", "train")[1].id == world.train_panel.task_ids[1]
    panel, task = task_of(world, "5", "seen")  # no panel of these settings
    assert panel.name == "seen" and task.id == panel.task_ids[4]
    assert task_of(world, task.id, None)[1] == task
    assert world_of(world, None) is world
    with pytest.raises(ConfigError, match="--world is shop, and there is none of this name"):
        world_of(world, "shop")


TURNS = [
    StoredTurn(observation="a \x1b[31mroom", response="go to", action="go to", prompt="<p>", teacher_prompt="Look left.\x07",
               response_ids=[5, 6, 7], pieces=["go", "\nto", "!"], gap=[0.25, -1.5, None], entropy=[0.5, 2.0, 1.0], reward=0.5),
    StoredTurn(observation="b", response="x", response_ids=[7], valid=False),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "version_0" / "episodes"
    folder.mkdir(parents=True)
    stored = [StoredEpisode(task=t, family="heat", instruction="heat it", success=t == "a", turns=TURNS) for t in "ab"]
    (folder / "train-000003.jsonl").write_bytes(b"".join(encode_line(_plain(e)) for e in stored))
    return folder.parent


def replayed(monkeypatch, capsys, run, text, *words):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = main(["play", "--episode", str(run), *words])
    return code, capsys.readouterr()


def test_a_stored_episode_is_shown_turn_by_turn(monkeypatch, capsys, run):
    code, told = replayed(monkeypatch, capsys, run, "\n\n\n", "--where", "success")
    assert code == 0 and told.out.endswith("That was the last episode.\n")
    assert all(c.isprintable() or c == "\n" for c in told.out)
    first = "said, token by token (gap: mean -0.625, from -1.5 to +0.25):\n    go[+0.25] ⏎to[-1.50] !\naction: go to\nreward: 0.5\n"
    assert first in told.out and "the teacher's own prompt:\n    Look left.\n" in told.out
    assert "turn 1 (invalid), seen:" in told.out and "outcome: success, reward 0, done\n" in told.out


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("\n", "The input ended before turn 1 of episode 1."),
        ("\n\n", "The input ended behind episode 1."),
        ("\nq\n", "turn 1 of 2; q: stop "),
        ("\n\n\n\n\n\n", "That was the last episode."),
    ],
)
def test_a_replay_ends_with_its_input_or_when_one_has_seen_enough(monkeypatch, capsys, run, text, end):
    code, told = replayed(monkeypatch, capsys, run, text)
    assert code == 0 and told.out.rstrip("\n").endswith(end.rstrip("\n"))


def test_tokens_are_coloured_by_the_number_that_is_asked_for(monkeypatch, capsys, run):
    code, told = replayed(monkeypatch, capsys, run, "\nq\n", "--colour", "always", "--by", "entropy")
    assert code == 0 and "entropy of each token: " in told.out
    assert (
        "    \x1b[48;5;117m\x1b[38;5;16mgo\x1b[0m\x1b[48;5;33m\x1b[38;5;16m⏎to\x1b[0m\x1b[48;5;75m\x1b[38;5;16m!\x1b[0m\n"
        in told.out
    )
    assert spoken(["a", "b", "c"], [-2.0, 0.05, None], colours=True) == "\x1b[48;5;203m\x1b[38;5;16ma\x1b[0mbc"
    assert spoken(["a", "\x1b[2J"], None, colours=True) == "a| [2J"
    assert "-0.5" in legend("gap", colours=True) and "\x1b" not in legend("gap", colours=False)
    code, told = replayed(monkeypatch, capsys, run, "q\n", "--by", "weight")
    assert "No weight is stored of its tokens; `sdar score` finds" in told.out


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colours() and not has_colours(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours() and has_colours(True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "play needs a world or an episode: give the settings of a world, e.g. sdar play -c conf/env/quickstart.yaml"),
        (["--episode", "RUN", "--where", "success > 1"], "there is no episode of which success > 1 is true."),
        (["--episode", "RUN/none"], "holds no episodes"),
        (
            ["-c", "conf/env/quickstart.yaml", "--policy", "true"],
            "--policy has a policy play, and these settings have no model.",
        ),
    ],
)
def test_what_cannot_be_played_is_told(run, capsys, words, told):
    assert main(["play", *(word.replace("RUN", str(run)) for word in words)]) == 2
    assert told in capsys.readouterr().err


def test_the_settings_of_a_world_are_enough_for_a_person(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("look\n"))
    settings = ["--data.env", "HouseholdEnv", "--data.env.world", "5", "--data.val_tasks", "2", "--data.train_tasks", "2"]
    assert main(["play", *settings, "--split", "train", "--task", "2"]) == 0
    said = capsys.readouterr().out
    assert "for action 1" in said and "The input ended after 1 action." in said
    assert not [*tmp_path.iterdir()]

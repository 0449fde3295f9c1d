"""What a terminal shows: a bar whose line nobody else writes to, with where the run is and how long it will take."""

import io
import logging
import re
import sys
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info

from sdar.retrievers import FactRetriever
from sdar.rollout.standing import Standing
from sdar.strategies import GRPO, SDAR
from sdar.training.bars import IterationBar, NetworkSummary, brief, rise
from sdar.training.measuring import Measuring
from sdar.training.stored import StoredSource

WIDTH = 80


class Talkative(GRPO):
    """Says something in every way that code has, in the middle of a rollout."""

    plays_attempts = True

    def collect(self, step):
        episodes = super().collect(step)
        rank_zero_info("one from a logger")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("one from a warning", stacklevel=2)
        return episodes


def screen(raw):
    """The lines that stand in a terminal of 80 columns after all of that was written to it."""
    lines, row, column = [""], 0, 0
    for text, count, command, char in re.findall(r"((?:\x1b\[(\d*)([A-Z]))|([^\x1b]))", raw, re.DOTALL):
        if command == "A":
            row -= int(count or 1)
        elif char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
        else:
            assert char, f"unknown command {text!r}"
            if column == WIDTH:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + char + line[column + 1 :], column + 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


class Terminal(io.StringIO):
    """A terminal of 80 columns that both outputs go to; made in the test itself, for pytest puts its own in place before that."""

    def __init__(self, monkeypatch):
        super().__init__()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, self)
        monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (WIDTH, 40))
        monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [logging.StreamHandler(self)])

    def isatty(self):
        return True


def test_what_is_told_stands_on_lines_of_its_own_and_the_bar_says_where_the_run_is(small, monkeypatch):
    terminal = Terminal(monkeypatch)
    told = {"limit_val_batches": None, "val_check_interval": 1, "enable_progress_bar": True}
    small.fit(small.strategy(Talkative), 3, callbacks=[IterationBar()], **told)
    raw = terminal.getvalue()
    lines = screen(raw)
    assert lines.count("one from a logger") == 3
    assert sum("one from a warning" in line and "|" not in line for line in lines) == 3
    assert sum(line.startswith("validation of unseen (panel ") for line in lines) == 3
    [bar] = [line for line in lines if "|" in line]  # each other one was taken away
    assert re.fullmatch(r"training 3/3 \|.*\| \d\d:\d\d<00:00, success \d+\.\d%, reward \S+, loss \S+, \d+ tok/s", bar)
    frames = [frame for frame in re.split(r"[\r\n]|\x1b\[A", raw) if "|" in frame]
    assert {len(frame) for frame in frames if frame.strip()} <= set(range(WIDTH + 1))
    assert any(re.match(r"\d+/\d+ episodes 1/3 \|", frame) for frame in frames)  # while the second iteration is played
    assert any(re.match(r"update 2/3 \|", frame) for frame in frames)
    assert any(re.match(r"validation: unseen 0/4 \|", frame) for frame in frames)


def test_a_run_that_goes_on_knows_its_end(small, monkeypatch, tmp_path):
    first = small.fit(small.strategy(GRPO), 2)
    first.save_checkpoint(tmp_path / "kept.ckpt")
    terminal = Terminal(monkeypatch)
    small.fit(small.strategy(GRPO), 4, ckpt_path=tmp_path / "kept.ckpt", callbacks=[IterationBar()], enable_progress_bar=True)
    raw = terminal.getvalue()
    assert re.search(r"training 3/4 \|[^\r\n]*\| 00:\d\d<00:\d\d, success", raw) and "?" not in re.sub(r"<\?", "", raw)
    assert sum(line.startswith("training 4/4 |") for line in screen(raw)) == 1


def test_in_a_pipe_there_are_lines_without_control_characters(small, capsys, monkeypatch):
    """A line an iteration with its phases; of a validation one at its beginning and one at its end, and more where it takes minutes."""
    shown = {"limit_val_batches": None, "val_check_interval": 1, "num_sanity_val_steps": -1, "enable_progress_bar": True}
    strategy = small.strategy(SDAR, retriever=FactRetriever())
    trainer = small.fit(strategy, 2, data=small.data(val_batch=2), callbacks=[IterationBar()], **shown)
    assert trainer.callback_metrics["time/validation_s"] > 0
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    first, second = [line for line in said.splitlines() if line.startswith("iteration ")]
    phases = r"rollout \d\.\ds, score \d\.\ds, update \d\.\ds"
    assert re.fullmatch(rf"iteration 1/2: success \d+\.\d%, reward \S+, loss \S+, \d+ tok/s, {phases}, \d+s left", first)
    assert re.fullmatch(rf"iteration 2/2: success \d+\.\d%, reward \S+, loss \S+, \d+ tok/s, {phases}", second)
    [began] = [line for line in said.splitlines() if re.match(r"validation of unseen:", line)]
    assert began == "validation of unseen: 0/4 episodes"  # the others came within the same minute
    ends = re.findall(r"^validation took \d+s: 4 episodes of unseen; 4 episodes of unseen, teacher$", said, re.MULTILINE)
    assert len(ends) == 3
    monkeypatch.setattr("sdar.training.bars.QUIET", 0.0)
    small.trainer(1, callbacks=[IterationBar()], **shown).validate(strategy, small.data(), verbose=False)
    said = capsys.readouterr().out
    told = [line for line in said.splitlines() if line.startswith("validation of unseen") and "(panel" not in line]
    assert told[0] == "validation of unseen: 0/4 episodes" and len(told) > 4
    assert any(re.fullmatch(r"validation of unseen: 0/4 episodes, \d\S*s left", line) for line in told)  # turns count, too
    assert re.fullmatch(r"validation of unseen, teacher: 4/4 episodes, success \d+\.\d%, 0s left", told[-1])


def test_of_stored_episodes_the_bar_counts_the_iterations_that_were_scored(small, monkeypatch):
    small.fit(small.strategy(SDAR, retriever=FactRetriever(), log_episodes_every=1), 2)
    terminal = Terminal(monkeypatch)
    source = StoredSource(small.data(), [str(small.folder)])
    trainer = type(small)(small.folder / "scored").trainer(1, callbacks=[IterationBar()], enable_progress_bar=True)
    trainer.predict(small.strategy(SDAR, retriever=FactRetriever()), datamodule=source, return_predictions=False)
    frames = [frame for frame in re.split(r"[\r\n]|\x1b\[A", terminal.getvalue()) if "|" in frame]
    assert any(re.match(r"scored: train 1 \(1/2\) \|", frame) for frame in frames)
    assert any(re.match(r"scored: train 2 \(2/2\) \|", frame) for frame in frames)


def test_how_far_a_validation_is_counts_both_actors_and_every_turn():
    now = [100.0]
    measuring = Measuring("validation", clock=lambda: now[0])
    for actor in ("policy", "teacher"):
        measuring.plan("unseen", actor, 10)
    measuring.begin("unseen", "policy", 10, 10)
    assert (measuring.share, measuring.left, measuring.count, measuring.success) == (0, None, "0/10", "")
    standing = Standing(10)
    for _ in range(10):
        standing.took_turn(4)
    measuring.hear(standing)
    now[0] += 60
    assert measuring.share == pytest.approx(2.5 / 20) and measuring.left == pytest.approx(420)
    for ended in range(10):
        standing.end(taken=1, horizon=4, lost=ended == 0, succeeded=ended > 6)
    measuring.hear(standing)
    assert (measuring.count, measuring.success) == ("10/10", "success 33.3%") and measuring.share == pytest.approx(0.5)
    measuring.begin("unseen", "teacher", 10, 4)  # of the others it would say the same
    assert measuring.share == pytest.approx(10 / 14) and (measuring.place, measuring.count) == ("unseen, teacher", "0/4")
    for _ in range(2):  # it plays with two networks
        measuring.hear(Standing(2, ended=2, succeeded=1, work=2))
    assert (measuring.share, measuring.left, measuring.count, measuring.success) == (1, 0, "4/4", "success 50.0%")
    assert measuring.played == ["10 episodes of unseen", "4 episodes of unseen, teacher"]


def test_processes_that_share_a_validation_tell_the_first_one_s_part():
    measuring = Measuring("test", ranks=4, clock=lambda: 0.0)
    measuring.plan("unseen", "policy", 10)
    measuring.begin("unseen", "policy", 10, 10)
    measuring.hear(Standing(3, ended=3, work=3))
    assert measuring.count == "3/3" and measuring.share == 1


@pytest.mark.parametrize(
    ("successes", "text"), [([0.5] * 19, ""), ([0.25] * 10 + [0.5] * 10, "+25.0"), ([1] * 5 + [0.5] * 10 + [0] * 10, "-50.0")]
)
def test_the_trend_compares_the_last_iterations_with_those_before(successes, text):
    assert rise(successes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "1h00m"),
        (5577, "1h33m"),
        (86_400, "1d0h"),
        (190_000, "2d4h"),
    ],
)
def test_times_are_brief(seconds, text):
    assert brief(seconds) == text


def test_networks_without_weights_are_not_listed(caplog):
    columns = [("Name", ["model", "teacher_networks"]), ("Type", ["Qwen3", "ModuleDict"]), ("Params", ["1.0 M", "0"])]
    with caplog.at_level(logging.INFO):
        NetworkSummary.summarize(columns, 1_000_000, 900_000, 4.0, {}, total_flops=0)
    assert caplog.text.count("\n") == 2 and "model: Qwen3, 1.0 M parameters" in caplog.text
    assert "trained: 900,000 of 1,000,000 parameters" in caplog.text

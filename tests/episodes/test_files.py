"""What is on disk: lines that can be read back, whole files, a limit that says what it kept out, and runs of earlier releases."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sdar.episodes import StoredEpisode, StoredTurn, read
from sdar.episodes.digits import rounded
from sdar.episodes.files import EpisodeFiles, left_out
from sdar.episodes.record import Speller, record
from sdar.episodes.schema import PER_TOKEN, VERSION
from sdar.errors import ConfigError
from sdar.types import Episode, Retrieval, Status, Task, Turn

TURN = Turn([1], [5, 5], [-0.123456789, -2.0], [0.0, 0.0], text="go", observation="a room", action="go")


def episode(task: str, *turns: Turn, **more: object) -> Episode:
    return Episode(Task(task, "heat", "do it"), 1, list(turns), **more)


def written(folder: Path, *episodes: Episode, name: str = "train-000003", **about: object) -> Path:
    path = EpisodeFiles(folder / "episodes").write(name, [record(e, about) for e in episodes])
    assert path == folder / "episodes" / f"{name}.jsonl.gz"
    return path


def test_what_is_written_is_read_back_and_what_is_not_known_is_absent(tmp_path: Path) -> None:
    odd = replace(TURN, observation='a "quote"\nand a line \u2028 \u6771\u4eac', text="half a \ud83d")
    retrieval = Retrieval(("s1",), "Heat it.")
    given = [
        episode("a", odd, TURN, success=True, reward=1.5, retrieval=retrieval, scores={"f1": 0.5}),
        episode("b", status=Status.ENV_DIED, error="it broke", privileged=True, privileged_text="Look left."),
    ]
    path = written(tmp_path, *given, run="version_0", kind="train", iteration=3)
    first, second = read(tmp_path)
    assert first.turns[0].observation == odd.observation and first.turns[0].response == odd.text
    assert first.turns[1].behaviour_logp == [-0.1234568, -2.0] and first.turns[1].response_ids == [5, 5]
    assert (first.skills, first.skill_text, first.scores, first.reward) == (["s1"], "Heat it.", {"f1": 0.5}, 1.5)
    assert (first.run, first.kind, first.iteration, first.schema) == ("version_0", "train", 3, VERSION)
    assert (second.turns, second.error, second.privileged_text, second.lost) == ([], "it broke", "Look left.", True)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert not {"panel", "objective", "world", "extra", "skill_text"} & lines[1].keys()
    numbers = {"prompt_ids", "response_ids", "behaviour_logp"}
    assert {
        k for k in lines[0]["turns"][0] if k in PER_TOKEN or k.endswith("_ids")
    } == numbers  # no zeros for what nobody said


def test_every_line_has_the_fields_and_types_of_the_description(tmp_path: Path) -> None:
    class Strict(StoredEpisode, forbid_unknown_fields=True):
        pass

    path = written(tmp_path, episode("a", TURN, success=True), run="r", kind="train", iteration=3, tags=["think"])
    [line] = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    turns = [line | {"turns": []}, *line["turns"]]
    assert msgspec.convert(turns[0], Strict).task == "a" and {*turns[1]} <= {*StoredTurn.__struct_fields__}


def test_writing_a_file_again_replaces_it_and_that_of_an_earlier_release(tmp_path: Path) -> None:
    old = tmp_path / "episodes" / "train-000003.jsonl"
    old.parent.mkdir()
    old.write_text('{"task": "old", "family": "f", "instruction": "", "success": true, "turns": []}\n')
    written(tmp_path, episode("a", TURN), episode("b", TURN))
    written(tmp_path, episode("a", TURN))
    assert [e.task for e in read(tmp_path)] == ["a"] and [f.name for f in old.parent.iterdir()] == ["train-000003.jsonl.gz"]


def test_a_run_that_is_killed_while_it_writes_leaves_the_files_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, episode("a", TURN))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.replace", killed)
        written(tmp_path, episode("b", TURN))
    assert [e.task for e in read(tmp_path)] == ["a"]
    written(tmp_path, episode("c", TURN))
    assert [e.task for e in read(tmp_path)] == ["c"] and len([*(tmp_path / "episodes").iterdir()]) == 1


def test_a_limit_keeps_files_out_and_says_which(tmp_path: Path) -> None:
    lines = [record(episode("a", TURN))]
    size = EpisodeFiles(tmp_path / "one").write("train-000001", lines).stat().st_size
    files = EpisodeFiles(tmp_path / "two", limit=2.5 * size)
    assert [files.write(f"train-{n:06d}", lines) is not None for n in range(1, 5)] == [True, True, False, False]
    assert left_out(tmp_path / "two") == {"train-000003.jsonl.gz": 1, "train-000004.jsonl.gz": 1}
    again = EpisodeFiles(tmp_path / "two", limit=2.5 * size)  # a run that goes on finds what is there
    assert again.write("train-000002", lines) is not None and again.write("train-000003", lines) is None
    assert (
        left_out(tmp_path / "two") == {"train-000003.jsonl.gz": 1, "train-000004.jsonl.gz": 1}
        and len(read(tmp_path / "two")) == 2
    )


def test_lines_of_earlier_releases_are_read_and_dated_by_the_name_of_their_file(tmp_path: Path) -> None:
    turn = {
        "observation": "",
        "response": "go",
        "action": "go",
        "valid": True,
        "tool_ok": None,
        "response_ids": [5],
        "behaviour_logp": [-1.0],
    }
    line = {
        "task": "a",
        "family": "f",
        "instruction": "i",
        "attempt": 0,
        "skills": [],
        "status": "done",
        "success": True,
        "turns": [turn],
    }
    for name in ("train-000010", "math/unseen-privileged-000002", "predict-seen"):
        path = tmp_path / "episodes" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(line) + "\n" + json.dumps(line)[:50])  # the last line was never ended
    found = [(e.kind, e.iteration, e.panel, e.actor, e.schema) for e in read(tmp_path)]
    assert found == [
        ("validation", 2, "unseen", "privileged", 1), ("predict", None, "seen", None, 1), ("train", 10, None, None, 1)
    ]  # fmt: skip
    assert len(read(tmp_path, "kind == 'train'")) == len(read(tmp_path, kind="predict")) == 1


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"task": "a"}\n', r"x\.jsonl, line 1: .*missing required field `family`.*docs/episodes\.md"),
        (b'{"task": 1, "family": "f"}\n', r"x\.jsonl, line 1: .*Expected `str`, got `int`"),
        (b"[" * 100_000 + b"}\n", r"x\.jsonl, line 1: nested more than 100 deep"),
        (
            b'{"schema": 99, "task": "a", "family": "f", "instruction": "", "success": true, "turns": []}\n',
            r"is of version 99 of the schema, and this release knows 2",
        ),
    ],
)  # fmt: skip
def test_a_line_that_is_no_episode_is_told_with_its_place(tmp_path: Path, line: bytes, error: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(ConfigError, match=error):
        read(tmp_path / "x.jsonl")


def test_a_folder_without_episodes_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"holds no episodes \(\*\.jsonl\.gz, \*\.jsonl\)\. Name the folder of a run"):
        read(tmp_path)
    path = written(tmp_path, episode("a", TURN))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"train-000003\.jsonl\.gz cannot be read \(Compressed file ended"):
        read(tmp_path)


def test_numbers_have_seven_digits_whatever_their_size_and_what_is_none_is_null() -> None:
    values = np.array([0.0, 1.23456789e-12, -1234567.89, 1e30, np.nan, -np.inf, 0.5])
    wanted = [0.0, 1.234568e-12, -1234568.0, 1e30, None, None, 0.5]
    assert rounded(values) == wanted and rounded(np.tile(values, 9)) == 9 * wanted


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def test_pieces_are_the_text_of_the_tokens_and_a_shared_character_stands_at_its_last_token() -> None:
    spelled = list("aé!".encode())
    speller = Speller(Bytes(), lambda ids, _: [(0, 1), (1, 2), (1, 2), (2, 3)])
    assert speller.pieces(spelled) == ["a", "", "é", "!"] and speller.text(spelled) == "aé!"
    assert speller.pieces(list(b"go")) == ["g", "o"]

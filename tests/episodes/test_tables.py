"""Episodes as rows, as a frame, in other files, and as the command prints them."""

import sys
from pathlib import Path

import pytest

from sdar import episodes
from sdar.cli import main
from sdar.episodes import StoredEpisode, StoredTurn
from sdar.episodes.files import LEFT_OUT, encode_line
from sdar.episodes.tables import _plain
from sdar.errors import ConfigError

FIRST = StoredTurn(
    observation="a \x1b[31mroom", response="go", action="go", prompt="<p>", teacher_prompt="Look left.", response_ids=[5, 6],
    pieces=["g", "o"], student_logp=[-1.0, None], gap=[0.25, 0.75], turn_weight=0.5, update=1,
)  # fmt: skip
FOUND = [
    StoredEpisode(task="a", family="heat", instruction="heat it", success=True, reward=1.0, scores={"f1": 0.5}, iteration=3, turns=[FIRST]),
    StoredEpisode(
        task="b", family="cool", instruction="cool it", success=False, status="env_died", error="it broke", iteration=3,
        turns=[StoredTurn(observation="x", response="\ud83d", response_ids=[7])],
    ),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "version_0" / "episodes"
    folder.mkdir(parents=True)
    (folder / "train-000003.jsonl").write_bytes(b"".join(encode_line(_plain(e)) for e in FOUND))
    return folder.parent


def test_a_row_is_an_episode_a_turn_or_a_token() -> None:
    of_episodes, turns, tokens = ([*episodes.rows(FOUND, per)] for per in ("episode", "turn", "token"))
    assert [(r["task"], r["turns"], r["gap"], r["lost"]) for r in of_episodes] == [("a", 1, 0.5, False), ("b", 1, None, True)]
    assert of_episodes[0]["scores.f1"] == 0.5
    assert [(r["task"], r["turn"], r["tokens"], r["student_logp"], r["turn_weight"]) for r in turns] == [
        ("a", 0, 2, -1.0, 0.5), ("b", 0, 1, None, None)
    ]  # fmt: skip
    assert [(r["position"], r["piece"], r["token_id"], r["gap"], r["student_logp"]) for r in tokens] == [
        (0, "g", 5, 0.25, -1.0), (1, "o", 6, 0.75, None), (0, None, 7, None, None)
    ]  # fmt: skip
    assert len({tuple(r) for r in tokens}) == 1
    with pytest.raises(ConfigError, match="per is 'word': a row is one of episode, turn, token"):
        next(episodes.rows(FOUND, "word"))


def test_a_frame_of_pandas_has_these_rows() -> None:
    pytest.importorskip("pandas")
    frame = episodes.frame(FOUND, "token")
    assert frame.groupby("task")["gap"].mean()["a"] == 0.5 and len(frame) == 3


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_what_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}, which is not installed: pip install {package}\."):
        episodes.frame(FOUND) if package == "pandas" else episodes.export(FOUND, tmp_path / "x.parquet")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_lines_that_are_exported_are_read_as_they_were(run: Path, tmp_path: Path, ending: str) -> None:
    assert main(["episodes", str(run), "--where", "success", "--to", str(tmp_path / f"x.{ending}")]) == 0
    assert episodes.read(tmp_path / f"x.{ending}") == episodes.read(run, "success")


def test_parquet_holds_them_whole(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert episodes.export(FOUND[:1], tmp_path / "x.parquet") == 1
    [row] = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert row["turns"][0]["gap"] == [0.25, 0.75] and row["scores"] == '{"f1":0.5}' and row["task"] == "a"
    with pytest.raises(ConfigError, match="half a surrogate pair, which Parquet cannot"):
        episodes.export(FOUND, tmp_path / "y.parquet")


def test_the_command_prints_a_table_and_one_in_full_without_what_a_terminal_obeys(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "episodes" / LEFT_OUT).write_text('{"file": "train-000004.jsonl.gz", "episodes": 8, "bytes": 9, "limit": 5}\n')
    assert main(["episodes", str(run), "--limit", "1"]) == 0
    head, row, more, summary, missing = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "#",
        "iteration",
        "kind",
        "task",
        "attempt",
        "family",
        "success",
        "reward",
        "status",
        "turns",
        "tokens",
        "gap",
    ]
    assert row.split() == ["1", "3", "train", "a", "0", "heat", "yes", "1", "done", "1", "2", "0.5"]
    assert (more, summary) == (
        "... and 1 more (--limit)",
        "2 episodes, 1 reached the goal, 1 ended by faults of the world.",
    )
    assert missing.endswith("8 episodes of train-000004.jsonl.gz were not written (model.log_episodes_mb).")
    assert main(["episodes", str(run), "--show", "1"]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told and "    Look left.\n" in told and "turn 0 (turn weight 0.5, optimizer step 1), seen:" in told
    numbers = [line.split() for line in told.splitlines() if line.startswith("    ")]
    assert ["student_logp", "gap"] in numbers and ["'g'", "-1", "0.25"] in numbers and ["'o'", "-", "0.75"] in numbers


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--where", "sucess"], "Did you mean 'success'?"),
        (["--show", "3"], "--show 3: there is no such episode; the table without --show numbers them from 1."),
        (["--show", "0"], "--show 0: there is no such episode"),
        (["--show", "1", "--to", "x.jsonl"], "ask for one of the two"),
        (["--limit", "0"], "--limit is 0: a table has at least 1 row."),
        (["--to", "x.csv"], "--to x.csv: episodes are written to .jsonl, .jsonl.gz or .parquet."),
        (["--to", "."], "--to .: the file is there. Name a new one."),
    ],
)
def test_what_cannot_be_is_said(run: Path, words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["episodes", str(run), *words]) == 2
    assert error in capsys.readouterr().err

"""`sdar fetch`: what it knows, files at hand, where settings find them, and what it says."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from sdar.cli import main
from sdar.data.conversations import read_conversations
from sdar.envs import CodeEnv, HouseholdEnv, MathEnv, ScienceEnv
from sdar.errors import ConfigError, FetchError, PolicyError, SkillBankError
from sdar.fetching.at_hand import take_file, take_folder
from sdar.fetching.catalogue import DataFile, catalogue
from sdar.paths import data_folder, resolve
from sdar.policies import PretrainedPolicy
from sdar.search.bm25 import BM25Backend
from sdar.skills import SkillBank

DATA = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the original files are not beside the checkout")
BODY = b'{"question": "1 + 1?", "answer": "#### 2"}\n'
MEANT = DataFile(
    name="sub/rows.jsonl", url="https://x.org/rows.jsonl", bytes=len(BODY), sha256=hashlib.sha256(BODY).hexdigest()
)
GAMES = DataFile(name="games.zip", url="https://x.org/games.zip", unpack="games", only="game.tw-pddl")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where fetched data lies."""
    monkeypatch.setenv("SDAR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_every_data_set_says_what_it_is_where_it_comes_from_and_how_it_is_used():
    for name, data_set in catalogue().items():
        assert name in data_set.use and data_set.licence and data_set.home.startswith("https://")
        assert len({file.name for file in data_set.files}) == len(data_set.files)
        versions = [file.url for file in data_set.files if file.sha256 is None and file.bytes is None]
        assert not versions or name in ("search-passages", "webshop", "webshop-all"), name


def tar(path, **files):
    with tarfile.open(path, "w:xz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


KEPT = {
    "as it is": lambda folder: (folder / "other_name").write_bytes(BODY),
    "compressed": lambda folder: (folder / "a.jsonl.gz").write_bytes(gzip.compress(BODY)),
    "a wheel": lambda folder: zipped(folder / "a.whl", **{"p/a.txt": b"x", "p/b.txt": BODY}),
    "an archive": lambda folder: tar(folder / "a.tar.xz", **{"p/a.txt": b"y" * len(BODY), "p/b.txt": BODY}),
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_at_hand_is_found_by_its_content(tmp_path, kind, whole):
    (tmp_path / "at_hand").mkdir()
    KEPT[kind](tmp_path / "at_hand")
    source = tmp_path / "at_hand" if whole else next((tmp_path / "at_hand").iterdir())
    take_file(MEANT, source, tmp_path / "to" / MEANT.name)
    assert (tmp_path / "to" / MEANT.name).read_bytes() == BODY
    assert [path.name for path in (tmp_path / "to").rglob("*") if path.is_file()] == ["rows.jsonl"]


def test_another_file_at_hand_is_not_taken(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(BODY[::-1])
    with pytest.raises(
        FetchError, match=r"holds no file with SHA-256 [0-9a-f]{64}, which sub/rows\.jsonl has .*fetch it from https://x"
    ):
        take_file(MEANT, tmp_path, tmp_path / "to" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl", "to"] and not list((tmp_path / "to").iterdir())


def test_where_no_digest_is_known_the_name_tells(tmp_path):
    (tmp_path / "items.json").write_bytes(b"[]")
    file = DataFile(name="items.json", url="https://x.org/get?id=3")
    take_file(file, tmp_path, tmp_path / "to" / "items.json")
    with pytest.raises(FetchError, match=r"no file with the name get or other\.json"):
        take_file(DataFile(name="other.json", url="https://x.org/get?id=3"), tmp_path, tmp_path / "to" / "other.json")


TREE = {"a/games/train/t1/game.tw-pddl": b"1", "a/games/train/t1/more.json": b"2", "a/other/game.tw-pddl": b"3"}


@pytest.mark.parametrize("kind", ["folder", "itself", "tar", "zip", "folder with an archive"])
def test_of_an_archive_or_folder_the_files_that_are_meant_are_kept(tmp_path, kind):
    source = tmp_path / "at_hand"
    source.mkdir()
    if kind in ("folder", "itself"):
        for name, content in TREE.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
        source = source if kind == "folder" else source / "a" / "games"
    elif kind == "tar":
        tar(source := source / "x.tar.xz", **TREE)
    else:
        zipped(source / "x.zip", **TREE)
        source = source / "x.zip" if kind == "zip" else source
    assert take_folder(GAMES, source, tmp_path / "to") == 1
    assert [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "to").rglob("*") if p.is_file()] == [
        "to/games/train/t1/game.tw-pddl"
    ]


def test_an_archive_cannot_write_elsewhere(tmp_path):
    zipped(tmp_path / "x.zip", **{"games/../../../game.tw-pddl": b"1"})
    with pytest.raises(FetchError, match=r"which lies outside of"):
        take_folder(GAMES, tmp_path / "x.zip", tmp_path / "to")
    assert not (tmp_path / "game.tw-pddl").exists()


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_an_archive_that_is_none_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(FetchError, match=rf"{name} cannot be read as an archive \(.*\)\. Give it whole"):
        take_folder(GAMES, tmp_path / name, tmp_path / "to")


def test_a_folder_without_them_is_told(tmp_path):
    with pytest.raises(FetchError, match=r"holds no games/\*\*/game\.tw-pddl, nor an archive that does"):
        take_folder(GAMES, tmp_path, tmp_path / "to")


# ------------------------------------------------------------------ the command


def test_without_a_name_it_tells_which_there_are(capsys, folder):
    assert main(["fetch"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in catalogue()) and str(folder) in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gsm8"], "there is no data set 'gsm8'. Did you mean 'gsm8k'? Known: alfworld"),
        (["gsm8k", "--from", "/no/such"], "--from /no/such: there is no such folder or file."),
    ],
)
def test_what_cannot_be_is_an_error_of_the_command_line(capsys, words, told):
    assert main(["fetch", *words]) == 2
    assert told in capsys.readouterr().err


@real
def test_the_original_files_are_found_used_and_checked(capsys, folder):
    names = ["gsm8k", "math500", "humaneval"]
    assert main(["fetch", *names, "--from", str(DATA)]) == 0
    told = capsys.readouterr().out
    assert (
        "Licence: MIT (https://github.com/openai/grade-school-math)" in told
        and f"is in {folder / 'gsm8k'}; to use it:" in told
    )
    assert main(["fetch", *names]) == 0 and "was already in" in capsys.readouterr().out  # no network is asked
    assert main(["fetch", *names, "--check"]) == 0 and "holds what was meant" in capsys.readouterr().out
    env = MathEnv(files={"train": "gsm8k/train.jsonl", "unseen": "gsm8k/test.jsonl"})
    assert (env.size("train"), env.size("unseen")) == (7473, 1319)
    assert CodeEnv(split="unseen", files={"unseen": "humaneval/HumanEval.jsonl.gz"}).size("unseen") == 164
    damaged = folder / "math500" / "test.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"the", b"teh", 1))
    assert main(["fetch", "math500", "--check"]) == 1
    assert "is another file than was meant: its SHA-256 is" in capsys.readouterr().err


def test_what_was_unpacked_is_known(capsys, folder, tmp_path):
    zipped(tmp_path / "g.zip", **{"json_2.1.1/train/t/trial/game.tw-pddl": b"1"})
    assert main(["fetch", "alfworld", "--from", str(tmp_path / "g.zip")]) == 0
    assert (folder / "alfworld" / "json_2.1.1" / "train" / "t" / "trial" / "game.tw-pddl").exists()
    assert main(["fetch", "alfworld"]) == 0 and "was already in" in capsys.readouterr().out
    assert main(["fetch", "alfworld-words", "--from", str(tmp_path / "g.zip")]) == 1  # what is said of the games is not there
    assert "holds no json_2.1.1/**/traj_data.json" in capsys.readouterr().err


def test_a_name_leads_to_what_was_fetched_unless_a_file_is_called_so(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("gsm8k/train.jsonl") == Path("gsm8k/train.jsonl")
    (folder / "gsm8k").mkdir(parents=True)
    (folder / "gsm8k" / "train.jsonl").touch()
    assert resolve("gsm8k/train.jsonl") == folder / "gsm8k" / "train.jsonl" and data_folder() == folder
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").touch()
    assert resolve("gsm8k/train.jsonl") == Path("gsm8k/train.jsonl")


MISSING = {
    "gsm8k": lambda: MathEnv(files={"train": "gsm8k/train.jsonl"}).size("train"),
    "math500": lambda: ScienceEnv(files={"train": "math500/test.jsonl"}).size("train"),
    "humaneval": lambda: CodeEnv(split="unseen", files={"unseen": "humaneval/HumanEval.jsonl.gz"}).size("unseen"),
    "aime25": lambda: read_conversations(["aime25/test.jsonl"], "data.files"),
    "alfworld": lambda: HouseholdEnv(data="alfworld").task_ids("train", 1, 0),
    "search-passages": lambda: BM25Backend(corpus="search-passages/wiki-18.jsonl.gz").search(["x"], 1),
    "skillrl": lambda: SkillBank.load("skillrl/alfworld.json"),
    "smollm2-135m": lambda: PretrainedPolicy("smollm2-135m").load_tokenizer(),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_told_with_the_command_that_fetches_it(name, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((ConfigError, PolicyError, SkillBankError), match=rf"`sdar fetch {name}` puts it into {folder}, where"):
        MISSING[name]()

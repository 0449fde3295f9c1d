"""Building an index: what it costs, that it goes on after a kill, and that it never mixes two corpora."""

import gzip
import json
import os
import signal
import time

import pytest
from launch import Script

from sdar.errors import ConfigError
from sdar.search import BM25Backend, build_index
from sdar.search.index import Cost


def write_corpus(path, count, opened=open):
    with opened(path, "wt") as file:
        for i in range(count):
            words = f"passage number{i} of colour{i % 7} with shape{i % 11} and taste{i % 13} " * 4
            file.write(json.dumps({"id": f"doc{i}", "contents": f'"Title {i}"\n{words}'}) + "\n")
    return str(path)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_index_finds_passages_with_their_ids_and_titles(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 50)
    built = build_index(corpus, str(tmp_path / "i"), shard_passages=20, progress=False)
    assert built.passages == 50 and built.disk == sum(map(len, files(tmp_path / "i").values()))
    [[best]] = BM25Backend(index=str(tmp_path / "i")).search(["number42"], 1)
    assert (best.id, best.title) == ("doc42", "Title 42") and best.text.startswith("passage number42")


def test_a_compressed_corpus_gives_the_same_index(tmp_path):
    plain = write_corpus(tmp_path / "c.jsonl", 30)
    packed = write_corpus(tmp_path / "c.jsonl.gz", 30, gzip.open)
    for corpus, out in ((plain, "a"), (packed, "b")):
        build_index(corpus, str(tmp_path / out), shard_passages=8, progress=False)
    ours, theirs = files(tmp_path / "a"), files(tmp_path / "b")
    ours.pop("manifest.json"), theirs.pop("manifest.json")  # it names the corpus
    assert ours == theirs


def test_an_index_that_was_killed_goes_on_and_is_the_same_to_the_byte(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 6_000)
    code = "import sys; from sdar.search import build_index; build_index(sys.argv[1], sys.argv[2], shard_passages=400)"
    process = Script(code, [corpus, str(tmp_path / "killed")], dict(os.environ), tmp_path / "log")
    manifest, due = tmp_path / "killed/manifest.json", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < due:
        if manifest.exists() and len(json.loads(manifest.read_text())["shards"]) >= 2:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    begun = json.loads(manifest.read_text())
    assert not begun["complete"] and 2 <= len(begun["shards"]) < 15
    with pytest.raises(
        ConfigError, match=rf"is not finished \({len(begun['shards'])} shards so far\).*goes on where it stopped"
    ):
        BM25Backend(index=str(tmp_path / "killed")).search(["q"], 1)
    first = (tmp_path / "killed/shard-00000/passages.jsonl").stat().st_mtime_ns
    build_index(corpus, str(tmp_path / "killed"), shard_passages=400, progress=False)
    assert (tmp_path / "killed/shard-00000/passages.jsonl").stat().st_mtime_ns == first  # it was not made again
    build_index(corpus, str(tmp_path / "fresh"), shard_passages=400, progress=False)
    assert files(tmp_path / "killed") == files(tmp_path / "fresh")


@pytest.mark.parametrize("stop", ["first", "middle", "weighing", "finishing"])
def test_an_index_goes_on_from_wherever_it_stopped(tmp_path, monkeypatch, stop):
    from sdar.search import bm25, index

    class Stop(Exception):
        pass

    left = {"first": 0, "middle": 2, "weighing": 1, "finishing": 0}[stop]
    target = {"weighing": (bm25, "weigh"), "finishing": (index, "_finished")}.get(stop, (index, "write_passages"))
    real = getattr(*target)

    def breaks(*args):
        nonlocal left
        if not left:
            raise Stop
        left -= 1
        return real(*args)

    corpus = write_corpus(tmp_path / "c.jsonl", 50)
    monkeypatch.setattr(*target, breaks)
    with pytest.raises(Stop):
        build_index(corpus, str(tmp_path / "i"), shard_passages=12, progress=False)
    monkeypatch.undo()
    build_index(corpus, str(tmp_path / "i"), shard_passages=12, progress=False)
    build_index(corpus, str(tmp_path / "fresh"), shard_passages=12, progress=False)
    assert files(tmp_path / "i") == files(tmp_path / "fresh")


def test_an_index_of_another_corpus_or_setting_is_refused(tmp_path):
    out = str(tmp_path / "i")
    build_index(write_corpus(tmp_path / "a.jsonl", 20), out, progress=False)
    with pytest.raises(ConfigError, match=r"holds an index with corpus .* was asked for: mixing the two"):
        build_index(write_corpus(tmp_path / "b.jsonl", 21), out, progress=False)
    with pytest.raises(ConfigError, match=r"with k1 0.9, but 1.2 was asked for"):
        build_index(str(tmp_path / "a.jsonl"), out, k1=1.2, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        build_index(str(tmp_path / "a.jsonl"), str(tmp_path / "other"), progress=False)


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_the_cost_is_said_before(tmp_path, capsys, opened):
    corpus = write_corpus(tmp_path / ("c.jsonl.gz" if opened is gzip.open else "c.jsonl"), 10_000, opened)
    cost = build_index(corpus, str(tmp_path / "i"), estimate_only=True)
    assert not (tmp_path / "i").exists()
    assert 5_000 < cost.passages < 20_000 and cost.seconds > 0  # a compressed file is read ahead
    assert "bm25 index of" in capsys.readouterr().out
    built = build_index(corpus, str(tmp_path / "i"), progress=False)
    assert built.passages == 10_000
    assert 0.3 < cost.disk / built.disk < 3


def test_a_cost_reads_like_this():
    cost = Cost(21_015_324, 31 * 2**30, 4 * 2**30, 7_500)
    assert str(cost) == ("about 21,015,324 passages, 31.00 GiB on disk, 4.00 GiB of memory, 2 h 5 min on this machine")


BROKEN = {
    '{"id": "1"}': r"c.jsonl, line 2 is no passage: it needs \"id\" \(text or number\) and \"contents\"",
    '{"contents": "x"}': "line 2 is no passage",
    "[1]": "line 2 is no passage",
    '{"id": [1], "contents": "x"}': "line 2 is no passage",
    '{"id": 1, "contents": NaN}': "line 2: it holds NaN",
    '{"id": "1", "contents"': r"line 2: no JSON \(.*\)\. A corpus has one object",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_passage_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text(f'\ufeff{{"id": "0", "contents": "fine"}}\n{line}\n')  # a byte order mark is no harm
    with pytest.raises(ConfigError, match=BROKEN[line]):
        build_index(str(tmp_path / "c.jsonl"), str(tmp_path / "i"), progress=False)


def test_settings_that_cannot_take_effect_are_refused(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 3)
    with pytest.raises(ConfigError, match="model is 'x', but a bm25 index has no such setting"):
        build_index(corpus, str(tmp_path / "i"), model="x")
    with pytest.raises(ConfigError, match=r"k1 is 1\.0, but a dense index has no such setting"):
        build_index(corpus, str(tmp_path / "i"), kind="dense", k1=1.0)
    with pytest.raises(ConfigError, match="shard_passages is 0"):
        build_index(corpus, str(tmp_path / "i"), shard_passages=0)
    with pytest.raises(ConfigError, match="batch_size is 0: it must be at least 1"):
        build_index(corpus, str(tmp_path / "i"), kind="dense", batch_size=0)
    with pytest.raises(ConfigError, match=r"corpus .*none\.jsonl does not exist"):
        build_index(str(tmp_path / "none.jsonl"), str(tmp_path / "i"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no passage"):
        build_index(str(tmp_path / "empty.jsonl"), str(tmp_path / "i"), progress=False)

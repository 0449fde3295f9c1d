"""Dense search without its packages: what can be said and written before anything is encoded."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.errors import ConfigError
from sdar.search import DenseBackend, build_index, dense
from sdar.search.dense import FOR_A_CELL, TRAINING_SAMPLE, ivf_cells, load_encoder, training_step


@given(st.integers(1, 10**8))
def test_an_ivf_index_learns_from_enough_vectors(passages):
    learned = -(-passages // training_step(passages))
    assert learned >= min(passages, TRAINING_SAMPLE)
    assert learned >= FOR_A_CELL * ivf_cells(passages) or passages < FOR_A_CELL
    assert learned <= 2 * max(TRAINING_SAMPLE, FOR_A_CELL * ivf_cells(passages))


def test_wiki_18_has_cells_that_the_old_sample_was_too_small_for():
    assert ivf_cells(21_015_324) == 18_336 and -(-21_015_324 // training_step(21_015_324)) >= 39 * 18_336 > TRAINING_SAMPLE


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "contents": f'"T{i}"\ntext'}) + "\n" for i in range(5)))
    return str(path)


def test_the_passages_of_a_published_index_are_written_without_encoding(tmp_path, corpus):
    (tmp_path / "e5.index").write_bytes(b"faiss")
    out = tmp_path / "i"
    for _ in range(2):  # again: it is there
        built = build_index(
            corpus, str(out), "dense", faiss_index=str(tmp_path / "e5.index"), dtype="fp16", shard_passages=2, progress=False
        )
        assert built.passages == 5
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["faiss_index"] == str(tmp_path / "e5.index") and settings["dtype"] == "fp16"
    assert (settings["model"], settings["query_prefix"]) == ("intfloat/e5-base-v2", "query: ")
    assert not {"neighbours", "passage_prefix"} & set(settings)
    assert len(list(out.glob("shard-*/passages.jsonl"))) == 3
    cost = build_index(corpus, str(out), "dense", faiss_index=str(tmp_path / "e5.index"), estimate_only=True)
    assert cost.passages == 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"faiss_index": "/no/such.index"}, r"faiss_index /no/such\.index does not exist"),
        (
            {"faiss_index": __file__, "neighbours": "ivf"},
            r"neighbours is 'ivf', but faiss_index is there already: nothing is encoded",
        ),
        ({"faiss_index": __file__, "batch_size": 8}, r"batch_size is 8, but faiss_index is there already"),
        ({"dtype": "fp8"}, r"dtype is 'fp8': number formats of the encoder are fp32, fp16, bf16"),
        ({"kind": "bm25", "dtype": "fp16"}, r"dtype is 'fp16', but a bm25 index has no such setting"),
        ({"kind": "bm25", "faiss_index": "x"}, r"faiss_index is 'x', but a bm25 index has no such setting"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(tmp_path, corpus, options, match):
    with pytest.raises(ConfigError, match=match):
        build_index(corpus, str(tmp_path / "i"), **{"kind": "dense", "progress": False} | options)


def test_a_number_format_of_queries_is_one_of_three():
    with pytest.raises(
        ConfigError, match=r"DenseBackend\.dtype is 'half': number formats of the encoder are fp32, fp16, bf16"
    ):
        DenseBackend("i", dtype="half")


def test_what_a_folder_names_is_not_loaded_unless_the_user_names_it(tmp_path, corpus, monkeypatch):
    (tmp_path / "e5.index").write_bytes(b"faiss")
    out = tmp_path / "i"
    build_index(corpus, str(out), "dense", faiss_index=str(tmp_path / "e5.index"), progress=False)
    monkeypatch.setattr(dense, "load_encoder", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(dense, "import_faiss", lambda: pytest.fail("read"))
    with pytest.raises(
        ConfigError, match=r"model is not set; .* the encoder 'intfloat/e5-base-v2'\. What a folder names is not"
    ):
        DenseBackend(str(out)).search(["q"], 1)
    with pytest.raises(ConfigError, match=r"it names '.*/e5\.index'\. What a folder names is not read unasked: set"):
        DenseBackend(str(out), "intfloat/e5-base-v2").search(["q"], 1)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["settings"]["faiss_index"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "faiss.index").symlink_to(tmp_path / "e5.index")
    dense._opened.cache_clear()
    with pytest.raises(ConfigError, match=r"faiss\.index', which lies outside of"):
        DenseBackend(str(out), "intfloat/e5-base-v2").search(["q"], 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": 5}, r"Expected `object`, got `int` - at `\$.settings`"),
        ({"shards": [-1]}, r"Expected `int` >= 0"),
        ({"shards": {"a": 1}}, "Expected `array`"),
        ({"complete": "yes"}, "Expected `bool`"),
        ({"settings": {"kind": "dense", "model": 5}}, r"Expected `str`, got `int` - at `\$.model`"),
    ],
)
def test_a_manifest_of_another_shape_is_one_message(tmp_path, change, reason):
    manifest = {"format": 1, "settings": {"kind": "dense"}, "shards": [], "complete": True} | change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=rf"manifest.json.*{reason}.*Build the index again"):
        DenseBackend(str(tmp_path), "m").search(["q"], 1)


def test_what_an_encoder_lacks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"and sentence_transformers is not installed: pip install .*\[dense\]"):
        load_encoder("nowhere", None, 32)

"""Building an index over a corpus: `sdar build-index`.

Shard by shard, each whole or not there; run again after an interruption it goes on behind the last whole shard, and the
result is the same to the byte.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from sdar.errors import ConfigError, check_least
from sdar.paths import resolve
from sdar.search import bm25, dense
from sdar.search.shards import (
    IndexFolder,
    corpus_identity,
    find_corpus,
    open_corpus,
    parse_passage,
    read_corpus,
    write_passages,
)

Kind = Literal["bm25", "dense"]
OPTIONS = {
    "bm25": ("k1", "b"),
    "dense": (
        "model", "neighbours", "query_prefix", "passage_prefix", "normalize", "max_length", "batch_size", "device", "dtype",
        "faiss_index",
    ),
}  # fmt: skip
ENCODING = ("neighbours", "passage_prefix", "batch_size", "device")
"""Options of an index that is made here; one that is there already has them in it."""


@dataclass(frozen=True)
class Cost:
    """What an index will take: numbers measured on the first passages of the corpus and multiplied."""

    passages: int
    disk: int
    """Bytes."""
    memory: int
    """Bytes, at the peak of the build."""
    seconds: float

    def __str__(self) -> str:
        hours, minutes = divmod(round(self.seconds / 60), 60)
        needed = f"{hours} h {minutes} min" if self.seconds > 90 else f"{self.seconds:.0f} s"
        return (
            f"about {self.passages:,} passages, {self.disk / 2**30:.2f} GiB on disk, {self.memory / 2**30:.2f} GiB of memory, "
            f"{needed} on this machine"
        )


def build_index(
    corpus: str,
    out: str,
    kind: Kind = "bm25",
    *,
    shard_passages: int | None = None,
    k1: float | None = None,
    b: float | None = None,
    model: str | None = None,
    neighbours: dense.Neighbours | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: dense.Dtype | None = None,
    faiss_index: str | None = None,
    estimate_only: bool = False,
    progress: bool = True,
) -> Cost:
    """Index a corpus for BM25Backend or DenseBackend. Interrupted, it goes on where it stopped when run again.

    Args:
        corpus: JSONL file of wiki-18's form: ``{"id": "0", "contents": "\\"Title\\"\\ntext"}`` a line; it may end in .gz.
        out: Folder of the index; empty, or one that was begun with the same corpus and settings.
        kind: ``bm25`` or ``dense``.
        shard_passages: Passages that are worked on at once: what memory is needed for, and what an interruption can cost;
            200,000 (bm25) or 20,000 (dense).
        k1: Of BM25; 0.9, as in Pyserini and so in Search-R1.
        b: Of BM25; 0.4.
        model: Folder or name of a sentence-transformers model (dense); intfloat/e5-base-v2.
        neighbours: ``flat`` (exact), ``ivf`` or ``hnsw`` (dense); flat.
        query_prefix: Before every query (dense); by default what the model's name asks for, ``query: `` for E5.
        passage_prefix: Before every passage (dense); ``passage: `` for E5.
        normalize: Scale every vector to length 1 (dense); true.
        max_length: Longest text in tokens (dense); 256.
        batch_size: Passages encoded at once (dense); 256.
        device: Of the encoder (dense).
        dtype: Number format of the encoder: ``fp32``, ``fp16`` (Search-R1) or ``bf16`` (dense); fp32.
        faiss_index: FAISS index by inner product that somebody made of this corpus, line by line (dense): the passages alone are
            written, and the file is used where it lies. The other options say how its queries are encoded.
        estimate_only: Say what it costs and do nothing.
        progress: Show the cost and a bar.

    Returns:
        What it would take (`estimate_only`), or the passages and bytes that are there now.

    Raises:
        ConfigError: no such corpus, a line that is no passage, or a folder with another index.
    """
    source, target = find_corpus(corpus), Path(out).expanduser()
    if shard_passages is not None and shard_passages < 1:
        raise ConfigError(f"shard_passages is {shard_passages}: a shard holds at least 1 passage.")
    given: dict[str, Any] = {"k1": k1, "b": b, "model": model, "neighbours": neighbours, "normalize": normalize}
    given |= {"query_prefix": query_prefix, "passage_prefix": passage_prefix, "max_length": max_length}
    given |= {"batch_size": batch_size, "device": device, "dtype": dtype, "faiss_index": faiss_index}
    _check(kind, given)
    dense_builder = _Dense if faiss_index is None else _Published
    builder = _BM25(k1, b) if kind == "bm25" else dense_builder(**{k: given[k] for k in OPTIONS["dense"]})
    shard = shard_passages or builder.shard
    settings = {"kind": kind, "corpus": corpus_identity(source), "shard_passages": shard} | builder.settings
    if not estimate_only:
        index = IndexFolder.create(target, settings)
        if index.manifest["complete"]:
            if progress:
                print(f"{target} holds this index of {index.passages:,} passages already: nothing was done.", flush=True)
            return _finished(index, builder)
    cost = _estimate(source, builder, shard)
    if progress or estimate_only:
        print(f"{kind} index of {source}: {cost}", flush=True)
    if estimate_only:
        return cost
    _fill(index, builder, corpus, shard, cost, progress)
    if progress:
        backend = "BM25Backend" if kind == "bm25" else "DenseBackend"
        print(f"{target}: {index.passages:,} passages are indexed. {backend} searches them: index: {target}", flush=True)
    return _finished(index, builder)


def _check(kind: Kind, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of `build_index` that could not take effect, or not work."""
    for name, value in given.items():
        if value is not None and name not in OPTIONS[kind]:
            raise ConfigError(
                f"{name} is {value!r}, but a {kind} index has no such setting: it could not take effect. Remove it."
            )
    if given["faiss_index"] is not None:
        if not resolve(given["faiss_index"]).is_file():
            raise ConfigError(f"faiss_index {given['faiss_index']} does not exist: name the file of a FAISS index.")
        for name in ENCODING:
            if given[name] is not None:
                raise ConfigError(
                    f"{name} is {given[name]!r}, but faiss_index is there already: nothing is encoded, so it could not take effect. "
                    "Remove it."
                )
    if given["dtype"] is not None:
        dense.check_dtype("dtype", given["dtype"])
    check_least("", 1, max_length=given["max_length"], batch_size=given["batch_size"])


def _fill(index: IndexFolder, builder: "_BM25 | _Dense", corpus: str | Path, shard: int, cost: Cost, progress: bool) -> None:
    """Index what is not in the folder yet, shard by shard."""
    lines = read_corpus(resolve(corpus), skip=index.passages)
    with tqdm(total=cost.passages, initial=index.passages, unit=" passages", disable=not progress) as bar:
        for passages in _batches(lines, shard):
            part = index.part(f"shard-{len(index.manifest['shards']):05d}")
            write_passages(part, passages)
            builder.work(part, [contents for _, contents in passages])
            index.finish(part)
            index.manifest["shards"].append(len(passages))
            index.save()
            bar.update(len(passages))
        if not index.passages:
            raise ConfigError(f"corpus {corpus} holds no passage: there is nothing to index.")
        bar.set_description("putting it together")
        builder.join(index)
    index.manifest["complete"] = True
    index.save()


class _BM25:
    """Counts the words of each shard; weighs them when all are counted."""

    shard, sample = 200_000, 2000
    leftovers = ("words.json", "postings.npz")

    def __init__(self, k1: float | None, b: float | None):
        self.k1, self.b = bm25.K1 if k1 is None else k1, bm25.B if b is None else b
        bm25.check_weights(self.k1, self.b)
        self.settings: dict[str, Any] = {"k1": self.k1, "b": self.b}

    def make(self, texts: list[str]) -> bm25.Postings:
        return bm25.count_words(bm25.tokenize(texts))

    def work(self, part: Path, texts: list[str]) -> None:
        p = self.make(texts)
        (part / "words.json").write_text(json.dumps(p.words), encoding="utf-8")
        np.savez(part / "postings.npz", starts=p.starts, documents=p.documents, counts=p.counts, lengths=p.lengths)

    def join(self, index: IndexFolder) -> None:
        frequencies: Counter[str] = Counter()
        words = 0
        for shard in index.shards:
            postings = self._postings(shard)
            frequencies.update(postings.frequencies())
            words += int(postings.lengths.sum())
        for shard in index.shards:
            if not (shard / "bm25").is_dir():
                weighed = bm25.weigh(
                    self._postings(shard), frequencies, index.passages, words / index.passages, self.k1, self.b
                )
                part = shard / "bm25.part"
                weighed.save(part, show_progress=False)
                os.replace(part, shard / "bm25")

    def _postings(self, shard: Path) -> bm25.Postings:
        words = json.loads((shard / "words.json").read_text(encoding="utf-8"))
        with np.load(shard / "postings.npz") as arrays:
            return bm25.Postings(words, **{name: arrays[name] for name in ("starts", "documents", "counts", "lengths")})

    def bytes(self, passages: int, text: int, shard: int) -> tuple[int, int]:
        """On disk (passages, 8 bytes a posting, postings once more while it is built) and at the peak in memory."""
        return int(text * 2.6) + 16 * passages, 350 * 2**20 + shard * 6000 + passages * 40


class _Dense:
    """Encodes each shard; hands the vectors to FAISS when all are there (an HNSW graph depends on the timing of its
    threads)."""

    shard, sample = 20_000, 64
    leftovers = ("vectors.npy",)

    def __init__(
        self,
        model: str | None,
        neighbours: dense.Neighbours | None,
        query_prefix: str | None,
        passage_prefix: str | None,
        normalize: bool | None,
        max_length: int | None,
        batch_size: int | None,
        device: str | None,
        dtype: dense.Dtype | None,
        faiss_index: str | None,
    ):
        name = model or "intfloat/e5-base-v2"
        query, passage = dense.prefixes(name)
        self.batch_size, self.device = batch_size or 256, device
        self.settings: dict[str, Any] = {
            "model": name,
            "neighbours": neighbours or "flat",
            "query_prefix": query if query_prefix is None else query_prefix,
            "passage_prefix": passage if passage_prefix is None else passage_prefix,
            "normalize": normalize is not False,
            "max_length": max_length or 256,
        } | ({} if dtype in (None, "fp32") else {"dtype": dtype})
        self.width = 0
        """Numbers of a vector; known when the first was made."""
        if faiss_index is None:
            dense.import_faiss()

    def make(self, texts: list[str]) -> Any:
        dtype = self.settings.get("dtype", "fp32")
        encoder = dense.load_encoder(self.settings["model"], self.device, self.settings["max_length"], dtype)
        told = [self.settings["passage_prefix"] + t for t in texts]
        vectors = dense.encode(encoder, told, self.settings["normalize"], self.batch_size)
        self.width = vectors.shape[1]
        return vectors

    def work(self, part: Path, texts: list[str]) -> None:
        np.save(part / "vectors.npy", self.make(texts))

    def join(self, index: IndexFolder) -> None:
        faiss = dense.import_faiss()
        vectors = [np.load(shard / "vectors.npy", mmap_mode="r") for shard in index.shards]
        made = dense.empty_index(self.settings["neighbours"], vectors[0].shape[1], index.passages)
        if not made.is_trained:
            step = dense.training_step(index.passages)
            made.train(np.concatenate([np.asarray(v[::step]) for v in vectors]))
        for v in vectors:
            made.add(np.asarray(v))
        part = index.path / "faiss.index.part"
        faiss.write_index(made, str(part))
        os.replace(part, index.path / "faiss.index")

    def bytes(self, passages: int, text: int, shard: int) -> tuple[int, int]:
        """On disk (passages, vectors twice while it is built) and in memory (FAISS builds there; encoder not counted)."""
        links = 2 * dense.HNSW_LINKS * 4 if self.settings["neighbours"] == "hnsw" else 0
        vectors = passages * (4 * self.width + links)
        return int(text * 1.1) + 2 * vectors, 2**30 + vectors + shard * 4 * self.width


class _Published(_Dense):
    """Writes the passages of a FAISS index that is there already."""

    shard, sample = 200_000, 2000

    def __init__(self, *, faiss_index: str, **options: Any):
        super().__init__(faiss_index=faiss_index, **options)
        for name in ("neighbours", "passage_prefix"):
            del self.settings[name]
        self.settings["faiss_index"] = str(resolve(faiss_index).resolve())

    def make(self, texts: list[str]) -> np.ndarray:
        """All that takes time: nothing is encoded."""
        json.dumps(texts)
        return np.empty((len(texts), 0), dtype=np.float32)

    def work(self, part: Path, texts: list[str]) -> None:
        """The passages are written already."""

    def join(self, index: IndexFolder) -> None:
        """Whether it fits the passages is seen where it is opened."""

    def bytes(self, passages: int, text: int, shard: int) -> tuple[int, int]:
        return int(text * 1.1), 100 * 2**20 + shard * 3000


def _finished(index: IndexFolder, builder: _BM25 | _Dense) -> Cost:
    """Remove what only the building needed: not before the manifest says that all is there, for it cannot be made again."""
    for shard in index.shards:
        for name in builder.leftovers:
            (shard / name).unlink(missing_ok=True)
    size = sum(f.stat().st_size for f in index.path.rglob("*") if f.is_file())
    return Cost(index.passages, size, 0, 0.0)


def _estimate(corpus: Path, builder: _BM25 | _Dense, shard: int) -> Cost:
    """From the beginning of the corpus: the mean length of a line, and how long a few passages take."""
    with open_corpus(corpus) as file:
        lines = list(islice(file, builder.sample))
        read = file.fileobj.tell() if hasattr(file, "fileobj") else file.tell()  # type: ignore[attr-defined]
    lines = [line for line in lines if line.strip()]
    if not lines:
        return Cost(0, 0, 0, 0.0)
    share = min(1.0, read / max(1, corpus.stat().st_size))
    texts = [parse_passage(line, f"{corpus}, line {n}")[1] for n, line in enumerate(lines, 1)]
    passages = round(len(lines) / share)
    text = round(sum(map(len, lines)) / share)
    begun = time.perf_counter()
    builder.make(texts)
    seconds = (time.perf_counter() - begun) / len(texts) * passages * 1.3  # writing and putting together
    disk, memory = builder.bytes(passages, text, min(shard, passages))
    return Cost(passages, disk, memory, seconds)


def _batches(passages: Iterator[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    while batch := list(islice(passages, size)):
        yield batch

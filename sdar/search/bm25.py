"""BM25 with bm25s: an index on disk, memory-mapped, or one in memory for a corpus that is small.

The scores of an index in shards are those of one index over the whole corpus (Lucene's formula): every shard is a bm25s index
of its own, weighted with the document frequencies and the mean length of the whole.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdar.errors import ConfigError
from sdar.paths import resolve
from sdar.registry import register
from sdar.search.base import Passage, SearchBackend
from sdar.search.shards import IndexFolder, StoredPassages, find_corpus, read_corpus
from sdar.versions import install

K1, B = 0.9, 0.4
"""Pyserini's, which Search-R1's BM25 server uses."""


@register("bm25")
class BM25Backend(SearchBackend):
    """Words in common, weighted.

    Args:
        index: Folder that `sdar build-index` made.
        corpus: JSONL file that is indexed in memory at the first search instead: for some hundred thousand passages at most.
        k1, b: Of the BM25 formula, for `corpus`; an index on disk has its own.
    """

    def __init__(self, index: str | None = None, corpus: str | None = None, k1: float | None = None, b: float | None = None):
        if (index is None) == (corpus is None):
            given = "neither index nor corpus" if index is None else "both index and corpus"
            raise ConfigError(f"BM25Backend has {given}: it searches one of them. Name the one.")
        if index is not None and (k1 is not None or b is not None):
            raise ConfigError(
                f"BM25Backend.k1 or b is set, but the index {index} was weighted when it was built: they could not take "
                "effect. Give them to `sdar build-index`."
            )
        check_weights(K1 if k1 is None else k1, B if b is None else b)
        self.index, self.corpus = index, corpus
        self.k1, self.b = k1, b

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        if self.index is not None:
            searcher = _from_disk(str(resolve(self.index)))
        else:
            path = find_corpus(str(self.corpus))
            state = path.stat()
            weights = (K1 if self.k1 is None else self.k1, B if self.b is None else self.b)
            searcher = _from_corpus(str(path), state.st_size, state.st_mtime_ns, *weights)
        return searcher.search(queries, k)


def check_weights(k1: float, b: float) -> None:
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ConfigError(f"BM25 with k1 {k1} and b {b}: k1 is 0 or more, and b is in [0, 1]. Pyserini has {K1} and {B}.")


class Passages(Protocol):
    """Passages by number."""

    def __getitem__(self, number: int, /) -> Passage: ...


class BM25Searcher:
    """bm25s indices and their passages, searched as one."""

    def __init__(self, shards: Iterable[tuple[Any, Passages]]):
        self.shards = list(shards)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self._best(words, k) for words in tokenize(queries)]

    def _best(self, words: list[str], k: int) -> list[Passage]:
        found: list[tuple[float, int, int]] = []
        for number, (index, _) in enumerate(self.shards):
            if known := [word for word in words if word in index.vocab_dict]:
                scores = index.get_scores(known)
                found += [(-float(scores[i]), number, i) for i in top_k(scores, k)]
        found.sort()
        return [
            Passage((p := self.shards[number][1][i]).id, p.contents, -score) for score, number, i in found[:k] if score < 0
        ]


def top_k(scores: np.ndarray, k: int) -> list[int]:
    """Places of the `k` largest scores, best first; of equal ones the first."""
    k = min(k, len(scores))
    least = np.partition(scores, -k)[-k] if k else np.inf
    places = np.flatnonzero(scores >= max(least, np.finfo(scores.dtype).tiny))
    return places[np.argsort(-scores[places], kind="stable")][:k].tolist()


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Words of two or more letters in lower case, without English stop words."""
    bm25s = import_bm25s()
    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False) if texts else []


def in_memory(passages: Sequence[Passage], k1: float = K1, b: float = B) -> BM25Searcher:
    """An index over a few passages."""
    words = tokenize([p.contents for p in passages])
    postings = count_words(words)
    mean = float(np.mean([len(w) for w in words])) if words else 0.0
    return BM25Searcher([(weigh(postings, Counter(postings.frequencies()), len(words), mean, k1, b), passages)])


class Postings:
    """Which words stand how often in which document; words are numbered in the order of their first appearance."""

    def __init__(self, words: list[str], starts: np.ndarray, documents: np.ndarray, counts: np.ndarray, lengths: np.ndarray):
        self.words = words
        self.starts = starts
        """[words + 1] where the documents of a word begin."""
        self.documents, self.counts = documents, counts
        self.lengths = lengths
        """[documents] words of each."""

    def frequencies(self) -> dict[str, int]:
        """In how many documents each word stands."""
        return dict(zip(self.words, np.diff(self.starts).tolist(), strict=True))


def count_words(texts: Sequence[Sequence[str]]) -> Postings:
    vocabulary: dict[str, int] = {}
    word, document, count = [], [], []
    for number, text in enumerate(texts):
        for w, n in Counter(text).items():
            word.append(vocabulary.setdefault(w, len(vocabulary)))
            document.append(number)
            count.append(n)
    ids = np.asarray(word, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=len(vocabulary)))]).astype(np.int64)
    documents, counts = np.asarray(document, dtype=np.int32)[order], np.asarray(count, dtype=np.int32)[order]
    return Postings(list(vocabulary), starts, documents, counts, np.asarray([len(t) for t in texts], dtype=np.int32))


def weigh(postings: Postings, frequencies: Counter[str], passages: int, mean_length: float, k1: float, b: float) -> Any:
    """A bm25s index of some documents, with the statistics of the whole corpus: Lucene's formula, as bm25s has it.

    score(word, document) = ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 (1 - b + b length / mean length))
    """
    df = np.asarray([frequencies[w] for w in postings.words], dtype=np.float64)
    idf = np.log1p((passages - df + 0.5) / (df + 0.5))
    tf = postings.counts.astype(np.float64)
    norm = k1 * (1 - b + b * postings.lengths[postings.documents] / max(mean_length, 1e-9))
    scores = np.repeat(idf, np.diff(postings.starts)) * tf / (tf + norm)
    index = import_bm25s().BM25(k1=k1, b=b, method="lucene")
    index.scores = {
        "data": scores.astype(np.float32),
        "indices": postings.documents,
        "indptr": postings.starts,
        "num_docs": len(postings.lengths),
    }
    index.vocab_dict = {w: i for i, w in enumerate(postings.words)}
    index.unique_token_ids_set = set(index.vocab_dict.values())
    index.nonoccurrence_array = None  # of other formulas than Lucene's
    return index


def import_bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError:
        raise ConfigError(f"BM25 search needs the package bm25s, which is not installed: {install('search')}.") from None
    return bm25s


@lru_cache(maxsize=4)
def _from_disk(folder: str) -> BM25Searcher:
    index = IndexFolder.open(Path(folder))
    kind = index.manifest["settings"].get("kind")
    if kind != "bm25":
        raise ConfigError(f"{folder} is a {kind} index, not a bm25 one: use the backend that fits it.")
    load = import_bm25s().BM25.load
    return BM25Searcher(
        (load(shard / "bm25", mmap=True, show_progress=False), StoredPassages(shard)) for shard in index.shards
    )


@lru_cache(maxsize=2)
def _from_corpus(path: str, size: int, modified: int, k1: float, b: float) -> BM25Searcher:
    """`size` and `modified` make a corpus that was written anew another one."""
    return in_memory([Passage(i, contents) for i, contents in read_corpus(Path(path))], k1, b)

"""Dense retrieval: a sentence-transformers encoder and FAISS. Scores are inner products."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
import torch

from sdar.errors import ConfigError, check_least
from sdar.paths import resolve
from sdar.reading import convert, path_below
from sdar.registry import register
from sdar.search.base import Passage, SearchBackend
from sdar.search.shards import IndexFolder, StoredPassages
from sdar.versions import install

Neighbours = Literal["flat", "ivf", "hnsw"]
Dtype = Literal["fp32", "fp16", "bf16"]
HNSW_LINKS = 64
TRAINING_SAMPLE = 200_000
"""Vectors that an IVF index learns its cells from, at least."""
FOR_A_CELL = 39
"""Vectors that FAISS wants to learn a cell from."""


class _Settings(msgspec.Struct):
    """What a manifest says of a dense index."""

    model: str
    query_prefix: str
    normalize: bool
    max_length: Annotated[int, msgspec.Meta(ge=1)]
    dtype: Dtype = "fp32"
    faiss_index: str | None = None


@register("dense")
class DenseBackend(SearchBackend):
    """The nearest passages to the query's embedding, in an index that `sdar build-index --kind dense` made.

    Prefixes, normalisation, longest text and, if not set here, number format are those that the index was built with. What the
    folder only names, and a folder may come from elsewhere, is not loaded unless it is named here, too: the encoder, and a FAISS
    index that lies outside of the folder.

    Args:
        index: Folder of the index.
        model: Name or folder of the encoder that the index was built with.
        faiss_index: FAISS index that lies outside of the folder (`sdar build-index --faiss-index`).
        device: Of the encoder; null lets sentence-transformers choose.
        dtype: Number format of the encoder; what is compared is always fp32.
        batch_size: Queries encoded at once.
        probes: Cells that an IVF index looks into.
        ef_search: Candidates that an HNSW index keeps.
    """

    def __init__(
        self,
        index: str,
        model: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
        probes: int | None = None,
        ef_search: int | None = None,
        dtype: Dtype | None = None,
        faiss_index: str | None = None,
    ):
        if dtype is not None:
            check_dtype("DenseBackend.dtype", dtype)
        check_least("DenseBackend", 1, batch_size=batch_size, probes=probes, ef_search=ef_search)
        self.index, self.model, self.device, self.batch_size = index, model, device, batch_size
        self.probes, self.ef_search, self.dtype, self.faiss_index = probes, ef_search, dtype, faiss_index

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        if not queries:
            return []
        folder = str(resolve(self.index))
        settings = _opened(folder)[1]
        if self.model is None:
            raise ConfigError(
                f"DenseBackend.model is not set; the index {self.index} was built with the encoder {settings.model!r}. What a folder "
                f"names is not downloaded and loaded unasked: set model to {settings.model!r}, or to where it lies on this machine."
            )
        index, passages = _from_disk(folder, self.probes, self.ef_search, self.faiss_index)
        encoder = load_encoder(self.model, self.device, settings.max_length, self.dtype or settings.dtype)
        vectors = encode(encoder, [settings.query_prefix + q for q in queries], settings.normalize, self.batch_size)
        if vectors.shape[1] != index.d:
            raise ConfigError(
                f"the encoder {self.model} makes vectors of {vectors.shape[1]} numbers, the index "
                f"{self.index} has {index.d}: it was built with another model. Use that one."
            )
        scores, places = index.search(vectors, min(k, index.ntotal))
        return [
            [passages.at(int(p), float(s)) for s, p in zip(row, found, strict=True) if p >= 0]  # -1: fewer than asked for
            for row, found in zip(scores, places, strict=True)
        ]


def prefixes(model: str) -> tuple[str, str]:
    """What a model of this name expects before queries and passages."""
    name = Path(model).name.lower()
    if "e5" in name:
        return "query: ", "passage: "
    if "bge" in name and "m3" not in name:
        return "Represent this sentence for searching relevant passages: ", ""
    return "", ""


@lru_cache(maxsize=2)
def load_encoder(model: str, device: str | None, max_length: int, dtype: Dtype = "fp32") -> Any:
    """A sentence-transformers model; its own modules pool (E5: the mean over tokens)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dense search needs the package sentence-transformers, and {error.name} is not installed: {install('dense')}."
        ) from None
    try:
        encoder = SentenceTransformer(model, device=device)
    except OSError as error:
        raise ConfigError(
            f"the encoder {model!r} cannot be loaded ({error}): name a folder or a model that can be reached."
        ) from error
    encoder.max_seq_length = min(max_length, encoder.max_seq_length or max_length)
    return encoder.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype])


def encode(encoder: Any, texts: list[str], normalize: bool, batch_size: int) -> np.ndarray:
    vectors = encoder.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False).float()
    if normalize:
        vectors = torch.nn.functional.normalize(vectors)
    return np.ascontiguousarray(vectors.cpu().numpy())


def empty_index(kind: Neighbours, width: int, passages: int) -> Any:
    """A FAISS index by inner product: exact; inverted lists with about 4 sqrt(passages) cells; or a graph."""
    faiss = import_faiss()
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "ivf":
        return faiss.index_factory(width, f"IVF{ivf_cells(passages)},Flat", faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)


def ivf_cells(passages: int) -> int:
    return max(1, min(int(4 * passages**0.5), passages // FOR_A_CELL))


def training_step(passages: int) -> int:
    """Each how manyth vector an IVF index learns its cells from."""
    return max(1, passages // max(TRAINING_SAMPLE, FOR_A_CELL * ivf_cells(passages)))


def check_dtype(name: str, dtype: str) -> None:
    if dtype not in get_args(Dtype):
        raise ConfigError(f"{name} is {dtype!r}: number formats of the encoder are {', '.join(get_args(Dtype))}.")


def import_faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise ConfigError(f"dense search needs the package faiss-cpu, which is not installed: {install('dense')}.") from None
    return faiss


@lru_cache(maxsize=2)
def _opened(folder: str) -> tuple[IndexFolder, _Settings]:
    found = IndexFolder.open(Path(folder))
    kind = found.manifest["settings"].get("kind")
    if kind != "dense":
        raise ConfigError(f"{folder} is a {kind} index, not a dense one: use the backend that fits it.")
    where = f"{folder}/manifest.json, settings"
    return found, convert(found.manifest["settings"], _Settings, where, advice="Build the index again.")


@lru_cache(maxsize=2)
def _from_disk(folder: str, probes: int | None, ef_search: int | None, faiss_index: str | None) -> tuple[Any, "_Passages"]:
    found, settings = _opened(folder)
    file = path_below(found.path, "faiss.index", folder)
    if faiss_index is not None:
        file = resolve(faiss_index)
    elif settings.faiss_index is not None:
        raise ConfigError(
            f"{folder} has no FAISS index of its own, it names {settings.faiss_index!r}. What a folder names is not read unasked: set "
            "DenseBackend.faiss_index to that file, or to where it lies on this machine."
        )
    faiss = import_faiss()
    if not file.is_file():
        raise ConfigError(f"{file}, the FAISS index of {folder}, does not exist: put it there, or build the index again.")
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)  # FAISS maps inverted lists only
    if index.ntotal != found.passages or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ConfigError(
            f"{file} holds {index.ntotal} vectors of metric {index.metric_type} for the {found.passages} passages in {folder}: one by "
            f"inner product (metric {faiss.METRIC_INNER_PRODUCT}) for each passage is needed, in the same order. Use the corpus that it "
            "was made from."
        )
    for name, value, kind, classes in (
        ("probes", probes, "ivf", faiss.IndexIVF),
        ("ef_search", ef_search, "hnsw", faiss.IndexHNSW),
    ):
        if value is not None and not isinstance(index, classes):
            raise ConfigError(
                f"DenseBackend.{name} is {value}, but {folder} is {type(index).__name__}, which is not {kind}: it could not take "
                "effect. Remove it."
            )
    if probes is not None:
        index.nprobe = probes
    if ef_search is not None:
        index.hnsw.efSearch = ef_search
    return index, _Passages([StoredPassages(shard) for shard in found.shards])


class _Passages:
    """The passages of all shards, numbered through."""

    def __init__(self, shards: list[StoredPassages]):
        self.shards = shards
        self.starts = list(accumulate(map(len, shards), initial=0))

    def at(self, place: int, score: float) -> Passage:
        shard = bisect_right(self.starts, place) - 1
        p = self.shards[shard][place - self.starts[shard]]
        return Passage(p.id, p.contents, score)

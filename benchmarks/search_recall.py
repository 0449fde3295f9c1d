"""How many of the passages that a question needs a search backend finds: recall of supporting titles among the first k.

    python benchmarks/search_recall.py [--questions FILE] [--passages FILE] [--dense MODEL [--index FOLDER]] [--k 1 3 5 10]

Questions are rows with `question`, `supporting_titles` and `data_source`, passages are in wiki-18's form (a title in quotation marks, a
line break, a text). Of a question's titles the share among the k best passages counts; a data set's number is the mean over its questions,
with the 95 % interval of a bootstrap over them. The questions themselves are the queries: an agent that asks better finds more, and one
that asks several times may find what no single query can. By default the files of ../shared/data are read, where they are.
With `--dense MODEL` (a sentence-transformers model, in the extra `dense`) the dense backend and both together are measured, too; `--index
FOLDER` spares the encoding: what `sdar build-index --kind dense` made of the passages, which goes on where it was interrupted.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdar.reading import read_json_lines
from sdar.search import BM25Backend, DenseBackend, HybridBackend
from sdar.search.base import SearchBackend
from sdar.search.index import build_index

DATA = Path(__file__).parents[2] / "shared" / "data"


def recalls(questions: Path, backend: SearchBackend, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Data set -> ``[questions, k]`` share of each question's supporting titles among its k best passages."""
    rows = [row for _, row in read_json_lines(questions)]
    found: dict[str, list[list[float]]] = defaultdict(list)
    for first in range(0, len(rows), 64):
        part = rows[first : first + 64]
        for row, passages in zip(part, backend.search([row["question"] for row in part], max(ks)), strict=True):
            wanted = set(row["supporting_titles"])
            titles = [passage.title for passage in passages]
            found[row["data_source"]].append([len(wanted & set(titles[:k])) / len(wanted) for k in ks])
    return {source: np.array(values) for source, values in found.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the means of 2,000 resamples of questions."""
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def backends(passages: Path, dense: str | None, index: str | None, folder: str) -> dict[str, SearchBackend]:
    """Those that can be measured."""
    words: SearchBackend = BM25Backend(corpus=str(passages))
    if dense is None:
        return {"BM25": words}
    if index is None:
        index = f"{folder}/dense"
        build_index(str(passages), index, kind="dense", model=dense, progress=False)
    meaning = DenseBackend(index=index, model=dense)
    return {"BM25": words, "dense": meaning, "both": HybridBackend([words, meaning])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=DATA / "multihop_questions.jsonl.gz")
    parser.add_argument("--passages", type=Path, default=DATA / "multihop_passages.jsonl.gz")
    parser.add_argument("--dense")
    parser.add_argument("--index")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5, 10])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.index and not asked.dense:
        parser.error("--index is read with the model that made it: give --dense MODEL, too")
    for file in (asked.questions, asked.passages):
        if not file.is_file():
            parser.exit(1, f"skipped: there is no {file}\n")
    told = {}
    print(f"| backend | data set | questions | {' | '.join(f'recall@{k}' for k in asked.k)} |")
    print("|---" * (3 + len(asked.k)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, backend in backends(asked.passages, asked.dense, asked.index, folder).items():
            found = recalls(asked.questions, backend, asked.k)
            for source, values in found.items():
                cells = []
                for column, k in zip(values.T, asked.k, strict=True):
                    low, high = interval(column)
                    cells.append(f"{100 * column.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
                    told[f"{name}/{source}/{k}"] = column.mean()
                print(f"| {name} | {source} | {len(values)} | {' | '.join(cells)} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Rows of question files that count: a text once in a split, and none in training that is measured."""

import multiprocessing
from collections.abc import Iterable, Sequence

from lightning.pytorch.utilities import rank_zero_warn


def distinct(where: str, texts: Sequence[str], measured: Iterable[str] = ()) -> list[int]:
    """Indices of the first row of each text, without those whose text is among the `measured`; tells what was left out.

    Texts that differ in case and white space only are the same.
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(_plain(text), index)
    barred = set(map(_plain, measured))
    kept = [index for text, index in first.items() if text not in barred]
    repeated, leaked = len(texts) - len(first), len(first) - len(kept)
    if (repeated or leaked) and multiprocessing.parent_process() is None:  # workers read the same files
        rank_zero_warn(
            f"{where}: of {len(texts)} rows {repeated} repeat the text of an earlier one and {leaked} have a text that validation or "
            f"test measures; they are left out, {len(kept)} remain. A question counts once, and none is trained on that is measured."
        )
    return kept


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()

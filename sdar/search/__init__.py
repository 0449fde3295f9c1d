"""Search backends: queries in, passages out. The commands `sdar build-index` and `sdar serve-search` are functions here."""

from typing import TYPE_CHECKING

from sdar.faces import lazy
from sdar.search.base import Passage as Passage
from sdar.search.base import SearchBackend as SearchBackend
from sdar.search.bm25 import BM25Backend as BM25Backend
from sdar.search.dense import DenseBackend as DenseBackend
from sdar.search.http import HTTPBackend as HTTPBackend
from sdar.search.hybrid import HybridBackend as HybridBackend
from sdar.search.index import build_index as build_index

if TYPE_CHECKING:  # most runs serve nobody
    from sdar.search.server import serve_search as serve_search

__getattr__, __dir__, _ = lazy(__name__)

"""What a search backend is: queries in, passages out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from sdar.registry import part_kind


@dataclass(frozen=True)
class Passage:
    """A piece of a corpus: a title in quotation marks, a line break, a text (the form of Search-R1's wiki-18)."""

    id: str
    contents: str
    score: float = 0.0
    """How well it fits the query; comparable within one answer of one backend only."""

    @property
    def heading(self) -> str:
        """The first line as it is, quotation marks included."""
        return self.contents.partition("\n")[0]

    @property
    def title(self) -> str:
        return self.heading.strip().strip('"')

    @property
    def text(self) -> str:
        return self.contents.partition("\n")[2]


@part_kind("search_backends")
class SearchBackend(ABC):
    """Finds passages.

    A backend is copied with every environment and travels to worker processes, so it holds its settings only: an index, a
    model or a connection stands in a cache of the module, opened at the first search.
    """

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """At most `k` passages for each query, best first. An empty list says that nothing fits, never that nobody answered.

        Raises:
            EnvironmentFault: the backend is down.
        """

    def check(self) -> None:
        """Called once before training: raise now what would end every episode.

        Raises:
            ConfigError: nobody answers.
        """

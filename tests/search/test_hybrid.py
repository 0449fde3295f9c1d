"""Reciprocal rank fusion, by hand."""

import pytest

from sdar.errors import ConfigError, EnvironmentFault
from sdar.search import HybridBackend, Passage, SearchBackend
from sdar.search.hybrid import fuse


class Given(SearchBackend):
    """Answers every query with given ids."""

    def __init__(self, *ids):
        self.ids, self.asked = ids, []

    def search(self, queries, k):
        self.asked.append(k)
        return [[Passage(i, f"passage {i}", 9.0) for i in self.ids[:k]] for _ in queries]


class Down(SearchBackend):
    def search(self, queries, k):
        raise EnvironmentFault("gone")


def test_ranks_are_fused_as_the_formula_says():
    """a: 1/61 + 1/63; b: 1/62 + 1/61; c: 1/63; d: 1/62."""
    [found] = HybridBackend([Given("a", "b", "c"), Given("b", "d", "a")]).search(["q"], 3)
    assert [p.id for p in found] == ["b", "a", "d"]
    assert [p.score for p in found] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62])
    assert found[0].contents == "passage b"


def test_weights_count():
    [found] = HybridBackend([Given("a", "b"), Given("b", "a")], weights=[2.0, 1.0]).search(["q"], 2)
    assert [p.id for p in found] == ["a", "b"]


def test_every_backend_is_asked_for_more_than_is_wanted():
    one, two = Given("a"), Given("b")
    assert len(HybridBackend([one, two], depth=7).search(["q", "r"], 1)) == 2
    assert one.asked == two.asked == [7]
    HybridBackend([one, two], depth=7).search(["q"], 10)
    assert one.asked[-1] == 10


def test_passages_without_ids_are_known_by_their_contents():
    same = [Passage("", "x"), Passage("", "y")]
    assert [p.contents for p in fuse([same, same[::-1]], [1.0, 1.0], 0.0)] == ["x", "y"]


def test_a_backend_that_is_down_is_not_left_out():
    with pytest.raises(EnvironmentFault):
        HybridBackend([Given("a"), Down()]).search(["q"], 1)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="has 1 backends: there is nothing to fuse"):
        HybridBackend([Given("a")])
    with pytest.raises(ConfigError, match=r"weights is \[1.0\] for 2 backends"):
        HybridBackend([Given("a"), Given("b")], weights=[1.0])
    with pytest.raises(ConfigError, match="depth 0"):
        HybridBackend([Given("a"), Given("b")], depth=0)

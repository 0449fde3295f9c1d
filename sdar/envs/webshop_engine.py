"""WebShop's shop: what an action does to a visit.

A `Shop` is the large part that never changes (products, goals, search index); a `Visit` is one episode, plain data. Actions are
those of the original's text environment: ``search[words]``, accepted on every page, and ``click[...]`` on what the page offers;
anything else changes nothing.

Differences from the original: ``<r>`` draws the same 50 products again when the visit is repeated and when its pages are
turned (the original draws anew for every page); ``<a>`` works (there it raises); an unknown ``<c>`` finds nothing.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdar.envs import webshop_pages as pages
from sdar.envs.webshop_data import Goal, Product
from sdar.envs.webshop_nouns import Nouns
from sdar.envs.webshop_pages import HITS_PER_PAGE, Mode, Page
from sdar.envs.webshop_reward import Reward, load_rapidfuzz, reward
from sdar.envs.webshop_search import HITS, SearchIndex


@dataclass
class Visit:
    """One episode in a shop."""

    goal: int
    """Position among the shop's goals."""
    attributes: bool = False
    """Whether item pages have an Attributes button."""
    at: str = "search"
    """The page: search, results, item, one of `pages.SUB_PAGES`, or done."""
    query: str = ""
    found: tuple[int, ...] = ()
    """Positions of the products that the search found."""
    number: int = 1
    """Page of results."""
    asin: str = ""
    options: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    """Products that were looked at since the search page."""
    actions: int = 0
    score: float = 0.0


def parse_action(action: str) -> tuple[str, str | None]:
    """Name and argument of ``name[argument]``; the whole text and None where it has another form.

    What the original's expression ``(.+)\\[(.+)\\]`` finds, in linear time: its backtracking is quadratic in brackets.
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end]) if start > 0 else (action, None)


class Shop:
    """Products, goals and search.

    Args:
        products: What is sold.
        goals: What customers want.
        index: Finds products; its results are positions in `products`.
        nouns: Noun tagger of the reward.
    """

    def __init__(self, products: Sequence[Product], goals: Sequence[Goal], index: SearchIndex, nouns: Nouns):
        load_rapidfuzz()  # what is missing is said before the first purchase
        self.products, self.goals, self.index, self.nouns = products, goals, index, nouns
        self.by_asin = {product.asin.lower(): product for product in products}

    def act(self, visit: Visit, action: str) -> bool:
        """Change the visit; False where the page did not understand or offer the action, which then changes nothing."""
        name, argument = parse_action(action)
        argument = argument and argument.lower()
        visit.actions += 1
        if name == "search" and argument:
            self._search(visit, argument)
        elif name == "click" and argument != "search" and argument in (offered := self.page(visit).clickables()):
            self._click(visit, argument, offered[argument])
        else:
            return False
        return True

    def page(self, visit: Visit) -> Page:
        """The page that the visit is at."""
        instruction = self.goals[visit.goal].instruction
        if visit.at == "search":
            return pages.search_page(instruction)
        if visit.at == "results":
            return pages.results_page(instruction, self.hits(visit), visit.number, len(visit.found))
        if visit.at == "done":
            return pages.done_page(visit.asin, visit.options, visit.score)
        product = self.by_asin[visit.asin.lower()]
        if visit.at == "item":
            return pages.item_page(instruction, product, visit.attributes)
        return pages.sub_page(instruction, visit.at, product)

    def hits(self, visit: Visit) -> list[Product]:
        """The products on the visit's page of results."""
        start = (visit.number - 1) * HITS_PER_PAGE
        return [self.products[i] for i in visit.found[start : start + HITS_PER_PAGE]]

    def observe(self, visit: Visit, mode: Mode) -> str:
        """The observation text of the original."""
        shown = self.page(visit)
        return shown.text() if mode == "text" else shown.text_rich(_address(visit), visit.seen)

    def judge(self, visit: Visit) -> Reward:
        """The reward of buying what the visit has chosen."""
        product = self.by_asin[visit.asin.lower()]
        return reward(product, self.goals[visit.goal], visit.options.values(), self.nouns)

    def _search(self, visit: Visit, query: str) -> None:
        visit.query, visit.found = query, self._find(query, visit)
        visit.at, visit.number, visit.asin, visit.options = "results", 1, "", {}

    def _find(self, query: str, visit: Visit) -> tuple[int, ...]:
        kind, *words = query.split(" ")
        rest = " ".join(words).strip()
        if kind == "<r>":
            rng = random.Random(f"webshop/random/{visit.goal}/{visit.actions}")
            return tuple(rng.sample(range(len(self.products)), min(HITS, len(self.products))))
        if kind == "<a>":
            return tuple(i for i, p in enumerate(self.products) if rest in p.attributes)
        if kind == "<c>":  # the original looks at one word only
            return tuple(i for i, p in enumerate(self.products) if words and p.category == words[0].strip())
        if kind == "<q>":
            return tuple(i for i, p in enumerate(self.products) if p.query == rest)
        return self.index.search(query)

    def _click(self, visit: Visit, name: str, node: pages.Node) -> None:
        if name == pages.BUY.lower():
            visit.at, visit.score = "done", self.judge(visit).score
        elif name == pages.BACK.lower():
            visit.at, visit.query, visit.found, visit.number, visit.asin = "search", "", (), 1, ""
            visit.options, visit.seen = {}, set()
        elif name == pages.NEXT.lower() and visit.at == "results":
            visit.number, visit.asin, visit.options = visit.number + 1, "", {}
        elif name == pages.PREV.lower() and visit.at == "results":
            visit.number, visit.asin, visit.options = visit.number - 1, "", {}
        elif name == pages.PREV.lower() and visit.at == "item":
            visit.at, visit.asin, visit.options = "results", "", {}
        elif name == pages.PREV.lower():
            visit.at = "item"
        elif sub := next((s for s in pages.SUB_PAGES if s.lower() == name), None):
            visit.at = sub
        elif node.kind == "product":
            visit.at, visit.asin = "item", node.text
            visit.seen.add(node.text)
        else:
            visit.options[node.option] = name


def _address(visit: Visit) -> str:
    """The part of an item page's address in which the original looks for chosen options."""
    return f"{visit.query.replace(' ', '+')}/{visit.number}/{json.dumps(visit.options)}" if visit.at == "item" else ""

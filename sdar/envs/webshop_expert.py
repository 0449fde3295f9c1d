"""How a goal of WebShop is reached from any page, by somebody who knows it: the oracle behind demonstrations and experts."""

from collections.abc import Mapping
from functools import lru_cache

from sdar.envs.webshop_data import Goal, Product
from sdar.envs.webshop_engine import Shop, Visit
from sdar.envs.webshop_pages import BACK, BUY, HITS_PER_PAGE, NEXT, PREV
from sdar.envs.webshop_reward import option_hits, reward
from sdar.parts import Expert


class Shopper(Expert):
    """Searches for what the goal asks for, takes the first hit that scores 1, chooses its options and buys it.

    A goal's own product is the last resort: its title is then the query. Which product is bought depends on the goal alone, so
    nothing that was observed has to be remembered.
    """

    def __init__(self, shop: Shop, visit: Visit):
        self.shop, self.visit = shop, visit

    def act(self) -> str:
        shop, visit = self.shop, self.visit
        query, position, options = plan(shop, visit.goal)
        if visit.at == "search":
            return f"search[{query}]"
        if visit.at == "results":
            if position not in visit.found:
                return f"click[{BACK.lower()}]"
            page = visit.found.index(position) // HITS_PER_PAGE + 1
            if page == visit.number:
                return f"click[{shop.products[position].asin.lower()}]"
            return f"click[{(NEXT if page > visit.number else PREV).lower()}]"
        if visit.at != "item" or visit.asin.lower() != shop.products[position].asin.lower():
            return f"click[{PREV.lower()}]"
        offered = shop.page(visit).clickables()  # of two options with one value, a click chooses the later
        missing = [v for name, v in options.items() if visit.options.get(name) != v and offered[v].option == name]
        return f"click[{missing[0]}]" if missing else f"click[{BUY.lower()}]"

    def watch(self, action: str) -> None:
        """Nothing: the page says all."""


@lru_cache(maxsize=1 << 16)
def plan(shop: Shop, goal: int) -> tuple[str, int, Mapping[str, str]]:
    """Query, position of the product to buy, and the options to choose on its page."""
    wanted = shop.goals[goal]
    for query in (" ".join([*wanted.attributes, wanted.query]), wanted.title):
        for position in shop.index.search(query):
            product = shop.products[position]
            options = exact_options(product, wanted)
            complete = len(options) == len(wanted.options)
            if complete and reward(product, wanted, options.values(), shop.nouns).score == 1.0:
                return query, position, options
    own = shop.by_asin[wanted.asin.lower()]
    return wanted.title, shop.products.index(own), _close_options(own, wanted) | exact_options(own, wanted)


def exact_options(product: Product, goal: Goal) -> dict[str, str]:
    """Option values of the product that the goal names word by word."""
    options = {}
    for wish in goal.options:
        name, value = ("", wish) if isinstance(wish, str) else wish
        offered = next((n for n, values in product.options.items() if value in values and name in ("", n)), None)
        if offered is not None:
            options[offered] = value
    return options


def _close_options(product: Product, goal: Goal) -> dict[str, str]:
    """For each option, the first value that the reward accepts for something that the goal names."""
    close: dict[str, str] = {}
    for name, values in product.options.items():
        accepted = [value for value in values if option_hits([value], goal.options)]
        close |= {name: accepted[0]} if accepted else {}
    return close

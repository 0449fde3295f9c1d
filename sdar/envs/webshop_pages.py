"""The pages of WebShop's text mode, written directly as the text nodes that the original's HTML shows.

A page is its visible text nodes in order; each knows whether it is plain text, a button, a product link or an option. From
them come both observation texts and the available actions, for our engine and for pages fetched from an original server.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sdar.envs.webshop_data import Product

Mode = Literal["text", "text_rich"]
MODES: tuple[str, ...] = ("text", "text_rich")
SEPARATOR = " [SEP] "
HITS_PER_PAGE = 10

SEARCH, BUY, NEXT, PREV, BACK = "Search", "Buy Now", "Next >", "< Prev", "Back to Search"
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")


class Node(NamedTuple):
    """One visible text of a page."""

    text: str
    kind: Literal["text", "button", "product", "option"] = "text"
    option: str = ""
    """Name of the option that this is a value of."""


@dataclass(frozen=True)
class Page:
    """What can be seen and done."""

    nodes: tuple[Node, ...]
    search_bar: bool = False

    def clickables(self) -> dict[str, Node]:
        """What ``click[...]`` may name, in the original's order: buttons, product links, option values. Of equal names the
        last is clicked and the first keeps its place, as in the original."""
        named = {n.text.lower(): n for kind in ("button", "product") for n in self.nodes if n.kind == kind}
        return named | {n.text: n for n in self.nodes if n.kind == "option"}

    def text(self) -> str:
        """The observation of mode ``text``."""
        return SEPARATOR.join(node.text.strip() for node in self.nodes)

    def text_rich(self, url: str, visited: Iterable[str]) -> str:
        """The observation of mode ``text_rich``: what was clicked is marked.

        An option counts as clicked when the page's address holds its value in double quotes: so it is in the original, where a
        value with a quote or a letter beyond ASCII never looks clicked.
        """
        lines = []
        for text, kind, _ in self.nodes:
            if kind == "text":
                lines.append(text)
            elif kind == "button":
                lines.append(f"[button] {text} [button_]")
            else:
                clicked = f'"{text}"' in url if kind == "option" else text in visited
                mark = "clicked button" if clicked else "button"
                lines.append(f"{'  ' if kind == 'option' else chr(10)}[{mark}] {text} [{mark}_]")
                if kind == "option" and clicked:
                    lines.insert(0, f"You have clicked {text}.")
        return "".join(line + "\n" for line in lines)


def page(nodes: Iterable[Node], search_bar: bool = False) -> Page:
    """A page without the nodes that a browser does not keep: a parser drops blank text, or leaves one space of it."""
    kept = []
    for node in nodes:
        if node.text.strip(" \n\t\f\r"):
            kept.append(node)
        elif node.text and "\n" not in node.text:
            kept.append(node._replace(text=" "))
    return Page(tuple(kept), search_bar)


def search_page(instruction: str) -> Page:
    nodes = [Node("WebShop"), Node("Instruction: "), Node(instruction), Node(SEARCH, "button")]
    return page(nodes, search_bar=True)


def results_page(instruction: str, products: Sequence[Product], number: int, total: int) -> Page:
    """The products of one page of hits."""
    back = [Node(PREV, "button")] if number > 1 else []
    nodes = [*_head(instruction), Node(f"Page {number} (Total results: {total})"), *back, Node(NEXT, "button")]
    for product in products:
        nodes += [Node(product.asin, "product"), Node(product.title), Node(product.price_tag)]
    return page(nodes)


def item_page(instruction: str, product: Product, attributes: bool) -> Page:
    nodes = [*_head(instruction), Node(PREV, "button")]
    for name, values in product.options.items():
        nodes += [Node(name), *(Node(value, "option", name) for value in values)]
    nodes += [Node(product.title), Node(f"Price: {product.price_tag}"), Node("Rating: N.A.")]
    nodes += [Node(name, "button") for name in (SUB_PAGES if attributes else SUB_PAGES[:3])]
    return page([*nodes, Node(BUY, "button")])


def sub_page(instruction: str, name: str, product: Product) -> Page:
    """One of `SUB_PAGES`. The data has no reviews, so that page is empty."""
    nodes = [*_head(instruction), Node(PREV, "button")]
    if name == "Description":
        nodes.append(Node(product.description))
    elif name == "Features":
        nodes += [Node(f" {bullet}") for bullet in product.bullets]
    elif name == "Attributes":
        nodes += [Node(f" {attribute}") for attribute in product.attributes]
        nodes += [Node(product.category), Node(product.query), Node(product.product_category)]
    return page(nodes)


def done_page(asin: str, options: Mapping[str, str], score: float) -> Page:
    """The page behind a purchase; the original's text mode leaves most of its fields empty."""
    escapes: dict[str, str | int | None] = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}
    chosen = json.dumps(dict(options), sort_keys=True).translate(str.maketrans(escapes))
    lines = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)", "Purchased"]
    lines += [
        "asin",
        asin,
        "options",
        chosen,
        "attrs",
        "None",
        "category",
        "None",
        "query",
        "None",
        "product category",
        "None",
    ]
    lines += ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"]
    lines += ["Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(score), "Reward Details ", "None"]
    return page(map(Node, lines))


def _head(instruction: str) -> list[Node]:
    return [Node("Instruction:"), Node(instruction), Node(BACK, "button")]

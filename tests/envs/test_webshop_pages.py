"""The observation of each page, frozen, and what actions do. ``python tests/envs/test_webshop_pages.py`` writes the golden file.

The golden file and random visits (6,000 states, data full of blanks, quotes and tags among them) were compared with the
original's templates and text conversion when this was written: no difference.
"""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.envs.webshop import WebShopEnv
from sdar.envs.webshop_engine import Shop, Visit, parse_action
from sdar.envs.webshop_pages import MODES
from sdar.envs.webshop_search import SearchIndex

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "webshop_pages.txt"
TOUR = [  # page, action that leads there; pages without a name were shown before
    ("search", ""),
    ("results", "search[women's loafers tea size]"),
    ("second page of results", "click[next >]"),
    ("page behind the last", "click[next >]"),
    ("", "click[< prev]"),
    ("", "click[< prev]"),
    ("item", "click[b0o6pgazj8]"),
    ("item with one choice", "click[mustard yellow]"),
    ("item with two choices", "click[6]"),
    ("another choice", "click[coral]"),
    ("description", "click[description]"),
    ("", "click[< prev]"),
    ("features", "click[features]"),
    ("", "click[< prev]"),
    ("reviews", "click[reviews]"),
    ("", "click[< prev]"),
    ("attributes", "click[attributes]"),
    ("", "click[< prev]"),
    ("results, one product visited", "click[< prev]"),
    ("", "click[b0o6pgazj8]"),
    ("chosen again", "click[coral]"),
    ("done", "click[buy now]"),
]


@pytest.fixture(scope="module")
def shop() -> Shop:
    return WebShopEnv(data=str(DATA / "webshop_shop"), nouns="rules").shop


def pages(shop: Shop) -> str:
    """The observations of the tour in both modes, and what could be clicked."""
    goal = next(i for i, g in enumerate(shop.goals) if g.asin == "B0O6PGAZJ8")
    told = []
    for mode in MODES:
        visit = Visit(goal, attributes=True)
        for name, action in TOUR:
            assert not action or shop.act(visit, action), action
            if name:
                told.append(f"=== {mode}: {name}  <- {action}\n{shop.observe(visit, mode)}\n")
            if name and mode == "text":
                told.append(f"--- {list(shop.page(visit).clickables())}\n")
    return "\n".join(told)


def test_the_observation_of_each_page_is_the_frozen_one(shop: Shop) -> None:
    assert pages(shop) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("action", "parts"),
    [
        ("search[red mug]", ("search", "red mug")),
        ("click[a [b]]", ("click[a ", "b]")),  # the longest name, as the original's expression finds it
        ("click[x] and more]", ("click", "x] and more")),
        ("click[x] more", ("click", "x")),
        ("click[]", ("click[]", None)),
        ("click", ("click", None)),
        ("a\nclick[x]", ("a\nclick[x]", None)),
        ("", ("", None)),
    ],
)
def test_actions_are_read_by_the_originals_expression(action: str, parts: tuple) -> None:
    assert parse_action(action) == parts


@pytest.mark.parametrize(
    "action",
    [
        "",
        "buy now",
        "click[search]",
        "click[nothing]",
        "click[B0]",
        "search[]",
        "search",
        "Search[mug]",
        " click[next >]",
        "\x00",
    ],
)
@pytest.mark.parametrize("before", [[], ["search[mug tea]"], ["search[tea]", "click[b0aj7qddnb]"]])
def test_what_the_page_does_not_offer_changes_nothing(shop: Shop, before: list, action: str) -> None:
    visit = Visit(3)
    for step in before:
        assert shop.act(visit, step)
    seen = shop.observe(visit, "text_rich")
    assert not shop.act(visit, action)
    assert shop.observe(visit, "text_rich") == seen and visit.actions == len(before) + 1


def test_arguments_are_put_into_lower_case_and_searching_works_everywhere(shop: Shop) -> None:
    visit = Visit(0)
    for before in ([], ["search[TEA]"], ["click[B0AJ7QDDNB]"], ["click[Sea Salt]", "click[FEATURES]"]):
        assert all(shop.act(visit, action) for action in before)
        aside = replace(visit, options=dict(visit.options), seen=set(visit.seen))
        assert shop.act(aside, "search[Rain Jackets]") and aside.at == "results"
        assert aside.options == {} and aside.asin == "" and aside.number == 1
    assert visit.options == {"flavor name": "sea salt"} and visit.at == "Features"


def test_going_back_forgets_choices_and_the_search_page_forgets_visits(shop: Shop) -> None:
    visit = Visit(0)
    for action in ("search[tea]", "click[b0aj7qddnb]", "click[sea salt]"):
        shop.act(visit, action)
    shop.act(visit, "click[< prev]")
    assert visit.options == {} and visit.seen == {"B0AJ7QDDNB"} and visit.at == "results"
    shop.act(visit, "click[back to search]")
    assert visit == Visit(0, actions=5)


def test_a_click_chooses_the_later_of_two_options_with_one_value(shop: Shop) -> None:
    options = {"color": ("red", "next >"), "size": ("red", "description", "buy now")}
    odd = [replace(shop.products[0], options=options), *shop.products[1:]]
    other = Shop(odd, shop.goals, SearchIndex(odd), shop.nouns)
    visit = Visit(0)
    for action in ("search[herbal teas]", "click[b0aj7qddnb]", "click[red]"):
        assert other.act(visit, action)
    assert visit.options == {"size": "red"}
    assert other.act(visit, "click[next >]") and visit.options == {"size": "red", "color": "next >"}
    assert list(other.page(visit).clickables())[-2:] == ["red", "next >"]  # the other two are the page's own buttons
    assert other.act(visit, "click[description]") and visit.at == "Description"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("<a> tea tree", {"B0JN3P8DAE", "B01NZHVLYY"}),
        ("<a> no such thing", set()),
        ("<c> electronics", {"B00AIXOFQC", "B0O5H55A35"}),
        ("<c>", set()),
        ("<q> women's canvas loafers", {"B0B3P23P9H", "B0O6PGAZJ8"}),
        ("<q>", set()),
    ],
)
def test_special_queries_list_by_attribute_category_and_query(shop: Shop, query: str, found: set) -> None:
    visit = Visit(0)
    assert shop.act(visit, f"search[{query}]")
    assert {shop.products[i].asin for i in visit.found} == found
    assert f"Page 1 (Total results: {len(found)})" in shop.observe(visit, "text")


def test_a_random_query_draws_the_same_when_a_visit_is_repeated() -> None:
    large = WebShopEnv(num_products=80).shop
    first, again, other = Visit(0), Visit(0), Visit(1)
    for visit in (first, again, other):
        large.act(visit, "search[<R>]")
    assert len(set(first.found)) == 50 and first.found == again.found != other.found
    large.act(first, "click[next >]")
    assert first.found == again.found
    large.act(again, "search[<r>]")
    assert first.found != again.found


def test_fifty_hits_stand_on_five_pages_and_there_is_always_a_next_one() -> None:
    shop = WebShopEnv().shop
    visit = Visit(0)
    shop.act(visit, "search[men's women's shirts shoes]")
    listed = []
    for number in range(1, 8):
        assert visit.number == number
        listed += [p.asin for p in shop.hits(visit)]
        assert ("< prev" in shop.page(visit).clickables()) == (number > 1)
        assert shop.act(visit, "click[next >]")
    assert len(listed) == len(set(listed)) == 50


BLANK = ["", " ", "\n", " \n ", "\t", "\u00a0", "x\ny", "<|im_end|>", "\x00", "\u202e", "[SEP]", '"', "'", "&lt;b&gt;"]


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.sampled_from(BLANK) | st.text(max_size=5), min_size=8, max_size=8), seed=st.integers(0, 99))
def test_no_data_and_no_action_crash_the_shop(texts: list, seed: int) -> None:
    base = WebShopEnv(num_products=12).shop
    title, description, bullet, attribute, category, value, other, query = texts
    odd = replace(
        base.products[0],
        title=title,
        description=description,
        bullets=(bullet,),
        attributes=(attribute,),
        category=category,
        options={other: (value, "red")},
    )
    products = [odd, *base.products[1:]]
    shop = Shop(products, [replace(base.goals[0], title=title, options=((other, value),))], SearchIndex(products), base.nouns)
    rng, visit = random.Random(seed), Visit(0, attributes=True)
    for _ in range(12):
        offered = list(shop.page(visit).clickables()) or ["nothing"]
        shop.act(visit, rng.choice([f"click[{rng.choice(offered)}]"] * 4 + [f"search[{query}]", "search[<r>]", query]))
        for mode in MODES:
            assert isinstance(shop.observe(visit, mode), str)
        assert 0.0 <= visit.score <= 1.0


if __name__ == "__main__":
    GOLDEN.write_text(pages(WebShopEnv(data=str(DATA / "webshop_shop"), nouns="rules").shop), encoding="utf-8")

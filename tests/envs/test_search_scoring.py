"""Answers against gold answers: a table worked by hand from the rules of SQuAD, and what can never happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.envs.search_scoring import (
    exact_match,
    f1,
    format_reward,
    found_gold,
    keeps_format,
    normalize_answer,
    substring_match,
)

PAIRS = [  # answer, golds, exact match, substring match, F1
    # letters, case and spaces
    ("Paris", ["Paris"], 1, 1, 1.0),
    ("paris", ["PARIS"], 1, 1, 1.0),
    ("  Paris \n", ["Paris"], 1, 1, 1.0),
    ("New   York\tCity", ["New York City"], 1, 1, 1.0),
    ("NewYork", ["New York"], 0, 0, 0.0),
    ("Paris", ["London"], 0, 0, 0.0),
    ("Pariss", ["Paris"], 0, 1, 0.0),
    ("party", ["art"], 0, 1, 0.0),
    ("art", ["party"], 0, 0, 0.0),
    # articles
    ("The Beatles", ["Beatles"], 1, 1, 1.0),
    ("a Beatles", ["The Beatles"], 1, 1, 1.0),
    ("An apple", ["apple"], 1, 1, 1.0),
    ("Theatre", ["atre"], 0, 1, 0.0),
    ("A", ["the"], 1, 1, 1.0),
    ("Lord of the Rings", ["The Lord of Rings"], 1, 1, 1.0),
    ("vitamin A", ["vitamin"], 1, 1, 1.0),
    ("a-team", ["ateam"], 1, 1, 1.0),
    ("the an a", ["x"], 0, 0, 0.0),
    ("another", ["other"], 0, 1, 0.0),
    # ASCII punctuation goes without leaving a space
    ("Washington, D.C.", ["Washington DC"], 1, 1, 1.0),
    ("O'Neill", ["ONeill"], 1, 1, 1.0),
    ("rock'n'roll!", ["rocknroll"], 1, 1, 1.0),
    ("co-operate", ["co operate"], 0, 0, 0.0),
    ("U.S.A.", ["USA"], 1, 1, 1.0),
    ("AC/DC", ["ACDC"], 1, 1, 1.0),
    ("AC/DC", ["AC DC"], 0, 0, 0.0),
    ('"Heroes"', ["Heroes"], 1, 1, 1.0),
    ("(1999)", ["1999"], 1, 1, 1.0),
    ("C++", ["C#"], 1, 1, 1.0),
    ("...", [""], 1, 1, 1.0),
    ("<b>Paris</b>", ["Paris"], 0, 1, 0.0),
    ("snake_case", ["snakecase"], 1, 1, 1.0),
    # Unicode: only ASCII punctuation goes, nothing is decomposed
    ("Beyoncé", ["Beyonce"], 0, 0, 0.0),
    ("BEYONCÉ", ["beyoncé"], 1, 1, 1.0),
    ("Beyonce\u0301", ["Beyonc\u00e9"], 0, 0, 0.0),
    ("\u201cHeroes\u201d", ["Heroes"], 0, 1, 0.0),
    ("O\u2019Neill", ["O'Neill"], 0, 0, 0.0),
    ("1914\u20131918", ["1914-1918"], 0, 0, 0.0),
    ("東京", ["東京"], 1, 1, 1.0),
    ("東京都", ["東京"], 0, 1, 0.0),
    ("Straße", ["strasse"], 0, 0, 0.0),
    ("STRASSE", ["strasse"], 1, 1, 1.0),
    ("New\u00a0York", ["New York"], 1, 1, 1.0),
    ("\u202eParis", ["Paris"], 0, 1, 0.0),
    ("Tom🎈", ["Tom"], 0, 1, 0.0),
    # numbers
    ("1,000", ["1000"], 1, 1, 1.0),
    ("3.14", ["314"], 1, 1, 1.0),
    ("-5", ["5"], 1, 1, 1.0),
    ("07", ["7"], 0, 1, 0.0),
    ("seven", ["7"], 0, 0, 0.0),
    ("in 1969", ["1969"], 0, 1, 2 / 3),
    ("July 20, 1969", ["20 July 1969"], 0, 0, 1.0),
    ("50%", ["50"], 1, 1, 1.0),
    ("$100", ["100 dollars"], 0, 0, 2 / 3),
    # several words
    ("Barack Obama", ["Barack Hussein Obama"], 0, 0, 0.8),
    ("Barack Hussein Obama", ["Barack Obama"], 0, 0, 0.8),
    ("Obama Barack", ["Barack Obama"], 0, 0, 1.0),
    ("the capital is Paris", ["Paris"], 0, 1, 0.5),
    ("to be or not to be", ["to be"], 0, 1, 0.5),
    ("to to to", ["to be"], 0, 0, 0.4),
    ("Paris and London", ["London and Paris"], 0, 0, 1.0),
    # several golds: the best counts
    ("NYC", ["New York City", "NYC", "New York"], 1, 1, 1.0),
    ("New York", ["New York City", "Big Apple"], 0, 0, 0.8),
    ("Paris", ["London", "paris."], 1, 1, 1.0),
    ("x", ["London", "Paris"], 0, 0, 0.0),
    ("Paris", [], 0, 0, 0.0),
    # nothing
    ("", ["Paris"], 0, 0, 0.0),
    ("", [""], 1, 1, 1.0),
    ("the", ["Paris", "a"], 1, 1, 1.0),
    ("Paris", ["The"], 0, 0, 0.0),
    (None, ["Paris"], 0, 0, 0.0),
    (None, [""], 0, 0, 0.0),
    # yes and no
    ("Yes.", ["yes"], 1, 1, 1.0),
    ("yes", ["no"], 0, 0, 0.0),
    ("no, they were not", ["no"], 0, 1, 0.4),
]


@pytest.mark.parametrize(("answer", "golds", "em", "sub_em", "overlap"), PAIRS)
def test_an_answer_is_scored_as_worked_by_hand(answer, golds, em, sub_em, overlap):
    assert exact_match(answer, golds) == bool(em)
    assert substring_match(answer, golds) == bool(sub_em)
    assert f1(answer, golds) == pytest.approx(overlap)


def test_the_table_is_as_long_as_it_should_be():
    assert len(PAIRS) >= 60


def test_what_is_left_of_a_text():
    assert normalize_answer(" The  Quick-Brown, (fox)! ") == "quickbrown fox"
    assert normalize_answer("a an the") == ""


@given(st.text(), st.lists(st.text(), max_size=3))
def test_scores_agree_with_each_other(answer, golds):
    em, sub, overlap = exact_match(answer, golds), substring_match(answer, golds), f1(answer, golds)
    assert 0.0 <= overlap <= 1.0
    if em:
        assert sub and overlap == 1.0
    assert exact_match(answer, [*golds, answer])


KEEPS = {
    "<think>so</think><search>q</search>": True,
    " <think>so\nso</think>\n\n<answer>a</answer> \n": True,
    "<think></think><answer></answer>": True,
    "<search>q</search>": False,
    "<think>so</think>": False,
    "<think>so</think> then <search>q</search>": False,
    "<think>so</think><search>q</search> done": False,
    "<think>so</think><think>so</think><search>q</search>": False,
    "<think>so</think><search>q</search><answer>a</answer>": False,
    "<think>so <search>x</search></think><search>q</search>": False,
    "<think>so</think><search>q</answer>": False,
    "<think>so</think><search>a<search>b</search>": False,
    "<think>so</think><information>x</information><answer>a</answer>": False,
    "<Think>so</Think><search>q</search>": False,
    "": False,
}


@pytest.mark.parametrize("response", KEEPS)
def test_a_turn_keeps_the_format_or_not(response):
    assert keeps_format(response) == KEEPS[response]


@pytest.mark.parametrize(
    ("correct", "kept", "answered", "found", "reward"),
    [
        (True, True, True, True, 1.0),
        (True, True, True, False, 1.0),
        (True, False, True, True, 0.8),
        (False, True, True, False, 0.2),
        (False, True, True, True, 0.3),
        (False, False, True, True, 0.1),
        (False, False, True, False, 0.1),
        (False, False, False, True, 0.0),
    ],
)
def test_the_format_reward_is_that_of_version_0_3(correct, kept, answered, found, reward):
    assert format_reward(correct, kept, answered, found, retrieval=0.1) == pytest.approx(reward)


def test_a_gold_is_found_in_passages_after_normalisation():
    assert found_gold('Doc 1(Title: "A") He lived in New-York.', ["newyork"])
    assert not found_gold("Doc 1", ["The", ""])  # nothing is left of them: they would be found everywhere
    assert not found_gold("", ["x"])

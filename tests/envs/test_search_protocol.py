"""How a question is told and how a search or an answer is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.envs import CompactSearchProtocol, SearchR1Protocol, SearchWindowProtocol
from sdar.envs.search_protocol import read_action, write_action
from sdar.errors import ConfigError
from sdar.types import Task

TASK = Task("t", "nq", "who wrote Faust?")
PROTOCOLS = [SearchR1Protocol(), SearchWindowProtocol(), CompactSearchProtocol()]
CONTENT = st.text(alphabet=st.characters(exclude_characters="<>")).map(str.strip)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(kind=st.sampled_from(["search", "answer"]), text=CONTENT)
def test_the_response_of_an_action_is_read_back(protocol, kind, text):
    action = write_action(kind, text)
    assert protocol.parse(protocol.write(action), []) == (action, True)
    assert read_action(action) == (kind, text, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_content_may_hold_brackets_lines_and_other_actions(protocol):
    for text in (
        "a [b] c",
        "]",
        "[[",
        "line\nline",
        "answer[x]",
        "search[answer[x]]",
        "~",
        "a: b",
        "x" * 100_000,
        "\x00\u202e",
    ):
        action = write_action("search", text)
        assert protocol.parse(protocol.write(action), []) == (action, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(text=st.text())
def test_nothing_that_is_said_breaks_a_protocol(protocol, text):
    for said in (text, f"<think>{text}</think><search>{text}</search>", f"search: {text}", f"<answer>{text}"):
        action, valid = protocol.parse(said, [])
        assert (read_action(action) is None) <= (not valid)
        assert all(0 <= first <= end <= len(said) for _, first, end in protocol.spans(said))


@pytest.mark.parametrize("protocol", [SearchR1Protocol(), SearchWindowProtocol()])
def test_a_response_that_breaks_the_format_is_marked_and_written_so(protocol):
    action, _ = protocol.parse("<search>q</search>", [])
    assert action == "~search[q]" and protocol.parse(protocol.write(action), [])[0] == action


R1 = {  # Search-R1: the first pair of what was said up to the first end of a search, else of an answer
    "<think>I</think><search> q </search>": "search[q]",
    "<think>I</think> <answer>a</answer>": "answer[a]",
    "<think>I</think><search>q</search> and so on <answer>a</answer>": "search[q]",
    "<search>q</search>": "~search[q]",
    "let me see <think>I</think><search>q</search>": "~search[q]",
    "<answer>a</answer><search>q</search>": "~answer[a]",
    "<answer>a <search>q</search> b</answer>": "~search[q]",
    "<search>q <answer>a</answer>": "~answer[a]",
    "<think>I<search>q</search></think><answer>a</answer>": "~search[q]",
    "<think>I</think><search></search>": "search[]",
    "<SEARCH>q</SEARCH>": "",
    "<search>q": "",
    "q</search>": "",
    "nothing": "",
    "": "",
}


@pytest.mark.parametrize("text", R1)
def test_responses_are_read_by_the_rules_of_search_r1(text):
    assert SearchR1Protocol().parse(text, []) == (R1[text], R1[text] != "")


WINDOW = {  # verl-agent: a search before an answer, any case; invalid with two tags
    "<think>I</think><search>q</search>": ("search[q]", True),
    "<think>I</think><answer>a</answer>": ("answer[a]", True),
    "<THINK>I</THINK><SEARCH>q</SEARCH>": ("search[q]", True),
    "<search>q</search>": ("~search[q]", True),
    "<think>I</think><search>q</search><search>r</search>": ("search[q]", False),
    "<think>I</think><search>q</search><answer>a</answer>": ("search[q]", False),
    "<think>I</think><answer>a</answer><search>q</search>": ("~search[q]", False),
    "<answer>a</answer> <answer>b</answer>": ("~answer[a]", False),
    "<search>q": ("", False),
    "": ("", False),
}


@pytest.mark.parametrize("text", WINDOW)
def test_responses_are_read_by_the_rules_of_verl_agent(text):
    assert SearchWindowProtocol().parse(text, []) == WINDOW[text]


COMPACT = {
    "search: q": ("search[q]", True),
    " answer:a b \n": ("answer[a b]", True),
    "search: a: b": ("search[a: b]", True),
    "Search: q": ("", False),
    "search q": ("", False),
    "look: q": ("", False),
    "": ("", False),
}


@pytest.mark.parametrize("text", COMPACT)
def test_compact_responses_are_read(text):
    assert CompactSearchProtocol().parse(text, []) == COMPACT[text]


def contents(protocol, text):
    return [(tag, text[first:end]) for tag, first, end in protocol.spans(text)]


def test_spans_are_the_thoughts_and_the_query_that_counts():
    r1 = SearchR1Protocol()
    assert r1.tags == ("think", "search", "answer")  # what SDSearch's `span: search` names
    text = "<think>one</think> x <think>two</think><search> q </search><think>no</think><search>never asked</search>"
    assert contents(r1, text) == [("think", "one"), ("think", "two"), ("search", " q ")]
    assert contents(r1, "<think>so</think><answer>a</answer>") == [("think", "so"), ("answer", "a")]
    assert contents(r1, "<think>so</think>") == [("think", "so")]
    assert contents(r1, "<SEARCH>q</SEARCH>") == []
    assert contents(SearchWindowProtocol(), "<SEARCH>q</SEARCH>") == [("search", "q")]
    assert contents(SearchWindowProtocol(), "<answer>a</answer>") == [("answer", "a")]
    compact = CompactSearchProtocol()
    assert contents(compact, " search:  q r ") == [("search", "q r")]
    assert contents(compact, "answer: a") == [("answer", "a")]
    assert contents(compact, "search:") == contents(compact, "look: q") == []


def test_the_prompts_of_search_r1_are_these():
    protocol = SearchR1Protocol(instruction="Use <think>, <search>, <answer>.")
    assert protocol.opening(TASK, "Question: who wrote Faust?", []) == [
        {"role": "user", "content": "Use <think>, <search>, <answer>.\nQuestion: who wrote Faust?"}
    ]
    assert protocol.answer("<information>Doc 1</information>", []) == "<information>Doc 1</information>"
    history = [("Question: who wrote Faust?", "search[faust]"), ("<information>A</information>", "")]
    assert protocol.window(TASK, history, "not valid", []) == [
        {
            "role": "user",
            "content": "Use <think>, <search>, <answer>.\nQuestion: who wrote Faust?\n<search>faust</search>\n"
            "<information>A</information>\n(nothing)\nnot valid",
        }
    ]


def test_the_prompts_of_a_window_are_these():
    protocol = SearchWindowProtocol(instruction="<think> <search> <answer>")
    role = "You are an expert agent that answers a question step by step.\nYour question: who wrote Faust?"
    assert protocol.opening(TASK, "Question: who wrote Faust?", []) == [
        {"role": "user", "content": f"{role}\n\n<think> <search> <answer>"}
    ]
    history = [("Question: who wrote Faust?", "search[faust]"), ("<information>A</information>", "search[goethe]")]
    assert protocol.window(TASK, history, "<information>B</information>", []) == [
        {
            "role": "user",
            "content": f"{role}\nYour last 2 steps, with what the search engine returned:\n"
            "Step 1: <search>faust</search> <information>A</information>\n"
            "Step 2: <search>goethe</search> <information>B</information>\n\n<think> <search> <answer>",
        }
    ]


def test_compact_prompts_are_these():
    protocol = CompactSearchProtocol()
    assert protocol.opening(TASK, "Question: who wrote Faust?", []) == [{"role": "user", "content": "who wrote Faust?"}]
    history = [("Question: who wrote Faust?", "search[faust]")]
    assert protocol.window(TASK, history, "Faust is a play.", []) == [
        {"role": "user", "content": "who wrote Faust?\n> search: faust\nFaust is a play."}
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_first_prompt_asks_the_question_once(protocol):
    [message] = protocol.opening(TASK, f"Question: {TASK.instruction}", [])
    assert message["content"].count(TASK.instruction) == 1


@pytest.mark.parametrize("protocol", [SearchR1Protocol, SearchWindowProtocol])
def test_an_instruction_without_the_tags_is_refused(protocol):
    with pytest.raises(ConfigError, match="does not name <think>, <answer>: the model would not know how to act"):
        protocol(instruction="Use <search>.")

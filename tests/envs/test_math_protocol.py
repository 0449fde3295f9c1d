"""Two ways to write a tool call and an answer, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.envs.code_protocol import TextCodeProtocol
from sdar.envs.math_protocol import ANSWER, PYTHON, FencedMathProtocol, HermesMathProtocol, TextMathProtocol
from sdar.errors import ConfigError
from sdar.types import Task

TASK = Task("t", "f", "What is 6 * 7?")
PROTOCOLS = [HermesMathProtocol(), FencedMathProtocol()]
CODE = 'for i in range(3):\n    print("`</tool_call>`", i < 2)\n'


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(code=st.text(max_size=80))
def test_code_is_written_and_read_back(protocol, code):
    code = code.replace("\r", "")
    assert protocol.parse(protocol.write(PYTHON + code), ()) == (PYTHON + code, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("answer", ["42", r"\frac{1}{2}", "x = 3", "{", "a}b", r"\{1\}", "-1"])
def test_an_answer_is_written_and_read_back(protocol, answer):
    assert protocol.parse(protocol.write(ANSWER + answer), ()) == (ANSWER + answer, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(text=st.text(alphabet='`<>/\\{}"python\nboxedtool_call thinkanswer:1', max_size=80))
def test_any_response_can_be_read(protocol, text):
    action, valid = protocol.parse(text, ())
    assert action == "" or action.startswith((PYTHON, ANSWER))
    for tag, first, end in protocol.spans(text):
        assert tag in protocol.tags and 0 <= first <= end <= len(text)
    assert valid or action in ("", ANSWER)


@pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
        ('I compute.\n<tool_call>{"name": "code_interpreter", "arguments": {"code": "1"}}</tool_call>', PYTHON + "1", True),
        ('<tool_call>{"name": "code_interpreter", "arguments": "{\\"code\\": \\"1\\"}"}</tool_call>', PYTHON + "1", True),
        ('<tool_call>{"name": "code_interpreter", "arguments": {"code": "1"}}', PYTHON + "1", True),
        ('<tool_call>{"name": "code_interpreter", "arguments": {"code": "a\nb"}}</tool_call>', PYTHON + "a\nb", True),
        ('<tool_call>{"name": "search", "arguments": {"code": "1"}}</tool_call>', "", False),
        ('<tool_call>{"name": "code_interpreter", "arguments": {"code": 5}}</tool_call>', "", False),
        ("<tool_call>print(1)</tool_call>", "", False),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "", False),
        (r"It is \boxed{1}. No: \boxed{42}.", ANSWER + "42", True),
        (r"<think>\boxed{1}</think> \boxed{42}", ANSWER + "42", True),
        (r"<think>\boxed{1}</think> I do not know.", ANSWER, False),
        ("So\n**Answer:** 42", ANSWER + "42", True),
        ("I do not know.", ANSWER, False),
        ("", ANSWER, False),
    ],
)
def test_what_is_read_from_hermes(text, action, valid):
    assert HermesMathProtocol().parse(text, ()) == (action, valid)


@pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
        ("```python\nprint(1)\n```", PYTHON + "print(1)", True),
        ("Let me see.\n```py\n1\n2\n```\nthen", PYTHON + "1\n2", True),
        ("```python\n1", PYTHON + "1", True),
        ("```python\n1\n```\n\\boxed{5}", PYTHON + "1", True),
        ("````python\n```\n````", PYTHON + "```", True),
        ("```\n1\n```", ANSWER, False),
        (r"\boxed{5}", ANSWER + "5", True),
    ],
)
def test_what_is_read_from_fences(text, action, valid):
    assert FencedMathProtocol().parse(text, ()) == (action, valid)


def test_spans_name_the_thoughts_the_code_and_the_answer():
    hermes = HermesMathProtocol()
    text = "<think>hm</think>" + hermes.write(PYTHON + "1")
    told = [(tag, text[a:b]) for tag, a, b in hermes.spans(text)]
    assert told[0] == ("think", "hm") and told[1][0] == "code" and json.loads(told[1][1])["arguments"] == {"code": "1"}
    text = r"<think>\boxed{1}</think> 4 is it: \boxed{4} as 4"
    assert [(tag, text[a:b]) for tag, a, b in hermes.spans(text)] == [("think", r"\boxed{1}"), ("answer", "4")]
    assert hermes.spans(text)[1][1] == text.rindex("{4}") + 1
    text = "```python\nx\n```"
    assert [(tag, text[a:b]) for tag, a, b in FencedMathProtocol().spans(text)] == [("code", "x")]


def test_hermes_describes_the_tool_and_wraps_results():
    system, user = HermesMathProtocol().opening(TASK, TASK.instruction, ())
    assert system["role"] == "system" and user["role"] == "user"
    inside = system["content"].partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert json.loads(inside)["function"]["parameters"]["required"] == ["code"]
    assert user["content"].startswith("What is 6 * 7?\n\n") and "\\boxed{}" in user["content"]
    assert HermesMathProtocol().answer("42", ()) == "<tool_response>\n42\n</tool_response>"
    with pytest.raises(ConfigError, match=r"protocol\.instructions is empty"):
        HermesMathProtocol(instructions="")
    with pytest.raises(ConfigError, match=r"protocol\.tools is 'both'.*Use text or template"):
        HermesMathProtocol(tools="both")
    assert HermesMathProtocol().tools == ()  # nobody is told twice


def test_fences_grow_with_what_they_hold():
    assert FencedMathProtocol().answer("a", ()) == "```output\na\n```"
    assert FencedMathProtocol().answer("```", ()) == "````output\n```\n````"
    assert FencedMathProtocol(instructions="").opening(TASK, TASK.instruction, ()) == [
        {"role": "user", "content": "What is 6 * 7?"}
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_window_tells_the_problem_and_the_last_exchanges(protocol):
    first, second = PYTHON + "1", PYTHON + "2"
    whole = protocol.window(TASK, [(TASK.instruction, first), ("one", second)], "two", ())[-1]["content"]
    told = [
        TASK.instruction,
        protocol.write(first),
        protocol.answer("one", ()),
        protocol.write(second),
        protocol.answer("two", ()),
    ]
    assert [whole.index(part) for part in told] == sorted(whole.index(part) for part in told)
    late = protocol.window(TASK, [("one", second)], "two", ())[-1]["content"]
    assert TASK.instruction in late and protocol.write(first) not in late and late.endswith("\n".join(told[2:]))
    assert protocol.window(TASK, [], TASK.instruction, ()) == protocol.opening(TASK, TASK.instruction, ())


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [(TextMathProtocol(), r"\frac{1}{2}"), (TextCodeProtocol(), "print(input())")],
    ids=["math", "code"],
)
def test_without_a_tool_nothing_tells_of_one_and_every_response_is_the_answer(protocol, answer):
    [told] = protocol.opening(TASK, TASK.instruction, ())
    assert told["role"] == "user" and told["content"].startswith(TASK.instruction)
    assert not any(word in told["content"].lower() for word in ("tool", "function", "call", "run"))
    assert protocol.tools == () and "code" not in protocol.tags
    assert protocol.parse(f"Let us see.\n{protocol.write(ANSWER + answer)}", ()) == (ANSWER + answer, True)
    call = HermesMathProtocol().write(PYTHON + "1")
    assert protocol.parse(call, ()) == (ANSWER, False)
    with pytest.raises(ConfigError, match="which has no tool, and a demonstration calls one"):
        protocol.write(PYTHON + "1")


def test_a_fence_is_no_call_where_there_is_no_tool():
    assert TextMathProtocol().parse("```python\n1 + 1\n```\n\\boxed{2}", ()) == (ANSWER + "2", True)

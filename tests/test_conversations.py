"""Files of conversations: the forms that are read, and each fault of a row told with its file and number."""

import json

import pytest
from chats import CALL, SUM, TOOL, TRACE, written

from sdar.data.conversations import read_conversations
from sdar.errors import ConfigError


def read(tmp_path, *rows):
    return read_conversations([written(tmp_path / "c.jsonl", *rows)], "data.files")


def test_messages_and_the_form_of_from_and_value_are_the_same_conversation(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said = [{"from": names[m["role"]], "value": m["content"]} for m in SUM]
    one, other, third = read(
        tmp_path, {"messages": SUM}, {"conversations": said}, {"system": "Add.", "conversations": json.dumps(said[1:])}
    )
    assert one.messages == other.messages == third.messages == SUM and one.weights == (True, True)
    assert one.id.startswith(f"{tmp_path}/c.jsonl:1:") and one.place == f"{tmp_path}/c.jsonl, row 1"


def test_calls_results_and_tools_are_objects_however_they_were_written(tmp_path):
    told = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    other = [*TRACE["messages"]]
    other[1] = {"role": "assistant", "content": None, "tool_calls": [told]}
    called = [
        {"from": "human", "value": "1 + 1?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ]
    rows = TRACE, {"messages": json.dumps(other), "tools": json.dumps([TOOL])}, {"conversations": called, "tools": [TOOL]}
    found = read(tmp_path, *rows)
    assert [c.messages for c in found] == [TRACE["messages"]] * 3 and [c.tools for c in found] == [[TOOL]] * 3
    assert len({c.content for c in found}) == 1 and len({c.id for c in found}) == 3


def test_parquet_fills_rows_up_with_null(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([TRACE, {"messages": SUM, "tools": None}]), tmp_path / "c.parquet")
    trace, plain = read_conversations([str(tmp_path / "c.parquet")], "data.files")
    assert trace.messages == TRACE["messages"] and trace.tools[0]["function"]["name"] == "add"
    assert plain.messages == SUM and plain.tools == []


def test_a_message_may_be_read_without_being_learned(tmp_path):
    unlearned = [SUM[0], SUM[1], SUM[2] | {"weight": 0}, *SUM[3:]]
    (found,) = read(tmp_path, {"messages": unlearned})
    assert found.weights == (False, True) and found.messages == SUM


USER, SAID = SUM[1], SUM[2]
BROKEN = {
    "is 'text', no object": "text",
    "has no `messages` and no `conversations`, only 'prompt, answer'": {"prompt": "x", "answer": "y"},
    "has [] as messages": {"messages": []},
    "messages: no JSON": {"messages": "[{"},
    "message 2 is 'hello'": {"messages": [USER, "hello"]},
    "message 2 has the role 'bot'": {"messages": [USER, {"role": "bot", "content": "x"}]},
    "message 1: its content is no text": {"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]},
    "message 2 is the assistant's and says nothing": {"messages": [USER, {"role": "assistant", "content": " "}]},
    "message 1 is the user's and has tool_calls": {"messages": [USER | {"tool_calls": [CALL]}, SAID]},
    "call 1 names no function": {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": 3}]}]},
    "arguments: no JSON": {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}]},
    "call 1 has [1] as arguments": {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]
    },
    "has a system message in place 2": {"messages": [USER, SUM[0], SAID]},
    "begins with the assistant": {"messages": [SAID]},
    "ends with the user": {"messages": [USER, SAID, USER]},
    "has a tool's result in place 2 behind the user": {"messages": [USER, {"role": "tool", "content": "2"}, SAID]},
    "has a message of weight 0.5": {"messages": [USER, SAID | {"weight": 0.5}]},
    "gives every message of the assistant the weight 0": {"messages": [USER, SAID | {"weight": 0}]},
    "has the tool {'x': 1}": {"messages": [USER, SAID], "tools": [{"x": 1}]},
    "message 1 is from 'robot'": {"conversations": [{"from": "robot", "value": "x"}]},
    "message 1 is {'from': 'gpt'}": {"conversations": [{"from": "gpt"}]},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_row_is_named(tmp_path, fault):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, {"messages": SUM}, BROKEN[fault])
    assert str(error.value).startswith(f"{tmp_path}/c.jsonl, row 2") and fault in str(error.value)
    assert len(str(error.value)) < 400 and str(error.value).endswith(".")


def test_a_file_that_is_none_is_named_with_its_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"data.val_files names nowhere.jsonl, which does not exist"):
        read_conversations(["nowhere.jsonl"], "data.val_files")

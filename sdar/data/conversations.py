"""Conversations of files, as chat templates take them; each row is checked before anything is loaded."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from sdar.encoding import well_formed
from sdar.envs.problem_rows import columns, file_rows
from sdar.errors import ConfigError
from sdar.reading import excerpt, parse_json

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "function_call",
}  # fmt: skip
"""Roles of the ``from`` and ``value`` form."""
TEXTS = ("content", "reasoning_content")
"""What of a message is text."""


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, the last one the assistant's."""

    id: str
    """File, row and a checksum of what stands there."""
    place: str
    """What errors call it: ``FILE, row 3``."""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Functions that the template tells of."""
    weights: tuple[bool, ...] = ()
    """Of each message of the assistant, whether it is learned from."""

    @property
    def content(self) -> str:
        """The same text for conversations that are the same but for where they stand."""
        return json.dumps([self.messages, self.tools], sort_keys=True)


def read_conversations(files: Sequence[str], option: str) -> list[Conversation]:
    """Every row of some files.

    A row has ``messages`` (role, content, of the assistant also ``tool_calls``, ``reasoning_content``, and OpenAI's ``weight``, 0 for one
    that is not learned from) and perhaps ``tools``; or ``conversations`` (``from`` and ``value``) and perhaps ``system`` and ``tools``.
    Lists may be written as JSON.

    Args:
        option: The setting that names the files.

    Raises:
        ConfigError: names the file and the first row that is no conversation to learn from.
    """
    found = []
    for path in files:
        filled_up = path.endswith(".parquet")  # with null where a row has not what another has
        for number, (place, row) in enumerate(file_rows(path, option, "conversation")[0], 1):
            found.append(_conversation(_without_nulls(row) if filled_up else row, place, f"{path}:{number}"))
    return found


def _conversation(row: Any, place: str, name: str) -> Conversation:
    if not isinstance(row, dict):
        _refuse(place, f"is {excerpt(row)}, no object", "A row is an object with `messages`.")
    if (written := row.get("messages")) is not None:
        messages = [_message(m, f"{place}, message {n}") for n, m in enumerate(_list(written, place, "messages"), 1)]
    elif (written := row.get("conversations")) is not None:
        told = _list(written, place, "conversations")
        messages = [_said(m, f"{place}, message {n}") for n, m in enumerate(told, 1)]
        if system := row.get("system"):
            messages = [_message({"role": "system", "content": system}, f"{place}, system"), *messages]
    else:
        _refuse(place, f"has no `messages` and no `conversations`, only {columns(row)}", "Give one of them.")
    weights = tuple(_weight(m, place) for m in messages if m["role"] == "assistant")
    _check_order(messages, weights, place)
    tools = _tools(row.get("tools"), place)
    checksum = zlib.crc32(json.dumps([messages, tools, weights], sort_keys=True).encode())
    return Conversation(f"{name}:{checksum:08x}", place, messages, tools, weights)


def _refuse(place: str, fault: str, advice: str) -> NoReturn:
    raise ConfigError(f"{place} {fault}. {advice}")


def _list(value: Any, place: str, name: str) -> list[Any]:
    value = parse_json(value, f"{place}, {name}") if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        _refuse(place, f"has {excerpt(value)} as {name}", "Give a list of messages.")
    return value


def _message(written: Any, place: str) -> dict[str, Any]:
    """A message with its texts as text and its calls as objects; what is null is left out."""
    if not isinstance(written, dict):
        _refuse(place, f"is {excerpt(written)}", "A message is an object with role and content.")
    message = {name: value for name, value in written.items() if value is not None}
    role = message.get("role")
    message["role"] = role = "system" if role == "developer" else role
    if role not in ROLES:
        _refuse(place, f"has the role {excerpt(role)}", f"Roles are {', '.join(ROLES)}.")
    for name in TEXTS:
        if name in message or name == "content":
            message[name] = _text(message.get(name, ""), f"{place}: its {name}")
    calls = message.pop("tool_calls", None) or []
    calls = parse_json(calls, f"{place}, tool_calls") if isinstance(calls, str) else calls
    if calls and role != "assistant":
        _refuse(place, f"is the {role}'s and has tool_calls", "Only the assistant calls tools.")
    if calls:
        if not isinstance(calls, list):
            _refuse(place, f"has {excerpt(calls)} as tool_calls", "Give a list.")
        message["tool_calls"] = [_call(call, f"{place}, call {n}") for n, call in enumerate(calls, 1)]
    elif role == "assistant" and not message["content"].strip():
        _refuse(place, "is the assistant's and says nothing", "Leave it out, or give it content or tool_calls.")
    return message


def _text(value: Any, what: str) -> str:
    """A content: a text, or parts that are texts."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None for part in value]
        value = None if None in parts else "".join(map(str, parts))
    if not isinstance(value, str):
        raise ConfigError(f"{what} is no text. Give a text, or parts of type text: pictures and sound are not read.")
    return well_formed(value)


def _call(written: Any, place: str) -> dict[str, Any]:
    function = written.get("function", written) if isinstance(written, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        _refuse(place, "names no function", "A call is {function: {name, arguments}}.")
    given = function.get("arguments", {})
    given = parse_json(given or "{}", f"{place}, arguments") if isinstance(given, str) else given
    if not isinstance(given, dict):
        _refuse(place, f"has {excerpt(given)} as arguments", "Give an object, or one written as JSON.")
    known = {"id": written["id"]} if written.get("id") else {}
    return {**known, "type": "function", "function": {"name": function["name"], "arguments": given}}


def _said(written: Any, place: str) -> dict[str, Any]:
    """A message of the ``from`` and ``value`` form."""
    if not isinstance(written, dict) or "from" not in written or "value" not in written:
        _refuse(place, f"is {excerpt(written)}", "A message of `conversations` has from and value.")
    speaker = SPEAKERS.get(written["from"]) if isinstance(written["from"], str) else None
    if speaker is None:
        _refuse(place, f"is from {excerpt(written['from'])}", f"Speakers are {', '.join(SPEAKERS)}.")
    rest = {name: value for name, value in written.items() if name not in ("from", "value")}
    if speaker == "function_call":
        calls = parse_json(str(written["value"]), f"{place}, value")
        return _message(
            {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls], **rest}, place
        )
    return _message({"role": speaker, "content": written["value"], **rest}, place)


def _weight(message: dict[str, Any], place: str) -> bool:
    weight = message.pop("weight", 1)
    if weight not in (0, 1):
        _refuse(place, f"has a message of weight {excerpt(weight)}", "A message is learned from (1) or not (0).")
    return bool(weight)


def _check_order(messages: Sequence[Mapping[str, Any]], weights: Sequence[bool], place: str) -> None:
    """Who may speak when, and that there is something to learn from."""
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        _refuse(place, f"has a system message in place {roles[1:].index('system') + 2}", "It stands first.")
    if [r for r in roles if r != "system"][:1] == ["assistant"]:
        _refuse(place, "begins with the assistant", "Begin with what it answers.")
    if roles[-1] != "assistant":
        _refuse(place, f"ends with the {roles[-1]}", "Nothing would be learned from that: end with the assistant.")
    if not any(weights):
        _refuse(place, "gives every message of the assistant the weight 0", "Leave it out.")
    for number, (before, role) in enumerate(pairwise(roles), 2):
        if role == "tool" and before not in ("assistant", "tool"):
            _refuse(place, f"has a tool's result in place {number} behind the {before}", "A result follows the call.")


def _tools(written: Any, place: str) -> list[dict[str, Any]]:
    tools = parse_json(written or "[]", f"{place}, tools") if isinstance(written, str) else written or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        _refuse(place, f"has {excerpt(tools)} as tools", "Give a list of JSON schemas.")
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            _refuse(
                place,
                f"has the tool {excerpt(tool)}",
                "A tool is {type: function, function: {name, description, parameters}}.",
            )
    return tools


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def texts(conversation: Conversation) -> Iterator[tuple[int, str]]:
    """Everything that somebody wrote, with the number of its message."""
    for number, message in enumerate(conversation.messages, 1):
        yield from ((number, message[name]) for name in TEXTS if name in message)
        yield from ((number, json.dumps(call, ensure_ascii=False)) for call in message.get("tool_calls", ()))


def shared_contents(trained: Sequence[Conversation], measured: Sequence[Conversation]) -> int:
    """How many of the `measured` conversations are trained on, too."""
    known = {c.content for c in trained}
    return sum(c.content in known for c in measured)


def words(conversations: Sequence[Conversation]) -> list[str]:
    """Their texts, for a tokenizer that is made for them."""
    told = [text for c in conversations for _, text in texts(c)]
    return told + [json.dumps(tool, ensure_ascii=False) for c in conversations for tool in c.tools]

"""Conversations as token ids, built from a chat template; what a model sampled stays the ids that were sampled.

The template is rendered once per sequence of roles with placeholders for the contents; what lies between the placeholders is
control text and may contain special tokens, what is put in their place is plain text and may not. So an observation that
contains ``<|im_end|>`` is characters.

A template that tells past responses otherwise than they were said (without their thinking, say) is rendered with the responses
themselves, and placeholders for everything else. What it tells of a response is kept as the ids that were sampled where it is
all of it or its end, cut between two tokens; otherwise it is encoded anew.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from sdar.encoding import TextEncoder, well_formed
from sdar.errors import PolicyError

Message = Mapping[str, Any]
"""``role`` and ``content``; of a sampled response also its ``ids``."""

THOUGHT = "<think>\nsdar thought\n</think>\n\nsdar action"
"""A response as a reasoning model gives it; templates that remove reasoning from the history look for the closing tag."""
WRAPPED = re.compile(r"(<\w+>).*(</\w+>)", re.DOTALL)
"""A content in a pair of tags. Templates look for ``<tool_response>``: thinking is kept while a tool is used."""


class ChatFormat:
    """One tokenizer's chat template on ids.

    Contents stand in the conversation as they are: a template that trims them is not followed in that.

    Args:
        tokenizer: With a chat template.
        options: Arguments for the template.
        name: What errors call it.
        tools: Functions that the template tells the model of (`Protocol.tools`).

    Raises:
        PolicyError: no chat template, a template that loses or repeats its messages or says nothing of tools, or no end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: Mapping[str, Any] | None = None,
        name: str = "the tokenizer",
        tools: Sequence[Mapping[str, Any]] = (),
    ):
        if not tokenizer.chat_template:
            raise PolicyError(
                f"{name} has no chat template: an agent's conversation cannot be told to this model. Use an instruction-tuned "
                "model, or give the policy a `chat_template` file."
            )
        self.tokenizer, self.given, self.tools = tokenizer, options, tools
        self.options = {**(options or {}), **({"tools": [dict(tool) for tool in tools]} if tools else {})}
        self.name = name
        self._check_tools()
        self.text_encoder = TextEncoder(tokenizer)
        self.control = self.text_encoder.control
        self.encode_text = self.text_encoder.encode
        self.encode_control = lru_cache(maxsize=4096)(self.text_encoder.encode_control)
        self._control_pieces = lru_cache(maxsize=256)(self._render_pieces)
        self._control_texts = lru_cache(maxsize=256)(self._render_texts)
        after_response = self._control_pieces(("user", "assistant"), False)[-1]
        end = [i for i in after_response[:1] if i in self.control]
        if not end:
            raise PolicyError(
                f"the chat template of {name} puts no end-of-turn token behind an assistant message (found the ids "
                f"{list(after_response[:4])}): a response could never end. Use a template that closes each turn with a "
                "special token."
            )
        self.end_of_turn = end[0]
        self.stop_ids = tuple(sorted({self.end_of_turn} | ({tokenizer.eos_token_id} - {None})))
        self.default_system = ""
        """What the template says as a system message where a conversation has none."""
        self.has_system_role = self._finds_system()
        """True when a system message stands where it is given, and displaces nothing but `default_system`."""
        opened = self._control_pieces(("user",), True)
        self.generation_ids = opened[-1]
        history = self._control_pieces(("user", "assistant", "user"), True)
        self.rewrites_history = opened != history[:2] or history[2][:1] != (self.end_of_turn,) or not self._repeats(THOUGHT)
        """True when a past assistant turn is not told as it was generated (thinking removed, say)."""

    def telling(self, tools: Sequence[Mapping[str, Any]]) -> "ChatFormat":
        """The same format with other tools; itself where they are those that it has."""
        return self if [*tools] == [*self.tools] else ChatFormat(self.tokenizer, self.given, self.name, tools)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, ready for the model to answer.

        A system message stands before the first user text where the template has no system role.

        Raises:
            PolicyError: a template that rewrites history does so in a way that cannot be followed on ids.
        """
        if messages and messages[0]["role"] == "system" and not self.has_system_role:
            messages = self._before_user(messages[1:], messages[0]["content"])
        if self.rewrites_history and any(m["role"] == "assistant" for m in messages):
            return self._retold(messages)
        roles = tuple(m["role"] for m in messages)
        *pieces, last = self._control_texts(roles, _slots(roles), True)
        ids: list[int] = []
        for message, piece in zip(messages, pieces, strict=True):
            ids += self._told(piece, message["content"], first=not ids)
        return [*ids, *self.encode_control(last)]

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]] | None:
        """The messages that `prompt` tells in these ids: of a user, perhaps behind a system message. None: these are no such ids."""
        text = self._spelled(ids)
        for roles in (("user",), ("system", "user")) if self.has_system_role else (("user",),):
            before, *between, after = self._control_texts(roles, _slots(roles), True)
            if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
                continue
            inner = text[len(before) : len(text) - len(after)]
            contents = inner.split(between[0], 1) if between else [inner]
            found = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
            if len(found) == len(roles) and self.prompt(found) == list(ids):
                return found
        return None

    def informed(self, messages: Sequence[Message], text: str) -> list[Message]:
        """The conversation with `text` added to its system message, also to one that only the template inserts; before the first
        user text where there is no system role. Nothing that was there is lost."""
        if not self.has_system_role:
            return self._before_user(messages, text)
        has_system = messages[0]["role"] == "system"
        said = messages[0]["content"] if has_system else self.default_system
        content = f"{said}\n\n{text}" if has_system or said else text
        return [{"role": "system", "content": content}, *(messages[1:] if has_system else messages)]

    def check(self, messages: Sequence[Message]) -> None:
        """Compare the ids of a conversation, which ends with a user message, with what the tokenizer makes of the whole template.

        Raises:
            PolicyError: they spell different texts.
        """
        plain: list[Message] = [{"role": m["role"], "content": well_formed(m["content"]).strip()} for m in messages]
        if plain[0]["role"] == "system" and not self.has_system_role:
            plain = self._before_user(plain[1:], plain[0]["content"])
        rendered = self._render([m["role"] for m in plain], [m["content"] for m in plain], True)
        ours, theirs = (self.tokenizer.decode(ids) for ids in (self.prompt(plain), self.text_encoder.whole(rendered)))
        if ours in (rendered, theirs):
            return
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        raise PolicyError(
            f"the prompt of {self.name} is not what its chat template says: behind {theirs[max(0, at - 40) : at]!r} it has "
            f"{ours[at : at + 40]!r}, and the template {theirs[at : at + 40]!r}. Its tokenizer encodes a piece of text otherwise than "
            "the same piece within a longer text. Use the fast tokenizer of the model, or another model."
        )

    def _check_tools(self) -> None:
        """A template that knows no tools says nothing of them."""
        for tool in self.options.get("tools") or ():
            name = tool.get("function", tool).get("name", "")
            if name not in self._render(("user",), ("sdar",), True):
                raise PolicyError(
                    f"the chat template of {self.name} does not tell the model of the tool {name!r}: it would never be called. Use a "
                    "template with `tools`, or let the protocol tell of it (HermesMathProtocol with `tools: text`)."
                )

    def _before_user(self, messages: Sequence[Message], text: str) -> list[Message]:
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        return [*messages[:at], {"role": "user", "content": f"{text}\n\n{messages[at]['content']}"}, *messages[at + 1 :]]

    def reply(self, text: str, ended: bool) -> list[int]:
        """Ids between a sampled response and the next one: the user's `text` in control tokens.

        `ended` says that the response carries its own end-of-turn token, which is then not repeated.
        """
        roles = ("user", "assistant", "user")
        _, _, bridge, tail = self._control_texts(roles, _slots(roles), True)
        return [*self._told(bridge, text)[1 if ended else 0 :], *self.encode_control(tail)]

    def replied(self, ids: Sequence[int], ended: bool) -> str:
        """The user's text in what `reply` gave; of a template that tells the past as it was said."""
        roles = ("user", "assistant", "user")
        _, _, bridge, tail = self._control_texts(roles, _slots(roles), True)
        front = len(self._told(bridge, None)) - ended
        if self.text_encoder.prefixes:  # a space may have been spelled with the word behind it
            spelled = self._spelled(ids)
            return spelled[len(self._spelled(self._told(bridge, None)[ended:])) : len(spelled) - len(tail)].lstrip(" ")
        return self._spelled(ids[front : len(ids) - len(self.encode_control(tail))])

    def response(self, text: str) -> list[int]:
        """Ids of a response as a model would have to sample it: plain text and the end-of-turn token."""
        return [*self._behind(self.generation_ids, text), self.end_of_turn]

    def said(self, response_ids: Sequence[int]) -> dict[str, Any]:
        """A sampled response as a message of the conversation that follows."""
        return {"role": "assistant", "content": self.decode(response_ids), "ids": list(response_ids)}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, for people and for parsing; trailing stop tokens are left out."""
        return self._spelled(self._unended(ids))

    def _spelled(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _unended(self, ids: Sequence[int]) -> list[int]:
        ids = list(ids)
        while ids and ids[-1] in self.stop_ids:
            ids.pop()
        return ids

    def _retold(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation whose past responses the template tells in its own way."""
        roles = tuple(m["role"] for m in messages)
        said = [m["content"] for m in messages if m["role"] == "assistant"]
        end = next(end for n in count() if not any((end := "s" * n + "lot") in text for text in said))
        wraps = tuple(WRAPPED.fullmatch(m["content"]) if m["role"] != "assistant" else None for m in messages)
        slots = tuple(f"{w[1]}sdar{i}{end}{w[2]}" if w else f"sdar{i}{end}" for i, w in enumerate(wraps))
        around = self._control_texts(roles, slots, True)
        fixed = [i for i, role in enumerate(roles) if role != "assistant"]
        contents = [slots[i] if i in fixed else m["content"] for i, m in enumerate(messages)]
        pieces = self._between([roles[i] for i in fixed], [slots[i] for i in fixed], self._render(roles, contents, True))
        ids: list[int] = []
        for first, last, piece in zip([-1, *fixed], [*fixed, len(messages)], pieces, strict=True):
            if last - first > 2:
                raise PolicyError(
                    f"the conversation {'/'.join(roles)} has {last - first - 1} assistant messages in a row, and the chat template of "
                    f"{self.name} rewrites them: which of them is told where cannot be said. Put a user message between them."
                )
            content = messages[last]["content"] if last < len(messages) else None
            if last - first == 2:
                ids += self._told_of(messages[first + 1], piece, around[first + 1], around[first + 2], content)
            else:
                ids += self._told(piece, content, first=not ids)
        return ids

    def _told_of(self, message: Message, piece: str, before: str, after: str, content: str | None) -> list[int]:
        """Ids of a response as the template tells it, in the control text around it, and of the content that follows.

        Args:
            piece: What the template gives.
            before, after: What it puts around a response that it tells in full.
            content: Of the next message; None at the end.
        """
        text, sampled = message["content"], message.get("ids")
        sampled = self.encode_text(text) if sampled is None else self._unended(sampled)
        if not piece.endswith(after):
            raise PolicyError(
                f"the chat template of {self.name} ends a past response with {piece[-len(after) :]!r}, others with {after!r}: what it "
                "tells of a response cannot be found. Use another template, or `layout: turn`."
            )
        piece = piece.removesuffix(after)
        if piece.endswith(text):  # in full, behind whatever the template puts in front
            head, response = piece.removesuffix(text), list(sampled)
        else:
            head = common_start(piece, before)
            response = self._told_ids(piece.removeprefix(head), text, sampled)
        return [*self.encode_control(head), *response, *self._told(after, content)]

    def _told_ids(self, kept: str, text: str, sampled: Sequence[int]) -> list[int]:
        """Ids of what is told of a response: its own last ids where they spell it."""
        if text.endswith(kept):
            low, high = 0, len(sampled)
            while low < high:  # the first end of the response that is not longer than what is told
                middle = (low + high) // 2
                if len(self._spelled(sampled[middle:])) > len(kept):
                    low = middle + 1
                else:
                    high = middle
            if self._spelled(sampled[low:]) == kept:
                return list(sampled[low:])
        strings = self.text_encoder.control_strings
        controls = sorted({strings[i] for i in sampled if i in strings}, key=len, reverse=True)
        # What it sampled may stay control.
        parts = re.split(f"({'|'.join(map(re.escape, controls))})", kept) if controls else [kept]
        return [i for part in parts for i in (self.encode_control(part) if part in controls else self.encode_text(part))]

    def _told(self, control: str, content: str | None, first: bool = False) -> list[int]:
        """Ids of control text and of the content behind it, if any; `first`: nothing stands before it."""
        if content is None:
            return list(self.encode_control(control, first))
        if self.text_encoder.prefixes and control.endswith(" "):  # such a tokenizer spells a space and a word together
            return [*self.encode_control(control[:-1], first), *self.encode_text(f" {content}")]
        ids = self.encode_control(control, first)
        return [*ids, *self._behind(ids, content)]

    def _behind(self, ids: Sequence[int], content: str) -> tuple[int, ...]:
        """Ids of a content behind control ids: some tokenizers put a space behind a special token."""
        spaced = self.text_encoder.prefixes_behind_special and ids and ids[-1] in self.control
        return self.encode_text(f" {content}" if spaced and content else content)

    def _finds_system(self) -> bool:
        """Whether system messages are told where they stand; sets `default_system`."""
        if not (self._accepts(("system", "user")) and self._accepts(("system", "user", "assistant", "user"))):
            return False
        plain, _ = self._control_texts(("user",), _slots(("user",)), True)
        roles = ("system", "user")
        before, after, _ = self._control_texts(roles, _slots(roles), True)
        whole = before + after
        if plain.startswith(before) and plain.endswith(after) and len(plain) >= len(whole):
            self.default_system = plain[len(before) : len(plain) - len(after)]
            return self.control.isdisjoint(self.encode_control(self.default_system))  # what is told anew is told as text
        kept = len(common_start(plain, whole))  # nothing of it is lost where the message and its tags are put into it
        return plain[kept:] == whole[len(whole) - len(plain) + kept :]

    def _accepts(self, roles: tuple[str, ...]) -> bool:
        try:
            self._control_pieces(roles, True)
        except Exception:  # templates refuse roles by raising whatever they like
            return False
        return True

    def _repeats(self, response: str) -> bool:
        """Whether a past response is told in full."""
        return response in self._render(("user", "assistant", "user"), ("sdar", response, "sdar"), True)

    def _render(self, roles: Sequence[str], contents: Sequence[str], generate: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **self.options)
        return str(text)

    def _render_pieces(self, roles: tuple[str, ...], generate: bool) -> list[tuple[int, ...]]:
        """Control ids before, between and after the contents of messages with these roles."""
        return [self.encode_control(piece) for piece in self._control_texts(roles, _slots(roles), generate)]

    def _render_texts(self, roles: tuple[str, ...], slots: tuple[str, ...], generate: bool) -> list[str]:
        return self._between(roles, slots, self._render(roles, slots, generate))

    def _between(self, roles: Sequence[str], slots: Sequence[str], text: str) -> list[str]:
        """What stands before, between and after the slots of messages with these roles."""
        pieces: list[str] = []
        for slot in slots:
            before, found, text = text.partition(slot)
            if not found:
                raise PolicyError(
                    f"the chat template of {self.name} drops a {roles[len(pieces)]} message of the conversation "
                    f"{'/'.join(roles)}: what the model is told would be incomplete. Use another template."
                )
            pieces.append(before)
        if again := [role for role, slot in zip(roles, slots, strict=True) if any(slot in piece for piece in [*pieces, text])]:
            raise PolicyError(
                f"the chat template of {self.name} tells a {again[0]} message of the conversation {'/'.join(roles)} twice or "
                "out of order: ids could not be put together from one content each. Use another template."
            )
        return [*pieces, text]


def _slots(roles: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"sdar{i}slot" for i in range(len(roles)))


def common_start(a: str, b: str) -> str:
    """What both texts begin with."""
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))

"""Conversations that somebody else held, as token ids: what the assistant said, and what stands between.

Where the chat template marks what the assistant generates (``{% generation %}``), its marks decide. Otherwise the conversation is
rendered up to each of the assistant's messages, with and without it: what the message adds to the generation prompt is what a model
would have had to say, up to and with the end-of-turn token. That needs each rendering to begin with the one before. A template that
tells the past otherwise than it was said (thinking removed) breaks it, which is an error, or begins another row, as rollouts do.

Unlike a rollout, which puts ids together, this encodes what the template renders: a tag of tools or thinking in a content becomes
the token that the template's own would be. Special tokens in a content are refused.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NoReturn

from sdar.data.conversations import Conversation, texts
from sdar.errors import ConfigError
from sdar.reading import excerpt
from sdar.rollout.chat import ChatFormat, common_start
from sdar.types import Turn

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Transcript:
    """The turns of a conversation: what was told since the last one, and what was said. Ids, as small as they can be kept."""

    turns: tuple[tuple[array, array, bool, bool], ...]
    """(prompt, response, whether it begins a row, whether it is learned from)."""

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        rows = [0]
        for prompt, response, starts_row, _ in self.turns:
            rows += [0] * starts_row
            rows[-1] += len(prompt) + len(response)
        return max(rows)

    def played(self) -> list[Turn]:
        """The same as an episode's turns; nobody sampled the tokens."""
        return [Turn(list(p), list(r), [0.0] * len(r), [0.0] * len(r), starts_row=s, trainable=t) for p, r, s, t in self.turns]


class Transcriber:
    """Makes transcripts for one model.

    Args:
        chat: Its conversation format.
        split_rewritten: Begin another row where the template changes what was told before; otherwise that is an error.
    """

    def __init__(self, chat: ChatFormat, split_rewritten: bool = False):
        self.chat, self.tokenizer, self.split_rewritten = chat, chat.tokenizer, split_rewritten
        self.options = {name: value for name, value in chat.options.items() if name != "tools"}
        self.marks = bool(MARK.search(str(self.tokenizer.chat_template)))
        special = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special} | {
            str(t) for t in self.tokenizer.all_special_tokens
        }
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None

    def __call__(self, conversation: Conversation) -> Transcript:
        """
        Raises:
            ConfigError: the template cannot tell it, or it holds a special token; names file and row.
        """
        for number, text in texts(conversation):
            if self._special is not None and (found := self._special.search(text)):
                raise ConfigError(
                    f"{conversation.place}, message {number} holds {found[0]!r}, a special token of {self.chat.name}: it would end a turn "
                    "or begin another. Take it out, or leave the row out."
                )
        turns = self._marked(conversation) if self.marks else list(self._by_prefixes(conversation))
        return Transcript(tuple((array("i", p), array("i", r), s, t) for p, r, s, t in turns))

    def _marked(self, conversation: Conversation) -> list[tuple[list[int], list[int], bool, bool]]:
        """By the template's own marks."""
        whole = self._render(
            conversation, conversation.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = whole["input_ids"], whole["assistant_masks"]
        self._check_told(conversation, self._render(conversation, conversation.messages))
        runs = [[i for i, _ in run] for _, run in groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])]
        runs = runs if mask[0] == 0 else [[], *runs]
        pairs = list(zip(runs[::2], runs[1::2], strict=False))
        if len(pairs) != len(conversation.weights):
            self._fail(
                conversation,
                f"marks {len(pairs)} pieces as generated, and the assistant has {len(conversation.weights)} messages",
                "Put {% generation %} and {% endgeneration %} around each of them (policy.chat_template).",
            )
        return [(p, r, n == 0, w) for n, ((p, r), w) in enumerate(zip(pairs, conversation.weights, strict=True))]

    def _by_prefixes(self, conversation: Conversation) -> Iterator[tuple[list[int], list[int], bool, bool]]:
        """By what each message of the assistant adds."""
        messages, weights = conversation.messages, iter(conversation.weights)
        told = ""  # text of the row so far
        self._check_told(conversation, self._render(conversation, messages))
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(conversation, messages[:number], add_generation_prompt=True)
            whole = self._render(conversation, messages[: number + 1])
            if not whole.startswith(prompt):
                asked = excerpt(prompt[len(common_start(prompt, whole)) :])
                self._fail(
                    conversation,
                    f"renders message {number + 1} without {asked}, which it asks a model to go on from",
                    "Set policy.chat_options (e.g. {enable_thinking: true}) so that both are the same, or give a template with "
                    "{% generation %} (policy.chat_template).",
                )
            starts_row = not prompt.startswith(told)
            if starts_row and not self.split_rewritten:
                self._fail(
                    conversation,
                    f"tells what stands before message {number + 1} otherwise than it was said (thinking removed, say): a row would "
                    "not be what the model is told when it answers",
                    "Set model.split_rewritten to true for another row from there on, or give a template with {% generation %} "
                    "(policy.chat_template).",
                )
            first = not told or starts_row
            response, rest = self._until_end(conversation, whole[len(prompt) :], number)
            calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
            if lost := [name for name in calls if name not in response]:
                self._fail(
                    conversation,
                    f"says nothing of the call of {lost[0]!r} in message {number + 1}",
                    "Use one with tool calls.",
                )
            encode = self.chat.text_encoder.encode_control
            new = prompt if first else prompt[len(told) :]
            yield list(encode(new, first)), list(encode(response)), first, next(weights)
            told = whole[: len(whole) - len(rest)]

    def _until_end(self, conversation: Conversation, text: str, number: int) -> tuple[str, str]:
        """A response with its end-of-turn token, and what the template puts behind it."""
        end = str(self.tokenizer.convert_ids_to_tokens(self.chat.end_of_turn))
        response, found, rest = text.rpartition(end)
        if not found:
            self._fail(
                conversation, f"puts no {end!r} behind message {number + 1}: a model would not learn to end", "Use another."
            )
        return response + found, rest

    def _render(self, conversation: Conversation, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        tools = {"tools": conversation.tools} if conversation.tools else {}
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], **{"tokenize": False, **self.options, **tools, **options}
            )
        except Exception as error:  # templates refuse by raising whatever they like
            self._fail(conversation, f"refuses it ({type(error).__name__}: {excerpt(str(error), 200)})", "Correct the row.")

    def _check_told(self, conversation: Conversation, whole: str) -> None:
        """A template that drops what it does not know teaches the model to answer what it never read."""
        for number, message in enumerate(conversation.messages, 1):
            if message["role"] != "assistant" and (text := message["content"].strip()) not in whole:
                self._fail(
                    conversation, f"leaves out message {number} of the {message['role']} ({excerpt(text)})", "Use another."
                )
        if conversation.tools and self._render(conversation, conversation.messages, tools=None) == whole:
            name = conversation.tools[0].get("function", conversation.tools[0])["name"]
            self._fail(
                conversation, f"does not tell of the tool {name!r}", "Use one with `tools`, or tell of it in a message."
            )

    def _fail(self, conversation: Conversation, fault: str, advice: str) -> NoReturn:
        raise ConfigError(f"{conversation.place}: the chat template of {self.chat.name} {fault}. {advice}")

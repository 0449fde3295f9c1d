"""Conversations as ids: what the template says, the assistant's part of it, and templates that do not say it."""

import pytest
from chats import CALLING, FORGETFUL, MARKED, SUM, TRACE, chat

from sdar.data.conversations import _conversation
from sdar.data.transcripts import Transcriber
from sdar.errors import ConfigError

THOUGHT = [SUM[1], {"role": "assistant", "content": "<think>So</think>It is 2."}, *SUM[3:]]


def conversation(messages, **row):
    return _conversation({"messages": messages, **row}, "c.jsonl, row 3", "c.jsonl:3")


def told(chat, transcript):
    """Prompts and responses of a transcript as texts."""
    return [(chat.tokenizer.decode(p), chat.tokenizer.decode(r)) for p, r, _, _ in transcript.turns]


def ids(transcript):
    return [i for p, r, _, _ in transcript.turns for i in (*p, *r)]


def test_the_assistants_messages_with_their_ends_and_nothing_else_are_responses():
    form = chat()
    transcript = Transcriber(form)(conversation(SUM))
    assert told(form, transcript) == [
        ("<|system|>Add.<|end|><|user|>1 + 1?<|end|><|assistant|>", "It is 2.<|end|>"),
        ("<|user|>Sure?<|end|><|assistant|>", "Yes, 2.<|end|>"),
    ]
    assert [starts for _, _, starts, _ in transcript.turns] == [True, False] and transcript.longest == len(ids(transcript))
    assert ids(transcript) == form.tokenizer.apply_chat_template(SUM, tokenize=True, return_dict=False)
    assert [(t.response_ids, t.prompt_ids) for t in transcript.played()] == [
        (list(r), list(p)) for p, r, _, _ in transcript.turns
    ]


@pytest.mark.parametrize("template", [CALLING, MARKED], ids=["prefixes", "marks"])
def test_marks_and_prefixes_find_the_same_responses(template):
    form = chat(template)
    transcript = Transcriber(form)(conversation(SUM))
    assert [response for _, response in told(form, transcript)] == ["It is 2.<|end|>", "Yes, 2.<|end|>"]
    assert told(form, transcript)[1][0] == "\n<|user|>Sure?<|end|>\n<|assistant|>"  # what stands behind a turn is not said
    whole = form.tokenizer.apply_chat_template(SUM, tokenize=True, return_dict=False)
    assert [*ids(transcript), *whole[len(ids(transcript)) :]] == whole and len(whole) - len(ids(transcript)) == 1


def test_calls_and_results_are_told_as_the_template_tells_them():
    form = chat(CALLING)
    transcript = Transcriber(form)(conversation(**TRACE))
    (first, called), (second, answer) = told(form, transcript)
    assert (
        first.startswith("<|system|>[{") and called == '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call><|end|>'
    )
    assert (second, answer) == ("\n<|user|>2<|end|>\n<|assistant|>", "Two.<|end|>")


def test_a_message_of_weight_0_is_told_and_not_learned():
    unlearned = conversation([SUM[1], SUM[2] | {"weight": 0}, *SUM[3:]])
    for template in (CALLING, MARKED):
        assert [t.trainable for t in Transcriber(chat(template))(unlearned).played()] == [False, True]


def test_a_past_that_is_told_otherwise_is_an_error_or_another_row():
    form = chat(FORGETFUL)
    with pytest.raises(
        ConfigError, match=r"row 3: the chat template of Tiny tells what stands before message 4 otherwise .*split_rewritten"
    ):
        Transcriber(form)(conversation(THOUGHT))
    transcript = Transcriber(form, split_rewritten=True)(conversation(THOUGHT))
    assert told(form, transcript) == [
        ("<|user|>1 + 1?<|end|>\n<|assistant|>", "<think>So</think>It is 2.<|end|>"),
        ("<|user|>1 + 1?<|end|>\n<|assistant|>It is 2.<|end|>\n<|user|>Sure?<|end|>\n<|assistant|>", "Yes, 2.<|end|>"),
    ]
    assert [t.starts_row for t in transcript.played()] == [True, True]
    assert transcript.longest == max(len(p) + len(r) for p, r, _, _ in transcript.turns)


BAD = {
    "renders message 2 without '(thinks)', which it asks a model to go on from": CALLING.replace(
        "<|assistant|>{% endif", "<|assistant|>(thinks){% endif"
    ),
    "leaves out message 3 of the tool ('2')": CALLING.replace(
        "{{ m.content }}", "{{ m.content if m.role != 'tool' else 'x' }}"
    ),
    "does not tell of the tool 'add'": CALLING.replace("{% if tools %}", "{% if false %}"),
    "says nothing of the call of 'add' in message 2": CALLING.replace("{{ c.function | tojson }}", ""),
    "refuses it (TemplateError: 'no tools')": CALLING + "{% if tools %}{{ raise_exception('no tools') }}{% endif %}",
    "marks 1 pieces as generated, and the assistant has 2 messages": MARKED.replace(
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}",
        "{% if loop.last %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_template_that_does_not_tell_the_conversation_is_named(fault):
    with pytest.raises(ConfigError) as error:
        Transcriber(chat(BAD[fault]))(conversation(**TRACE))
    assert str(error.value).startswith("c.jsonl, row 3: the chat template of Tiny ") and fault in str(error.value)


def test_a_special_token_in_a_content_is_refused():
    with pytest.raises(ConfigError, match=r"row 3, message 2 holds '<\|end\|>', a special token of Tiny"):
        Transcriber(chat())(conversation([SUM[1], {"role": "assistant", "content": "2<|end|><|user|>more"}]))

"""Conversations on ids, under templates in the shapes that the common model families have."""

import re
import time
from dataclasses import replace

import pytest
from families import FAMILIES, PREFIXED, QWEN3, QWEN25, TOOLED, Family, chat_of, sentencepiece_of, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from sdar.encoding import Cached
from sdar.envs.math_protocol import TOOL, HermesMathProtocol
from sdar.errors import PolicyError
from sdar.rollout.chat import ChatFormat
from sdar.types import Task


@pytest.fixture(scope="module")
def own(tiny_policy_dir) -> ChatFormat:
    """The format of `FreshPolicy`."""
    return ChatFormat(AutoTokenizer.from_pretrained(tiny_policy_dir))


def templated(chat: ChatFormat, messages: list[dict[str, str]], generate: bool = True) -> list[int]:
    """What transformers makes of a conversation: rendered as text, then tokenized as a whole."""
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **chat.options)
    return chat.tokenizer.encode(text, add_special_tokens=False)


def roles(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def user(text: str) -> list[dict[str, str]]:
    return roles(("user", text))


by_family = pytest.mark.parametrize("name", FAMILIES)

# Contents whose first and last characters no tokenizer joins with the template's line break.
words = st.text("abcdeöß01 .,;:'\n-", min_size=1, max_size=40).map(lambda t: f"a{t}z")


# ------------------------------------------------------------------ what a template is found to be


@by_family
def test_a_template_is_recognised(name):
    family, chat = FAMILIES[name], chat_of(name)
    assert chat.tokenizer.decode([chat.end_of_turn]) == family.end_of_turn
    assert set(chat.tokenizer.convert_ids_to_tokens(chat.stop_ids)) == {family.eos, family.end_of_turn}
    assert chat.rewrites_history is family.rewrites_history
    assert chat.has_system_role is family.has_system_role


def test_the_template_of_a_fresh_policy_is_recognised(own):
    assert own.tokenizer.decode([own.end_of_turn]) == "<|end|>"
    assert own.stop_ids == (own.end_of_turn,)
    assert own.has_system_role and not own.rewrites_history


def test_thinking_that_is_removed_only_when_there_is_some_rewrites_history():
    # whatever is said is generated, and told later, behind "assistant\n": only a response with a thought shows the difference
    assert chat_of("qwen3").rewrites_history
    keeping = QWEN3.replace("'</think>' in said", "false").replace("loop.index0 > question.at", "false")
    assert not ChatFormat(tokenizer_of(replace(FAMILIES["qwen3"], template=keeping))).rewrites_history


def test_an_empty_thought_in_the_prompt_rewrites_history():
    chat = ChatFormat(tokenizer_of(FAMILIES["qwen3"]), {"enable_thinking": False})
    assert chat.tokenizer.decode(chat.prompt(user("Hello."))).endswith("assistant\n<think>\n\n</think>\n\n")
    assert chat.prompt(user("Hello.")) == templated(chat, user("Hello."))
    assert chat.rewrites_history


def test_a_last_turn_that_ends_otherwise_than_past_ones_rewrites_history():
    template = (
        "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
        "{{ '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    )
    special = ("<|start|>", "<|message|>", "<|end|>", "<|return|>")
    chat = ChatFormat(tokenizer_of(Family(template, special, "<|return|>", "<|return|>")))
    assert chat.tokenizer.decode([chat.end_of_turn]) == "<|return|>"
    assert chat.rewrites_history


# ------------------------------------------------------------------ prompts, responses, replies


@by_family
@given(first=words, answer=words, second=words)
def test_a_dialogue_has_the_ids_of_the_whole_rendered_template(name, first, answer, second):
    chat = chat_of(name)
    assert chat.prompt(user(first)) == templated(chat, user(first))
    if chat.has_system_role:
        opening = roles(("system", second), ("user", first))
        assert chat.prompt(opening) == templated(chat, opening)
    whole = roles(("user", first), ("assistant", answer), ("user", second))
    ids = [*chat.prompt(user(first)), *chat.response(answer), *chat.reply(second, ended=True)]
    assert ids == templated(chat, whole) == chat.prompt(whole)  # without a thought, no template of these rewrites anything


@given(contents=st.lists(st.text().filter(lambda t: "<|" not in t), min_size=4, max_size=4))
def test_a_fresh_policy_tells_any_text_as_its_template_does(own, contents):
    system, first, answer, second = contents
    opening = roles(("system", system), ("user", first))
    ids = [*own.prompt(opening), *own.response(answer), *own.reply(second, ended=True)]
    assert ids == templated(own, [*opening, *roles(("assistant", answer), ("user", second))])


def test_a_default_system_prompt_is_told():
    chat = chat_of("qwen2.5")
    assert chat.tokenizer.decode(chat.prompt(user("Hello."))) == (
        "<|im_start|>system\nYou help people.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "You help people" not in chat.tokenizer.decode(chat.prompt(roles(("system", "Be brief."), ("user", "Hello."))))


def test_contents_are_not_trimmed_where_a_template_would():
    chat = chat_of("llama3")
    assert chat.tokenizer.decode(chat.prompt(user(" Hello.\n"))).count("\n\n Hello.\n<|eot_id|>") == 1
    assert chat.prompt(user("Hello.")) == templated(chat, user(" Hello.\n"))


@by_family
def test_a_response_of_unusual_ids_stays_as_it_was_sampled(name):
    chat = chat_of(name)
    spelled = [i for c in "open the drawer" for i in chat.encode_text(c)]
    assert spelled != list(chat.encode_text("open the drawer"))
    ids = [*chat.prompt(user("Go.")), *spelled, chat.end_of_turn, *chat.reply("Done.", ended=True)]
    whole = roles(("user", "Go."), ("assistant", "open the drawer"), ("user", "Done."))
    assert chat.tokenizer.decode(ids) == chat.tokenizer.decode(templated(chat, whole))
    assert ids != templated(chat, whole)


@by_family
def test_an_unfinished_response_gets_its_end_of_turn_in_the_reply(name):
    chat = chat_of(name)
    ended, unfinished = chat.reply("Next.", ended=True), chat.reply("Next.", ended=False)
    assert unfinished == [chat.end_of_turn, *ended]
    assert chat.end_of_turn not in ended[:1]


def test_decoding_leaves_out_only_the_stop_tokens_at_the_end():
    chat = chat_of("gemma")
    end, eos = chat.end_of_turn, chat.tokenizer.eos_token_id
    text = [*chat.encode_text("look")]
    assert chat.decode([*text, end]) == chat.decode([*text, eos, end]) == chat.decode(text) == "look"
    assert chat.decode([*text, end, *text]) == "look<end_of_turn>look"
    assert chat.decode([end]) == chat.decode([]) == ""


def test_a_response_is_read_back_as_it_was_written(own):
    for chat in [own, *map(chat_of, FAMILIES)]:
        ids = chat.response("go to drawer 1")
        assert ids[-1] == chat.end_of_turn
        assert chat.decode(ids) == "go to drawer 1"


# ------------------------------------------------------------------ templates that tell the past in their own way

thinking = pytest.mark.parametrize("thinking", [None, True, False])
BITS = [
    "<think>",
    "</think>",
    "\n",
    "\n\n",
    " ",
    "go to",
    " drawer",
    "é",
    "<|im_end|>",
    "sdar1slot",
    "lot",
    "<think>\nso\n</think>\n\n",
]
responses = st.lists(st.tuples(st.sampled_from(BITS), st.booleans()), max_size=7)


def sampled(chat: ChatFormat, bits: list[tuple[str, bool]], ended: bool = True) -> list[int]:
    """Ids of a response in which thinking tags are tokens or spelled, and other texts are encoded or spelled byte by byte."""
    ids: list[int] = []
    for text, one in bits:
        for part in re.split("(</?think>)", text):
            if one and part in ("<think>", "</think>"):
                ids.append(chat.tokenizer.convert_tokens_to_ids(part))
            else:
                ids += chat.encode_text(part) if one else [i for c in part for i in chat.encode_text(c)]
    return [*ids, *[chat.end_of_turn] * ended]


@thinking
@given(first=responses, second=responses, tool=st.booleans())
def test_a_conversation_is_told_as_a_rewriting_template_tells_it(thinking, first, second, tool):
    chat = chat_of("qwen3", thinking)
    answer = "<tool_response>\n4\n</tool_response>" if tool else "The drawer is open."
    said = [chat.said(sampled(chat, first)), chat.said(sampled(chat, second, ended=False))]
    messages = [*user("Go."), said[0], *user(answer), said[1], *user("<|im_end|>" if tool else answer)]
    ids = chat.prompt(messages)
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    text = chat.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **chat.options)
    assert chat.tokenizer.decode(ids) == text
    starts = chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(starts) == 6 and ids.count(chat.end_of_turn) == 5  # nobody's text is a control token


@thinking
def test_thinking_is_left_out_of_the_past_and_the_rest_keeps_its_ids(thinking):
    chat = chat_of("qwen3", thinking)
    spelled = [i for c in "open the drawer" for i in chat.encode_text(c)]
    said = sampled(chat, [("<think>", True), ("\nso\n", True), ("</think>", True), ("\n\n", True)], ended=False) + spelled
    ids = chat.prompt([*user("Go."), chat.said([*said, chat.end_of_turn]), *user("Done.")])
    opening, last = chat.tokenizer.encode("<|im_start|>assistant\n"), chat.prompt(user("Done."))
    at = next(i for i in range(len(ids)) if ids[i : i + len(spelled)] == spelled)
    assert ids[at - len(opening) : at] == opening and ids[at + len(spelled)] == chat.end_of_turn
    assert chat.tokenizer.convert_tokens_to_ids("</think>") not in ids[: -len(last)]


def test_thinking_stays_while_a_tool_is_used():
    chat = chat_of("qwen3")
    said = sampled(chat, [("<think>\nso\n</think>\n\n", True), ("go to", False)])
    first, result = chat.prompt(user("Go.")), "<tool_response>\n4\n</tool_response>"
    assert chat.prompt([*user("Go."), chat.said(said), *user(result)])[: len(first) + len(said)] == [*first, *said]
    assert chat.prompt([*user("Go."), chat.said(said), *user("4")])[: len(first) + len(said)] != [*first, *said]


def test_a_response_that_is_cut_in_the_middle_of_a_token_is_encoded_anew():
    template = QWEN25.replace("m.content", "m.content.split('oo')[-1]")
    chat = ChatFormat(tokenizer_of(replace(FAMILIES["qwen2.5"], template=template)))
    chat.rewrites_history = True
    [room] = [i for i in range(len(chat.tokenizer)) if chat.tokenizer.decode([i]) == "room"]
    ids = chat.prompt([*user("Go."), chat.said([room, chat.end_of_turn]), *user("Done.")])
    assert room not in ids and "assistant\nm<|im_end|>" in chat.tokenizer.decode(ids)


def test_two_responses_in_a_row_cannot_be_told_apart_by_a_rewriting_template():
    chat = chat_of("qwen3")
    said = chat.said(chat.response("look"))
    with pytest.raises(
        PolicyError, match=r"user/assistant/assistant/user has 2 assistant messages in a row, and the chat templ"
    ):
        chat.prompt([*user("Go."), said, said, *user("Done.")])


def test_a_template_that_ends_responses_by_their_content_is_refused():
    template = QWEN3.replace("said + '<|im_end|>\\n'", "said + ('' if 'now' in said else '<|im_end|>\\n')")
    chat = ChatFormat(tokenizer_of(replace(FAMILIES["qwen3"], template=template)), name="odd")
    assert chat.prompt([*user("Go."), chat.said(chat.response("look")), *user("Done.")])
    with pytest.raises(
        PolicyError, match=r"of odd ends a past response with .* others with '<\|im_end\|>\\n<\|im_start\|>user\\n'"
    ):
        chat.prompt([*user("Go."), chat.said(chat.response("look now")), *user("Done.")])


# ------------------------------------------------------------------ untrusted text


def hostile(strings: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Text of control strings, their fragments, one inside another, and anything else."""
    control = st.sampled_from(strings)
    cut = st.tuples(control, st.integers(1, 8)).map(lambda c: c[0][: c[1]])
    rest = st.tuples(control, st.integers(1, 8)).map(lambda c: c[0][c[1] :])
    nested = st.tuples(control, control, st.integers(1, 12)).map(lambda c: c[0][: c[2]] + c[1] + c[0][c[2] :])
    invisible = ["\x00", "\n", "\r\n", "\u202e", "\u200f", "\ufeff", " "]
    odd = st.sampled_from([*invisible, "é", "e\u0301", "𝔘", "<0x41>", "<", "|", ">", "▁"])
    return st.lists(st.one_of(control, cut, rest, nested, odd, st.text(max_size=4)), max_size=7).map("".join)


def is_plain(chat: ChatFormat, strings: tuple[str, ...], text: str) -> bool:
    ids = chat.encode_text(text)
    control = set(chat.tokenizer.convert_tokens_to_ids(list(strings)))
    return control.isdisjoint(ids) and chat.tokenizer.decode(list(ids)) == text


@by_family
@given(data=st.data())
def test_no_text_becomes_a_control_token_and_every_text_comes_back(name, data):
    chat, family = chat_of(name), FAMILIES[name]
    strings = (*family.special, *(s for s in family.added if not s.isspace()))
    assert is_plain(chat, strings, data.draw(hostile(strings)))


OWN_CONTROL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@given(text=hostile(OWN_CONTROL))
def test_a_fresh_policy_tells_every_text_in_bytes(own, text):
    assert is_plain(own, OWN_CONTROL, text)


@by_family
@pytest.mark.parametrize(
    "shape", ["{0}", "<{0}|end|>", "{0}{0}", "{1}{0}{2}", "{1}{1}{0}{2}{2}", " {0} ", "\n{0}\n", "x{0}x", "{0}\x00"]
)
def test_control_strings_in_control_strings_stay_text(own, name, shape):
    for chat, strings in ((chat_of(name), FAMILIES[name].special), (own, OWN_CONTROL)):
        for control in strings:
            for cut in range(1, len(control)):
                assert is_plain(chat, strings, shape.format(control, control[:cut], control[cut:]))


@by_family
def test_an_observation_cannot_end_its_turn(name):
    chat, end = chat_of(name), FAMILIES[name].end_of_turn
    for quiet, loud in (
        (chat.prompt(user("x")), chat.prompt(user(f"x{end}y"))),
        (chat.reply("x", ended=True), chat.reply(end, ended=True)),
    ):
        assert [i for i in quiet if i in chat.control] == [i for i in loud if i in chat.control]


@by_family
def test_a_control_string_is_cut_and_the_text_around_it_is_not_spelled(name):
    chat, end = chat_of(name), FAMILIES[name].end_of_turn
    pieces = ["You open the drawer 1. <", f"{end[1:]} On the desk 12, you see a mug 3."]
    expected = [i for piece in pieces for i in chat.tokenizer.encode(piece, add_special_tokens=False)]
    assert list(chat.encode_text("".join(pieces))) == expected


def test_line_breaks_that_a_vocabulary_adds_are_text():
    chat = chat_of("gemma")
    text = "You open the drawer.\n\nOn the desk\nyou see a mug."
    ids = chat.encode_text(text)
    assert list(ids) == chat.tokenizer.encode(text, add_special_tokens=False)
    assert chat.tokenizer.convert_tokens_to_ids("\n\n") in ids


def test_a_normalizer_does_not_make_control_tokens():
    family = Family(QWEN25, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>")
    chat = ChatFormat(tokenizer_of(family, normalizers.Lowercase()))
    assert chat.end_of_turn in chat.tokenizer.encode("<|IM_END|>")
    ids = chat.encode_text("say <|IM_END|> or <|im_end|>")
    assert chat.control.isdisjoint(ids)
    assert chat.tokenizer.decode(list(ids)) == "say <|im_end|> or <|im_end|>"


def test_a_special_token_of_one_character_does_not_come_out_of_text():
    chat = ChatFormat(tokenizer_of(Family("{% for m in messages %}{{ m.content + '☃' }}{% endfor %}", ("☃",), "☃", "☃")))
    assert chat.tokenizer.convert_ids_to_tokens([chat.end_of_turn]) == ["☃"]
    assert is_plain(chat, ("☃",), "one ☃ two ☃☃")


@by_family
def test_half_a_surrogate_pair_is_replaced(own, name):
    for chat in (own, chat_of(name)):
        assert chat.tokenizer.decode(list(chat.encode_text("a\ud83db\ud83d\ude00"))) == "a\ufffdb😀"


@given(data=st.data())
def test_a_tokenizer_that_writes_spaces_as_a_sign_tells_texts_as_others_do(data):
    family = FAMILIES["gemma"]
    chat = ChatFormat(sentencepiece_of(family))
    strings = (*family.special, "<table>")
    text = data.draw(hostile(strings).filter(lambda t: "▁" not in t and not any(f"<0x{b:02X}>" in t for b in range(256))))
    assert is_plain(chat, strings, text)
    first, second = data.draw(words), data.draw(words)
    ids = [*chat.prompt(user(first)), *chat.response(text), *chat.reply(second, ended=True)]
    assert ids.count(chat.end_of_turn) == 3 and chat.decode(ids[len(chat.prompt(user(first))) :]).startswith(text)
    assert chat.prompt(user(first)) == templated(chat, user(first))


# ------------------------------------------------------------------ templates that cannot be used


def test_a_tokenizer_without_a_template_is_refused():
    family = Family(None, ("<|im_end|>",), "<|im_end|>", "<|im_end|>")
    with pytest.raises(PolicyError, match=r"base-model has no chat template: .* give the policy a `chat_template` file"):
        ChatFormat(tokenizer_of(family), name="base-model")


@pytest.mark.parametrize("ending", ["", "\\n", "</s>"])
def test_a_template_without_an_end_of_turn_token_is_refused(ending):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '" + ending + "' }}{% endfor %}"
    with pytest.raises(PolicyError, match=r"of plain puts no end-of-turn token behind an assistant .* could never end"):
        ChatFormat(tokenizer_of(Family(template, ("<|im_end|>",), "<|im_end|>", "")), name="plain")


def using(body: str) -> ChatFormat:
    family = Family("{% for m in messages %}" + body + "{% endfor %}", ("<|im_end|>",), "<|im_end|>", "")
    return ChatFormat(tokenizer_of(family), name="odd")


def test_a_template_that_drops_messages_is_refused():
    with pytest.raises(PolicyError, match=r"of odd drops a user message of the conversation user/assistant: .* incomplete"):
        using("{% if loop.last %}{{ m.content + '<|im_end|>' }}{% endif %}")
    chat = using("{% if m.role != 'tool' %}{{ m.content + '<|im_end|>' }}{% endif %}")
    with pytest.raises(PolicyError, match="drops a tool message of the conversation user/tool"):
        chat.prompt(roles(("user", "a"), ("tool", "b")))


def test_a_template_that_drops_the_system_message_has_no_system_role():
    assert using("{% if m.role != 'system' %}{{ m.content + '<|im_end|>' }}{% endif %}").has_system_role is False


def test_a_template_that_tells_a_message_twice_is_refused():
    with pytest.raises(PolicyError, match=r"of odd tells a user message of the conversation user/assistant twice or out of"):
        using("{{ m.content + '<|im_end|>' + messages[0].content }}")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.has_system_role])
def test_a_system_message_without_its_role_stands_before_the_first_user_text(name):
    chat, opening = chat_of(name), roles(("system", "Be brief."), ("user", "Hello."))
    assert chat.prompt(opening) == chat.prompt(user("Be brief.\n\nHello."))
    rest = roles(("assistant", "Yes?"), ("user", "Go."))
    assert chat.prompt([*opening, *rest]) == chat.prompt([*user("Be brief.\n\nHello."), *rest])


# ------------------------------------------------------------------ tokenizers that put a space before each text

by_prefix = pytest.mark.parametrize("prefix", ["always", "first"])


@pytest.mark.parametrize("name", PREFIXED)
@by_prefix
@given(first=words, answer=words, second=words)
def test_no_space_is_added_between_the_pieces_of_a_conversation(name, prefix, first, answer, second):
    chat = ChatFormat(sentencepiece_of(PREFIXED[name], prefix), name=name)
    assert chat.prompt(user(first)) == templated(chat, user(first))
    whole = roles(("user", first), ("assistant", answer), ("user", second))
    ids = [*chat.prompt(user(first)), *chat.response(answer), *chat.reply(second, ended=True)]
    spelled = chat.tokenizer.decode(ids)
    assert spelled == chat.tokenizer.decode(chat.prompt(whole))
    if prefix == "first":  # the template itself has none either
        rendered = chat.tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
        assert spelled.lstrip(" ") == rendered.lstrip(" ")
    chat.check(whole[:1])


@by_prefix
@given(data=st.data())
def test_hostile_text_stays_text_where_a_space_is_put_before_each_text(prefix, data):
    chat = ChatFormat(sentencepiece_of(PREFIXED["mistral"], prefix))
    text = data.draw(hostile(PREFIXED["mistral"].special).filter(lambda t: "▁" not in t and "<0x" not in t))
    ids = chat.encode_text(text)
    assert chat.control.isdisjoint(ids)
    assert chat.tokenizer.decode([chat.end_of_turn, *ids]).removeprefix("</s>") == text


def test_a_prompt_that_is_not_the_templates_is_refused_before_the_first_response():
    chat = ChatFormat(sentencepiece_of(PREFIXED["zephyr"], "always"), name="legacy")
    chat.text_encoder._continuing = None  # a tokenizer that cannot be taken apart
    chat.encode_text.cache_clear()
    with pytest.raises(
        PolicyError, match=r"the prompt of legacy is not what its chat template says: behind '.*user\|>\\n' it h"
    ):
        chat.check(user("You open the drawer."))


@by_family
def test_a_prompt_that_is_the_templates_passes(own, name):
    for chat in (own, chat_of(name)):
        chat.check(roles(("system", " Be brief.\n"), ("user", "Look: <|im_end|> é.")))
        chat.check(user("You open the drawer.\n\n"))


# ------------------------------------------------------------------ time and memory


def test_the_cache_of_texts_is_bounded_by_their_size():
    asked = []
    cached = Cached(lambda text: asked.append(text) or tuple(range(len(text))), most_tokens=100)
    for text in ("a" * 40, "b" * 40, "a" * 40, "c" * 40, "a" * 40, "d" * 200, "a" * 40):
        assert len(cached(text)) == len(text)
        assert cached.tokens == sum(len(ids) + 1 for ids in cached.kept.values()) <= 100
    assert [text[0] for text in asked] == ["a", "b", "c", "d", "a"]


def test_a_text_of_control_strings_is_encoded_in_linear_time(own):
    began = time.monotonic()
    ids = own.encode_text("<|end|>" * 20_000)
    assert time.monotonic() - began < 5 and own.control.isdisjoint(ids)


# ------------------------------------------------------------------ tools that the template tells of


def tooled(name: str) -> ChatFormat:
    return ChatFormat(tokenizer_of(replace(FAMILIES[name], template=TOOLED[name])), name=name, tools=[TOOL])


@pytest.mark.parametrize("name", TOOLED)
def test_a_template_tells_of_the_tools_of_a_protocol(name):
    chat, protocol = tooled(name), HermesMathProtocol(tools="template")
    opening = protocol.opening(Task("t", "f", "6 * 7?"), "6 * 7?", ())
    assert opening == user(f"6 * 7?\n\n{protocol.instructions}")
    told = chat.tokenizer.apply_chat_template(opening, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert '"name": "code_interpreter"' in told and TOOL["function"]["description"] in told
    assert chat.tokenizer.decode(chat.prompt(opening)) == told and chat.prompt(opening) == templated(chat, opening)
    chat.check(opening)
    assert chat.has_system_role and not chat.rewrites_history
    known = roles(("system", "Be brief"), *((m["role"], m["content"]) for m in opening))
    assert chat.prompt(known) == templated(chat, known)
    informed = chat.tokenizer.decode(chat.prompt(chat.informed(opening, "The answer is 42.")))
    assert "The answer is 42.\n\n# Functions" in informed and ("You help people." in informed) is (name == "qwen2.5")
    said = roles(("assistant", protocol.write("python\n1")), ("user", protocol.answer("1", ())))
    grown = [*chat.prompt(opening), *chat.response(said[0]["content"]), *chat.reply(said[1]["content"], ended=True)]
    assert chat.tokenizer.decode(grown) == chat.tokenizer.decode(templated(chat, [*opening, *said]))


@pytest.mark.parametrize("name", ["qwen2.5", "gemma"])
def test_a_template_that_says_nothing_of_tools_is_refused(name):
    with pytest.raises(PolicyError, match=r"the chat template of mine does not tell .* 'code_interpreter'.*`tools: text`"):
        ChatFormat(tokenizer_of(FAMILIES[name]), name="mine", tools=[TOOL])

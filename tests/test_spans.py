"""Spans on ids: every character of a span is in a marked token, and no token that is wholly outside is marked."""

import re
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sdar.envs import CompactProtocol, HouseholdEnv, ThinkActProtocol
from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.policies import FreshPolicy, world_tokenizer
from sdar.rollout.chat import ChatFormat
from sdar.rollout.spans import response_spans, token_offsets

SAMPLES = [
    "<think>I need the mug 🍎, 杯子 or café.</think><search>who wrote 源氏物語?</search><answer>紫式部</answer>",
    "<think>The next step is to go to shelf 1.</think><action>go to shelf 1</action> 🙂🙃 👩‍🚀",
]


class SearchProtocol(CompactProtocol):
    """Spans as a world of searches has them."""

    tags = ("think", "search", "answer")
    spans = Protocol.spans


# ------------------------------------------------------------------ tokenizers


@cache
def own() -> PreTrainedTokenizerBase:
    """Words of a household, everything else in bytes."""
    return FreshPolicy(HouseholdEnv(receptacles=6)).load_tokenizer()


@cache
def wordy() -> PreTrainedTokenizerBase:
    """The same kind, with tags and whole phrases as single pieces."""
    return world_tokenizer(SAMPLES, ["</think><search>", "go to", "<action>go", "🍎,", "a</action>"], 600, 1024)


@cache
def byte_pairs() -> PreTrainedTokenizerBase:
    """A byte-level BPE without words: its tokens end anywhere, also inside characters and across tags."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs = ["a🍎 b🍊 c🍇 </action>🍎 🍊</action>", "<action>é è</action> ê", "<search>日本 日没 早</search>"]
    trainer = trainers.BpeTrainer(vocab_size=400, max_token_length=10, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*SAMPLES, *pairs] * 3, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


@cache
def sentence_pieces() -> PreTrainedTokenizerBase:
    """The older Llama's kind: a space before the first word that is not told, bytes for what is unknown."""
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256))]
    vocabulary += [(piece, -2.0) for piece in ("▁", "▁go", "▁to", "<think>", "</", "act", "ion", ">", "<", "think", "a", "▁1")]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


TOKENIZERS = {"own": own, "wordy": wordy, "byte pairs": byte_pairs, "sentence pieces": sentence_pieces}
by_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


# ------------------------------------------------------------------ offsets

piece = st.sampled_from(["<think>", "</think>", "<action>", "</action>", "<search>", "</SEARCH>", "<answer>", "</answer>"])
odd = st.sampled_from(
    ["🍎", "👩‍🚀", "杯子", "日本", "é", "e\u0301", "\ufffd", " ", "\n", "<|im_end|>", "<|end|>", "<0x41>", "▁", "go to"]
)
texts = st.lists(st.one_of(piece, odd, st.text(max_size=5)), max_size=10).map("".join)


def check_cover(ids: list[int], offsets: list[tuple[int, int]], text: str) -> None:
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets) and all(0 <= first <= end <= len(text) for first, end in offsets)
    assert {c for first, end in offsets for c in range(first, end)} == set(range(len(text)))


@by_tokenizer
@given(text=texts)
@example(text="a🍎b</action>🍊")
def test_offsets_cover_an_encoded_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    check_cover(ids, token_offsets(ids, tokenizer), decoded(ids, tokenizer))


@by_tokenizer
@given(data=st.data())
def test_offsets_cover_whatever_was_sampled(name: str, data: st.DataObject) -> None:
    """A policy that knows little says bytes that are no text, and special tokens."""
    tokenizer = TOKENIZERS[name]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    check_cover(ids, token_offsets(ids, tokenizer), decoded(ids, tokenizer))


def exact(ids: list[int]) -> list[tuple[int, int]]:
    """By hand, from the bytes of each token of `byte_pairs`."""
    byte_of = {c: b for b, c in bytes_to_unicode().items()}
    tokens = [bytes(byte_of[c] for c in t) for t in byte_pairs().convert_ids_to_tokens(ids)]
    spelled = b"".join(tokens).decode()
    character = [n for n, c in enumerate(spelled) for _ in c.encode()]  # of each byte
    ends = [sum(map(len, tokens[: n + 1])) for n in range(len(tokens))]
    return [(character[e - len(t)], character[e - 1] + 1) for t, e in zip(tokens, ends, strict=True)]


@given(text=texts.filter(lambda t: "<|im" not in t))
@example(text="a🍎b🍊c🍇🍎")
@example(text="日本日没早日早é è ê")
def test_offsets_are_those_of_the_bytes(text: str) -> None:
    ids = byte_pairs().encode(text, add_special_tokens=False)
    assert token_offsets(ids, byte_pairs()) == exact(ids)


def test_a_character_belongs_to_all_tokens_that_spell_it() -> None:
    tokenizer = byte_pairs()
    apple = [
        tokenizer.convert_tokens_to_ids(c)
        for c in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("🍎")[0][0]
    ]
    ids = [*tokenizer.encode("x", add_special_tokens=False), *apple, *tokenizer.encode("y", add_special_tokens=False)]
    assert token_offsets(ids, tokenizer) == [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert token_offsets(ids[:3], tokenizer) == [(0, 1), (1, 2), (1, 2)]  # cut by the limit of new tokens
    assert decoded(ids[:3], tokenizer) == "x\ufffd"


def test_special_tokens_are_told() -> None:
    tokenizer = byte_pairs()
    ids = [tokenizer.eos_token_id, *tokenizer.encode("x", add_special_tokens=False), tokenizer.eos_token_id]
    assert token_offsets(ids, tokenizer) == [(0, 10), (10, 11), (11, 21)]


def test_a_decoder_that_takes_back_what_it_said() -> None:
    """A byte run that is no text as a whole is unreadable as a whole, also its ``A``."""
    tokenizer = own()
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<0x41>", "<0xE3>", "<0x41>")]
    assert decoded(ids[:1], tokenizer) == "A" and decoded(ids, tokenizer) == "\ufffd" * 3
    offsets = token_offsets(ids, tokenizer)
    check_cover(ids, offsets, "\ufffd" * 3)


def test_a_text_that_is_tidied_up() -> None:
    """Word pieces are joined and spaces before punctuation removed: texts differ from their tokens."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "go": 1, "##ing": 2, "up": 3, ".": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tidy = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=True)
    ids = tidy.encode("going up.", add_special_tokens=False)
    assert decoded(ids, tidy) == "going up."
    assert token_offsets(ids, tidy) == [(0, 2), (2, 5), (5, 8), (8, 9)]


def test_long_responses_are_cut_in_linear_time(monkeypatch) -> None:
    tokenizer = byte_pairs()
    ids = tokenizer.encode(SAMPLES[0] * 30, add_special_tokens=False)
    lengths = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **kwargs: lengths.append(len(ids)) or decode(ids, **kwargs))
    token_offsets(ids, tokenizer)
    assert lengths[0] == len(ids) > 500 and max(lengths[1:]) < 20


# ------------------------------------------------------------------ spans of a text

THINK_ACT = {
    "<think>The mug.</think><action>look</action>": [("think", "The mug."), ("action", "look")],
    "<THINK>a</think> b <Action>\n look\n</aCTION> c": [("think", "a"), ("action", "\n look\n")],
    "<action>a</action><action>b</action>": [("action", "a"), ("action", "b")],
    "<think>a<action>b</action>c</think>": [("think", "a<action>b</action>c"), ("action", "b")],
    "<think>a<think>b</think>c</think>": [("think", "a<think>b")],
    "<think></think><action></action>": [("think", ""), ("action", "")],
    "<think>a</think><action>go to": [("think", "a")],
    "</action>a<action>": [],
    "<ACT\u0130ON>a</ACT\u0130ON>": [],
    "look": [],
    "": [],
}


@pytest.mark.parametrize("text", THINK_ACT)
def test_spans_are_what_stands_between_the_tags(text: str) -> None:
    assert [(tag, text[a:b]) for tag, a, b in ThinkActProtocol().spans(text)] == THINK_ACT[text]


@given(text=texts)
def test_the_first_action_span_is_the_action_that_is_parsed(text: str) -> None:
    protocol = ThinkActProtocol()
    actions = [text[a:b].lower().strip() for tag, a, b in protocol.spans(text) if tag == "action"]
    if actions:
        assert protocol.parse(text, [])[0] == actions[0]
    else:
        assert not protocol.parse(text, [])[1]


@given(text=st.text())
def test_a_compact_response_is_an_action_without_its_white_space(text: str) -> None:
    protocol = CompactProtocol()
    action = protocol.parse(text, [])[0]
    assert [(tag, text[a:b]) for tag, a, b in protocol.spans(text)] == ([("action", action)] if action else [])


# ------------------------------------------------------------------ spans of tokens


def marked(ids: list[int], spans: list[int], k: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return decoded([i for i, span in zip(ids, spans, strict=True) if span == k], tokenizer)


@by_tokenizer
@given(
    contents=st.tuples(texts, texts, texts).map(lambda c: [re.sub(r"</?(think|search|answer)>", "", t, flags=re.I) for t in c])
)
@example(contents=["a🍎", "🍊b", "日"])
@example(contents=["", " ", "a"])
def test_every_character_of_a_content_is_in_its_tokens(name: str, contents: list[str]) -> None:
    tokenizer, protocol = TOKENIZERS[name](), SearchProtocol()
    said = f"{{}}<think>{contents[0]}</think>🍎<search>{contents[1]}</search> <answer>{contents[2]}</answer>é"
    ids = tokenizer.encode(said, add_special_tokens=False)
    text, offsets = decoded(ids, tokenizer), token_offsets(ids, tokenizer)
    if any(re.search(r"<(think|search|answer)>", c, re.I) for c in contents) or len(protocol.spans(text)) != 3:
        return  # removing tags has made one
    labels = response_spans(ids, tokenizer, protocol)
    assert len(labels) == len(ids)
    for k, (tag, first, end) in enumerate(protocol.spans(text), 1):
        assert tag == protocol.tags[k - 1]
        touching = [max(a, first) < min(b, end) for a, b in offsets]
        alone = [not any(max(a, x) < min(b, y) for _, x, y in protocol.spans(text) if x != first) for a, b in offsets]
        assert all(label == k for label, t, only in zip(labels, touching, alone, strict=True) if t and only)
        assert all(t for label, t in zip(labels, touching, strict=True) if label == k)
        if all(only for t, only in zip(touching, alone, strict=True) if t):
            content = text[first:end].lstrip(" ") if name == "sentence pieces" else text[first:end]
            assert content in marked(ids, labels, k, tokenizer)
    outside = [not any(max(a, x) < min(b, y) for _, x, y in protocol.spans(text)) for a, b in offsets]
    assert all((label == 0) == out for label, out in zip(labels, outside, strict=True))


def chats() -> list[ChatFormat]:
    return [ChatFormat(own()), ChatFormat(wordy()), ChatFormat(byte_pairs())]


def test_the_tokens_of_a_demonstration() -> None:
    protocol = ThinkActProtocol()
    for chat in chats():
        ids = chat.response(protocol.write("go to shelf 1"))
        for stop_ids in (None, chat.stop_ids):
            labels = response_spans(ids, chat.tokenizer, protocol, stop_ids)
            assert "The next step is to go to shelf 1." in marked(ids, labels, 1, chat.tokenizer)
            assert "go to shelf 1" in marked(ids, labels, 2, chat.tokenizer)
            assert labels[-1] == 0
        compact = response_spans(ids, chat.tokenizer, CompactProtocol())
        assert compact == [1] * (len(ids) - 1) + [0]


def test_tokens_that_no_encoder_would_give() -> None:
    for chat in chats():
        spelled = [i for c in "<think>hm</think><action>look</action>" for i in chat.encode_text(c)]
        labels = response_spans([*spelled, chat.end_of_turn, chat.end_of_turn], chat.tokenizer, ThinkActProtocol())
        assert labels == [0] * 7 + [1] * 2 + [0] * 16 + [2] * 4 + [0] * 9 + [0] * 2


def test_a_special_token_inside_is_text_and_an_unfinished_response_has_no_end() -> None:
    chat = ChatFormat(byte_pairs())
    middle = [i for c in "\nup " for i in chat.encode_text(c)]
    middle[2:2] = [chat.end_of_turn]
    assert response_spans(middle, chat.tokenizer, CompactProtocol()) == [0, 1, 1, 1, 0]
    assert response_spans([chat.end_of_turn], chat.tokenizer, CompactProtocol()) == [0]
    assert response_spans([], chat.tokenizer, CompactProtocol()) == []


def test_the_innermost_span_counts_and_a_token_in_two_belongs_to_the_shorter() -> None:
    chat = ChatFormat(byte_pairs())
    ids = [i for c in "<think>a<action>b</action>c</think>" for i in chat.encode_text(c)]
    labels = response_spans(ids, chat.tokenizer, ThinkActProtocol())
    assert labels == [0] * 7 + [1] * 9 + [2] + [1] * 10 + [0] * 8
    wide = "!</think><search>c"
    tokenizer = world_tokenizer([wide], [wide], 300, 64)
    for said, k in (
        ("<think>aa!</think><search>cc</search>", 2),
        ("<think>a!</think><search>ccc</search>", 1),
        ("<think>a!</think><search>cc</search>", 1),
    ):
        ids = tokenizer.encode(said, add_special_tokens=False)
        labels = response_spans(ids, tokenizer, SearchProtocol())
        assert labels[ids.index(tokenizer.convert_tokens_to_ids(wide))] == k


def test_a_protocol_whose_spans_have_unknown_tags_is_refused() -> None:
    class Careless(CompactProtocol):
        tags = ("think",)

    ids = own().encode("look", add_special_tokens=False)
    with pytest.raises(
        ConfigError, match=r"Careless found a span 'action', but its tags are \(think\): .* Name the span in `tags`"
    ):
        response_spans(ids, own(), Careless())

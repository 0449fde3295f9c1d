"""Which sampled tokens stand in which span of a response (thought, action, query, answer), found without encoding anything.

A protocol finds the spans in the text; the text is cut among the tokens that made it. A character that several tokens spell
together (byte-level pieces of an emoji, say) belongs to each of them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError
from sdar.parts import Protocol

UNREADABLE = "\ufffd"
"""What a decoder writes for bytes that are no character."""


def token_offsets(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """For each token the characters ``[first, behind the last)`` that it spells, or helps to spell, in the decoded text.

    The text is ``tokenizer.decode(ids, skip_special_tokens=False)``. Linear in the number of tokens, unless the tokenizer's
    decoder takes back what it has said (a run of byte tokens that turns out to be no text, for one).
    """
    ids = list(ids)
    text = _decode(ids, tokenizer)
    ends = _chunk_ends(ids, text, tokenizer)
    offsets: list[tuple[int, int]] = []
    before, token, character = 0, 0, 0  # the chunk before this one says whether a space at its beginning is told
    for last_token, last_character in ends:
        chunk = text[character:last_character]
        if last_token - token == 1:
            offsets.append((character, last_character))
        else:
            shares = _shares(ids[before:token], ids[token:last_token], chunk, tokenizer)
            offsets += [(character + first, character + end) for first, end in shares]
        before, token, character = token, last_token, last_character
    return offsets


def response_spans(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, protocol: Protocol, stop_ids: Collection[int] | None = None
) -> list[int]:
    """For each token of a response 0, or k + 1 when it spells at least part of a character of a span ``protocol.tags[k]``.

    Tags themselves and the end-of-turn tokens are outside. In nested spans the innermost (shortest) counts; of equally long
    ones the tag that the protocol lists first.

    Args:
        stop_ids: Which ids at the end are no text (`ChatFormat.stop_ids`); by default every special token.
    """
    if stop_ids is None:
        stop_ids = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | set(tokenizer.all_special_ids)
    length = len(ids)
    while length and ids[length - 1] in stop_ids:
        length -= 1
    said = list(ids[:length])
    spans = []
    for tag, first, end in protocol.spans(_decode(said, tokenizer)):
        if tag not in protocol.tags:
            raise ConfigError(
                f"{type(protocol).__name__} found a span {tag!r}, but its tags are ({', '.join(protocol.tags)}): a token could not "
                "be told which span it stands in. Name the span in `tags`."
            )
        spans.append((first - end, protocol.tags.index(tag), first, end))
    labels = [0] * len(ids)
    offsets = token_offsets(said, tokenizer)
    firsts, ends = [first for first, _ in offsets], [end for _, end in offsets]
    for negative_length, k, first, end in sorted(spans, key=lambda s: (s[0], -s[1])):  # what is painted last stays
        touched = range(bisect_right(ends, first), bisect_left(firsts, end)) if negative_length else ()
        for t in touched:
            if ends[t] > firsts[t]:
                labels[t] = k + 1
    return labels


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _chunk_ends(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Where text and tokens can be cut alike: (tokens, characters) up to each cut, the last one behind everything."""
    everything = [(len(ids), len(text))] if ids else []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return everything
    stream, ends, character = DecodeStream(skip_special_tokens=False), [], 0
    for n, i in enumerate(ids):
        try:
            chunk = stream.step(backend, i)
        except Exception:  # tokenizers raises a bare one: the decoder took back what it had said
            return everything
        if chunk is not None:
            if not text.startswith(chunk, character):  # somebody tidies the decoded text up
                return everything
            character += len(chunk)
            ends.append((n + 1, character))
    if ends and ends[-1][0] == len(ids):
        return ends if ends == [*ends[:-1], *everything] else everything
    return [*ends, *everything]


def _shares(before: list[int], ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Characters of `text` that each of the tokens `ids`, which make it together, has a part in."""
    known = len(_decode(before, tokenizer))
    agreed, lengths = [], []  # after each token: characters that are as in `text`; characters in all
    for n in range(1, len(ids) + 1):
        partial = _decode([*before, *ids[:n]], tokenizer)[known:]
        differs = (c for c, (mine, final) in enumerate(zip(partial, text, strict=False)) if mine != final)
        agreed.append(next(differs, min(len(partial), len(text))))
        lengths.append(len(partial))
    lengths = [*accumulate(reversed(lengths), min)][::-1]  # what is taken back later was not there
    shares: list[tuple[int, int]] = []
    settled = reached = 0  # characters that are whole; characters that were begun
    for same, length in zip(agreed, lengths, strict=True):
        first = settled
        settled = max(settled, min(same, length))
        reached = max(reached, min(settled + (length > settled), len(text)))
        if first == reached and text[first - 1 : first] == UNREADABLE:  # one more byte of what no character came of
            first -= 1
        shares.append((first, reached))
    return shares

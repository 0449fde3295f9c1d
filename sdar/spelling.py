"""The bytes that each token of a tokenizer stands for, and where two tokenisations of a text both have a border."""

import json
import re
from collections.abc import Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of one byte, as tokenizers with byte fallback write it."""


class Spelling:
    """Token ids to bytes. What a decoder does to a whole text beside joining its tokens (a space taken away) is not in it.

    Args:
        tokenizer: Its tokens are bytes in GPT-2's letters, or text with ``▁`` for a space and byte fallback.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        parts = {} if backend is None else json.loads(backend.to_str())
        self.in_letters = "ByteLevel" in json.dumps([parts.get("decoder"), parts.get("pre_tokenizer")])
        self._known: dict[int, bytes] = {}

    def __call__(self, number: int) -> bytes:
        if number not in self._known:
            self._known[number] = self._spelled(number)
        return self._known[number]

    def _spelled(self, number: int) -> bytes:
        if number in self.added:
            return self.added[number].encode()
        token = str(self.tokenizer.convert_ids_to_tokens(number))
        if self.in_letters and all(letter in _BYTES for letter in token):
            return bytes(_BYTES[letter] for letter in token)
        if byte := BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()


def _letters() -> dict[str, int]:
    """GPT-2's letters: printable bytes are themselves, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _letters()


def shared_spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Number the shortest spans of bytes that begin and end between two tokens of both sides, from 0 on, in order.

    Args:
        student, teacher: The bytes of each token; joined they are the same. A token of no bytes belongs to the span that follows, at the
            end to the last.

    Returns:
        The span of each of the student's tokens, and of each of the teacher's.

    Raises:
        ValueError: they are not the same bytes.
    """
    if b"".join(student) != b"".join(teacher):
        raise ValueError(f"two texts of {sum(map(len, student))} and {sum(map(len, teacher))} bytes are not the same one")
    ends = sorted(set(accumulate(map(len, student))) & set(accumulate(map(len, teacher))) - {0})

    def numbers(tokens: Sequence[bytes]) -> list[int]:
        found, at, number = [], 0, 0
        for token in tokens:
            at += len(token)
            found.append(min(number, max(0, len(ends) - 1)))
            if number < len(ends) and at >= ends[number] and token:
                number += 1
        return found

    return numbers(student), numbers(teacher)

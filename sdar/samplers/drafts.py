"""Draft tokens: what a row will say next, proposed from what rows have said. Agents repeat themselves, in actions and in tags.

Speculative decoding by n-grams (prompt lookup decoding), with one table for all rows of a session. A pass reads the draft behind a row's
last token; each position is sampled with its own random number all the same, and the draft counts as far as it is what was sampled.
So a draft changes how many passes a response takes, and neither its tokens nor their density.
"""

from collections.abc import Sequence

LONGEST = 3
"""Tokens of the longest context that is looked up."""
KEPT = 2**17
"""Contexts that are remembered; when there are more, all are forgotten."""
MOST_CREDIT = 3


class Drafts:
    """Which token followed the last few tokens, in any row.

    A context has one token and a credit: one more when it came again, one less when another came, which takes its place when there is
    none left. The longest context that is known proposes its token, if that has credit: some for the first token of a draft, and all
    that it can have for one behind it, which counts only if those before it are right.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}  # context -> token, credit

    def learn(self, before: Sequence[int], token: int) -> None:
        """`token` was sampled behind the tokens `before`."""
        if len(self._next) > KEPT:
            self._next.clear()
        for size in range(1, min(LONGEST, len(before)) + 1):
            context = tuple(before[-size:])
            known, credit = self._next.get(context, (token, 0))
            if known == token:
                self._next[context] = token, min(credit + 1, MOST_CREDIT)
            else:
                self._next[context] = (known, credit - 1) if credit else (token, 0)

    def propose(self, before: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that are likely to come behind the tokens `before`."""
        context, found = tuple(before[-LONGEST:]), list[int]()
        while len(found) < most:
            endings = (context[-size:] for size in range(len(context), 0, -1))
            token, credit = next((self._next[ending] for ending in endings if ending in self._next), (0, 0))
            if credit < (MOST_CREDIT if found else 1):
                break
            found.append(token)
            context = (*context, token)[-LONGEST:]
        return found

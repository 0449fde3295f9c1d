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
LEAST = 0.5
"""Probability that a whole draft is right, below which it does not go on: a wrong token costs a pass as much as a right one saves."""


class Drafts:
    """Which token followed the last few tokens, in any row.

    A context has one token and a credit: one more when it came again, one less when another came, which takes its place when there is
    none left. The longest context that is known says what comes; how often contexts of such credit were right is counted, and
    decides whether it is drafted: where nothing is repeated nothing is.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}  # context -> token, credit
        self._right = [1] * (MOST_CREDIT + 1)  # by credit, as if each had been tried twice
        self._tried = [2] * (MOST_CREDIT + 1)

    def learn(self, before: Sequence[int], token: int) -> None:
        """`token` was sampled behind the tokens `before`."""
        if len(self._next) > KEPT:
            self._next.clear()
        judged = False  # a draft would have gone by the longest context that is known
        for size in range(min(LONGEST, len(before)), 0, -1):
            context = tuple(before[-size:])
            known, credit = self._next.get(context, (token, 0))
            if not judged and context in self._next:
                self._tried[credit] += 1
                self._right[credit] += known == token
                judged = True
            if known == token:
                self._next[context] = token, min(credit + 1, MOST_CREDIT)
            else:
                self._next[context] = (known, credit - 1) if credit else (token, 0)

    def propose(self, before: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that are likely to come behind the tokens `before`."""
        context, found, probability = tuple(before[-LONGEST:]), list[int](), 1.0
        while len(found) < most:
            endings = (context[-size:] for size in range(len(context), 0, -1))
            known = next((self._next[ending] for ending in endings if ending in self._next), None)
            if known is None:
                break
            token, credit = known
            probability *= self._right[credit] / self._tried[credit]
            if probability < LEAST:
                break
            found.append(token)
            context = (*context, token)[-LONGEST:]
        return found

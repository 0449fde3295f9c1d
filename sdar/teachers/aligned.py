"""A teacher whose tokenizer is not the student's: it reads the same text in its own tokens, and is compared where both have a border.

What can be estimated: the log-ratio of the bytes between two shared borders, under each model's own conditional probabilities and in
each model's own tokens. That is exact for the tokenisation that is read: for the student the tokens that it sampled, for the
teacher those that its tokenizer makes of the text. It is no probability of the text, which would be a sum over all tokenisations;
where the student spells a word as nobody's tokenizer would, the teacher is asked about another spelling of it. Where borders are also
depends on what follows: a tokenizer looks ahead within a word. Nothing can be said about tokens that were not sampled: there are no
top-K supports, and no divergences over a vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedTokenizerBase

from sdar.errors import ConfigError
from sdar.parts import Policy, PrivilegedView
from sdar.registry import register
from sdar.rollout.chat import ChatFormat
from sdar.rollout.rows import messages_of
from sdar.spelling import Spelling, shared_spans
from sdar.teachers.weights import ExternalTeacher
from sdar.types import Episode, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("aligned")
class AlignedTeacher(ExternalTeacher):
    """Another model, frozen, with a tokenizer and a chat template of its own.

    Prompts are told by its own template, responses are encoded anew; an end of turn is compared with its end of turn. Each token of the
    student is told the log-ratio of its span (`sdar.functional.span_teacher_logp`). A response that is cut inside a character has its
    last bytes compared with nothing.

    Args:
        policy: Where the model comes from.
        credit: ``span``: each of a span's tokens has the span's whole gap, the gradient of the KL over its bytes. ``share``: they have
            equal parts of it, so that gaps add up, and long spans count less.
    """

    shares_tokens = False

    def __init__(self, policy: Policy, credit: Literal["span", "share"] = "span"):
        super().__init__(policy)
        if credit not in ("span", "share"):
            raise ConfigError(f"teacher.credit is {credit!r}: a token has its `span`'s gap, or its `share` of it.")
        self.divides = credit == "share"
        self._chats: dict[str, ChatFormat] = {}

    def prepare(self, live: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.check_student(tokenizer, name)
        self.network = self.policy.load_frozen()

    def check_student(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.tokenizer = self.policy.load_tokenizer()
        self.student, self.own = Spelling(tokenizer), Spelling(self.tokenizer)
        self.vocab_size = len(self.tokenizer)
        chat = self.chat(())
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self.forbidden_ids = tuple(sorted((special | set(self.tokenizer.all_special_ids)) - set(chat.stop_ids)))

    def chat(self, tools: Sequence[Mapping[str, Any]]) -> ChatFormat:
        """Its conversation format, with a world's tools."""
        key = repr(tools)
        if key not in self._chats:
            self._chats[key] = ChatFormat(self.tokenizer, self.policy.chat_options, self.policy.name, tools)
        return self._chats[key]

    def retell(self, row: Row, episode: Episode, text: str, view: PrivilegedView, chat: ChatFormat) -> Row:
        own = self.chat(chat.options.get("tools") or ())
        told = Retold()
        told.prompt(view.prompt(own, messages_of(episode, row.turn), text))
        first = len(episode.turns[row.turn].prompt_ids)
        told.student([0] * first)
        for number, response in enumerate(self._turns(row, episode), row.turn):
            turn = episode.turns[number]
            if number > row.turn:
                ended = episode.turns[number - 1].response_ids[-1:] == [chat.end_of_turn]
                answer = (
                    episode.later_messages[2 * number - 1]["content"]
                    if chat.rewrites_history
                    else chat.replied(turn.prompt_ids, ended)
                )
                told.student([0] * len(turn.prompt_ids))
                told.prompt(own.reply(answer, ended))
            learned = any(m for m, t in zip(row.response_mask, row.turn_ids, strict=True) if t == number)
            self._say(told, response, learned, chat, own)
        return replace(
            row, teacher_ids=told.teacher_ids, teacher_spans=told.teacher_spans, spans_of_teacher=told.student_spans
        )

    def _turns(self, row: Row, episode: Episode) -> list[list[int]]:
        """The responses of a row."""
        count = len(set(row.turn_ids))
        return [turn.response_ids for turn in episode.turns[row.turn : row.turn + count]]

    def _say(self, told: "Retold", response: Sequence[int], trainable: bool, chat: ChatFormat, own: ChatFormat) -> None:
        """A response: runs of text, each with its borders; between them ends of turns, and tokens that its tokenizer was given later."""
        run: list[int] = []
        begun = False
        for token in [*response, None]:
            if token is not None and token not in chat.stop_ids and token not in self.student.added:
                run.append(token)
                continue
            if run:
                self._run(told, run, trainable, own.encode_text if begun else lambda text: own.response(text)[:-1])
                run = []
            begun = True
            if token in chat.stop_ids:
                told.both([0], [0], [own.end_of_turn], trainable)
            elif token is not None:
                self._run(told, [token], trainable, own.encode_control)

    def _run(self, told: "Retold", run: Sequence[int], trainable: bool, encode: Callable[[str], Sequence[int]]) -> None:
        """Text without an end of turn."""
        spelled = [self.student(i) for i in run]
        text = b"".join(spelled)
        read = text.decode(errors="ignore") if _cut(text) else text.decode(errors="replace")
        ids = list(encode(read)) if read else []
        theirs = [self.own(i) for i in ids]
        whole = len(read.encode())
        kept = len(spelled)
        while kept and sum(map(len, spelled[:kept])) > whole:
            kept -= 1  # what is left of a character that was cut has no counterpart
        mine = spelled[:kept]
        if ids and mine and b"".join(theirs).removeprefix(b" ") == b"".join(mine).removeprefix(b" "):
            mine = [mine[0].removeprefix(b" "), *mine[1:]]  # the space that some tokenizers put before a text
            theirs = [theirs[0].removeprefix(b" "), *theirs[1:]]
            spans, counterparts = shared_spans(mine, theirs)
        else:  # a tokenizer that changes texts, or bytes that are no text: nothing is shared but beginning and end
            spans, counterparts = [0] * kept, [0] * len(ids)
        told.both(spans, counterparts, ids, trainable and bool(ids) and bool(kept))
        told.student([0] * (len(spelled) - kept))


def _cut(text: bytes) -> bool:
    """Whether a text ends inside a character, and is well formed before it."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.end == len(text)
    return False


class Retold:
    """A row of the student's and the same text in a teacher's tokens, put together piece by piece; spans are numbered from 1 on."""

    def __init__(self) -> None:
        self.teacher_ids: list[int] = []
        self.teacher_spans: list[int] = []
        self.student_spans: list[int] = []
        self._spans = 0

    def prompt(self, ids: Sequence[int]) -> None:
        """What the teacher reads and is not asked about."""
        self.teacher_ids += ids
        self.teacher_spans += [0] * len(ids)

    def student(self, spans: Sequence[int]) -> None:
        """Tokens of the student's that are compared with nothing."""
        self.student_spans += spans

    def both(self, student: Sequence[int], teacher: Sequence[int], ids: Sequence[int], compared: bool) -> None:
        """Text that both have, with the number of the span of each token, from 0 on."""
        first = self._spans + 1
        self.teacher_ids += ids
        self.teacher_spans += [first + n if compared else 0 for n in teacher]
        self.student_spans += [first + n if compared else 0 for n in student]
        self._spans += 1 + max([*student, *teacher], default=0) if compared else 0

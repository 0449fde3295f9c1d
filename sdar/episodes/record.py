"""An episode as plain data, as it is written: `sdar.episodes.schema` says what each field is."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdar.episodes.digits import rounded
from sdar.episodes.schema import VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sdar.episodes.tokens import Kept
    from sdar.types import Episode, Turn


class Speller:
    """Texts of tokens; what was spelled once is remembered.

    Args:
        tokenizer: Whose tokens.
        offsets: Where each token begins in the text of several (`sdar.rollout.spans.token_offsets`).
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        offsets: "Callable[[Sequence[int], PreTrainedTokenizerBase], list[tuple[int, int]]]",
    ):
        self.tokenizer, self.offsets = tokenizer, offsets
        self._alone: dict[int, str] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """Of all of them, control tokens included."""
        key = tuple(ids)
        if key not in self._texts:
            self._texts[key] = str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
        return self._texts[key]

    def forget(self) -> None:
        """Texts of several tokens, which would become ever more."""
        self._texts.clear()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Of each; joined they are `text`. A character that several tokens spell stands at the last of them."""
        text = self.text(ids)
        for i in ids:
            if i not in self._alone:
                self._alone[i] = str(self.tokenizer.decode([i], skip_special_tokens=False))
        alone = [self._alone[i] for i in ids]
        if "".join(alone) == text:
            return alone
        starts = [first for first, _ in self.offsets(ids, self.tokenizer)]
        return [text[first:end] for first, end in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]


def record(
    e: "Episode", about: Mapping[str, Any] | None = None, number: int = 0, kept: "Kept | None" = None,
    student: Speller | None = None, teacher: Speller | None = None,
) -> dict[str, Any]:  # fmt: skip
    """An episode as plain data.

    Args:
        about: Fields of the episode that it does not know itself: run, iteration, panel.
        number: Its index in the iteration.
        kept: What a training step found out about its tokens.
        student: Spells the policy's tokens; None: there are no texts of tokens.
        teacher: Spells the teacher's.
    """
    told = {"privileged_text": e.privileged_text} if e.privileged else {}
    skills = {"skill_text": e.retrieval.text} if e.retrieval.text else {}
    return {
        "schema": VERSION,
        **(about or {}),
        "task": e.task.id,
        **({"world": e.task.world} if e.task.world else {}),
        "family": e.task.family,
        "instruction": e.task.instruction,
        "attempt": e.attempt,
        **({"extra": True} if e.extra else {}),
        "privileged": e.privileged,
        **told,
        "skills": list(e.retrieval.skill_ids),
        **skills,
        "status": str(e.status),
        "error": e.error,
        "success": e.success,
        "reward": e.reward,
        "scores": e.scores,
        "turns": [
            _turn(t, t.starts_row or k == 0 or bool(e.turn_messages), (kept or {}).get((number, k), {}), student, teacher)
            for k, t in enumerate(e.turns)
        ],
        "final_observation": e.final_observation,
    }


def _turn(
    t: "Turn", starts_row: bool, known: Mapping[str, Any], student: Speller | None, teacher: Speller | None
) -> dict[str, Any]:
    asked, starts_row = known.get("teacher_prompt_ids"), starts_row or "starts_row" in known
    texts = {} if student is None else {"prompt": student.text(t.prompt_ids), "pieces": student.pieces(t.response_ids)}
    return {
        "observation": t.observation,
        "response": t.text,
        "action": t.action,
        "valid": t.valid,
        "well_formed": t.well_formed,
        "tool_ok": t.tool_ok,
        "stopped": t.stopped,
        **({} if t.trainable else {"trainable": False}),
        **({"starts_row": True} if starts_row else {}),
        "reward": t.reward,
        "prompt_ids": t.prompt_ids,
        **({} if asked is None else {"teacher_prompt_ids": asked}),
        **({} if asked is None or teacher is None else {"teacher_prompt": teacher.text(asked)}),
        "response_ids": t.response_ids,
        **texts,
        "behaviour_logp": rounded(t.behaviour_logp),
        **({"kept_logmass": rounded(t.kept_logmass)} if any(t.kept_logmass) else {}),
        **{name: value for name, value in known.items() if name not in ("teacher_prompt_ids", "starts_row")},
    }

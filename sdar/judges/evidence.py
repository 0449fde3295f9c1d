"""A judge for models too small to follow a critic's prompt: the evidence that the answer gives for an action."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning.pytorch.utilities import rank_zero_warn

from sdar.parts import Environment, Judge, Placement, Policy, PrivilegedView
from sdar.registry import register
from sdar.rollout.chat import ChatFormat
from sdar.rollout.rows import add_teacher_view, collate, make_rows
from sdar.scoring import Reading, Scorer
from sdar.teachers.weights import check_same_vocabulary
from sdar.turns import Turns
from sdar.types import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@register("evidence")
class EvidenceJudge(Judge):
    """Good where a frozen model, told the gold answer, finds the action likelier than without it; ours, no paper's.

    The label is the sign of the mean log-ratio over the tokens of the turn. The model reads the policy's own ids, so it must have
    its tokenizer.

    Args:
        policy: Where the model comes from.
        placement: Where the gold answer stands in its prompt.
        heading: Line above it; empty for none.
        micro_batch_tokens: Most tokens in one forward pass.
    """

    policy: Policy

    def __init__(
        self, policy: Policy, placement: Placement = "system", heading: str = "", micro_batch_tokens: int = 16384
    ) -> None:
        self.policy: Policy = policy
        self.micro_batch_tokens = micro_batch_tokens
        self.view = _Answers(placement, heading)
        self.model: PreTrainedModel | None = None

    def check(self) -> None:
        if self.model is None:
            tokenizer = self.policy.load_tokenizer()
            self.chat = ChatFormat(tokenizer, self.policy.chat_options, self.policy.name)
            self.scorer = Scorer(1.0, (), len(tokenizer))
            self.model = self.policy.load_frozen()

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        own = self.policy.load_tokenizer().get_vocab()
        check_same_vocabulary(tokenizer.get_vocab(), name, own, self.policy.name, role="judge")

    def __call__(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float | None]]:
        self.check()
        assert self.model is not None
        labels: list[list[float | None]] = [[None] * len(e.turns) for e in episodes]
        rows = [r for r in make_rows(episodes) if any(r.response_mask)]
        if not rows:
            return labels
        self.view.solutions = {id(e): answer for e, answer in zip(episodes, solutions, strict=True)}
        contexts = [self.policy.context()] * len(episodes)
        nowhere = cast(Environment, None)  # the view reads no world
        too_long = add_teacher_view(rows, episodes, [[e] for e in episodes], self.chat, self.view, nowhere, contexts)
        rows = [row for place, row in enumerate(rows) if place not in too_long and len(row.ids) <= contexts[row.episode]]
        for message in [*too_long.values()][:1]:
            rank_zero_warn(f"{message} Its turns get no verdict (judge/unlabelled_share).")
        if not rows:
            return labels
        batch = collate(rows, episodes, range(len(episodes)))
        plain = Reading(batch.ids, batch.attention_mask, batch.response_mask)
        told = Reading(batch.teacher_ids, batch.teacher_attention_mask, batch.teacher_response_mask)
        without, with_it = self.scorer.score_together(self.model, [plain, told], self.micro_batch_tokens)
        evidence = -without.logp
        evidence[batch.response_mask] += with_it.logp[told.response_mask]
        turns = Turns(batch)
        for e, t, gap in zip(turns.episode.tolist(), turns.turn.tolist(), turns.mean(evidence).sign().tolist(), strict=True):
            labels[e][t] = gap
        return labels


class _Answers(PrivilegedView):
    """The gold answer of each episode."""

    solutions: dict[int, str]

    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: Environment | None) -> str:
        return self.solutions[id(episode)]

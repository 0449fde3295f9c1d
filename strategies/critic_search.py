"""CriticSearch: turn credit from a frozen critic that knows the answer (arXiv 2511.12159).

    label_k = +1 (Good) or -1 (Bad) for every turn, from a critic that reads the gold answer and the whole trajectory
    A_t = A_outcome + alpha * (label_k(t) - mean over the group's turns) / deviation

The sum is ours: the paper's text does not settle between it and (1 - alpha) A_outcome + alpha A_turn (``mix: convex``). One note
gives alpha 0.25.
"""

from typing import Literal

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import anchor_advantages
from sdar.parts import Judge, PrivilegedView, Retriever
from sdar.registry import part_name, register
from sdar.strategies.grpo import GRPO
from sdar.teachers import SolutionView
from sdar.turns import Turns
from sdar.types import Batch, Episode


@register("critic_search")
class CriticSearch(GRPO):
    """GRPO with turn advantages from a judge.

    Value:    that of GRPO.
    Gradient: -E[(A_outcome + turn_coef A_turn) grad student_logp], plus those of KL and entropy.

    Args:
        judge: Labels every turn, knowing the gold answer: a causal LM, an OpenAI-compatible endpoint, or a likelihood ratio.
        view: What the judge is told as the gold answer.
        retriever: Skills, for views that tell them.
        turn_coef: Weight of the turn advantages (alpha).
        mix: ``sum``: A_outcome + alpha A_turn; ``convex``: (1 - alpha) A_outcome + alpha A_turn.
    """

    def __init__(
        self,
        judge: Judge,
        view: PrivilegedView = lazy_instance(SolutionView),
        retriever: Retriever | None = None,
        turn_coef: float = 0.25,
        mix: Literal["sum", "convex"] = "sum",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not turn_coef >= 0 or (mix == "convex" and turn_coef > 1):
            raise ConfigError(
                f"model.turn_coef is {turn_coef} with mix {mix!r}: it is 0 or more, and at most 1 in a convex mix."
            )
        self.judge, self.view, self.retriever = judge, view, retriever
        self.turn_coef, self.mix = turn_coef, mix

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.judge.check_tokenizer(self.chat.tokenizer, self.policy.name)
        self.judge.check()

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        credited = super().credit(batch, episodes)
        if credited is None or self.turn_coef == 0 or credited.extra.all():  # a judge costs too much to be asked for nothing
            return credited
        batch = credited
        attempts = (~batch.extra).nonzero()[:, 0]  # extra episodes are compared with nothing
        compared = batch.select(attempts)
        turns = Turns(compared)
        seen = turns.episode.unique().tolist()
        answers = [self.view.text(episodes[e], (), 0, self.env_of(episodes[e].task)) for e in seen]
        if blank := [episodes[e].task.id for e, answer in zip(seen, answers, strict=True) if not answer.strip()]:
            raise ConfigError(
                f"{part_name(self.view)} has no gold answer for {len(blank)} of {len(seen)} tasks, such as {blank[0]}: the judge would "
                "guess. Use SolutionView in a world with solutions, or SkillView with a retriever that knows every task."
            )
        with self.metrics.timed("time/judge_s"):
            asked = list(zip((episodes[e] for e in seen), answers, strict=True))
            labels = self.ranks.map_over_ranks(
                lambda mine: self.judge(*zip(*mine, strict=True)) if mine else [], asked, "judge's labels"
            )
        of_episode = dict(zip(seen, labels, strict=True))
        said = [of_episode[e][t] for e, t in zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)]
        known = torch.tensor([label is not None for label in said])
        reward = torch.tensor([0.0 if label is None else label for label in said], dtype=torch.float32)
        advantage = torch.zeros(len(turns), dtype=torch.float32)
        group = compared.group[turns.row][known]  # as one state each: a label that is alone in its group says nothing
        advantage[known] = anchor_advantages(reward[known], group, torch.zeros_like(group), normalize_std=True)
        self.metrics.add("judge/label", float(reward.sum()), max(float(known.sum()), 1.0))
        self.metrics.add("judge/unlabelled_share", float((~known).sum()), len(known))
        self.compare_with_outcome(reward[known], compared.success[turns.row][known] > 0)
        kept = 1.0 if self.mix == "sum" else 1.0 - self.turn_coef
        advantages = kept * compared.advantages + self.turn_coef * turns.spread(advantage)
        batch.advantages[attempts, : advantages.shape[1]] = advantages
        return batch

    def compare_with_outcome(self, labels: Tensor, succeeded: Tensor) -> None:
        """Log how far labels ``[turns]`` go with whether their episode reached the goal: a critic that always says what most episodes are
        agrees with most of them, and its mean labels of both are equal."""
        decided = labels != 0
        self.metrics.add("judge/agreement", float(((labels > 0) == succeeded)[decided].sum()), float(decided.sum()))
        for name, those in (("success", succeeded), ("failure", ~succeeded)):
            self.metrics.add(f"judge/label_{name}", float(labels[those].sum()), float(those.sum()))

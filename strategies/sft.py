"""SFT: supervised fine-tuning on files of conversations and tool traces, the stage before reinforcement learning.

    L = mean over the tokens of the assistant's messages, end-of-turn tokens included, of -student_logp

What the assistant said is where the chat template says it (`sdar.data.transcripts`). Conversations come from a `ChatModule`; each is
one row, more where the template changes what was told (``split_rewritten``). The mean is over the tokens of the whole optimizer step,
so a long answer weighs more than a short one, and neither packing nor ranks change the gradient.
"""

from typing import cast

import torch
from torch import Tensor

from sdar.data import ChatModule, TaskBatch
from sdar.data.transcripts import Transcriber, Transcript
from sdar.errors import ConfigError
from sdar.evaluate.held_out import HeldOut
from sdar.imitation import Imitation
from sdar.registry import register
from sdar.rollout import collate, make_rows
from sdar.scoring import Scorer
from sdar.types import Batch, Episode, TeacherSignal


@register("sft")
class SFT(Imitation):
    """Cross-entropy on the assistant's side of conversations.

    Value and gradient: of the mean negative log-likelihood of its tokens, in nats, at temperature 1, over the whole vocabulary.

    Args:
        split_rewritten: Where the chat template tells the past otherwise than it was said, begin another row, as in rollouts; by default
            that is an error.
    """

    plays_attempts = False
    reads_chats = True
    """It learns from a `ChatModule`."""

    def __init__(self, split_rewritten: bool = False, **kwargs):
        super().__init__(**kwargs)
        if self.updates_per_rollout > 1 or self.rows_per_update is not None:
            raise ConfigError(
                f"model.updates_per_rollout is {self.updates_per_rollout} and rows_per_update {self.rows_per_update}: an optimizer step of "
                "SFT sees data.tasks_per_step conversations. Leave both out."
            )
        self.split_rewritten = split_rewritten
        self.transcripts: dict[str, Transcript] = {}

    @property
    def chats(self) -> ChatModule:
        return cast(ChatModule, self.tasks)

    def setup(self, stage: str) -> None:
        if not isinstance(data := getattr(self.trainer, "datamodule", None), ChatModule):
            raise ConfigError(
                "SFT learns from files of conversations: give `data: {class_path: ChatModule, init_args: {files: [...]}}`. To imitate a "
                "world's own expert use BehaviorCloning."
            )
        super().setup(stage)
        self.scorer = Scorer(1.0, (), self.scorer.vocab_size, packed=self.packed)
        self.transcripts = data.transcribe(Transcriber(self.chat, self.split_rewritten), self.context)
        self.validation = HeldOut(self, self.validation.rollout)

    def collect(self, task_batch: TaskBatch) -> list[Episode]:
        return [Episode(task, 0, self.transcripts[task.id].played()) for task in task_batch.tasks]

    def rows(self, episodes: list[Episode]) -> Batch | None:
        rows = [row for row in make_rows(episodes, "trajectory") if any(row.response_mask)]
        return collate(rows, episodes, range(len(episodes))) if rows else None

    def finish_iteration(self, episodes: list[Episode]) -> None:
        data = self.chats
        seen = min((self.iteration + 1) * data.tasks_per_step, (data.epochs or float("inf")) * len(data.train_panel))
        self.metrics.add("train/epoch", seen / len(data.train_panel))
        super().finish_iteration([])  # nobody played

    @torch.no_grad()
    def likelihood(self, task_batch: TaskBatch) -> Tensor:
        """``[4]``: the negative log-likelihood of the assistant's tokens in nats, how many were the likeliest of their places, how many
        there are, and how many conversations; in float64."""
        batch = self.rows(self.collect(task_batch))
        if batch is None:
            return torch.zeros(4, dtype=torch.float64)
        scored = self.scorer.score(
            self.model, batch.ids, batch.attention_mask, batch.response_mask, self.micro_batch_tokens,
            TeacherSignal.TOP_K, k=1, sharding=self.sharding, ranks=self.ranks,
        )  # fmt: skip
        assert scored.top_ids is not None, "TOP_K asks for them"
        nats = -scored.logp[batch.response_mask].double().sum()
        hits = (scored.top_ids[..., 0] == batch.ids)[batch.response_mask].sum()
        return torch.stack([nats, hits, batch.response_mask.sum(), torch.tensor(len(task_batch.tasks))]).double()

"""A frozen language model of our own as a judge: which of two words would it say?"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from sdar.errors import check_least
from sdar.judges import prompts
from sdar.parts import Judge, Policy
from sdar.registry import register
from sdar.rollout.chat import ChatFormat
from sdar.samplers.cache import CACHE
from sdar.types import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register("causal")
class CausalJudge(Judge):
    """A frozen causal language model: the sign of its log-odds between two words (after CriticSearch, arXiv 2511.12159).

    About each turn it is asked by itself, with everything that happened before and after in its prompt; both words are
    teacher-forced, so nothing is sampled and a verdict is always got. It is loaded once, when it is needed first, and is no
    part of checkpoints. Take a chat model, a reasoning model without its thinking (``chat_options: {enable_thinking: false}``).

    Args:
        policy: Where the model comes from.
        good, bad: The two words, as the model would begin its answer.
        sees: What it reads of each turn: ``response``, all that the agent said, thoughts too (the paper's whole trajectory), or
            ``action``, what the protocol made of it.
        template: What it is told, with ``{task}``, ``{solution}``, ``{turns}``, ``{question}``, ``{good}`` and ``{bad}`` in it; by
            default our own words.
        micro_batch_tokens: Most tokens in one forward pass over turns of an episode. Changes memory and speed only.
        device: Where it computes; by default the accelerator of the process, if there is one.
    """

    policy: Policy

    def __init__(
        self,
        policy: Policy,
        good: str = "Good",
        bad: str = "Bad",
        template: str | None = None,
        sees: prompts.Sees = "response",
        micro_batch_tokens: int = 16384,
        device: str | None = None,
    ):
        self.template = template or prompts.TEMPLATE
        prompts.check_wording(self.template, good, bad, sees)
        self.sees = sees
        check_least("judge", 1, micro_batch_tokens=micro_batch_tokens)
        self.policy: Policy = policy
        self.good, self.bad = good, bad
        self.micro_batch_tokens = micro_batch_tokens
        self.device = device
        self._loaded: tuple[PreTrainedModel, ChatFormat, int] | None = None

    def check(self) -> None:
        """Load the model now."""
        self._load()

    def __call__(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float | None]]:
        return [[_sign(odds) for odds in turns] for turns in self.log_odds(episodes, solutions)]

    def log_odds(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float]]:
        """``log p(good) - log p(bad)`` for each turn of each episode, in nats; NaN for the turns of an episode that does not fit the
        judge's context, of which a warning names the task. Nothing is cut."""
        model, chat, context = self._load()
        verdicts = [list(chat.encode_text(self.good)), list(chat.encode_text(self.bad))]
        odds = []
        for episode, solution in zip(episodes, solutions, strict=True):
            questions = [self._prompt(chat, episode, solution, turn) for turn in range(1, len(episode.turns) + 1)]
            longest = max(map(len, questions), default=0) + max(map(len, verdicts))
            if questions and longest > context:
                rank_zero_warn(
                    f"the judge reads {longest} tokens about task {episode.task.id} ({len(questions)} turns), but the context of "
                    f"{self.policy.name} is {context}: a judge that misses turns would judge something else, so nothing is cut. "
                    "They get no verdict (judge/unlabelled_share). Use a judge with a longer context, or shorter episodes."
                )
                odds.append([math.nan] * len(questions))
                continue
            odds.append(self._episode_log_odds(model, questions, verdicts))
        chat.encode_text.cache_clear()  # every prompt is long and asked once
        return odds

    def _load(self) -> tuple["PreTrainedModel", ChatFormat, int]:
        if self._loaded is None:
            chat = ChatFormat(self.policy.load_tokenizer(), self.policy.chat_options, self.policy.name)
            device = self.device or torch.accelerator.current_accelerator() or "cpu"
            model: Any = self.policy.load_frozen()
            self._loaded = model.to(device), chat, self.policy.context()
        return self._loaded

    def _prompt(self, chat: ChatFormat, episode: Episode, solution: str, turn: int) -> list[int]:
        words = {"good": self.good, "bad": self.bad, "turn": turn}
        text = prompts.told(self.template, episode, solution, prompts.TURN_QUESTION, self.sees, **words)
        return chat.prompt([{"role": "user", "content": text}])

    @torch.no_grad()
    def _episode_log_odds(
        self, model: "PreTrainedModel", questions: list[list[int]], verdicts: list[list[int]]
    ) -> list[float]:
        """The beginning that all questions share is read once. A word's last token is predicted but never read, so that two
        words of one token need only one row a question."""
        if not questions:
            return []
        asked = defaultdict(list)  # what is read -> which words it predicts, for which turn
        for turn, question in enumerate(questions):
            for verdict, factor in zip(verdicts, (1, -1), strict=True):
                asked[(*question, *verdict[:-1])].append((turn, verdict, factor))
        by_length = defaultdict(list)
        for row in asked:
            by_length[len(row)].append(row)
        device = next(model.parameters()).device
        most = min(map(len, questions)) - 1  # the last token of a question predicts
        shared = next((n for n, tokens in enumerate(zip(*questions, strict=False)) if len(set(tokens)) > 1), most)
        shared = min(shared, most)
        odds = [0.0] * len(questions)
        with torch.autocast(device.type, enabled=False):  # a verdict must not depend on who asks
            told = torch.tensor([questions[0][:shared]], device=device)
            cache = getattr(model(input_ids=told, use_cache=True, logits_to_keep=1), CACHE)
            for length, rows in by_length.items():  # no padding, no mask
                size = max(1, self.micro_batch_tokens // length)
                for piece in (rows[n : n + size] for n in range(0, len(rows), size)):
                    branches = copy.deepcopy(cache)
                    branches.reorder_cache(torch.zeros(len(piece), dtype=torch.long, device=device))  # the only row, repeated
                    rest = torch.tensor([row[shared:] for row in piece], device=device)
                    keep = max(map(len, verdicts))
                    logits = model(input_ids=rest, use_cache=True, logits_to_keep=keep, **{CACHE: branches}).logits
                    for row, logp in zip(piece, logits.float().log_softmax(-1), strict=True):
                        for turn, verdict, factor in asked[row]:
                            ids = torch.tensor(verdict, device=device)[:, None]
                            odds[turn] += factor * float(logp[-len(verdict) :].gather(1, ids).sum())
        return odds


def _sign(odds: float) -> float | None:
    """None for what is not a number."""
    return None if odds != odds else float((odds > 0) - (odds < 0))

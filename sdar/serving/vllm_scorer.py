"""How vLLM scores rows: its prefill makes the logits of every place of a prompt, our density is read off them there.

What vLLM tells of a prompt's tokens by itself is the raw softmax over the whole head: temperature 1, nothing forbidden, padded rows
counted; logits processors never see those places. But its sampler picks what goes into the answer (``Sampler.gather_logprobs``), and
what is picked here is the log-probability of the token and of the likeliest ones in the density that is trained. Needs vLLM.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors

from sdar.samplers.density import truncate
from sdar.serving.protocol import Scores, Scoring

LEAST = 3
"""``prompt_logprobs`` is this and the number of likeliest tokens: samples ask for 2, so that the two cannot be taken for each other."""
CHUNK = 128
"""Places whose density is made at a time, in float64."""


class PromptScores:
    """In the place of a sampler's ``gather_logprobs``; what is no request for scores passes through.

    Attributes:
        scoring: The density of all requests for scores that vLLM works on.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        self.scoring: Scoring | None = None

    def __call__(self, logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> LogprobsTensors:
        """Names are vLLM's; with ``logprobs_mode="processed_logits"`` the first argument holds logits ``[places, vocab]``."""
        logits, columns, tokens = logprobs, num_logprobs, token_ids
        if columns < LEAST:
            return self.inner(logits, columns, tokens)
        s = self.scoring
        assert s is not None and columns == LEAST + s.top_k, "requests of one density at a time"
        mask = torch.zeros(s.vocab_size, dtype=torch.bool)
        mask[list(s.forbidden_ids)] = True
        forbidden = mask.to(logits.device) if s.forbidden_ids else None
        ids = torch.zeros(len(tokens), columns + 1, dtype=torch.int32, device=logits.device)
        logp = torch.zeros(ids.shape, device=logits.device)
        for part in torch.arange(len(tokens), device=logits.device).split(CHUNK):
            density, _ = truncate(logits[part, : s.vocab_size], s.temperature, 0, 1.0, forbidden)
            density = density.clamp_min(torch.finfo(torch.float32).min)  # as in `vocabulary_log_probs`
            sampled = tokens[part].clamp_max(s.vocab_size - 1)  # others stand in prompts only, and are not told
            top = density.topk(s.top_k)
            ids[part, : 1 + s.top_k] = torch.cat([sampled[:, None], top.indices], 1).int()
            logp[part, : 1 + s.top_k] = torch.cat([density.gather(1, sampled[:, None]), top.values], 1).float()
        return LogprobsTensors(ids, logp, torch.zeros(len(tokens), dtype=torch.int32, device=logits.device))


def install(worker: Any) -> PromptScores:
    """Put it into a worker of this process."""
    sampler = worker.model_runner.sampler
    sampler.gather_logprobs = PromptScores(sampler.gather_logprobs)
    return sampler.gather_logprobs


def scores_of(flat: Any, spans: tuple[tuple[int, int], ...], top_k: int) -> Scores:
    """The scored tokens of a row from vLLM's flat prompt log-probabilities, which have an entry (empty: the first) for each token."""
    places = [place for begin, end in spans for place in range(begin, end)]
    rows = [slice(flat.start_indices[p], flat.start_indices[p] + 1 + top_k) for p in places]
    ids = torch.tensor([flat.token_ids[r] for r in rows], dtype=torch.long).reshape(len(rows), 1 + top_k)
    logp = torch.tensor([flat.logprobs[r] for r in rows]).reshape(len(rows), 1 + top_k)
    return Scores(logp[:, 0], ids[:, 1:], logp[:, 1:])

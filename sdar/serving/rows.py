"""A request for scores, answered by a transformers model in this process: the scores are those of `sdar.scoring.Scorer`."""

from typing import TYPE_CHECKING

import torch

from sdar.scoring import Scorer
from sdar.serving.protocol import ScoreRequest, Scores
from sdar.types import TeacherSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_rows(network: "PreTrainedModel", request: ScoreRequest, max_tokens: int) -> list[Scores]:
    """Scores in the order of the rows.

    Args:
        max_tokens: Most tokens (padding included) in one forward pass.
    """
    if not request.rows:
        return []
    ids = torch.zeros(len(request.rows), max(map(len, request.rows)), dtype=torch.long)
    attention, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, spans) in enumerate(zip(request.rows, request.responses, strict=True)):
        ids[i, : len(row)], attention[i, : len(row)] = torch.tensor(row), 1
        for begin, end in spans:
            scored[i, begin:end] = True
    s = request.scoring
    signal = TeacherSignal.TOP_K if s.top_k else TeacherSignal.SAMPLED
    scorer = Scorer(s.temperature, s.forbidden_ids, s.vocab_size)
    found = scorer.score(network, ids, attention, scored, max_tokens, signal, s.top_k)
    nothing = found.logp.new_zeros(*ids.shape, 0)
    top_ids, top_logp = (nothing if t is None else t for t in (found.top_ids, found.top_logp))
    return [Scores(found.logp[i, m], top_ids[i, m].long(), top_logp[i, m]) for i, m in enumerate(scored)]

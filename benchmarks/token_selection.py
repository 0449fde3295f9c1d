"""What TIP saves: forward and backward pass of a full-vocabulary distillation on a share of the response tokens.

`python benchmarks/token_selection.py` prints, for each share, time in ratio to all tokens: median and spread of several repeats that
take turns. A model of two small layers with a vocabulary of 32,000, where the head is most of the work as in a large one's memory.
"""

import statistics
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sdar.divergences import ReverseKL
from sdar.scoring import Scorer, score_with_teachers
from sdar.types import Batch, TeacherSignal, TokenView

REPEATS, SHARES = 7, (1.0, 0.5, 0.25, 0.1)
ROWS, TIME, VOCAB = 4, 256, 32_000


def step(scorer: Scorer, model: Qwen3ForCausalLM, batch: Batch, heads: list, kept: torch.Tensor) -> float:
    """Seconds of one forward and backward pass over the kept tokens."""
    model.zero_grad()
    began = time.process_time()
    now = scorer(model, batch.ids, batch.attention_mask, kept)
    zero = torch.zeros_like(now.logp)
    tokens = TokenView(
        student_logp=zero, teacher_logp=zero, gap=zero, entropy=zero, response_mask=kept, turn_ids=batch.turn_ids, advantages=zero,
        vocab_size=VOCAB, ids=batch.ids,
    )  # fmt: skip
    everything = torch.ones(len(batch), dtype=torch.bool)
    teachers = [(heads[0], batch.teacher_hidden, everything)]
    (now.compare(ReverseKL(), tokens, teachers).sum() / kept.sum()).backward()
    return time.process_time() - began


def main() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, intermediate_size=256, tie_word_embeddings=True, **size))
    scorer = Scorer(1.0, (), VOCAB, chunk=256)
    ids = torch.randint(0, VOCAB, (ROWS, TIME))
    mask, ones, zeros = torch.ones_like(ids).bool(), torch.ones_like(ids), torch.zeros_like(ids)
    mask[:, :16] = False
    row = torch.zeros(ROWS)
    batch = Batch(
        ids, ones, mask, zeros, zeros.float(), zeros.float(), zeros, row.long(), row.long(), row, row, row > 0, row > 0
    )
    batch.teacher_ids, batch.teacher_attention_mask, batch.teacher_response_mask = ids, ones, mask
    heads = score_with_teachers(batch, [model] * ROWS, scorer, ROWS * TIME, TeacherSignal.FULL, 0)
    chosen = {share: mask & (torch.rand(mask.shape) < share) for share in SHARES}
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    for _ in range(REPEATS):
        for share in SHARES:
            seconds[share].append(step(scorer, model, batch, heads, chosen[share]))
    for share in SHARES:
        ratios = [own / whole for own, whole in zip(seconds[share], seconds[1.0], strict=True)]
        median, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{share:4.0%} of the tokens: {median:.2f} of the time ({spread}), {statistics.median(seconds[share]):.2f} s")


if __name__ == "__main__":
    main()

"""Log-probabilities and entropies of response tokens under any causal language model of transformers."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sdar.errors import PolicyError
from sdar.functional import TokenStats, chunked_token_stats


class Scorer:
    """Scores response tokens in the density that is trained: tempered, without forbidden ids, no id beyond the tokenizer.

    Only hidden states that predict a response token pass through the head, in chunks.

    Args:
        temperature: That of the sampler, on student and teacher alike.
        forbidden_ids: What a turn may not emit.
        vocab_size: ``len(tokenizer)``; rows that pad the embedding never count.
        chunk: Tokens per piece of the head.
    """

    def __init__(self, temperature: float, forbidden_ids: Sequence[int], vocab_size: int, chunk: int = 1024):
        self.temperature = temperature or 1.0  # a greedy rollout is trained at temperature 1
        self.forbidden_ids = tuple(forbidden_ids)
        self.vocab_size = vocab_size
        self.chunk = chunk

    def __call__(self, model: nn.Module, ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> TokenStats:
        """Per token ``[batch, time]``, aligned with `ids`; zero outside of the response. Carries the model's gradient."""
        predicts = response_mask[:, 1:].bool()  # position t is predicted by the hidden state at t - 1
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        hidden = model.base_model(input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        head = model.get_output_embeddings()
        stats = chunked_token_stats(
            hidden.last_hidden_state[:, :-1][predicts],
            head.weight[: self.vocab_size],
            ids[:, 1:][predicts],
            bias=None if head.bias is None else head.bias[: self.vocab_size],
            temperature=self.temperature,
            forbidden_ids=self.forbidden_ids,
            softcap=getattr(model.config.get_text_config(), "final_logit_softcapping", None),
            chunk=self.chunk,
        )
        return TokenStats(*(_spread(values, predicts) for values in stats))

    @torch.no_grad()
    def score(
        self, model: nn.Module, ids: Tensor, attention_mask: Tensor, response_mask: Tensor, max_tokens: int
    ) -> TokenStats:
        """The same without a gradient, in micro-batches of at most `max_tokens` tokens; on the device of the inputs."""
        device = next(model.parameters()).device
        out: list[Tensor] | None = None
        for rows in micro_batches(attention_mask.sum(1), max_tokens):
            length = int(attention_mask[rows].sum(1).max())
            part = (t[rows, :length].to(device) for t in (ids, attention_mask, response_mask))
            stats = self(model, *part)
            out = out or [values.new_zeros(ids.shape, device=ids.device) for values in stats]
            for whole, values in zip(out, stats, strict=True):
                whole[rows, :length] = values.to(ids.device)
        return TokenStats(*out)

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Compare with the model's own logits on a few tokens: a head that scales its logits would be scored wrongly.

        Raises:
            PolicyError: more than 1e-3 nats and what rounding explains apart.
        """
        device = next(model.parameters()).device
        ids = torch.arange(8, device=device)[None] % self.vocab_size
        ones = torch.ones_like(ids)
        plain = Scorer(1.0, (), self.vocab_size)(model, ids, ones, ones).logp[0, 1:]
        logits = model(input_ids=ids).logits[0, :-1, : self.vocab_size].float()
        own = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        off = float((plain - own).abs().max())
        precision = torch.finfo(next(model.parameters()).dtype).eps
        rounding = 4 * precision * float(logits.abs().max())  # of the model's own logits: 0.8 at a logit of 25 in bfloat16
        if not off < 1e-3 + rounding:
            raise PolicyError(
                f"{type(model).__name__}: log-probabilities from hidden states differ from the model's own by {off:.3g} nats, "
                "so its head does more than a matrix product (and soft cap). This architecture is not supported yet."
            )


def _spread(values: Tensor, predicts: Tensor) -> Tensor:
    """Put per-token values back to ``[batch, time]``."""
    out = values.new_zeros(predicts.shape[0], predicts.shape[1] + 1)
    index = predicts.nonzero(as_tuple=True)
    return out.index_put((index[0], index[1] + 1), values)


def micro_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Row indices in pieces of similar length, each at most `max_tokens` tokens after padding (or a single row)."""
    order = lengths.argsort(stable=True, descending=True).tolist()
    piece: list[int] = []
    for row in order:
        if piece and int(lengths[piece[0]]) * (len(piece) + 1) > max_tokens:
            yield torch.tensor(piece)
            piece = []
        piece.append(row)
    if piece:
        yield torch.tensor(piece)

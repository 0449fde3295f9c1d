"""The logits processor through which vLLM samples what `TorchSampler` samples. Imported by vLLM, by name; needs vLLM.

It takes the whole decision: truncates as `sdar.samplers.density.truncate` does, draws the token with the request's named random
number, and leaves vLLM's greedy sampler one choice. Both densities travel back in vLLM's own answer, as the logits of the chosen
token (its log-probability) and of a neighbour (lower by one and by the kept log-mass), with ``logprobs_mode="processed_logits"``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from sdar.parts import SampleKey
from sdar.samplers.density import inverse_cdf, truncate, uniform
from sdar.serving.protocol import Sampling

KEY = "sdar"
"""In ``SamplingParams.extra_args``: (`Sampling`, `SampleKey`)."""


@dataclass
class _Row:
    sampling: Sampling
    key: SampleKey
    output: list[int]
    """vLLM's own list, which grows."""


class DrawProcessor(LogitsProcessor):
    """See above; requests without our arguments pass unchanged."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool):
        self.rows: dict[int, _Row] = {}
        self._settings: dict[Sampling, tuple[Sampling, Tensor | None]] = {}
        self._device = device

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def _row(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Row | None:
        given = (params.extra_args or {}).get(KEY)
        if given is None:
            return None
        sampling, key = given
        if sampling not in self._settings:
            forbidden = None
            if sampling.forbidden_ids:
                forbidden = torch.zeros(sampling.vocab_size, dtype=torch.bool)
                forbidden[list(sampling.forbidden_ids)] = True
                forbidden = forbidden.to(self._device)
            self._settings[sampling] = (sampling, forbidden)
        return _Row(self._settings[sampling][0], key, output)

    def apply(self, logits: Tensor) -> Tensor:
        together: dict[int, list[int]] = {}
        for index, row in self.rows.items():
            together.setdefault(id(row.sampling), []).append(index)
        for indices in together.values():
            rows = [self.rows[i] for i in indices]
            sampling, forbidden = self._settings[rows[0].sampling]
            at = torch.tensor(indices, device=logits.device)
            log_density, kept = truncate(
                logits[at, : sampling.vocab_size], sampling.temperature, sampling.top_k, sampling.top_p, forbidden
            )
            numbers = [uniform(row.key, len(row.output)) for row in rows]
            chosen = inverse_cdf(log_density, torch.tensor(numbers, dtype=torch.float64, device=logits.device))
            logp = log_density.gather(-1, chosen[:, None])[:, 0]
            neighbour = (chosen == 0).long()
            logits[at] = -torch.inf
            logits[at, chosen] = logp.to(logits.dtype)
            logits[at, neighbour] = (logp + kept - 1.0).to(logits.dtype)
        return logits


def densities(token: int, ids: list[int], values: list[float]) -> tuple[float, float]:
    """Log-probability and kept log-mass of a token from the two logits that came back."""
    logp = values[ids.index(token)]
    neighbour = next(v for i, v in zip(ids, values, strict=True) if i != token)
    return min(logp, 0.0), min(neighbour - logp + 1.0, 0.0)

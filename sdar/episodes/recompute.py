"""The loss of an iteration from what was stored of it: whether the numbers of the tokens explain what was trained on.

    loss = mean over the optimizer steps of  (1 / normalizer) sum_t loss_t
    loss_t = importance_t (policy_coef surrogate_t + kl_coef k3_t - entropy_coef entropy_t) + weight_t divergence_t

The surrogate is made anew from student_logp, old_logp and advantage; a divergence that needs more of the teacher than the sampled token
is taken as it was stored.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdar.episodes.schema import StoredEpisode, StoredTurn
from sdar.errors import ConfigError
from sdar.functional import k3
from sdar.registry import load_parts, parts

KNOWN = {
    *("policy_coef", "policy_loss", "kl_coef", "kl_clamp", "entropy_coef", "transforms", "likelihood_coef"),
    *("distill_coef", "divergence", "gate", "ratio_cap"),
}
"""What an objective may hold that `recomputed_loss` knows of."""


def recomputed_loss(episodes: Sequence[StoredEpisode]) -> float:
    """The loss of one iteration from the parts of its tokens' losses; ``train/loss`` is what was logged.

    Args:
        episodes: All that were written of the iteration.

    Raises:
        ConfigError: they are of several iterations; no number of an optimizer step was stored; a method has a term that the stored
            numbers do not hold (`stored_loss` takes the tokens' losses as they are).
    """
    return _mean_over_updates(episodes, _token_losses)


def stored_loss(episodes: Sequence[StoredEpisode]) -> float:
    """The same from the losses of the tokens, whatever they are made of."""
    return _mean_over_updates(episodes, lambda e, row: _tensor(row, "loss").nan_to_num())


def _mean_over_updates(episodes: Sequence[StoredEpisode], losses: Any) -> float:
    if len({(e.run, e.iteration) for e in episodes}) > 1:
        raise ConfigError(
            "these episodes are of several iterations or runs, and each has a loss of its own: read one of them."
        )
    sums: dict[int, float] = defaultdict(float)
    for e in episodes:
        for row in _rows(e):
            update, normalizer = row[0].update, row[0].normalizer
            if update is not None and normalizer is not None:
                sums[update] += float(losses(e, row).double().sum()) / normalizer
    if not sums:
        raise ConfigError(
            "no optimizer step learned from these episodes, or it is not stored: those of a validation have no loss, nor have those of "
            "before version 2 of the schema."
        )
    return sum(sums.values()) / len(sums)


def _rows(e: StoredEpisode) -> Iterator[list[StoredTurn]]:
    """The turns of each training row that have numbers; surrogates may be about rows."""
    row: list[StoredTurn] = []
    for turn in e.turns:
        if turn.starts_row and row:
            yield row
            row = []
        if turn.student_logp is not None:
            row.append(turn)
    if row:
        yield row


def _policy_loss(name: str) -> Any:
    load_parts()
    known = {cls.__name__: cls for cls in parts("policy_losses").values()}
    if name not in known:
        raise ConfigError(f"{name} is no policy loss that is known here: import the package that has it first.")
    return known[name]


def _tensor(row: Sequence[StoredTurn], name: str, default: float | None = None) -> Tensor:
    """``[1, time]`` of the response tokens of a row, NaN where there is no number."""
    found: list[float] = []
    for turn in row:
        values = getattr(turn, name)
        if values is None:
            values = [default] * len(turn.response_ids)
        found += [torch.nan if v is None else v for v in values]
    return torch.tensor(found, dtype=torch.float64)[None]


def _token_losses(e: StoredEpisode, row: Sequence[StoredTurn]) -> Tensor:
    terms = e.objective
    if terms is None or (unknown := terms.keys() - KNOWN):
        lacking = ", ".join(sorted(unknown)) if terms else "parts"
        raise ConfigError(
            f"the loss of {e.method} has {lacking}, which cannot be made again from the numbers of its tokens. `stored_loss` adds up the "
            "tokens' losses as they are."
        )
    student, mask = _tensor(row, "student_logp"), ~_tensor(row, "loss").isnan()
    total = torch.zeros_like(student)
    if "policy_loss" in terms and not e.extra:
        told = dict(terms["policy_loss"])
        surrogate = _policy_loss(told.pop("part"))(**told)
        total = terms["policy_coef"] * surrogate(student, _tensor(row, "old_logp"), _tensor(row, "advantage"), mask)
        if terms["kl_coef"]:
            total = total + terms["kl_coef"] * k3(_tensor(row, "ref_logp"), student, terms["kl_clamp"])
        total = total - terms["entropy_coef"] * _tensor(row, "entropy")
        total = total * _tensor(row, "importance", 1.0)
    if "likelihood_coef" in terms:
        total = total - terms["likelihood_coef"] * student
    if row[0].divergence is not None:
        total = total + (_tensor(row, "weight") * _tensor(row, "divergence")).nan_to_num()
    return total.where(mask, 0.0)

"""Advantage transforms: the teacher changes what a token or a turn is credited with, and no loss is added.

All results are detached. An advantage per row, ``[batch]`` beside ``[batch, time]`` log-probabilities, counts for all tokens
of the row. ``[turns]`` is ordered by trajectory and then by time; equal `trajectory_ids` are consecutive.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.advantages import discounted_returns
from sdar.functional.gates import log_prob_gap
from sdar.functional.policy_gradient import MAX_LOG_RATIO, per_token
from sdar.functional.precision import widen
from sdar.functional.turns import FLAT, discounted_sums, trajectory_bounds, trajectory_index

MIN_PRIOR = 1e-3
"""A prior belief is kept this far from 0 and 1, whose log-odds are infinite."""


def rlsd_advantages(
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch time"],
    teacher_logp: Float[Tensor, "batch time"],
    student_logp: Float[Tensor, "batch time"],
    lam: float,
    clip: float,
) -> Float[Tensor, "batch time"]:
    """A [(1 - lam) + lam w], w = clamp(exp(sign(A) gap), 1 - clip, 1 + clip): RLSD (arXiv 2604.03128). ``[batch, time]``.

    Where the teacher agrees with the sign of the advantage (it endorses a token of a good attempt, rejects one of a bad
    attempt) the token counts more, else less; it never changes sign. lam = 0 changes nothing.

    Args:
        advantages: ``[batch]`` or ``[batch, time]``.

    Raises:
        ConfigError: lam or clip outside of [0, 1].
    """
    _check_band("clip", clip)
    # Bounded, or the zero of no advantage times the -inf of an impossible token would be NaN.
    gap = log_prob_gap(teacher_logp, student_logp).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    sign = per_token(advantages, gap).sign()
    return mix_advantages(advantages, (sign * gap).exp().clamp(1 - clip, 1 + clip), lam)


def additive_gap(
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch time"],
    teacher_logp: Float[Tensor, "batch time"],
    student_logp: Float[Tensor, "batch time"],
    coef: float,
    weights: Float[Tensor, "batch time"] | None = None,
    max_gap: float | None = None,
) -> Float[Tensor, "batch time"]:
    """A + coef w gap, gap = teacher - student in nats: distillation as a reward. ``[batch, time]``.

    Under a policy gradient this descends coef KL(student || teacher). OPD, TCOD (arXiv 2604.24005): w = 1; SOD
    (arXiv 2605.07725): `stepwise_weights`; ATOD (arXiv 2606.27814): `atod_turn_weights`.

    Args:
        advantages: ``[batch]`` or ``[batch, time]``.
        weights: ``[batch, time]``; 1 if none are given.
        max_gap: Bound of the absolute gap, in nats; None: none.
    """
    gap = log_prob_gap(teacher_logp, student_logp).detach()
    if max_gap is not None:
        gap = gap.clamp(-max_gap, max_gap)
    if weights is not None:
        gap = widen(weights).detach() * gap
    return per_token(advantages, gap) + coef * gap


def gap_returns(
    gap: Float[Tensor, "batch time"],
    response_mask: Shaped[Tensor, "batch time"],
    turn_ids: Int[Tensor, "batch time"],
    trajectory_ids: Int[Tensor, " batch"],
    discount: float,
) -> Float[Tensor, "batch time"]:
    """G_t = gap_t + discount G_{t+1} over the response tokens of each trajectory, 0 outside of the mask. ``[batch, time]``, detached.

    What a token is worth if the gaps that follow it are its doing, too: 0 is the token level, 1 the sequence level ("Revisiting OPD",
    arXiv 2603.25562). t + 1 is the trajectory's next response token, in the next turn where a turn is over; what the world says
    between them neither counts nor discounts.

    Value:    as an advantage, on-policy, its mean over first tokens at 1 is -KL(student || teacher) of whole trajectories: what the
              world says has the same probability on both sides.
    Gradient: minus that of the sum of G_t student_logp_t is, on-policy, that of the KL of whole trajectories at 1. At 0 it is the sum
              over the places that were visited of the gradient of their own KL, as if no token led anywhere; between, what a token
              leads to counts discount^k after k tokens.

    Args:
        gap: teacher - student in nats, or what is made of it; what it holds outside of the mask does not matter.
        turn_ids: ``[batch, time]`` integers that grow with time; a turn stands in one row.
        trajectory_ids: ``[batch]`` integers; a trajectory's rows may stand in any order.

    Raises:
        ConfigError: a discount outside of [0, 1].
    """
    mask = response_mask.bool()
    trajectory, turn = (torch.unique(ids, return_inverse=True)[1] for ids in (trajectory_ids, turn_ids))
    keys = torch.stack([trajectory[:, None].expand_as(turn)[mask], turn[mask]])
    order = (keys[0] * (turn.max() + 1) + keys[1]).argsort(stable=True)
    values = widen(gap).detach()
    returns = torch.zeros_like(values[mask])
    returns[order] = discounted_returns(values[mask][order], keys[0][order], discount)
    return torch.zeros_like(values).masked_scatter(mask, returns)


def belief_revision(
    evidence: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"], prior: Float[Tensor, " turns"], decay: float
) -> Float[Tensor, " turns"]:
    """B_k - B_{k-1}: how a turn changes the belief in success, AgentOPSD (arXiv 2608.05987). ``[turns]`` in (-1, 1).

    c_k = decay c_{k-1} + e_k, B_k = sigmoid(logit(prior) + c_k), B_0 = prior. The revisions of a trajectory sum to what the
    belief ends with minus the prior. The paper has decay 0.95; 1 forgets nothing.

    The prior is the group's success *rate*. The published code takes the mean return instead: with a reward of 10 for success
    any group that solves a tenth of its attempts is at the upper bound, where no evidence moves the belief. A prior that is
    no rate is therefore an error.

    Args:
        evidence: e_k, the sum of teacher - student over the turn's response tokens, in nats.
        prior: ``[turns]``, the same for all turns of a trajectory; kept in [1e-3, 1 - 1e-3].

    Raises:
        ConfigError: a decay outside of [0, 1].
        ValueError: a prior outside of [0, 1]; a trajectory in several pieces.
    """
    outside = ~((prior >= 0) & (prior <= 1))
    if bool(outside.any()):
        turn = int(outside.nonzero()[0])
        raise ValueError(
            f"the prior of turn {turn} is {prior[turn].item():g}: it is the probability of success before the first turn. "
            "Pass the success rate of the turn's group, not its mean return."
        )
    log_odds = prior.detach().double().clamp(MIN_PRIOR, 1 - MIN_PRIOR).logit()
    total = discounted_sums(evidence.double(), trajectory_ids, decay)
    belief = torch.sigmoid(log_odds + total)
    _, counts = trajectory_index(trajectory_ids)
    before = belief.roll(1)
    first = counts.cumsum(0) - counts
    before[first] = torch.sigmoid(log_odds[first])
    return (belief - before).to(widen(evidence).dtype)


def trajectory_zscore(values: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"]) -> Float[Tensor, " turns"]:
    """(v - mean) / std over the turns of each trajectory, std the biased one. ``[turns]``.

    0 where the values of a trajectory are less than 1e-8 apart, as in a trajectory of one turn; that bound is ours.
    """
    wide = values.detach().double()
    low, high = trajectory_bounds(wide, trajectory_ids)
    index, counts = trajectory_index(trajectory_ids)
    zero = wide.new_zeros(len(counts))
    centred = wide - (zero.index_add(0, index, wide) / counts)[index]
    std = (zero.index_add(0, index, centred.square()) / counts).sqrt()[index]
    return (centred / std).where(high - low >= FLAT, 0.0).to(widen(values).dtype)


def agent_opsd_weights(
    advantages: Float[Tensor, "..."], revision_z: Float[Tensor, "*tokens"], band: float
) -> Float[Tensor, "*tokens"]:
    """clamp(1 + band sign(A) z, 1 - band, 1 + band), AgentOPSD (arXiv 2608.05987); for `mix_advantages`.

    A turn after which success became more likely counts more in a good attempt and less in a bad one.

    Args:
        advantages: shaped like `revision_z`, or one per row of it.
        revision_z: `trajectory_zscore` of `belief_revision`, ``[turns]`` or spread over tokens.

    Raises:
        ConfigError: a band outside of [0, 1].
    """
    _check_band("band", band)
    z = widen(revision_z).detach()
    return (1 + band * per_token(advantages, z).sign() * z).clamp(1 - band, 1 + band)


def mix_advantages(
    advantages: Float[Tensor, "..."], weights: Float[Tensor, "*tokens"], lam: float
) -> Float[Tensor, "*tokens"]:
    """A [(1 - lam) + lam w], shaped like the weights.

    Raises:
        ConfigError: a lam outside of [0, 1].
    """
    if not 0 <= lam <= 1:
        raise ConfigError(
            f"lam is {lam}: it is the share of the advantage that the weights scale. Use a number from 0 to 1, e.g. 0.5."
        )
    return per_token(advantages, weights) * ((1 - lam) + lam * widen(weights).detach())


def _check_band(name: str, width: float) -> None:
    if not 0 <= width <= 1:
        raise ConfigError(
            f"{name} is {width}: weights are kept in [1 - {name}, 1 + {name}], and a negative one would turn the advantage "
            "around. Use a number from 0 to 1, e.g. 0.2."
        )

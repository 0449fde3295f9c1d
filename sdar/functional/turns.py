"""From tokens to turns and back, and weights of turns.

``[turns]`` has one element per turn of all trajectories, ordered by trajectory and then by time; equal `trajectory_ids`, which
are any integers, are consecutive. Weights are detached.
"""

import torch
from jaxtyping import Bool, Float, Int, Real, Shaped
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen

FLAT = 1e-8
"""Values of a trajectory that are less than this apart count as equal."""


def turn_mean(
    values: Float[Tensor, "batch time"], response_mask: Shaped[Tensor, "batch time"], turn_ids: Int[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Each response token gets the mean of `values` over the response tokens of its turn; other tokens get 0.

    Differentiable in `values`. Turn ids are any integers; what they and `values` hold outside of the mask does not matter.
    """
    mask = response_mask.bool()
    turns, index = torch.unique(turn_ids, return_inverse=True)
    values = widen(values).where(mask, 0.0)
    zero = values.new_zeros(values.shape[0], turns.shape[0])
    total = zero.scatter_add(1, index, values)
    count = zero.scatter_add(1, index, mask.to(values.dtype))
    return (total / count.clamp_min(1)).gather(1, index).where(mask, 0.0)


def stepwise_weights(
    student_logp: Float[Tensor, "batch time"],
    teacher_logp: Float[Tensor, "batch time"],
    response_mask: Shaped[Tensor, "batch time"],
    turn_ids: Int[Tensor, "batch time"],
    epsilon: float = 1e-6,
    delta: float = 0.2,
) -> Float[Tensor, "batch time"]:
    """SOD's weight of each response token's turn (arXiv 2605.07725), 0 outside of the mask. Detached.

    `stepwise_turn_weights` of d_k, the mean |student - teacher| in nats over the response tokens of turn k. A row is a
    trajectory; its first turn is the one of its first response token. Where each turn is a row of its own every weight is
    1: use `stepwise_turn_weights` there. What lies outside of the mask does not matter.
    """
    mask = response_mask.bool()
    divergence = turn_mean((widen(student_logp) - widen(teacher_logp)).detach().abs(), mask, turn_ids)
    weights = torch.zeros_like(divergence)
    weights[mask] = stepwise_turn_weights(divergence[mask], mask.nonzero()[:, 0], epsilon, delta)
    return weights


def stepwise_turn_weights(
    divergence: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"], epsilon: float = 1e-6, delta: float = 0.2
) -> Float[Tensor, " turns"]:
    """w_1 = 1, w_k = min((d_1 + epsilon) / (d_k + epsilon), 1 + delta), SOD (arXiv 2605.07725). ``[turns]``, detached.

    The paper multiplies the ratios (d_u + epsilon) / (d_{u+1} + epsilon) of successive turns and bounds the product, which
    telescopes to this. There is no lower bound: a turn that has drifted far from the teacher hardly counts.

    Args:
        divergence: ``[turns]``, d_k >= 0 in nats.

    Raises:
        ConfigError: an epsilon that is not positive, a negative delta.
        ValueError: a trajectory in several pieces.
    """
    if not (epsilon > 0 and delta >= 0):
        raise ConfigError(
            f"epsilon is {epsilon} and delta is {delta}: weights are ratios of divergences + epsilon, at most 1 + delta, and "
            "the first is 1. Use an epsilon above 0, e.g. 1e-6, and a delta of 0 or more, e.g. 0.2."
        )
    divergence = widen(divergence).detach() + epsilon
    index, counts = trajectory_index(trajectory_ids)
    first = divergence[counts.cumsum(0) - counts]
    return (first[index] / divergence).clamp(max=1 + delta)


def atod_turn_weights(
    divergence: Float[Tensor, " turns"], surprise: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"]
) -> Float[Tensor, " turns"]:
    """1 - (1 - d)(1 - h), in [0, 1]: a turn counts if it diverges *or* surprises (ATOD, arXiv 2606.27814). Detached.

    d and h are `divergence` and `surprise` moved to [0, 1] by the minimum and maximum of their trajectory; where these are
    less than 1e-8 apart, as in a trajectory of one turn, all are 1/2.

    Args:
        divergence: ``[turns]``, mean |student - teacher| over the turn's response tokens, in nats.
        surprise: ``[turns]``, mean -student over the same, in nats.
    """
    d, h = (_min_max(widen(values).detach(), trajectory_ids) for values in (divergence, surprise))
    return 1 - (1 - d) * (1 - h)


def weight_patterns(
    weights: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"]
) -> tuple[Bool[Tensor, " trajectories"], Bool[Tensor, " trajectories"], Bool[Tensor, " trajectories"]]:
    """Which trajectories of two or more turns are aligned, recovered, drifted by their weights w_1 = 1, ..., w_K; each is one of them.

    Aligned: no weight is below 1, no turn farther from the teacher than the first. Recovered: some weight is, not the last. Drifted:
    the last weight is below 1. SOD (arXiv 2605.07725) shows the shares of three patterns over training; neither its abstract nor its code
    says how they are told apart, so these are ours.

    Raises:
        ValueError: a trajectory in several pieces.
    """
    index, counts = trajectory_index(trajectory_ids)
    several = counts > 1
    lowest = weights.new_zeros(len(counts)).scatter_reduce(0, index, weights, "amin", include_self=False)[several]
    last = weights[counts.cumsum(0) - 1][several]
    return lowest >= 1, (lowest < 1) & (last >= 1), last < 1


def iw_opd_weights(
    gap: Float[Tensor, "batch time"], response_mask: Shaped[Tensor, "batch time"], gamma: float = 0.5, epsilon: float = 1e-8
) -> Float[Tensor, "batch time"]:
    """1 + gamma (1 - share of the row's sum of |gap| that lies before the token), 0 outside of the mask. Detached.

    IW-OPD (arXiv 2606.22600): from 1 + gamma for the first response token down to nearly 1 for the last ones, since what
    follows a divergence is less on the teacher's path. The sum is taken as at least `epsilon`.

    Args:
        gap: teacher minus student log-probability, in nats; what it holds outside of the mask does not matter.

    Raises:
        ConfigError: a negative gamma, an epsilon that is not positive.
    """
    if not (gamma >= 0 and epsilon > 0):
        raise ConfigError(
            f"gamma is {gamma} and epsilon is {epsilon}: weights fall from 1 + gamma to 1 with a share of at least epsilon. "
            "Use a gamma of 0 or more, e.g. 0.5, and an epsilon above 0, e.g. 1e-8."
        )
    mask = response_mask.bool()
    size = widen(gap).detach().abs().where(mask, 0.0)
    share = (size.cumsum(-1) - size) / size.sum(-1, keepdim=True).clamp_min(epsilon)
    return (1 + gamma * (1 - share)).where(mask, 0.0)


def trajectory_index(trajectory_ids: Int[Tensor, " turns"]) -> tuple[Int[Tensor, " turns"], Int[Tensor, " trajectories"]]:
    """The trajectory of each turn as 0, 1, ... ``[turns]``, and the number of turns of each ``[trajectories]``.

    Raises:
        ValueError: a trajectory in several pieces.
    """
    _, index, counts = torch.unique_consecutive(trajectory_ids, return_inverse=True, return_counts=True)
    trajectories = len(torch.unique(trajectory_ids))
    if len(counts) != trajectories:
        raise ValueError(
            f"trajectory_ids hold {trajectories} trajectories in {len(counts)} pieces: the turns of a trajectory must be "
            "consecutive, in the order of time. Sort by trajectory and then by turn."
        )
    return index, counts


def discounted_sums(
    values: Real[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"], discount: float
) -> Float[Tensor, " turns"]:
    """c_k = discount c_{k-1} + v_k within each trajectory, from c_0 = 0. ``[turns]``, detached; computed in float64.

    Raises:
        ConfigError: a discount outside of [0, 1].
        ValueError: a trajectory in several pieces.
    """
    if not 0 <= discount <= 1:
        raise ConfigError(
            f"discount is {discount}: what lies k turns away counts discount^k, which must not grow. "
            "Use a number from 0 to 1; 1 does not discount."
        )
    index, counts = trajectory_index(trajectory_ids)
    place = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[index]
    longest = int(counts.max()) if len(counts) else 0
    sums = torch.zeros(len(counts), longest, dtype=torch.double, device=values.device)
    sums[index, place] = values.detach().double()
    reach = 1  # each sum is over this many values; one pass doubles it
    while reach < longest:
        sums = torch.cat([sums[:, :reach], sums[:, reach:] + discount**reach * sums[:, :-reach]], 1)
        reach *= 2
    return sums[index, place].to(widen(values).dtype)


def trajectory_bounds(
    values: Float[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"]
) -> tuple[Float[Tensor, " turns"], Float[Tensor, " turns"]]:
    """Minimum and maximum of `values` over the trajectory of each turn, ``[turns]`` each."""
    index, counts = trajectory_index(trajectory_ids)
    zero = values.new_zeros(len(counts))
    low, high = (zero.scatter_reduce(0, index, values, reduce, include_self=False) for reduce in ("amin", "amax"))
    return low[index], high[index]


def _min_max(values: Tensor, trajectory_ids: Tensor) -> Tensor:
    low, high = trajectory_bounds(values, trajectory_ids)
    return ((values - low) / (high - low)).where(high - low >= FLAT, 0.5)

"""Sequence filters: which episodes a distillation loss is for, as weights 0 and 1.

All take `success`, ``[N]`` with one 0/1 or bool per episode, and `group_ids`, ``[N]`` integers, whether they need the groups
or not, and return float32 ``[N]``. A reward is no success: anything but 0 and 1 is a ValueError.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def failed_only(success: Shaped[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 for an episode that failed: AHEAD (arXiv 2608.24114), OPID's option (arXiv 2606.26790)."""
    own, _, _ = _outcomes(success, group_ids)
    return 1 - own


def mixed_groups(success: Shaped[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 where the group has both a success and a failure: GRSD (arXiv 2607.28076)."""
    _, successes, attempts = _outcomes(success, group_ids)
    return ((successes > 0) & (successes < attempts)).float()


def cliff_groups(success: Shaped[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 where every attempt of the group failed: HDPO's "cliff" tasks (arXiv 2603.23871)."""
    _, successes, _ = _outcomes(success, group_ids)
    return (successes == 0).float()


def has_successful_sibling(success: Shaped[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 where *another* attempt of the group succeeded: SDPO (arXiv 2601.20802), whose teacher is shown that attempt."""
    own, successes, _ = _outcomes(success, group_ids)
    return (successes > own).float()


def _outcomes(success: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each episode's success, the successes of its group and the attempts of its group, ``[N]`` float32 each."""
    own = success.detach().float()
    strange = (own != 0) & (own != 1)
    if bool(strange.any()):
        episode = int(strange.nonzero()[0])
        raise ValueError(
            f"the success of episode {episode} is {own[episode].item():g}: an episode succeeds (1) or fails (0). "
            "Pass whether it succeeded, not its reward."
        )
    groups, index = torch.unique(group_ids, return_inverse=True)
    zero = own.new_zeros(groups.shape[0])
    return own, zero.index_add(0, index, own)[index], zero.index_add(0, index, torch.ones_like(own))[index]

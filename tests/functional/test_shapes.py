"""Tests check every call of `sdar.functional` against the shapes in its annotations (`tests/support/shapes.py`)."""

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from jaxtyping import AbstractArray, TypeCheckError
from torch import Tensor

from sdar import functional

PUBLIC = {
    name: thing for name, thing in vars(functional).items() if getattr(thing, "__module__", "").startswith("sdar.functional")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_tensor_has_a_shape(name: str) -> None:
    def leaves(hint: Any) -> list[Any]:
        return [leaf for inner in get_args(hint) for leaf in leaves(inner)] or [hint]

    hints = get_type_hints(PUBLIC[name])
    found = {where: leaf for where, hint in hints.items() for leaf in leaves(hint) if leaf is Tensor}
    assert not found.keys() - {"normalizer"}  # a number, or a tensor that is one
    assert any(isinstance(leaf, type) and issubclass(leaf, AbstractArray) for hint in hints.values() for leaf in leaves(hint))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: functional.lift(torch.zeros(2, 3), torch.zeros(3)), "student_logp"),  # torch would broadcast it
        (lambda: functional.gap_gate(torch.zeros(2, 3, dtype=torch.long), 5.0), "gap"),
        (lambda: functional.turn_mean(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 4).long()), "turn_ids"),
        (lambda: functional.group_advantages(torch.zeros(4), torch.zeros(4, 1).long()), "group_ids"),
        (lambda: functional.forward_kl(torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)), "teacher_logits"),
        (lambda: functional.chunked_token_stats(torch.zeros(4, 8), torch.zeros(9, 7), torch.zeros(4).long()), "weight"),
    ],
)
def test_a_wrong_shape_is_told_by_the_argument(call: Callable[[], Tensor], argument: str) -> None:
    with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
        call()

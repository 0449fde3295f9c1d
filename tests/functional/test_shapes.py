"""Tests check every call of `sdar.functional` against the shapes in its annotations (`tests/support/shapes.py`)."""

import random
from collections.abc import Callable
from typing import get_type_hints

import pytest
import torch
from jaxtyping import TypeCheckError
from shapes import is_shape, leaves
from torch import Tensor

from sdar import functional

PUBLIC = {
    name: thing for name, thing in vars(functional).items() if getattr(thing, "__module__", "").startswith("sdar.functional")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_tensor_has_a_shape(name: str) -> None:
    hints = get_type_hints(PUBLIC[name])
    assert not {where for where, hint in hints.items() if Tensor in leaves(hint)} - {
        "normalizer"
    }  # a number, or a tensor that is one
    assert any(is_shape(leaf) for hint in hints.values() for leaf in leaves(hint))


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


def test_checks_draw_nothing() -> None:
    before = random.getstate()
    for _ in range(20):
        functional.chunked_token_stats(torch.zeros(1, 2), torch.zeros(9, 2), torch.zeros(1).long(), forbidden_ids=range(3, 8))
        functional.vocabulary_log_probs(torch.zeros(1, 2), torch.zeros(9, 2), forbidden_ids=[3, 4, 5])
        functional.similar_anchors(["a", "b", "c"], torch.zeros(3).long(), 0.5)
    assert random.getstate() == before

"""What a part of somebody else is given: the first call says which argument has not the shape that its kind of part takes."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from played import batch_of, credit_of, episode, turn, view_of
from torch import Tensor

from sdar import registry
from sdar.errors import PartError
from sdar.gates import GapGate
from sdar.metrics import Metrics
from sdar.parts import Gate, Part, PolicyLoss
from sdar.turns import Turns
from sdar.types import StudentTokens, TokenView

registry.load_parts()
EPISODES = [episode(turn(2, reward=1.0), turn(1)), episode(turn(3))]
BATCH = batch_of(EPISODES, "turn")
TURNS = Turns(BATCH)
TOKENS = view_of(BATCH, torch.zeros(BATCH.ids.shape))
LOGP = TOKENS.student_logp
MASK = BATCH.response_mask
CREDIT = credit_of(BATCH, EPISODES)
ROWS, TIME = LOGP.shape
assert (ROWS, TIME, len(TURNS)) == (3, 5, 3)

FLOATS = "and type torch.float32: it takes a floating point tensor of shape"
WRONG: dict[str, list[tuple[tuple, str]]] = {
    "gates": [
        (
            (TOKENS.including(gap=LOGP.mean(1)),),
            f"`tokens.gap` of shape (3,) {FLOATS} [batch, time] = (3, 5), as `tokens.student_logp` is.",
        ),
        (
            (TOKENS.including(turn_ids=LOGP),),
            "`tokens.turn_ids` of shape (3, 5) and type torch.float32: it takes a tensor of integers of shape [batch, time] = (3, 5),",
        ),
        (
            (TOKENS.including(entropy=0.5),),
            "`tokens.entropy` 0.5: it takes a floating point tensor of shape [batch, time] = (3, 5),",
        ),
        (
            (TOKENS.including(teacher_top_ids=MASK.long()[..., None], teacher_top_logp=LOGP[:, :2, None]),),
            f"`tokens.teacher_top_logp` of shape (3, 2, 1) {FLOATS} [batch, time, k] = (3, 5, 1), as `tokens.teacher_top_ids` is.",
        ),
    ],
    "turn_weights": [((TOKENS.including(entropy=LOGP[:2]), TURNS, Metrics()), "`tokens.entropy` of shape (2, 5)")],
    "filters": [
        (
            (torch.ones(2), torch.zeros(3)),
            "`groups` of shape (3,) and type torch.float32: it takes a tensor of shape [episodes] = (2,),",
        )
    ],
    "advantages": [
        (
            (replace(CREDIT, turn_rewards=torch.ones(4)),),
            f"`credit.turn_rewards` of shape (4,) {FLOATS} [turns] = (3,), as `credit.turns.episode` is.",
        ),
        (
            (replace(CREDIT, rewards=torch.ones(4)),),
            "`credit.groups` of shape (3,) and type torch.int64: it takes a tensor of integers of shape [rows] = (4,),",
        ),
    ],
    "advantage_transforms": [
        (
            (LOGP.mean(1), TOKENS, TURNS, 0, Metrics()),
            f"`tokens.student_logp` of shape (3, 5) {FLOATS} [tokens] = (3,), as `advantages` is.",
        ),
    ],
    "divergences": [
        (
            (StudentTokens(LOGP[0], LOGP[0]), TOKENS),
            f"`tokens.student_logp` of shape (3, 5) {FLOATS} [tokens] = (5,), as `student.logp` is.",
        ),
    ],
    "policy_losses": [
        ((LOGP, LOGP[0], LOGP, MASK), f"`old_logp` of shape (5,) {FLOATS} [batch, time] = (3, 5), as `logp` is."),
        (
            (LOGP, LOGP, LOGP[0], MASK),
            f"`advantages` of shape (5,) {FLOATS} [batch, time] = (3, 5), as `logp` is or a floating point tensor of shape [batch], "
            "where `logp` is [batch, time] = (3, 5).",
        ),
    ],
    "corrections": [((LOGP, LOGP[:, 0]), f"`sampled_logp` of shape (3,) {FLOATS} [batch, time] = (3, 5), as `logp` is.")],
}


def mine(kind: str) -> Any:
    """A part of somebody else, which must not be reached."""
    base = registry.kinds()[kind]
    body = {name: lambda self, *args: pytest.fail("it was called") for name in base.__abstractmethods__}
    return object.__new__(type("Mine", (base,), body))


@pytest.mark.parametrize(("kind", "given", "text"), [(kind, *case) for kind, cases in WRONG.items() for case in cases])
def test_a_wrong_argument_is_named_with_the_shape_that_is_expected(kind: str, given: tuple, text: str) -> None:
    with pytest.raises(PartError) as caught:
        mine(kind)(*given)
    assert str(caught.value).startswith(f"Mine was given {text}")
    assert str(caught.value).endswith(". Correct the call, or the annotation that says so.")


def test_every_kind_of_part_that_takes_tensors_is_tried() -> None:
    def takes_tensors(base: Any) -> bool:
        return "Tensor" in str([vars(base)[name].__annotations__ for name in base.answers if name in vars(base)])

    assert {kind for kind, base in registry.kinds().items() if issubclass(base, Part) and takes_tensors(base)} == WRONG.keys()


def test_an_inner_part_is_not_blamed_for_what_it_was_given() -> None:
    class Smooth(Gate):
        def __call__(self, tokens: TokenView) -> Tensor:
            return GapGate()(tokens.including(gap=tokens.gap.mean(1)))

    with pytest.raises(PartError, match=r"^GapGate was given `tokens\.gap` of shape \(3,\)"):
        Smooth()(TOKENS)


class OneARow(PolicyLoss):
    """Its author believes that it gets one number a row."""

    def __call__(self, logp: Float[Tensor, " rows"], old_logp, advantages, response_mask):  # type: ignore[no-untyped-def]
        return -advantages * logp


def test_a_part_is_held_to_its_own_annotations() -> None:
    with pytest.raises(
        PartError,
        match=r"^OneARow was given `logp` of shape \(3, 5\) .* it takes a floating point tensor of shape \[rows\]\. Correct the call",
    ):
        OneARow()(LOGP, LOGP, LOGP, MASK)


def test_annotations_that_cannot_be_read_do_no_harm() -> None:
    class Late(Gate):
        def __call__(self, tokens: "Elsewhere") -> "Elsewhere":  # type: ignore[name-defined]  # noqa: F821
            return torch.ones_like(tokens.gap)

    assert Late()(TOKENS).shape == LOGP.shape
    with pytest.raises(PartError, match=r"`tokens\.gap`"):
        Late()(TOKENS.including(gap=LOGP[0]))


def test_a_call_that_python_refuses_is_refused_by_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'tokens'"):
        GapGate()()  # type: ignore[call-arg]


def test_only_the_first_call_of_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdar.contracts import given

    looked = []
    monkeypatch.setattr(given, "_look", lambda part, where, *rest: looked.append(where))
    gate = GapGate()
    for _ in range(3):
        gate(TOKENS)
    assert looked.count("tokens.gap") == 1
    assert vars(pickle.loads(pickle.dumps(gate))) == vars(gate)
    GapGate()(TOKENS)
    assert looked.count("tokens.gap") == 2

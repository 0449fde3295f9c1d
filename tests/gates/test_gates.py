"""Every registered gate as a gate, and the golden numbers of those that come with the package."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdar.gates  # noqa: F401  (registers)
from sdar.errors import ConfigError
from sdar.gates import ConstantGate, EntropyGate, GapGate, SoftOrGate
from sdar.parts import Gate
from sdar.registry import parts, summary
from sdar.types import TokenView

GATES = {name: cls for name, cls in parts("gates").items() if cls.__module__.startswith("sdar.")}
VOCAB = 4


def view(gap: list[list[float]], entropy: list[list[float]], dtype: torch.dtype = torch.float32) -> TokenView:
    gaps = torch.tensor(gap, dtype=dtype)
    student = torch.full_like(gaps, -1.0)
    return TokenView(
        student_logp=student,
        teacher_logp=student + gaps,
        gap=gaps,
        entropy=torch.tensor(entropy, dtype=dtype),
        response_mask=torch.ones(gaps.shape, dtype=torch.long),
        turn_ids=torch.zeros(gaps.shape, dtype=torch.long),
        advantages=torch.zeros_like(gaps),
        vocab_size=VOCAB,
    )


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        # gaps 0, 0.2 and -0.2; entropies 0, ln 2 and ln 4 in a vocabulary of 4, so h = 0, 1/2, 1.
        # beta 5: sigmoid(0), sigmoid(1), sigmoid(-1)
        (GapGate(beta=5.0), [0.5, 0.7310586, 0.2689414]),
        # beta 2: tanh(0), tanh(1/2), tanh(1)
        (EntropyGate(beta=2.0), [0.0, 0.4621172, 0.7615942]),
        # beta 2, tanh(0.2) = 0.1973753: sigmoid(0), sigmoid(2 * (1 - 0.8026247 / 2)) = sigmoid(1.1973753), sigmoid(2)
        (SoftOrGate(beta=2.0), [0.5, 0.7680576, 0.8807971]),
        (ConstantGate(value=0.25), [0.25, 0.25, 0.25]),
    ],
)
def test_golden(gate: Gate, expected: list[float]) -> None:
    tokens = view([[0.0, 0.2, -0.2]], [[0.0, math.log(2), math.log(4)]])
    torch.testing.assert_close(gate(tokens), torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GATES)
@settings(max_examples=25, deadline=None)
@given(table=st.lists(st.tuples(st.floats(-50, 50), st.floats(-1e-4, math.log(VOCAB) + 1e-4)), min_size=1, max_size=6))
def test_every_gate_is_a_weight_in_the_unit_interval(name: str, table: list[tuple[float, float]]) -> None:
    gaps, entropies = zip(*table, strict=True)
    weights = GATES[name]()(view([list(gaps)], [list(entropies)]))
    assert weights.shape == (1, len(table))
    assert weights.isfinite().all() and (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize("name", GATES)
def test_every_gate_is_detached(name: str) -> None:
    tokens = view([[0.3, -0.4]], [[0.5, 1.0]])
    graph = {
        name: values.requires_grad_()
        for name, values in vars(tokens).items()
        if isinstance(values, torch.Tensor) and values.is_floating_point()
    }
    assert not GATES[name]()(tokens.including(**graph)).requires_grad


@pytest.mark.parametrize("name", GATES)
def test_every_gate_is_at_least_float32(name: str) -> None:
    assert GATES[name]()(view([[0.3]], [[0.5]], torch.bfloat16)).dtype == torch.float32
    assert GATES[name]()(view([[0.3]], [[0.5]], torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", GATES)
def test_every_gate_weighs_a_token_by_itself(name: str) -> None:
    together = GATES[name]()(view([[0.3, -0.4]], [[0.5, 1.0]]))
    alone = [GATES[name]()(view([[gap]], [[entropy]])) for gap, entropy in ((0.3, 0.5), (-0.4, 1.0))]
    torch.testing.assert_close(together, torch.cat(alone, 1))


@pytest.mark.parametrize("name", GATES)
def test_every_gate_says_what_it_is(name: str) -> None:
    assert summary(GATES[name]).endswith((".", "]."))


@pytest.mark.parametrize("gate", [GapGate(), SoftOrGate()])
def test_an_endorsed_token_gets_more(gate: Gate) -> None:
    weights = gate(view([[-1.0, 0.0, 1.0]], [[0.5, 0.5, 0.5]]))[0]
    assert weights[0] < weights[1] < weights[2]


@pytest.mark.parametrize("gate", [EntropyGate(), SoftOrGate()])
def test_an_uncertain_token_gets_more(gate: Gate) -> None:
    weights = gate(view([[0.0, 0.0, 0.0]], [[0.1, 0.5, 1.0]]))[0]
    assert weights[0] < weights[1] < weights[2]


def test_defaults_are_the_published_ones() -> None:
    assert [vars(cls()) for cls in (GapGate, EntropyGate, SoftOrGate)] == [{"beta": 5.0}] * 3
    assert vars(ConstantGate()) == {"value": 0.5} and ConstantGate(1.0).value == 1.0 and GapGate(0.5).beta == 0.5


@pytest.mark.parametrize("cls", [GapGate, EntropyGate, SoftOrGate])
@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_beta_must_be_positive_and_finite(cls: type[Gate], beta: float) -> None:
    with pytest.raises(ConfigError, match=r"gate\.beta is (-1\.0|nan|inf): .*positive, finite beta\. Use e\.g\. 5\.0"):
        cls(beta=beta)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", [GapGate, EntropyGate, SoftOrGate])
def test_a_beta_of_zero_is_the_ungated_form_and_says_so(cls: type[Gate]) -> None:
    with pytest.warns(UserWarning) as told:
        gate = cls(beta=0)  # type: ignore[call-arg]
    assert [str(w.message) for w in told] == [
        "gate.beta is 0: the gate is 0.5 for every token, which is the ungated form (ConstantGate). With the lift, SDAR's divergence, its "
        "expected gradient is zero: the teacher adds noise and teaches nothing. For distillation without a gate use a divergence that has "
        "a gradient of its own, such as k1."
    ]
    tokens = view([[-3.0, 0.0, 3.0]], [[0.0, 0.5, 1.0]])
    assert torch.equal(gate(tokens), ConstantGate()(tokens))


def test_a_constant_outside_of_the_unit_interval_explains_itself() -> None:
    with pytest.raises(ConfigError, match=r"gate\.value is 0: no token would be distilled.* Use GRPO"):
        ConstantGate(value=0)
    with pytest.raises(ConfigError, match=r"gate\.value is 1\.5: a gate is a weight in \[0, 1\]"):
        ConstantGate(value=1.5)

"""What gates, retrievers and the parts of credit say when they refuse something, to the letter."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdar.credit import GiGPOAdvantage, GroupAdvantage
from sdar.errors import ConfigError, SkillBankError
from sdar.gates import ConstantGate, EntropyGate, GapGate, SoftOrGate
from sdar.retrievers import FactRetriever, RandomRetriever, ShuffledRetriever, UCBRetriever
from sdar.shaping import BeliefRevision, EvidenceRatio, GapAdvantage
from sdar.turn_weights import StepwiseWeight
from sdar.types import Retrieval, Task

TASK = Task("t", "family", "do it")

REFUSED: list[tuple[Callable[[str], object], type[Exception], str]] = [
    (
        lambda bank: GapGate(beta=-1.0),
        ConfigError,
        (
            "gate.beta is -1.0: a gap gate opens for tokens that the teacher endorses, which takes a positive, finite beta. "
            "Use e.g. 5.0."
        ),
    ),
    (
        lambda bank: EntropyGate(beta=-1.0),
        ConfigError,
        (
            "gate.beta is -1.0: an entropy gate lies in [0, 1] and opens with doubt, which takes a positive, finite beta. Use"
            " e.g. 5.0."
        ),
    ),
    (
        lambda bank: SoftOrGate(beta=-1.0),
        ConfigError,
        (
            "gate.beta is -1.0: a soft-OR gate opens for endorsed or uncertain tokens, which takes a positive, finite beta. "
            "Use e.g. 5.0."
        ),
    ),
    (
        lambda bank: ConstantGate(value=0),
        ConfigError,
        (
            "gate.value is 0: no token would be distilled and the teacher would be scored for nothing. Use GRPO for training "
            "without a teacher, or a value above 0."
        ),
    ),
    (
        lambda bank: ConstantGate(value=1.5),
        ConfigError,
        ("gate.value is 1.5: a gate is a weight in [0, 1]. Scale the loss with its coefficient instead."),
    ),
    (
        lambda bank: FactRetriever("{thing"),
        ConfigError,
        (
            "FactRetriever.template '{thing' cannot be filled in: expected '}' before end of string. Write a literal brace as"
            " '{{' or '}}'."
        ),
    ),
    (
        lambda bank: FactRetriever("{things} {place}"),
        ConfigError,
        (
            "FactRetriever.template '{things} {place}' has the field {things}, which a fact does not have. Did you mean "
            "'thing'? Use {thing} and {place}."
        ),
    ),
    (
        lambda bank: FactRetriever("{thing}"),
        ConfigError,
        ("FactRetriever.template '{thing}' lacks {place}: the sentence would hide half of the fact. Add it."),
    ),
    (
        lambda bank: ShuffledRetriever(bank),
        ConfigError,
        (
            "ShuffledRetriever: {bank} has 1 skill(s) besides the general ones, and a placebo needs another task's skill to "
            "give. Use a bank with at least 2, or NoRetriever as the control."
        ),
    ),
    (
        lambda bank: UCBRetriever(bank, c=-1.0),
        ConfigError,
        (
            "UCBRetriever.c is -1.0: a bonus for rarely tried skills is finite and not negative. UCB1 uses 1.414; 0 always "
            "takes the best so far."
        ),
    ),
    (
        lambda bank: UCBRetriever(bank, count=2),
        ConfigError,
        ("UCBRetriever.count is 2, but {bank} has 1 skills to choose from besides the 0 that every task gets. Choose 1 to 1."),
    ),
    (
        lambda bank: RandomRetriever(bank, count=2),
        ConfigError,
        (
            "RandomRetriever.count is 2, but {bank} has 1 skills to choose from besides the 0 that every task gets. Choose 1 "
            "to 1."
        ),
    ),
    (
        lambda bank: UCBRetriever(bank).observe(TASK, Retrieval(("a",)), 1.5),
        ConfigError,
        ("the success of task 't' is 1.5: UCB1 needs a mean of 0/1 outcomes. Report that instead."),
    ),
    (
        lambda bank: UCBRetriever(bank).load_state_dict({"rounds": {}, "tried": {"family": {"x": [1, 1.0], "y": [1, 0.0]}}}),
        SkillBankError,
        (
            "{bank} lacks x, y, which the saved statistics are about: the bank has changed since. Resume with the bank of "
            "that run, or start a new run."
        ),
    ),
    (
        lambda bank: GroupAdvantage(statistics="turn"),
        ConfigError,
        (
            "advantage statistics is 'turn': mean and deviation of a group are taken over its episodes or over its rows. Use "
            "'episode' or 'row'."
        ),
    ),
    (
        lambda bank: GiGPOAdvantage(gamma=2.0),
        ConfigError,
        ("advantage.gamma is 2.0: a discount lies in [0, 1]. Published: 0.95."),
    ),
    (
        lambda bank: GiGPOAdvantage(similarity=0.0),
        ConfigError,
        (
            "advantage.similarity is 0.0: it bounds a ratio in [0, 1] from below, and at 0 all observations would be one "
            "anchor. Use 0.95, or 1 for equal observations."
        ),
    ),
    (
        lambda bank: GapAdvantage(clip=0.0),
        ConfigError,
        ("transform.clip is 0.0: it bounds the gap, in nats. Use e.g. 5, or null for no bound."),
    ),
    (
        lambda bank: EvidenceRatio(clip=1.0),
        ConfigError,
        ("transform.clip is 1.0: the ratio is kept in [1 - clip, 1 + clip]. Published: 0.2."),
    ),
    (
        lambda bank: EvidenceRatio(lam=2.0),
        ConfigError,
        ("transform.lam is 2.0: it is the share of the advantage that is scaled, in [0, 1]. Published: 0.5."),
    ),
    (
        lambda bank: BeliefRevision(band=1.0),
        ConfigError,
        ("transform.band is 1.0, decay 0.95: both lie in [0, 1], the band below 1."),
    ),
    (
        lambda bank: StepwiseWeight(epsilon=0.0),
        ConfigError,
        ("turn_weight.epsilon is 0.0, delta 0.2: use an epsilon above 0 and a delta of 0 or more."),
    ),
]
"""A call with a bank of one skill, and what it says of it."""


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED)
def test_what_is_refused_is_told_in_full(
    call: Callable[[str], object], kind: type[Exception], text: str, tmp_path: Path
) -> None:
    (tmp_path / "mapping.yaml").write_text("a: {file: a.md}")
    (tmp_path / "a.md").write_text("a")
    with pytest.raises(kind) as caught:
        call(str(tmp_path))
    assert type(caught.value) is kind and str(caught.value).replace(str(tmp_path), "{bank}") == text

"""Methods add up: what a method reads of a batch means the same whoever else reads it, and what it forgot to say is told."""

import re

import pytest
import torch
from methods import DoublePolicy, EveryOther, external, rewarded

from sdar import registry
from sdar.distillation import Distillation
from sdar.divergences import K1PolicyGradient, TopKReverseKL
from sdar.errors import ConfigError
from sdar.filters import FailedOnly
from sdar.module import AgentModule
from sdar.parts import AdvantageTransform, RemoteModel
from sdar.retrievers import FactRetriever
from sdar.shaping import GapAdvantage
from sdar.strategies import (
    GRPO,
    HDPO,
    OPSD,
    SDAR,
    SDPO,
    TIP,
    TOPD,
    CriticSearch,
    GiGPO,
    GRPOWithOPSD,
    SDSearch,
    SkillSD,
    TopKOPD,
)
from sdar.teachers import HindsightView, SolutionView
from sdar.types import Batch, StudentTokens, TokenView

registry.load_parts()

VANISHING = 1e-12
LEARNERS = {
    "grpo": (GRPO, {}),
    "gigpo": (GiGPO, {}),
    "critic_search": (CriticSearch, {"judge": EveryOther(), "view": SolutionView()}),
}
"""Methods whose whole loss is a policy gradient."""
ADDED = {
    "sdar": lambda small: (SDAR, {"retriever": FactRetriever()}),
    "grpo_opsd": lambda small: (GRPOWithOPSD, {"retriever": FactRetriever()}),
    "skill_sd": lambda small: (SkillSD, {"retriever": FactRetriever()}),
    "hdpo": lambda small: (HDPO, {}),
    "sd_search": lambda small: (SDSearch, {"span": "action", "view": HindsightView()}),
    "opsd": lambda small: (OPSD, {}),
    "sdpo": lambda small: (SDPO, {}),
    "tip": lambda small: (TIP, {"teacher": external(small), "keep": 0.25}),
    "topd": lambda small: (TOPD, {"teacher": external(small), "window": 4, "trajectory_coef": VANISHING}),
    "top_k_opd": lambda small: (TopKOPD, {"teacher": external(small)}),
}
"""Methods with a distillation term."""
APART = {
    "sft": "it learns from files, and nobody plays",
    "opd": "its advantages are the gap alone",
    "sod": "its advantages are the group's plus the gap",
    "tcod": "OPD over a part of the episode",
    "rlsd": "its advantages are scaled by the gap",
    "gated_opsd": "it takes the policy gradient away",
    "skill_grpo": "GRPO whose policy sees the skills",
    "skill_prompt": "it does not train",
    "bc": "its episodes are an expert's",
}
"""Methods that are no sum with another: why."""


def gradient_of(small, cls, **kwargs):
    """The gradient of a first optimizer step, over all parameters, in float64."""
    small.precision = DoublePolicy
    found = {}
    strategy = rewarded(
        small.strategy(cls, policy=DoublePolicy(small.policy()), max_mismatch=None, max_grad_norm=1e12, **kwargs)
    )
    strategy._step = lambda optimizer, update: found.update({n: p.grad.clone() for n, p in strategy.model.named_parameters()})
    trainer = small.trainer(1, limit_train_batches=1)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data(layout="turn", group_size=3))
    return torch.cat([g.flatten() for g in found.values()])


def test_every_method_is_added_or_says_why_not():
    assert LEARNERS.keys() | ADDED.keys() | APART.keys() == set(registry.parts("strategies"))


@pytest.fixture(scope="module")
def alone():
    return {}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("added", ADDED)
def test_at_a_vanishing_weight_the_gradient_is_that_of_the_other_method(small, alone, added, learner):
    cls, kwargs = LEARNERS[learner]
    if learner not in alone:
        alone[learner] = gradient_of(small, cls, **kwargs)
    term, more = ADDED[added](small)
    if learner == "critic_search" and {"retriever", "view"} & more.keys():
        pytest.skip("a judge needs a view of the solution, and this teacher has another")
    both = type("Both", (term,) if issubclass(term, cls) else (term, cls), {})
    gradient = gradient_of(small, both, distill_coef=VANISHING, **more | kwargs)
    assert alone[learner].norm() > 1e-3
    torch.testing.assert_close(gradient, alone[learner], rtol=1e-7, atol=1e-9)


def test_the_order_of_the_bases_does_not_matter(small):
    one, other = type("One", (OPSD, GRPO), {}), type("Other", (GRPO, OPSD), {})
    assert torch.equal(gradient_of(small, one), gradient_of(small, other))


# ---------------------------------------------------------------------- what a method says of itself


class OwnTerm(Distillation):
    """A term of its own, about every response token, beside a distillation term that learns from failures."""

    def token_loss(self, batch, now):
        return super().token_loss(batch, now) - 0.5 * now.logp


def test_an_own_term_learns_from_rows_that_the_other_leaves_out(small):
    assert OwnTerm.learns_everywhere and not Distillation.learns_everywhere and not TOPD.learns_everywhere
    seen = []
    common = {"teacher": external(small), "view": SolutionView(), "divergence": K1PolicyGradient()}
    for cls in (OwnTerm, Distillation):
        strategy = rewarded(small.strategy(cls, sequence_filter=FailedOnly(), **common))
        strategy.optimize = lambda update: seen.append(len(update))
        small.fit(strategy, steps=1, limit_train_batches=1, max_epochs=1, data=small.data(group_size=3))
    assert seen[0] == 6 and seen[1] == 4  # of three attempts one is a success


def test_what_a_method_says_against_its_base_is_refused():
    with pytest.raises(ConfigError, match="Narrow says learns_everywhere = False, and a base of it needs the opposite"):
        type("Narrow", (GRPO,), {"learns_everywhere": False})
    assert HDPO.teacher_acts and not GRPO.teacher_acts


def test_a_method_that_makes_its_episodes_says_whether_they_are_attempts():
    with pytest.raises(
        ConfigError, match=r"Own makes its episodes itself \(`collect`\) and does not say .*plays_attempts = True or"
    ):
        type("Own", (AgentModule,), {"collect": lambda self, step: []})


def test_a_served_teacher_that_shall_act_is_refused_whatever_the_method_said(small):
    class Served(RemoteModel):
        def score(self, *_):
            raise AssertionError

    strategy = small.strategy(GRPO)
    told = r"GRPO has its teacher act, and model\.teacher is asked in other processes"
    with pytest.raises(ConfigError, match=told), strategy.synced(strategy.sampler, Served()):
        pass


READERS = {
    "ref_logp": "Batch.ref_logp was not filled in: set `needs_reference = True` in the method",
    "spans": "Batch.spans was not filled in: set `needs_spans = True` in the method",
    "teacher_logp": "Batch.teacher_logp was not filled in: no teacher reads these rows",
    "distill_weights": "Batch.distill_weights was not filled in: `Distillation.weigh` fills them in",
}


@pytest.mark.parametrize("name", READERS)
def test_a_field_that_was_not_filled_in_says_what_to_do(small, name):
    cls = type("Forgetful", (AgentModule,), {"token_loss": lambda self, batch, now: now.logp * getattr(batch, name)})
    with pytest.raises(ConfigError, match=re.escape(READERS[name])):
        small.fit(small.strategy(cls), steps=1)


def test_fields_come_through_selection_and_only_those_that_are_there():
    ones = torch.ones(2, 3)
    batch = Batch(
        ones,
        ones,
        ones.bool(),
        ones,
        ones,
        ones,
        ones[:, 0],
        ones[:, 0],
        ones[:, 0],
        ones[:, 0],
        ones[:, 0] > 0,
        ones[:, 0] > 0,
    )
    batch.old_logp = -ones
    part = batch.select(torch.tensor([1]))
    assert torch.equal(part.old_logp, -ones[:1]) and not part.has("ref_logp") and part.loss_mask.all()
    batch.old_logp = None
    assert not batch.has("old_logp")


class HighEntropy(AdvantageTransform):
    """Only the most uncertain tokens learn (arXiv 2506.01939). Asks no teacher."""

    gradient_estimand = "-E[A 1{H above its median} grad student_logp]"

    def __call__(self, advantages, tokens, turns, iteration, metrics):
        return advantages * (tokens.entropy >= tokens.entropy[tokens.response_mask].median())


def test_a_transform_that_asks_no_teacher_needs_none(small):
    plain, chosen = (gradient_of(small, GRPO, transforms=t) for t in ([], [HighEntropy()]))
    assert not torch.allclose(plain, chosen)


def test_a_transform_that_asks_a_teacher_is_refused_without_one(small):
    with pytest.raises(ConfigError, match="GapAdvantage reshape advantages by what a teacher thinks, and GRPO has no teacher"):
        small.fit(small.strategy(GRPO, transforms=[GapAdvantage()]), steps=1)


def test_one_that_did_not_say_so_is_told_when_it_asks(small):
    class Forgetful(HighEntropy):
        def __call__(self, advantages, tokens, turns, iteration, metrics):
            return advantages + tokens.gap

    with pytest.raises(ConfigError, match=r"TokenView\.gap was not filled in: no teacher reads these rows"):
        small.fit(small.strategy(GRPO, transforms=[Forgetful()]), steps=1)


def test_an_objective_on_sampled_tokens_that_reads_logits_is_told_which_ones_have_them():
    student = StudentTokens(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ConfigError, match=r"StudentTokens\.logits was not filled in: only an objective over the vocabulary"):
        _ = student.logits
    assert StudentTokens(torch.zeros(2), torch.zeros(2), torch.ones(2, 3)).logits.shape == (2, 3)


def test_topd_may_compare_the_teachers_likeliest_tokens(small):
    """Its soft targets stand in fields of their own."""
    gradient = gradient_of(small, TOPD, teacher=external(small), window=4, divergence=TopKReverseKL(k=4))
    assert gradient.norm() > 1e-4


def test_a_view_with_other_values_is_another_view():
    one = torch.ones(1, 2)
    view = TokenView(student_logp=one, entropy=one, response_mask=one, turn_ids=one, advantages=one, vocab_size=4)
    assert view.including(gap=one).has("gap") and not view.has("gap")

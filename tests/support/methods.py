"""Every training method on the tests' small world, and policies and judges for it."""

from float64 import float64

from sdar.parts import Judge, Policy
from sdar.retrievers import FactRetriever
from sdar.strategies import (
    GRPO,
    HDPO,
    OPD,
    OPSD,
    RLSD,
    SDAR,
    SDPO,
    SOD,
    TCOD,
    TIP,
    TOPD,
    BehaviorCloning,
    CriticSearch,
    GatedOPSD,
    GiGPO,
    GRPOWithOPSD,
    SDSearch,
    SkillGRPO,
    SkillSD,
    TopKOPD,
)
from sdar.teachers import ExternalTeacher, HindsightView


class DoublePolicy(Policy):
    """A policy in float64, so that sums in another order agree to 1e-10."""

    name = "a policy in float64"

    def __init__(self, policy):
        self.policy = policy

    def load_tokenizer(self):
        return self.policy.load_tokenizer()

    def load_model(self):
        return float64(self.policy.load_model())

    def context(self):
        return self.policy.context()


class EveryOther(Judge):
    """Praises every other turn."""

    def __call__(self, episodes, solutions):
        return [[1.0 if t % 2 else -1.0 for t in range(len(e.turns))] for e in episodes]


def external(small):
    """A larger random model with the student's tokenizer."""
    return ExternalTeacher(small.precision(small.policy(hidden_size=32)))


def rewarded(strategy):
    """A random policy is never rewarded: pretend that some of its attempts were, and all that a teacher played."""
    collect = strategy.collect

    def pretend(step):
        episodes = collect(step)
        for e in episodes:
            e.reward, e.success = float(e.attempt % 3), e.extra or e.attempt % 3 == 2
        return episodes

    strategy.collect = pretend
    return strategy


TRAINING = {
    "grpo": lambda small, **k: small.strategy(GRPO, **k),
    "gigpo": lambda small, **k: small.strategy(GiGPO, **k),
    "sdar": lambda small, **k: small.strategy(SDAR, retriever=FactRetriever(), **k),
    "gated_opsd": lambda small, **k: small.strategy(GatedOPSD, retriever=FactRetriever(), **k),
    "grpo_opsd": lambda small, **k: small.strategy(GRPOWithOPSD, retriever=FactRetriever(), **k),
    "skill_grpo": lambda small, **k: small.strategy(SkillGRPO, retriever=FactRetriever(), **k),
    "skill_sd": lambda small, **k: small.strategy(SkillSD, retriever=FactRetriever(), **k),
    "rlsd": lambda small, **k: small.strategy(RLSD, retriever=FactRetriever(), **k),
    "opsd": lambda small, **k: small.strategy(OPSD, **k),
    "opd": lambda small, **k: small.strategy(OPD, teacher=external(small), **k),
    "top_k_opd": lambda small, **k: small.strategy(TopKOPD, teacher=external(small), **k),
    "sod": lambda small, **k: small.strategy(SOD, teacher=external(small), **k),
    "tcod": lambda small, **k: small.strategy(TCOD, teacher=external(small), **k),
    "tip": lambda small, **k: small.strategy(TIP, teacher=external(small), **k),
    "topd": lambda small, **k: small.strategy(TOPD, teacher=external(small), window=4, **k),
    "sdpo": lambda small, **k: small.strategy(SDPO, **k),
    "hdpo": lambda small, **k: small.strategy(HDPO, **k),
    "sd_search": lambda small, **k: small.strategy(SDSearch, span="action", view=HindsightView(), distill_coef=1.0, **k),
    "critic_search": lambda small, **k: small.strategy(CriticSearch, judge=EveryOther(), **k),
    "bc": lambda small, **k: small.strategy(BehaviorCloning, retriever=FactRetriever(), **k),
}

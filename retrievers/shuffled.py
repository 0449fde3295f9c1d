"""A placebo: as many skills as the task deserves, but the wrong ones.

If training with it does as well as with `KeywordRetriever`, then a longer prompt helped, not what the skills say.
"""

from sdar.errors import ConfigError
from sdar.parts import Retriever
from sdar.registry import register
from sdar.skills import Skill, SkillBank, retrieval, seeded
from sdar.types import Retrieval, Task


@register("shuffled")
class ShuffledRetriever(Retriever):
    """What `KeywordRetriever` would give, with each specific skill replaced by one that belongs to another task.

    The seed draws the specific skills into one ring, once; a skill is replaced by the next in the ring that does not fit
    the task. So every skill always has the same wrong partner as long as one fits at a time, and no right skill comes back by
    accident when several do. General skills belong to every task, cannot be wrong, and stay: the two retrievers differ in
    the specific part alone. A task that names nearly the whole bank gets fewer skills: no more wrong ones are left.

    Args:
        skills: The skill bank: its folder or file.
        seed: Of the ring.
    """

    bank: SkillBank

    def __init__(self, skills: str, seed: int = 0):
        self.bank: SkillBank = SkillBank.load(skills)
        self.seed = seed
        specific = self.bank.specific
        if len(specific) < 2:
            raise ConfigError(
                f"ShuffledRetriever: {self.bank.source} has {len(specific)} skill(s) besides the general ones, and a placebo "
                "needs another task's skill to give. Use a bank with at least 2, or NoRetriever as the control."
            )
        self.ring = seeded(seed).sample(specific, len(specific))

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        right = self.bank.fitting(task)
        wrong: list[Skill] = []
        for skill in right:
            start = self.ring.index(skill) + 1
            around = self.ring[start:] + self.ring[:start]
            wrong += [other for other in around if other not in right and other not in wrong][:1]
        return retrieval((*self.bank.general, *wrong))

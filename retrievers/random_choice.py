"""Skills by chance ("random retrieval" of SDAR, arXiv:2605.15155, whose repository does not contain it).

Assumed here: the general skills are given as ever, and `count` of the others are drawn without regard to the task.
"""

from sdar.parts import Retriever
from sdar.registry import register
from sdar.skills import SkillBank, check_count, retrieval, seeded
from sdar.types import Retrieval, Task


@register("random")
class RandomRetriever(Retriever):
    """General skills, and `count` others drawn anew for each visit of a task.

    Args:
        skills: The skill bank: its folder or file.
        count: Other skills than the general ones.
        seed: Of the draws.
    """

    bank: SkillBank

    def __init__(self, skills: str, count: int = 1, seed: int = 0):
        self.bank: SkillBank = SkillBank.load(skills)
        self.count = count
        self.seed = seed
        check_count(self.bank, count, "RandomRetriever")

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        drawn = seeded(self.seed, task.id, visit).sample(self.bank.specific, self.count)
        return retrieval((*self.bank.general, *(s for s in self.bank.specific if s in drawn)))

"""Skills by task family or keyword ("keyword matching" of SDAR, arXiv:2605.15155).

As in the SDAR repository, whose teacher is told by the game on ALFWorld and by the data set on Search-QA, a task's family comes
first: on its own skill folders both give the same text. For WebShop, and for Skill-GRPO in all worlds, that repository searches the
whole decoded prompt for substrings: there "hat" is found in "that" and in the pages of a shop, so that the choice changes from turn to
turn. Here only the task's instruction is searched, and only for whole words.
"""

from sdar.parts import Retriever
from sdar.registry import register
from sdar.skills import SkillBank, retrieval
from sdar.types import Retrieval, Task


@register("keyword")
class KeywordRetriever(Retriever):
    """General skills, then those of the task's family; without any, those that the instruction names.

    Skills of a family come in bank order, skills found by a keyword in the order in which the instruction names them.

    Args:
        skills: The skill bank: its folder or file.
    """

    bank: SkillBank

    def __init__(self, skills: str):
        self.bank: SkillBank = SkillBank.load(skills)

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        return retrieval((*self.bank.general, *self.bank.fitting(task)))

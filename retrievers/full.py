"""The whole bank for every task ("full retrieval" of SDAR, arXiv:2605.15155)."""

from sdar.parts import Retriever
from sdar.registry import register
from sdar.skills import SkillBank, retrieval
from sdar.types import Retrieval, Task


@register("full")
class FullRetriever(Retriever):
    """Every skill of the bank, general ones first.

    Needs no rule and finds everything; costs the longest prompt, most of it about other tasks.

    Args:
        skills: The skill bank: its folder or file.
    """

    bank: SkillBank

    def __init__(self, skills: str):
        self.bank: SkillBank = SkillBank.load(skills)

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        return retrieval((*self.bank.general, *self.bank.specific))

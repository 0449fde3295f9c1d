"""Skills as arms of a bandit: UCB1, one bandit per task family.

Score of a skill: ``mean success + c sqrt(ln N / n)``, with n groups of this family that had the skill and N groups that
had any; a skill never tried comes first.

Skill-SD (arXiv:2604.10674) retrieves by UCB per task and SDAR (arXiv:2605.15155) reports "UCB retrieval"; the constant and the
reward are open, and SDAR's repository does not contain it. Assumed here: textbook UCB1 (c = sqrt 2) on the mean success of a
group of attempts, with statistics per family, because one task is visited too rarely to learn from (``per: task`` has them per task).
"""

import math
from typing import Any, Literal

from sdar.errors import ConfigError, SkillBankError
from sdar.parts import Retriever
from sdar.registry import register
from sdar.skills import Skill, SkillBank, check_count, retrieval, seeded
from sdar.types import Retrieval, Task


@register("ucb")
class UCBRetriever(Retriever):
    """General skills, and the `count` others that have helped this family most, with a bonus for those rarely tried.

    Chooses among the skills of the task's family, or among all if the bank has none for it. Equal scores are ordered by chance
    per (seed, task, draw): the groups of one iteration try different new skills.

    Args:
        skills: The skill bank: its folder or file.
        count: Other skills than the general ones.
        c: Weight of the bonus for skills that were rarely tried; 0: none.
        seed: Of the order of equal scores.
        per: What has statistics of its own: each ``family`` of tasks, or each ``task``, as Skill-SD says.
        untried: Score of a skill that was never tried; None: it comes before all others, as in UCB1.
    """

    bank: SkillBank

    def __init__(
        self,
        skills: str,
        count: int = 1,
        c: float = math.sqrt(2),
        seed: int = 0,
        per: Literal["family", "task"] = "family",
        untried: float | None = None,
    ):
        self.bank: SkillBank = SkillBank.load(skills)
        self.count = count
        self.c = c
        self.seed = seed
        self.per, self.untried = per, untried
        self.rounds: dict[str, int] = {}
        """Family (or task) -> groups observed."""
        self.tried: dict[str, dict[str, list[float]]] = {}
        """Family (or task) -> skill -> [groups observed, sum of their mean success]."""
        check_count(self.bank, count, "UCBRetriever")
        if not (math.isfinite(c) and c >= 0):
            raise ConfigError(
                f"UCBRetriever.c is {c}: a bonus for rarely tried skills is finite and not negative. UCB1 uses 1.414; 0 "
                "always takes the best so far."
            )
        if per not in ("family", "task"):
            raise ConfigError(f"UCBRetriever.per is {per!r}: statistics are kept per family or per task. Use one of the two.")
        if untried is not None and not math.isfinite(untried):
            raise ConfigError(
                f"UCBRetriever.untried is {untried}: it is compared with a success in [0, 1] and its bonus. Use a finite number, or null: "
                "untried skills come first."
            )

    def bandit(self, task: Task) -> str:
        """Whose statistics a task goes by."""
        return task.family if self.per == "family" else task.id

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        candidates, scores = self._candidates(task), self.scores(task)
        order = seeded(self.seed, task.id, visit).sample(candidates, len(candidates))
        best = sorted(order, key=lambda skill: scores[skill.id], reverse=True)[: self.count]
        return retrieval((*self.bank.general, *(s for s in candidates if s in best)))

    def _candidates(self, task: Task) -> tuple[Skill, ...]:
        return self.bank.of_family(task.family) or self.bank.specific

    def scores(self, task: Task) -> dict[str, float]:
        return {skill.id: self.score(self.bandit(task), skill.id) for skill in self._candidates(task)}

    def score(self, bandit: str, skill_id: str) -> float:
        """The upper confidence bound of a skill's success, for a family (or task); while it is untried `untried`."""
        tries, successes = self.tried.get(bandit, {}).get(skill_id, (0, 0.0))
        if not tries:
            return math.inf if self.untried is None else self.untried
        return successes / tries + self.c * math.sqrt(math.log(self.rounds[bandit]) / tries)

    def observe(self, task: Task, retrieval: Retrieval, success: float) -> None:
        if not 0 <= success <= 1:
            raise ConfigError(
                f"the success of task {task.id!r} is {success}: UCB1 needs a mean of 0/1 outcomes. Report that instead."
            )
        chosen = [s for s in retrieval.skill_ids if s in self.bank and not self.bank[s].always]
        if not chosen:
            return
        bandit = self.bandit(task)
        self.rounds[bandit] = self.rounds.get(bandit, 0) + 1
        statistics = self.tried.setdefault(bandit, {})
        for skill_id in chosen:
            tries, successes = statistics.get(skill_id, (0, 0.0))
            statistics[skill_id] = [tries + 1, successes + float(success)]

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": dict(self.rounds), "tried": _copy(self.tried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        gone = sorted({s for skills in state["tried"].values() for s in skills if s not in self.bank})
        if gone:
            raise SkillBankError(
                f"{self.bank.source} lacks {', '.join(gone)}, which the saved statistics are about: the bank has changed "
                "since. Resume with the bank of that run, or start a new run."
            )
        self.rounds, self.tried = dict(state["rounds"]), _copy(state["tried"])


def _copy(tried: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    return {family: {skill: list(numbers) for skill, numbers in skills.items()} for family, skills in tried.items()}

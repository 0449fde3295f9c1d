"""What mathematics and science share: problems whose answer is a text that is right or wrong."""

from abc import abstractmethod
from typing import Any, Protocol

from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.envs.problem_env import Attempt, Problem, ProblemEnv, score, tool_error_share
from sdar.envs.worked_solutions import beginning, no_hint
from sdar.parts import StepResult
from sdar.types import Task

RIGHT, WRONG = "Correct.", "Incorrect."


class AnsweredProblem(Problem, Protocol):
    """A problem with a gold answer; `program`, `hint` and `worked` are empty where nobody wrote them."""

    @property
    def family(self) -> str: ...

    @property
    def gold(self) -> str: ...

    @property
    def told(self) -> str: ...

    @property
    def program(self) -> str: ...

    @property
    def hint(self) -> str: ...

    @property
    def worked(self) -> str: ...

    @property
    def where(self) -> str: ...


class AnswerEnv(ProblemEnv):
    """Problems with a gold answer, and a Python interpreter."""

    hints: str
    """Where hints of files come from: `Hints`."""

    @abstractmethod
    def problem(self, task_id: str) -> AnsweredProblem:
        """The problem of a task id, the same on every machine."""

    @abstractmethod
    def _is_right(self, problem: Any, answer: str) -> bool:
        """Whether an answer that is not empty is right."""

    def task(self, task_id: str) -> Task:
        problem = self.problem(task_id)
        seed = int(task_id.rpartition("-")[2])
        return Task(id=task_id, family=problem.family, instruction=problem.text, seed=seed, facts={"answer": problem.told})

    def solution(self, task: Task) -> str:
        """How the answer is found, where that is known, and the answer."""
        problem = self.problem(task.id)
        return "\n\n".join([*filter(None, (problem.worked or problem.program,)), f"The answer is {problem.told}."])

    def reset(self, task: Task) -> str:
        self.running = Attempt(task.id)
        return self.problem(task.id).text

    def demonstration(self, task: Task) -> list[str]:
        """One call of the program that finds the answer, where there is one, then the answer."""
        problem = self.problem(task.id)
        return [*([PYTHON + problem.program] if problem.program else []), ANSWER + problem.gold]

    def hint(self, task: Task) -> str:
        problem = self.problem(task.id)
        made = self.hints == "solution"
        if hint := problem.hint or (beginning(problem.worked) if made else ""):
            return hint
        if not problem.where:
            return super().hint(task)
        raise no_hint(problem.where, made, bool(problem.worked))

    def _judge(self, attempt: Attempt, answer: str) -> StepResult:
        right = bool(answer) and self._is_right(self.problem(attempt.task_id), answer)
        reward = score(right, attempt.calls, self.reward)
        return StepResult(RIGHT if right else WRONG, reward, True, right, bool(answer), self._scores(attempt, right))

    def _scores(self, attempt: Attempt, right: bool = False) -> dict[str, float]:
        return {"correct": float(right), "tool_error_share": tool_error_share(attempt)}

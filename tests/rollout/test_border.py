"""Answers of worlds are looked at where they come in: numbers of other libraries become ours, the rest ends its episode."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from sdar.parts import Environment, StepResult
from sdar.rollout.pool import LocalPool
from sdar.types import Status, Task

TASK = Task("task-7", "family", "do it")


class Answers(Environment):
    """Says what it was made with."""

    horizon = 3

    def __init__(self, first: Any = "begin", then: Any = None, admissible: Any = ()):
        self.first, self.then, self.list = first, then, admissible

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        return [f"{split}-{i}" for i in range(count)]

    def task(self, task_id: str) -> Task:
        return TASK

    def reset(self, task: Task) -> Any:
        return self.first

    def step(self, action: str) -> Any:
        return self.then

    def unfinished(self) -> Any:
        return self.then

    def admissible(self) -> Any:
        return self.list


def played(env: Environment) -> Any:
    pool = LocalPool(env)
    assert pool.reset({0: TASK})[0].fault is None
    return pool.step({0: "go"})[0]


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
@pytest.mark.parametrize("truth", [np.bool_(True), torch.tensor(True), 1])
def test_scalars_of_other_libraries_become_pythons(number: Any, truth: Any) -> None:
    seen = played(Answers(then=StepResult("end", number, truth, truth, truth, {"f1": number}, truth, truth)))
    assert seen.result == StepResult("end", 0.5, True, True, True, {"f1": 0.5}, True, True)
    assert len(vars(seen.result)) == 8, "a new field has to come through, too"
    told = seen.result
    assert [
        type(v) for v in (told.reward, told.scores["f1"], told.done, told.success, told.valid, told.truncated, told.tool_ok)
    ] == [
        float,
        float,
        *[bool] * 5,
    ]


WRONG = {
    "none": (None, "Answers.step returned None (NoneType): it returns a StepResult."),
    "tuple": (("x", 1.0, True), "returned ('x', 1.0, True) (tuple): it returns a StepResult."),
    "observation": (StepResult(None), "Answers.step gave the observation None (NoneType): a text (str) is needed."),
    "nan": (StepResult("x", math.nan), "gave the reward nan: nothing can be learned from a reward that is not finite."),
    "infinite": (StepResult("x", torch.tensor(-math.inf)), "gave the reward -inf"),
    "huge": (StepResult("x", 10**400), "gave the reward inf"),
    "text": (StepResult("x", "1"), "gave the reward '1' (str): a number is needed."),
    "vector": (StepResult("x", np.ones(2)), "gave the reward array([1., 1.]) (ndarray): a number is needed."),
    "score": (StepResult("x", scores={"f1": 3.7}), "gave the score 'f1' = 3.7: scores lie in [0, 1]."),
    "score nan": (StepResult("x", scores={"f1": np.float32("nan")}), "gave the score 'f1' = nan"),
    "scores": (StepResult("x", scores=[1.0]), "gave scores [1.0] (list): they are a dict"),
    "success": (StepResult("x", success=0.5), "gave success = 0.5 (float): it is True or False."),
    "done": (StepResult("x", done="no"), "gave done = 'no' (str): it is True or False."),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("call", ["step", "unfinished"])
def test_a_wrong_answer_ends_its_episode_and_names_the_world(kind: str, call: str) -> None:
    answer, message = WRONG[kind]
    pool = LocalPool(Answers(then=answer))
    pool.reset({0: TASK})
    seen = pool.step({0: "go"})[0] if call == "step" else pool.unfinished([0])[0]
    assert seen.fault is Status.ENV_ERROR and message.replace("Answers.step", f"Answers.{call}") in seen.error
    assert seen.result.reward == 0.0  # nothing of it gets on


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Answers(first=None), "Answers.reset returned None (NoneType): a text (str) is needed."),
        (Answers(first=("x", {})), "Answers.reset returned ('x', {}) (tuple)"),
        (Answers(admissible=None), "Answers.admissible returned None (NoneType): it returns a list of actions"),
        (Answers(admissible="go"), "Answers.admissible returned 'go' (str)"),
        (Answers(admissible=["go", 1]), "Answers.admissible names the action 1 (int)"),
    ],
)
def test_a_wrong_beginning_ends_its_episode(env: Environment, message: str) -> None:
    seen = LocalPool(env).reset({0: TASK})[0]
    assert seen.fault is Status.ENV_ERROR and message in seen.error

"""What a part of somebody else returns is looked at in the run: the message names the part, what is promised and what was found."""

from typing import Any

import pytest
import torch
from played import batch_of, credit_of, episode, turn, view_of

from sdar import registry
from sdar.errors import PartError
from sdar.metrics import Metrics
from sdar.parts import Completion, Part
from sdar.rollout import Request
from sdar.turns import Turns
from sdar.types import Retrieval, StudentTokens

registry.load_parts()
EPISODES = [episode(turn(2, reward=1.0), turn(1)), episode(turn(3))]
BATCH = batch_of(EPISODES, "turn")
TURNS = Turns(BATCH)
TOKENS = view_of(BATCH, torch.zeros(BATCH.ids.shape))
LOGP = TOKENS.student_logp
TASK = EPISODES[0].task
ROWS, TIME = BATCH.ids.shape
ASKED = Request(TASK, 0)

CALLS: dict[str, dict[str, tuple]] = {
    "gates": {"__call__": (TOKENS,)},
    "turn_weights": {"__call__": (TOKENS, TURNS, Metrics())},
    "filters": {"__call__": (torch.ones(2), torch.zeros(2))},
    "advantages": {"__call__": (credit_of(BATCH, EPISODES),)},
    "advantage_transforms": {"__call__": (TOKENS.advantages, TOKENS, TURNS, 0, Metrics())},
    "divergences": {"__call__": (StudentTokens(LOGP, LOGP), TOKENS)},
    "policy_losses": {"__call__": (LOGP, LOGP, LOGP, BATCH.response_mask)},
    "corrections": {"__call__": (LOGP, LOGP)},
    "schedules": {"__call__": (3,)},
    "retrievers": {"retrieve": (TASK, 0)},
    "views": {"text": (EPISODES[0], EPISODES, 0, None)},
    "judges": {"__call__": (EPISODES, ["a", "b"])},
    "controllers": {"__call__": (ASKED, 0, None)},
    "samplers": {"sample": (None, [[1], [1, 2]], [])},
    "protocols": {
        "parse": ("text", []),
        "opening": (TASK, "seen", []),
        "window": (TASK, (), "seen", []),
        "answer": ("seen", []),
        "write": ("go",),
    },
}
"""How each method whose answer is looked at is called, by kind."""

ones = torch.ones
GOOD: dict[str, list[Any]] = {
    "gates": [torch.zeros(ROWS, TIME), ones(ROWS, TIME), ones(ROWS, TIME, dtype=torch.double)],
    "turn_weights": [ones(len(TURNS))],
    "filters": [ones(2, dtype=torch.bool)],
    "advantages": [ones(ROWS), -ones(ROWS, TIME)],
    "advantage_transforms": [-ones(ROWS, TIME)],
    "divergences": [ones(ROWS, TIME), torch.full((ROWS, TIME), torch.nan)],  # a loss may fail: such a step is skipped
    "policy_losses": [ones(ROWS, TIME)],
    "corrections": [ones(ROWS, TIME)],
    "schedules": [0.5, 1],
    "retrievers": [Retrieval(), Retrieval(("a",), "text")],
    "views": ["", "text"],
    "judges": [[[1.0, None], [-0.5]]],
    "controllers": [Request(TASK, 0, max_turns=3)],
    "samplers": [[Completion([1], [0.0], [0.0], True)] * 2],
    "protocols": [],
}
BAD: list[tuple[str, str, Any, str]] = [
    (
        "gates",
        "__call__",
        10 * ones(ROWS, TIME),
        r"returned 10 \(and 5 more like it of 6\): a gate returns weights in \[0, 1\]",
    ),
    ("gates", "__call__", ones(ROWS, TIME) * torch.nan, r"returned nan .*weights in \[0, 1\]"),
    (
        "gates",
        "__call__",
        ones(ROWS),
        rf"returned shape \({ROWS},\) of float32: .*floating point tensor of shape \[batch, time\] = \({ROWS}, {TIME}\)",
    ),
    ("gates", "__call__", ones(ROWS, TIME, dtype=torch.bool), r"of bool: .*floating point"),
    ("gates", "__call__", ones(ROWS, TIME, requires_grad=True), r"carry no gradient \(`detach\(\)`\)"),
    ("gates", "__call__", 0.5, r"returned 0.5 \(float\): a gate"),
    ("gates", "__call__", None, r"returned None \(NoneType\): a gate"),
    ("turn_weights", "__call__", ones(len(TURNS) + 1), rf"one number a turn.*tensor of shape \[turns\] = \({len(TURNS)},\)"),
    ("turn_weights", "__call__", -ones(len(TURNS)), "returned -1 .*not negative"),
    ("turn_weights", "__call__", ones(len(TURNS)) / 0, "returned inf .*finite"),
    (
        "filters",
        "__call__",
        ones(2),
        r"of float32: a filter returns True or False for each episode: a bool tensor of shape \[episodes\] = \(2,\)",
    ),
    ("filters", "__call__", ones(3, dtype=torch.bool), r"returned shape \(3,\) of bool"),
    ("advantages", "__call__", ones(ROWS + 1), rf"one number a row.* of shape \[rows\] = \({ROWS},\)"),
    ("advantages", "__call__", ones(ROWS) * torch.nan, "returned nan .*each finite"),
    ("advantage_transforms", "__call__", ones(ROWS), "one advantage a token"),
    ("advantage_transforms", "__call__", ones(ROWS, TIME) / 0, "returned inf .*each finite"),
    ("divergences", "__call__", torch.tensor(1.0), r"returned shape \(\) .*one loss a token, shaped like student.logp"),
    ("policy_losses", "__call__", ones(ROWS), "a policy loss returns one loss a token"),
    ("corrections", "__call__", -ones(ROWS, TIME), "returned -1 .*one weight a token, not negative"),
    ("schedules", "__call__", float("nan"), r"returned nan \(float\) at iteration 3: a schedule returns a finite number"),
    ("schedules", "__call__", None, r"returned None"),
    ("retrievers", "retrieve", "text", rf"returned 'text' \(str\) for task {TASK.id}: a retriever returns a Retrieval\("),
    ("retrievers", "retrieve", Retrieval("a", "text"), "whose ids and text are texts"),
    ("retrievers", "retrieve", Retrieval((1,), "text"), "whose ids and text are texts"),
    ("views", "text", None, r"returned None \(NoneType\) for task .*: a view returns a text"),
    ("judges", "__call__", [[1.0, None]], "for 2 episodes: a judge returns, for each episode, one label a turn"),
    ("judges", "__call__", [[1.0], [1.0]], r"\[1.0\] \(list\) for 2 turns for task"),
    ("judges", "__call__", [[1.0, 2.0], [1.0]], r"the label 2.0 \(float\)"),
    ("judges", "__call__", [[1.0, float("nan")], [1.0]], r"the label nan"),
    ("controllers", "__call__", None, "a controller returns the Request as it shall be played"),
    ("samplers", "sample", [Completion([1], [0.0], [0.0], True)], "for 2 prompts: a sampler returns one Completion a prompt"),
    (
        "samplers",
        "sample",
        [Completion([1, 2], [0.0], [0.0], True)] * 2,
        "one log-probability and one mass for each of its ids",
    ),
    ("protocols", "parse", "go", r"returned 'go' \(str\): a protocol's `parse` returns \(action, valid\)"),
    ("protocols", "parse", ("go", 1), r"`parse` returns"),
    ("protocols", "opening", "You see", r"a protocol returns messages"),
    ("protocols", "window", [("user", "You see")], r"a protocol returns messages"),
    ("protocols", "answer", None, "return a text"),
    ("protocols", "write", ["go"], "return a text"),
]


def part_that_returns(kind: str, method: str, told: Any) -> Any:
    """A part of somebody else: all that is abstract is there, and the method returns `told`."""
    base = registry.kinds()[kind]
    body = {name: lambda self, *args: None for name in base.__abstractmethods__}
    cls = type("Mine", (base,), body | {method: lambda self, *args: told})
    return object.__new__(cls)


@pytest.mark.parametrize(("kind", "method", "told", "message"), BAD)
def test_a_wrong_answer_names_the_part_what_is_promised_and_what_was_found(
    kind: str, method: str, told: Any, message: str
) -> None:
    with pytest.raises(PartError, match=rf"^Mine returned .*{message.removeprefix('returned ')}.* Correct it\.$"):
        getattr(part_that_returns(kind, method, told), method)(*CALLS[kind][method])


@pytest.mark.parametrize("kind", GOOD)
def test_a_right_answer_comes_back_as_it_is(kind: str) -> None:
    for told in GOOD[kind]:
        [(method, arguments)] = CALLS[kind].items()
        assert getattr(part_that_returns(kind, method, told), method)(*arguments) is told


def test_every_method_that_is_looked_at_is_tried_with_wrong_answers() -> None:
    looked = {(kind, name) for kind, base in registry.kinds().items() if issubclass(base, Part) for name in base.answers}
    assert looked == {(kind, method) for kind, method, _, _ in BAD} == {(k, m) for k, calls in CALLS.items() for m in calls}
    assert {kind for kind, _ in looked} == set(GOOD)


def test_nobody_is_blamed_for_what_was_not_finite_before() -> None:
    broken = view_of(BATCH, torch.full(BATCH.ids.shape, torch.nan))
    nan = torch.full((ROWS, TIME), torch.nan)
    assert part_that_returns("gates", "__call__", nan)(broken) is nan
    weights = torch.full((len(TURNS),), torch.nan)
    assert part_that_returns("turn_weights", "__call__", weights)(broken, TURNS, Metrics()) is weights
    assert part_that_returns("corrections", "__call__", nan)(nan, LOGP) is nan
    padded = ones(ROWS, TIME).masked_fill(~BATCH.response_mask, 7.0)
    assert part_that_returns("gates", "__call__", padded)(TOKENS) is padded  # nobody reads what stands behind the responses


def test_a_subclass_of_our_own_parts_is_looked_at_too() -> None:
    class Louder(registry.parts("gates")["gap"]):
        def __call__(self, tokens: Any) -> torch.Tensor:
            return 3 * super().__call__(tokens)

    with pytest.raises(PartError, match=r"Louder returned 1\.5"):
        Louder()(TOKENS)

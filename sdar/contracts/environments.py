"""What a rollout relies on, of any world: each function plays with it and raises AssertionError where it breaks a promise.

`docs/environments.md` states the promises. A world that cannot be made twice alike, or whose tasks are not plain data, trains on
something else than it says.
"""

import copy
import pickle
import random
from collections.abc import Callable

from sdar.errors import ConfigError, PanelError
from sdar.parts import Environment
from sdar.rollout.border import admissible_of, observation_of, result_of
from sdar.rollout.pool import LocalPool, make_pool

HOSTILE = [
    "",
    " ",
    "\x00",
    "<|im_end|>",
    "<|eot_id|><|start_header_id|>",
    "\u202eabc\u202c",
    "[" * 40,
    "search[",
    "\ud800",
    "x" * 100_000,
]
"""Actions that nobody should say."""

Make = Callable[[], Environment]


def panels(make: Make) -> None:
    """Panels are a function of their arguments and share no task."""
    env = make()
    ids = {split: env.task_ids(split, 4, 0) for split in env.splits}
    other = make()
    _promise(
        {split: other.task_ids(split, 4, 0) for split in env.splits} == ids,
        "`task_ids` gave other ids in a second world made alike",
    )
    every = [task_id for split in env.splits for task_id in ids[split]]
    _promise(
        len(set(every)) == 4 * len(env.splits), f"of {4 * len(env.splits)} tasks of its splits only {len(set(every))} differ"
    )
    _promise(
        env.task_ids(env.splits[0], 2, 0) == ids[env.splits[0]][:2], "a smaller panel is not the beginning of a larger one"
    )
    try:
        env.task_ids("nowhere", 1, 0)
    except PanelError as error:
        _promise(
            f"{type(env).__name__} has no split 'nowhere'" in str(error), f"a split that it has not is refused by {error}"
        )
    else:
        raise AssertionError("`task_ids` accepts a split that it has not: call `check_split`")


def tasks(make: Make) -> None:
    """A task is plain data and the same for every copy."""
    env, other = make(), make()
    for split in env.splits:
        for task_id in env.task_ids(split, 3, 0):
            task = env.task(task_id)
            _promise(task == other.task(task_id), f"task {task_id} is another one in a second world made alike")
            _promise(
                bool(task.id == task_id and task.family and task.instruction),
                f"task {task_id} lacks its id, family or instruction",
            )
            _promise(
                all(isinstance(text, str) for pair in task.facts.items() for text in pair), f"facts of {task_id} are no texts"
            )
            _promise(pickle.loads(pickle.dumps(task)) == task, f"task {task_id} does not pickle")
            length, most = len(task.instruction.encode(errors="replace")), env.longest_instruction
            _promise(
                most is None or length <= most,
                f"the instruction of {task_id} has {length} bytes, `longest_instruction` is {most}: set it to None, or to what it can be",
            )
    try:
        env.task("no-such-task")
    except PanelError:
        return
    raise AssertionError("`task` makes one of an id that no panel has: raise PanelError")


def copies(make: Make) -> None:
    """A copy is small and the same world."""
    env = make()
    env.task(env.task_ids(env.splits[0], 1, 0)[0])
    size = len(pickle.dumps(env))
    _promise(size < 20_000, f"a copy takes {size} bytes: keep what is large in a cache of the module")
    _promise(copy.deepcopy(env).task_ids(env.splits[0], 2, 0) == env.task_ids(env.splits[0], 2, 0), "a copy has other tasks")


def episodes(make: Make) -> None:
    """An episode ends in time whatever is said, and a saved one goes on."""
    env = make()
    for number, task_id in enumerate(env.task_ids(env.splits[0], 3, 0)):
        rng, other = random.Random(number), make()
        _promise(bool(observation_of(env, env.reset(env.task(task_id)))), "`reset` says nothing")
        taken, half = 0, max(1, env.horizon // 4)
        while True:
            if taken == half:
                other.restore(env.save())
            action = _action(env, rng)
            told = env.step(action)
            result = result_of(env, told)
            taken += 1
            if taken > half:
                _promise(other.step(action) == told, f"after `save` and `restore` action {taken} is answered otherwise")
            _promise(result.done or not result.success, "an episode that goes on is no success yet")
            _promise(
                not result.truncated or (result.done and not result.success and taken == env.horizon),
                f"`truncated` after {taken} of {env.horizon} actions: it means that they are used up",
            )
            if result.done:
                break
            _promise(taken < env.horizon, f"an episode goes on after {taken} actions, its horizon is {env.horizon}")
            _promise(taken <= half or other.admissible() == env.admissible(), "after `restore` other actions are admissible")
        other.close()
    env.close()


def cuts(make: Make) -> None:
    """An episode that says nothing is truncated, and one that is cut is worth no more."""
    env = make()
    task = env.task(env.task_ids(env.splits[0], 1, 0)[0])
    env.reset(task)
    results = [result_of(env, env.step("")) for _ in range(env.horizon)]
    expected = [(False, False)] * (env.horizon - 1) + [(True, True)]
    _promise(
        [(r.done, r.truncated) for r in results] == expected, "an episode of empty actions is not truncated at its horizon"
    )
    env.reset(task)
    env.step("")
    cut = result_of(env, env.unfinished(), "unfinished")
    _promise(cut.done and cut.truncated and not cut.success, "`unfinished` is done and truncated, and no success")
    _promise(
        cut.reward <= results[-1].reward,
        f"a cut episode is worth {cut.reward}, one without an end {results[-1].reward}: not more",
    )
    env.close()


def slots(make: Make) -> None:
    """Attempts at one task in a pool do not touch each other."""
    env = make()
    task = env.task(env.task_ids(env.splits[0], 1, 0)[0])
    alone, pool = LocalPool(env), make_pool(env, 0, 60.0, threads=3)
    expected = [alone.reset({0: task})[0], *(alone.step({0: said})[0] for said in ("one", "two"))]
    _promise(all(seen.fault is None for seen in expected), f"it fails: {next((s.error for s in expected if s.fault), '')}")
    what = "several attempts at once are answered otherwise than one alone: copies share something"
    _promise(pool.reset({slot: task for slot in range(3)}) == {slot: expected[0] for slot in range(3)}, what)
    _promise(pool.step({0: "one", 2: "one"}) == {0: expected[1], 2: expected[1]}, what)
    _promise(pool.step({0: "two"}) == {0: expected[2]}, what)
    _promise(pool.step({1: "one"}) == {1: expected[1]}, what)
    for each in (alone, pool):
        each.close()


def demonstrations(make: Make) -> None:
    """Demonstrations, where there are some, reach the goal."""
    env = make()
    for split in env.splits:
        for task_id in env.task_ids(split, 6, 1):
            task = env.task(task_id)
            try:
                shown = env.demonstration(task)
            except ConfigError as error:
                _promise("has no demonstrations" in str(error), f"`demonstration` is refused by {error}")
                return
            env.reset(task)
            results = [result_of(env, env.step(action)) for action in shown]
            ends = [r.done for r in results] == [False] * (len(shown) - 1) + [True]
            _promise(
                ends and results[-1].success and len(shown) <= env.horizon,
                f"the demonstration of {task_id} does not reach its goal",
            )
            _promise(bool(env.solution(task)), f"the solution of {task_id} is empty")
    env.close()


def order(make: Make) -> None:
    """Acting before an episode is an error that says so."""
    env = make()
    try:
        LocalPool(env).step({0: "go"})
    except ConfigError as error:
        _promise(f"{type(env).__name__} was asked to act before `reset`: begin an episode first" in str(error), str(error))
    else:
        raise AssertionError("`step` before `reset` is no error: keep the episode in `running`, and ask `ongoing()` for it")


PROMISES = {check.__name__: check for check in (panels, tasks, copies, episodes, cuts, slots, demonstrations, order)}
"""All of them, by name."""


def _action(env: Environment, rng: random.Random) -> str:
    """Something that the world would accept, or something that nobody should say."""
    told = admissible_of(env, env.admissible())
    return rng.choice(told) if told and rng.random() < 0.7 else rng.choice(HOSTILE)


def _promise(kept: bool, broken: str) -> None:
    if not kept:
        raise AssertionError(broken)

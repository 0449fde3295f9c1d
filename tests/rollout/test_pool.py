"""Pools of worlds: what one episode does to itself never reaches another one, whatever process they share."""

import contextlib
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping

import pytest
from faulty_world import FaultyWorld, UnbornWorld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import gone

from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError, EnvironmentFault
from sdar.parts import Environment
from sdar.rollout import LocalPool, WorkerPool
from sdar.rollout import pool as pool_module
from sdar.rollout.pool import EnvPool, EnvReply, ThreadPool, make_pool
from sdar.types import Status, Task

SLOTS = range(6)
"""Of two workers, one has the slots 0, 2, 4 and the other 1, 3, 5."""


@contextlib.contextmanager
def workers(env: Environment | None = None, number: int = 2, deadline: float = 20.0) -> Iterator[WorkerPool]:
    pool = WorkerPool(env or FaultyWorld(), number, deadline)
    try:
        yield pool
    finally:
        pool.close()


def tasks(orders: Mapping[int, str] | None = None) -> dict[int, Task]:
    """A task for each slot; `orders` says what happens at its reset."""
    return {slot: Task(f"task-{slot}", "faulty", (orders or {}).get(slot, "begin")) for slot in SLOTS}


def say(word: str, but: Mapping[int, str] | None = None, without: tuple[int, ...] = ()) -> dict[int, str]:
    """The same action in all slots, but another one in some of them, and none in those that are over."""
    return {slot: word for slot in SLOTS if slot not in without} | dict(but or {})


def undisturbed(*words: str) -> list[dict[int, EnvReply]]:
    """What every slot sees when nothing goes wrong."""
    pool = LocalPool(FaultyWorld())
    return [pool.reset(tasks()), *(pool.step(say(word)) for word in words)]


def others(seen: Mapping[int, EnvReply], *faulty: int) -> dict[int, EnvReply]:
    return {slot: s for slot, s in seen.items() if slot not in faulty}


def test_worker_processes_give_what_one_process_gives() -> None:
    env = HouseholdEnv(receptacles=8, horizon=12)
    rng = random.Random(0)
    local = LocalPool(env)
    with workers(env) as pool:
        for wanted in ("train", "unseen"):
            numbered = {slot: env.task(t) for slot, t in enumerate(env.task_ids(wanted, 5, 0))}
            seen = local.reset(numbered)
            assert pool.reset(numbered) == seen
            while seen:
                actions = {slot: rng.choice([*s.admissible, "fly away"]) for slot, s in seen.items()}
                answers = local.step(actions)
                assert pool.step(actions) == answers
                seen = {slot: s for slot, s in answers.items() if not s.result.done}


@pytest.mark.parametrize(
    ("trouble", "status", "error"),
    [
        ("raise", Status.ENV_ERROR, r"^RuntimeError: the roof fell in$"),
        ("leave", Status.ENV_ERROR, r"^SystemExit: out of the door$"),
        ("hang", Status.TIMEOUT, r"^no answer within 1\.0 s$"),
        ("exit 7", Status.ENV_DIED, r"^worker process ended with exit code 7$"),
        ("kill", Status.ENV_DIED, r"^worker process ended with exit code -9$"),
    ],
)
def test_trouble_ends_one_episode_and_no_other(trouble: str, status: Status, error: str) -> None:
    expected = undisturbed("one", "two", "three")
    with workers(deadline=1.0 if trouble == "hang" else 20.0) as pool:
        assert pool.reset(tasks()) == expected[0]
        assert pool.step(say("one")) == expected[1]
        seen = pool.step(say("two", but={2: trouble}))
        assert seen[2].fault == status
        assert re.search(error, seen[2].error)
        assert seen[2].result.done and seen[2].admissible == []
        assert others(seen, 2) == others(expected[2], 2)
        assert pool.step(say("three", without=(2,))) == others(expected[3], 2)
        assert pool.replaced == (status != Status.ENV_ERROR)
        assert pool.reset({2: tasks()[2]}) == {2: expected[0][2]}  # the slot works again
        assert pool.step({2: "one"}) == {2: expected[1][2]}


@pytest.mark.parametrize("trouble", ["raise", "leave"])
@pytest.mark.parametrize("threads", [0, 4])
def test_an_exception_is_a_fault_in_one_process_too(trouble: str, threads: int) -> None:
    expected = undisturbed("one", "two")
    local = make_pool(FaultyWorld(), 0, 20.0, threads)
    with workers() as pool:
        for each in (local, pool):
            each.reset(tasks())
        seen = local.step(say("one", but={3: trouble}))
        assert seen[3].fault == Status.ENV_ERROR
        assert pool.step(say("one", but={3: trouble})) == seen
        assert local.step(say("two", without=(3,))) == others(expected[2], 3)
        assert local.reset({3: tasks()[3]}) == {3: expected[0][3]}


@pytest.mark.parametrize("where", ["local", "threads", "workers"])
def test_an_episode_that_ends_unfinished_is_priced_by_its_world(where: str) -> None:
    pool = make_pool(FaultyWorld(), 2 * (where == "workers"), 20.0, 4 * (where == "threads"))
    try:
        pool.reset(tasks())
        pool.step(say("one"))
        if isinstance(pool, WorkerPool):  # the worker that ends them never saw them begin
            for worker in pool._workers:
                os.kill(worker.process.pid, 9)
                worker.process.join()
        seen = pool.unfinished([1, 4])
        assert {slot: (s.result.observation, s.result.reward) for slot, s in seen.items()} == {
            slot: (f"task-{slot} / one", -2.0) for slot in (1, 4)
        }
        assert all(s.result.done and s.fault is None and not s.admissible for s in seen.values())
        assert pool.step(say("two", without=(1, 4))) == others(undisturbed("one", "two")[2], 1, 4)
        assert pool.reset({4: tasks()[4]}) == {4: undisturbed()[0][4]}
    finally:
        pool.close()


@pytest.mark.parametrize("where", ["local", "threads", "workers"])
@pytest.mark.parametrize("when", ["reset", "step"])
def test_settings_that_cannot_work_stop_the_run(where: str, when: str) -> None:
    """They are no accident of one episode: every one would end like this, without a gradient, to the last iteration."""
    pool = make_pool(FaultyWorld(), 2 * (where == "workers"), 20.0, 4 * (where == "threads"))
    try:
        if when == "step":
            pool.reset(tasks())
        with pytest.raises(ConfigError, match=r"^env\.roof is 0: nobody can live here\. Give 1\.$"):
            pool.reset(tasks({3: "misset"})) if when == "reset" else pool.step(say("one", but={3: "misset"}))
    finally:
        pool.close()


def test_threads_wait_at_the_same_time_and_each_call_has_its_own_deadline() -> None:
    expected = undisturbed("wait 0.4", "one")
    pool = ThreadPool(FaultyWorld(), threads=6, deadline=1.0)
    pool.reset(tasks())
    started = time.monotonic()
    assert pool.step(say("wait 0.4")) == expected[1]
    assert time.monotonic() - started < 1.2  # one after the other: 2.4 s
    assert pool.step(say("one")) == expected[2]
    few = ThreadPool(FaultyWorld(), threads=2, deadline=1.0)
    few.reset(tasks())
    started = time.monotonic()
    assert few.step(say("wait 0.4")) == expected[1]  # the last two begin after 0.8 s, and are in time
    assert time.monotonic() - started >= 1.2


def test_slots_of_threads_are_called_one_by_one_and_no_more_at_once_than_asked_for() -> None:
    expected = undisturbed("wait 0.1")
    pool = ThreadPool(FaultyWorld(), threads=2)
    pool.reset(tasks())
    assert len({pool.lane(slot) for slot in SLOTS}) == len(SLOTS)
    started = time.monotonic()
    calls = [pool.begin({slot: "wait 0.1"}) for slot in SLOTS]
    assert [call.result() for call in calls] == [{slot: expected[1][slot]} for slot in SLOTS]
    assert time.monotonic() - started >= 0.3


def test_workers_are_called_one_by_one_and_what_ends_a_call_ends_no_other() -> None:
    expected = undisturbed("wait 0.3", "one")
    with workers() as pool:
        pool.reset(tasks())
        assert [pool.lane(slot) for slot in SLOTS] == [0, 1] * 3
        slow, quick = pool.begin({0: "wait 0.3", 2: "wait 0.3"}), pool.begin({1: "wait 0.3"})
        assert quick.result() == {1: expected[1][1]} and not slow.done()
        wrong, right = pool.begin({3: "misset"}), slow.result()
        with pytest.raises(ConfigError, match=r"env\.roof is 0"):
            wrong.result()
        assert right == {slot: expected[1][slot] for slot in (0, 2)}
        assert pool.step({0: "one", 1: "one"}) == {slot: expected[2][slot] for slot in (0, 1)}  # replayed where it ended


def test_a_thread_that_hangs_ends_one_episode_and_its_late_answer_reaches_nobody() -> None:
    expected = undisturbed("one", "two")
    pool = ThreadPool(FaultyWorld(), threads=2, deadline=0.3)
    pool.reset(tasks())
    seen = pool.step(say("one", but={2: "wait 0.5"}))
    assert (seen[2].fault, seen[2].error) == (Status.TIMEOUT, "no answer within 0.3 s")
    assert others(seen, 2) == others(expected[1], 2)
    assert pool.reset({2: tasks()[2]}) == {2: expected[0][2]}
    time.sleep(0.4)  # now the late call is over
    assert pool.step({2: "one"}) == {2: expected[1][2]}
    assert pool.step(say("two", without=(2,))) == others(expected[2], 2)


@pytest.mark.parametrize("threads", [0, 2])
def test_environments_are_closed_when_they_fail_and_in_the_end(threads: int) -> None:
    closed: list[str] = []

    class Door(FaultyWorld):
        def close(self) -> None:
            closed.append(self.told[0])
            raise RuntimeError("it is stuck")

    pool = make_pool(Door(), 0, 20.0, threads)
    pool.reset(tasks())
    pool.step({1: "raise"})
    assert closed == ["task-1"]
    pool.close()
    pool.close()
    assert sorted(closed) == [f"task-{slot}" for slot in SLOTS]


@pytest.mark.parametrize(
    ("trouble", "status"), [("raise", Status.ENV_ERROR), ("hang", Status.TIMEOUT), ("exit 1", Status.ENV_DIED)]
)
def test_trouble_at_reset_ends_one_episode_and_no_other(trouble: str, status: Status) -> None:
    expected = undisturbed("one")
    with workers(deadline=1.0 if trouble == "hang" else 20.0) as pool:
        seen = pool.reset(tasks({0: trouble}))
        assert seen[0].fault == status
        assert others(seen, 0) == others(expected[0], 0)
        assert pool.step(say("one", without=(0,))) == others(expected[1], 0)


def test_several_faults_in_one_call_are_told_apart() -> None:
    expected = undisturbed("one", "two", "three")
    with workers(deadline=1.0) as pool:
        pool.reset(tasks())
        pool.step(say("one"))
        seen = pool.step(say("two", but={0: "exit 1", 1: "hang", 2: "raise", 4: "kill"}))
        faults = {slot: seen[slot].fault for slot in (0, 1, 2, 4)}
        assert faults == {0: Status.ENV_DIED, 1: Status.TIMEOUT, 2: Status.ENV_ERROR, 4: Status.ENV_DIED}
        assert others(seen, 0, 1, 2, 4) == {slot: expected[2][slot] for slot in (3, 5)}
        assert pool.step(say("three", without=(0, 1, 2, 4))) == {slot: expected[3][slot] for slot in (3, 5)}
        assert pool.replaced == 3


@pytest.mark.parametrize(
    ("trouble", "status", "error"),
    [
        ("again hang", Status.TIMEOUT, "no answer within 1.0 s"),
        ("again exit 4", Status.ENV_DIED, "exit code 4"),
        ("again raise", Status.ENV_ERROR, "the roof fell in"),
        ("again vary", Status.ENV_DIED, "does not repeat itself"),
    ],
)
def test_an_episode_that_cannot_be_played_again_ends_alone(trouble: str, status: Status, error: str, tmp_path) -> None:
    """Slots 0, 2 and 4 share a worker. 4 kills it, and 2 gets into trouble when it is played again."""
    with workers(FaultyWorld(tmp_path / "diary"), deadline=1.0) as pool:
        pool.reset(tasks())
        pool.step(say("one", but={2: trouble}))
        assert pool.step({4: "kill"})[4].fault == Status.ENV_DIED
        seen = pool.step({slot: "two" for slot in (0, 1, 2, 3, 5)})
        assert seen[2].fault == status
        assert error in seen[2].error
        assert others(seen, 2) == {slot: undisturbed("one", "two")[2][slot] for slot in (0, 1, 3, 5)}
        assert pool.replaced == 1 + (trouble in ("again hang", "again exit 4"))  # the others' worker is well


def test_a_worker_that_dies_between_two_calls_ends_no_episode() -> None:
    expected = undisturbed("one", "two")
    with workers() as pool:
        pool.reset(tasks())
        pool.step(say("one"))
        for worker in pool._workers:
            os.kill(worker.process.pid, 9)
            worker.process.join()
        assert pool.step(say("two")) == expected[2]
        assert pool.replaced == 2


def test_a_world_that_dies_a_little_later_ends_at_most_its_own_episode() -> None:
    expected = undisturbed("one", "two", "three")
    with workers() as pool:
        pool.reset(tasks())
        process = pool._workers[0].process
        pool.step(say("one", but={4: "die later"}))
        process.join(20)
        assert pool.step(say("two", without=(4,))) == others(expected[2], 4)
        assert pool.step(say("three", without=(4,))) == others(expected[3], 4)


def test_only_running_episodes_are_played_again(tmp_path) -> None:
    diary = tmp_path / "diary"
    with workers(FaultyWorld(diary), number=1) as pool:
        pool.reset(tasks())
        pool.step(say("one", but={1: "win", 2: "raise"}))
        pool.step({3: "kill"})
        diary.write_text("")
        pool.step({4: "two"})
        assert diary.read_text().split("\n")[:-1] == ["task-4 begin", "task-4 one", "task-4 two"]
        pool.step({4: "three"})
        assert diary.read_text().count("task-4 begin") == 1  # it lives in the new worker now
        pool.reset({5: tasks()[5]})
        assert "task-5 one" not in diary.read_text()  # a new episode has no past


def test_an_interrupted_call_leaves_no_answer_behind(monkeypatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    expected = undisturbed("one", "two")
    with workers() as pool:
        pool.reset(tasks())
        pool.step(say("one"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pool_module, "wait", interrupt)
            pool.step(say("never heard of"))
        assert pool.step(say("two")) == expected[2]


def test_every_call_has_its_own_deadline_and_workers_share_the_time() -> None:
    with workers(deadline=1.5) as pool:
        pool.reset(tasks())
        started = time.monotonic()
        seen = pool.step({0: "wait 1", 1: "wait 1", 2: "wait 1", 3: "wait 1"})
        assert all(s.fault is None for s in seen.values())  # two seconds in each worker, but each call in time
        assert 2.0 <= time.monotonic() - started < 3.8
        started = time.monotonic()
        seen = pool.step({0: "hang", 1: "hang"})
        assert {s.fault for s in seen.values()} == {Status.TIMEOUT}
        assert 1.5 <= time.monotonic() - started < 2.9


@given(st.lists(st.dictionaries(st.sampled_from(SLOTS), st.sampled_from(["one", "two", "win", "raise", "exit 1", "kill"]))))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_each_episode_is_what_it_would_be_alone(steps: list[dict[int, str]]) -> None:
    dying = {"exit 1": "raise", "kill": "raise"}  # in one process there is nothing better to compare with
    local = LocalPool(FaultyWorld())
    running = set(local.reset(tasks()))
    with workers() as pool:
        pool.reset(tasks())
        for actions in steps:
            actions = {slot: action for slot, action in actions.items() if slot in running}
            expected = local.step({slot: dying.get(action, action) for slot, action in actions.items()})
            seen = pool.step(actions)
            for slot, action in actions.items():
                if action in dying:
                    assert seen[slot].fault == Status.ENV_DIED
                else:
                    assert seen[slot] == expected[slot]
            running -= {slot for slot, s in expected.items() if s.result.done}


def test_the_copies_of_a_world_are_independent_of_it_and_of_each_other() -> None:
    env = FaultyWorld()
    with workers(env) as pool:
        for each in (LocalPool(env), pool):
            each.reset({0: tasks()[0], 2: tasks()[2]})
            each.step({0: "one"})
            assert each.step({2: "two"})[2].result.observation == "task-2 / two"
    assert env.told == []


def test_close_leaves_no_process_behind() -> None:
    pool = WorkerPool(FaultyWorld(), 3, deadline=1.0)
    pool.reset(tasks())
    pool.step({0: "hang", 1: "kill"})
    processes = [worker.process for worker in pool._workers]
    pool._workers[2].ask(2, "hang", 1.0)  # still busy
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 5
    assert not any(process.is_alive() for process in processes)
    assert not [p for p in multiprocessing.active_children() if p.name == "sdar-env"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks, which waits for a world that computes")
@pytest.mark.parametrize("order", ["hang", "compute"])
def test_a_worker_ends_with_a_killed_trainer_in_the_middle_of_a_step(order: str, monkeypatch) -> None:
    # Forked from the trainer itself, so that nothing has to be imported.
    monkeypatch.setattr(pool_module, "_start_method", lambda env: multiprocessing.get_context("fork"))
    told, tell = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        with contextlib.suppress(BaseException):
            pool = WorkerPool(FaultyWorld(), 1, 600.0)
            pool.reset({0: tasks()[0]})
            os.write(tell, str(pool._workers[0].process.pid).encode())
            pool.step({0: order})
        os._exit(1)
    pid = int(os.read(told, 20))
    for end in (told, tell):
        os.close(end)
    time.sleep(0.3)  # at work
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    try:
        assert gone(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_pool_that_cannot_work_says_so() -> None:
    with pytest.raises(ConfigError, match=r"workers is 0: a worker pool needs at least 1 process"):
        WorkerPool(FaultyWorld(), 0)
    for make in (WorkerPool, ThreadPool):
        with pytest.raises(ConfigError, match=r"env deadline is 0 seconds: every call would be late"):
            make(FaultyWorld(), 1, deadline=0)
    env = FaultyWorld()
    env.door = lambda: None
    with pytest.raises(ConfigError, match=r"FaultyWorld does not pickle .*Let it open files and connections in `reset`"):
        WorkerPool(env, 1)


def test_a_world_that_no_process_can_make_stops_the_run() -> None:
    """It is not an accident of one episode: all of them would end like this."""
    with workers(UnbornWorld()) as pool, pytest.raises(EnvironmentFault, match=r"could not start \(worker process ended with"):
        pool.reset(tasks())


def test_the_number_of_workers_or_threads_chooses_the_pool() -> None:
    assert isinstance(make_pool(FaultyWorld(), 0, 30.0), LocalPool)
    assert isinstance(make_pool(FaultyWorld(), 0, 30.0, threads=2), ThreadPool)
    with pytest.raises(
        ConfigError, match=r"data\.workers is 1 and data\.threads is 2: a world runs in processes or in threads"
    ):
        make_pool(FaultyWorld(), 1, 30.0, threads=2)
    pool: EnvPool = make_pool(FaultyWorld(), 1, 30.0)
    assert isinstance(pool, WorkerPool)
    pool.close()

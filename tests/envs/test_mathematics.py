"""Mathematics as an environment: problems from files and generated, rewards, tool calls, faults."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest

from sdar.data import TaskModule
from sdar.envs import FencedMathProtocol, HermesMathProtocol, MathEnv, math_checking
from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.envs.mathematics import MALFORMED, NO_CALLS_LEFT, NO_OUTPUT, score, shorten, tell
from sdar.errors import ConfigError, EnvironmentFault, PanelError
from sdar.rollout.pool import LocalPool, ThreadPool
from sdar.sandbox import CodeRunner, Limits, Result, best_runner
from sdar.sandbox.base import Program
from sdar.training import reporting
from sdar.types import Status


class Canned(CodeRunner):
    """Gives the results that the test wants, without running anything."""

    limits = Limits()
    isolates = False

    def __init__(self, *results: Result):
        self.results = list(results)
        self.programs: list[Program] = []

    @property
    def layers(self):
        return ("none",)

    def _execute(self, program, limits):
        self.programs.append(program)
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result


OK = Result("ok", "5\n")


def begin(env, split="train"):
    task = env.task(env.task_ids(split, 1, 0)[0])
    env.reset(task)
    return task


def test_a_problem_is_solved_with_the_real_interpreter():
    env = MathEnv(level="easy", reward="signed")
    for task_id in env.task_ids("unseen", 6, 0):
        task = env.task(task_id)
        assert env.reset(task) == task.instruction
        call, answer = env.demonstration(task)
        seen = env.step(call)
        assert seen.observation == task.facts["answer"] and not seen.done and seen.valid and seen.reward == 0.0
        end = env.step(answer)
        assert end.done and end.success and end.reward == 1.0
        assert end.scores == {"correct": 1.0, "tool_error_share": 0.0}
        assert task.facts["answer"] in env.solution(task) and env.hint(task)
    env.close()


def test_an_expert_runs_the_program_and_then_answers():
    env = MathEnv(level="easy", runner=Canned(Result("error", "", "oops"), OK))
    task = begin(env)
    expert = env.expert({}, None)
    assert expert.act() == expert.act() == PYTHON + env.problem(task.id).program
    env.running.computed = task.facts["answer"]
    assert expert.act() == ANSWER + task.facts["answer"]


@pytest.mark.parametrize(
    ("right", "calls", "kind", "reward"),
    [
        (True, 0, "binary", 1.0),
        (False, 3, "binary", 0.0),
        (True, 5, "signed", 1.0),
        (False, 5, "signed", -1.0),
        (True, 2, "sod", 1.0),
        (False, 0, "sod", -1.0),
        (False, 1, "sod", -0.9),
        (False, 3, "sod", -0.7),
        (False, 4, "sod", -0.6),
        (False, 15, "sod", -0.6),
    ],
)
def test_rewards(right, calls, kind, reward):
    assert score(right, calls, kind) == pytest.approx(reward)


def test_the_reward_comes_once_at_the_end():
    env = MathEnv(runner=Canned(OK), reward="sod", horizon=5)
    begin(env)
    rewards = [env.step(PYTHON + "5").reward for _ in range(3)]
    end = env.step(ANSWER + "no number")
    assert rewards == [0.0] * 3 and end.done and end.reward == pytest.approx(-0.7) and not end.success and end.valid


def test_the_horizon_ends_an_episode_as_a_wrong_one():
    env = MathEnv(runner=Canned(OK), reward="signed", horizon=2)
    begin(env)
    assert not env.step(PYTHON + "5").done
    end = env.step(PYTHON + "5")
    assert end.done and not end.success and end.reward == -1.0 and end.observation == "5" and end.valid
    task = begin(env)
    env.step(PYTHON + "5")
    assert env.step(ANSWER + task.facts["answer"]).success


@pytest.mark.parametrize(("reward", "worth"), [("binary", 0.0), ("signed", -1.0), ("sod", -0.9)])
def test_an_episode_that_fills_its_context_is_worth_a_wrong_answer(reward, worth):
    env = MathEnv(runner=Canned(OK), reward=reward)
    task = env.task(env.task_ids("train", 1, 0)[0])
    pool = LocalPool(env)
    pool.reset({0: task})
    pool.step({0: PYTHON + "5"})
    end = pool.unfinished([0])[0].result
    assert (end.reward, end.done, end.truncated, end.success) == (pytest.approx(worth), True, True, False)
    assert end.scores == {"correct": 0.0, "tool_error_share": 0.0}


def test_a_wrong_answer_on_the_last_turn_is_an_end_of_the_episode_itself():
    env = MathEnv(runner=Canned(OK), horizon=1)
    begin(env)
    assert not env.step(ANSWER + "no").truncated
    begin(env)
    assert env.step(PYTHON + "5").truncated


def test_the_machine_is_looked_at_before_anything_is_loaded(caplog, monkeypatch):
    """Not at the first call, whose failure would be one episode's."""

    def data(*results):
        return TaskModule(MathEnv(runner=Canned(*results)), train_tasks=4, val_tasks=2, protocol=FencedMathProtocol())

    with caplog.at_level("INFO"):
        data(Result("ok", "42\n")).setup("fit")
    assert [r.getMessage() for r in caplog.records] == ["code sandbox: none"]
    with pytest.raises(ConfigError, match=r"Canned cannot run code \(error: NameError: six\): 6 \* 7 was to print 42"):
        data(Result("error", "", "NameError: six\n")).setup("fit")
    nowhere = ConfigError("nothing isolates untrusted code on this machine")
    with pytest.raises(ConfigError, match="nothing isolates untrusted code"):
        data(nowhere).setup("fit")
    pool = LocalPool(MathEnv(runner=Canned(nowhere)))
    pool.reset({0: pool._copies.env.task(pool._copies.env.task_ids("train", 1, 0)[0])})
    with pytest.raises(ConfigError, match="nothing isolates untrusted code"):
        pool.step({0: PYTHON + "1"})
    monkeypatch.setattr(math_checking, "_checker", math_checking._Checker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="math-verify is not installed"):
        data(Result("ok", "42\n")).setup("fit")


def test_looping_programs_end_no_episode_but_their_own(monkeypatch):
    """Each waits for its own server, so that none is late for the others' sake."""
    try:
        runner = best_runner(Limits(wall_s=3.0))
    except ConfigError as error:
        pytest.skip(str(error))
    env = MathEnv(level="easy", runner=runner)
    pool = ThreadPool(env, threads=6, deadline=15.0)
    ids = env.task_ids("train", 6, 0)
    pool.reset({slot: env.task(task_id) for slot, task_id in enumerate(ids)})
    seen = pool.step({slot: PYTHON + ("6 * 7" if slot == 5 else "while True: pass") for slot in range(6)})
    assert all(s.fault is None for s in seen.values())
    assert [s.result.observation for s in seen.values()] == 5 * ["[stopped: more than the allowed time (wall limit)]"] + ["42"]
    pool.close()
    env.close()


def test_calls_that_nobody_could_run_are_not_paid_for():
    for calls in ([PYTHON + "5"], [PYTHON + "5", "", ""], ["", "", PYTHON + "5", ""]):
        env = MathEnv(runner=Canned(OK), reward="sod", max_tool_calls=1)
        begin(env)
        assert all(not env.step(call).done for call in calls)
        assert env.step(ANSWER + "no").reward == pytest.approx(-0.9)


def test_calls_may_be_fewer_than_turns():
    env = MathEnv(runner=Canned(OK), max_tool_calls=1)
    begin(env)
    assert env.step(PYTHON + "5").observation == "5"
    none_left = env.step(PYTHON + "5")
    assert none_left.observation == NO_CALLS_LEFT and none_left.tool_ok is False
    assert len(env.runner.programs) == 1


def test_what_went_wrong_with_calls_is_told_and_counted():
    late = Result("timeout", "half\n", "", 10.0, "wall")
    env = MathEnv(runner=Canned(Result("error", "", "ZeroDivisionError: x\n"), late, Result("ok")))
    begin(env)
    raised, slow, fine, seen = (env.step(action) for action in (PYTHON + "1/0", PYTHON + "x", PYTHON + "x = 1", ""))
    assert raised.observation == "ZeroDivisionError: x"
    assert slow.observation == "half\n[stopped: more than the allowed time (wall limit)]"
    assert fine.observation == NO_OUTPUT
    assert [step.tool_ok for step in (raised, slow, fine, seen)] == [False, False, True, False]
    assert env.step(ANSWER + "1").tool_ok is None
    assert seen.observation == MALFORMED and not seen.valid and seen.scores["tool_error_share"] == 0.75
    assert tell(Result("killed", layer="signal 11")) == "[the process was killed (signal 11)]"


def test_a_runner_that_is_down_ends_the_episode_with_a_status():
    env = MathEnv(runner=Canned(EnvironmentFault("the service is down")))
    pool = LocalPool(env)
    task = env.task(env.task_ids("train", 1, 0)[0])
    pool.reset({0: task})
    seen = pool.step({0: PYTHON + "1"})[0]
    assert seen.fault == Status.ENV_ERROR and seen.error == "EnvironmentFault: the service is down"


def test_state_is_kept_only_when_asked_for_and_survives_a_save():
    for stateful in (False, True):
        env = MathEnv(stateful=stateful, runner=Canned(OK, Result("timeout", layer="wall"), Result("error"), OK))
        begin(env)
        for code in ("a = 1", "loop", "b = 1/0"):
            env.step(PYTHON + code)
        twin = MathEnv(stateful=stateful, runner=Canned(OK))
        twin.restore(env.save())
        for one in (env, twin):
            one.step(PYTHON + "a")
        assert one.runner.programs[-1].cells == (("a = 1", "b = 1/0", "a") if stateful else ("a",))
        assert env.running == twin.running


def test_long_output_is_cut_in_the_middle_visibly():
    text = "a" * 500 + "b" * 500
    assert shorten(text, 1000) == text
    assert shorten(text, 100) == "a" * 50 + "\n[... 900 characters cut ...]\n" + "b" * 50


def message(role, content):
    return {"role": role, "content": content}


def test_problems_come_from_files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"problem": "What is 6 * 7?", "answer": "42", "id": "a", "data_source": "aime"},
        {"question": "What is 1/2?", "answer": 0.5},
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Root of 2?"}],
            "reward_model": {"ground_truth": "\\sqrt{2}"},
        },
        {"problem": "Three?", "solution": "It is \\boxed{3}."},
    ]
    train, unseen = tmp_path / "train.jsonl", tmp_path / "unseen.parquet"
    train.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    column = {
        "prompt": [[{"role": "user", "content": "Q?"}]],
        "reward_model": [{"style": "rule", "ground_truth": "5"}],
        "data_source": ["dapo"],
    }
    pyarrow.parquet.write_table(pyarrow.table(column), unseen)
    env = MathEnv(files={"train": str(train), "unseen": str(unseen)}, runner=Canned(OK))
    assert env.splits == ("train", "unseen")
    tasks = {t.instruction: t for t in map(env.task, env.task_ids("train", 4, 0))}
    assert tasks["What is 6 * 7?"].family == "aime" and tasks["Three?"].family == "math"
    assert {q: t.facts["answer"] for q, t in tasks.items()} == {
        "What is 6 * 7?": "42", "What is 1/2?": "0.5", "Root of 2?": "\\sqrt{2}", "Three?": "3"
    }  # fmt: skip
    assert env.task_ids("train", 4, 0) != env.task_ids("train", 4, 1) and set(env.task_ids("train", 4, 1)) == {
        t.id for t in tasks.values()
    }
    root = tasks["Root of 2?"]
    env.reset(root)
    assert env.step(ANSWER + "2^{1/2}").success
    assert env.demonstration(root) == [ANSWER + "\\sqrt{2}"]
    with pytest.raises(ConfigError, match=r"train\.jsonl, row 3 has no hint, and HintView"):
        env.hint(root)
    with pytest.raises(PanelError, match=r"unseen\.parquet has 1 problems, but a panel of 2 is asked for"):
        env.task_ids("unseen", 2, 0)
    with pytest.raises(PanelError, match="MathEnv has no split 'seen'"):
        env.task_ids("seen", 1, 0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.task(root.id) == root
    train.write_text(train.read_text().replace("42", "43"))
    from sdar.envs import mathematics

    mathematics._file_problems.cache_clear()
    with pytest.raises(PanelError, match="it would be another problem under the same name"):
        MathEnv(files={"train": str(train), "unseen": str(unseen)}).task(root.id)


def test_a_problem_counts_once_and_none_is_trained_on_that_is_measured(tmp_path):
    texts = {"train": ["What is 1+1?", "two", "what  is 1+1? ", "three", "four"], "unseen": ["Three", "five", "five"]}
    files = {split: str(tmp_path / f"{split}.jsonl") for split in texts}
    for split, said in texts.items():
        rows = [{"problem": text, "answer": str(n)} for n, text in enumerate(said)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning) as told:
        env = MathEnv(files=files, runner=Canned(OK))
        twin = MathEnv(files=files, runner=Canned(OK))
    assert [str(w.message).partition("; they are left out, ")[0] for w in told] == [
        f"{files['train']}: of 5 rows 1 repeat the text of an earlier one and 1 have a text that validation or test measures",
        f"{files['unseen']}: of 3 rows 1 repeat the text of an earlier one and 0 have a text that validation or test measures",
    ]
    panels = {split: [env.task(t) for t in twin.task_ids(split, count, 0)] for split, count in (("train", 3), ("unseen", 2))}
    assert {t.instruction for t in panels["train"]} == {"What is 1+1?", "two", "four"}
    assert {t.instruction: t.facts["answer"] for t in panels["unseen"]} == {"Three": "0", "five": "1"}
    with pytest.raises(PanelError, match=r"train\.jsonl has 3 problems, but a panel of 4 is asked for"):
        env.task_ids("train", 4, 0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no problem"),
        ("{", r"line 1: no JSON"),
        ("[]", r"row 1: list instead of an object"),
        ('{"text": "x"}', r"row 1 has no problem: .* Its columns: 'text'"),
        ('{"problem": "x", "answer": null}', r"row 1 has no answer"),
        ('{"problem": "x", "answer": " "}', r"row 1 has no answer"),
        ('{"prompt": [5], "answer": "1"}', r"row 1 has no problem"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_row(tmp_path, text, match):
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match):
        MathEnv(files={"train": str(file)})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"horizon": 0}, r"env\.horizon is 0: it must be at least 1"),
        ({"max_tool_calls": -1}, r"env\.max_tool_calls is -1"),
        ({"output_chars": 5}, r"env\.output_chars is 5"),
        ({"reward": "plus"}, r"env\.reward is 'plus'"),
        ({"level": "hard"}, r"env\.level is 'hard'"),
        ({"families": ["digit"]}, r"env\.families names 'digit': no such family. Did you mean 'digits'\?"),
        ({"split": "test"}, r"env\.split is 'test', but there are problems for train, seen, unseen"),
        ({"files": {"train": "/no/such.jsonl"}}, r"env\.files names /no/such\.jsonl, which does not exist"),
        ({"files": {"train": "x"}, "families": ["digits"]}, r"env\.families chooses among generated problems"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        MathEnv(**settings)


def test_an_id_of_other_settings_is_refused():
    env, other = MathEnv(level="easy"), MathEnv(level="full")
    with pytest.raises(PanelError, match="belongs to other settings or files"):
        other.task(env.task_ids("train", 1, 0)[0])
    for wrong in ("math", "math-x-train-0-000000", "math-12345678-train-row-0", ""):
        with pytest.raises(PanelError):
            env.task(wrong)
    with pytest.raises(ConfigError, match="asked to act before `reset`"):
        env.step("x")


@pytest.mark.parametrize("protocol", [HermesMathProtocol(), FencedMathProtocol()])
def test_demonstrations_are_written_and_read_back(protocol):
    env = MathEnv(level="easy", runner=Canned(OK))
    for task in map(env.task, env.task_ids("train", 12, 0)):
        for action in env.demonstration(task):
            assert protocol.parse(protocol.write(action), ()) == (action, True)


def test_the_layers_around_code_stand_beside_every_measurement(tmp_path, monkeypatch):
    module = SimpleNamespace(
        trainer=SimpleNamespace(state=SimpleNamespace(fn=SimpleNamespace(value="validate")), ckpt_path=None),
        seed=1, iteration=0, env_steps=0, tasks=TaskModule(MathEnv(runner=Canned()), train_tasks=1, val_tasks=1),
    )  # fmt: skip
    monkeypatch.setattr(reporting, "run_folder", lambda trainer: tmp_path)
    reporting.write_validation(module, {"success/unseen": 0.5})
    (line,) = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert json.loads(line)["code_sandbox"] == ", ".join(Canned().layers) != ""

"""Programming as an environment: problems generated and from files, tool calls, judgement, rewards, the whole of HumanEval."""

import ast
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdar.envs import CodeEnv, FencedCodeProtocol, HermesCodeProtocol
from sdar.envs.code_env import FAILURES, NO_PROGRAM, PASSED
from sdar.envs.code_files import file_problems
from sdar.envs.code_judging import judge_program
from sdar.envs.code_livecodebench import Window
from sdar.envs.math_protocol import ANSWER, PYTHON, call_of, program_of
from sdar.errors import ConfigError, PanelError
from sdar.sandbox import AutoRunner

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval.jsonl.gz"
ROW = {
    "task_id": "HumanEval/0", "prompt": 'def double(x):\n    """ Twice x. """\n', "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n", "entry_point": "double",
}  # fmt: skip
CONTEST = {
    "question_content": "Double it.", "platform": "atcoder", "contest_date": "2024-08-10T00:00:00", "starter_code": "",
    "difficulty": "easy", "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}]),
    "private_test_cases": "[]", "metadata": "{}",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    """One server for all tests."""
    runner = AutoRunner()
    try:
        runner.chosen()
    except ConfigError as error:
        pytest.skip(str(error))
    yield runner
    runner.close()


def begin(env, split="train", number=0):
    task = env.task(env.task_ids(split, number + 1, 0)[number])
    assert env.reset(task) == task.instruction
    return task


def write(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def test_a_problem_is_tried_and_solved():
    env = CodeEnv(reward="signed")
    for number in range(4):
        task = begin(env, "unseen", number)
        problem = env.problem(task.id)
        seen = env.step(call_of(f"{problem.solution}\nprint('ran')", "1 2 3"))
        assert seen.observation.endswith("ran") and not seen.done and seen.valid and seen.reward == 0
        end = env.step(env.demonstration(task)[0])
        assert (end.done, end.success, end.reward, end.observation) == (True, True, 1.0, PASSED)
        failures = {str(failure): 0.0 for failure in FAILURES}
        assert end.scores == {"tests_passed": 1.0, "tool_error_share": 0.0, **failures}
        assert task.facts == {"solution": problem.solution} and env.solution(task) == problem.solution
        assert problem.solution not in task.instruction and problem.tests[-1].expected not in task.facts
        env.reset(task)
        assert env.expert(task.facts, None).act() == env.demonstration(task)[0]


@pytest.mark.parametrize(
    ("program", "verdict"),
    [("x = (", "compile_error"), ("1 / 0", "runtime_error"), ("def double(x): return 4", "wrong_answer")],
)
@pytest.mark.parametrize(("reward", "worth"), [("binary", 0.0), ("signed", -1.0), ("sod", -0.9), ("share", None)])
def test_what_is_wrong_is_told_scored_and_paid(tmp_path, program, verdict, reward, worth):
    env = CodeEnv(files={"train": write(tmp_path, ROW)}, reward=reward)
    begin(env)
    env.step(PYTHON + "1")
    end = env.step(ANSWER + program)
    share = 0.5 if verdict == "wrong_answer" else 0.0
    assert end.done and not end.success and end.valid and end.reward == pytest.approx(share if worth is None else worth)
    assert end.observation.startswith(f"{verdict}: test 1 of 1: ") and end.scores["tests_passed"] == share
    assert [name for name in map(str, FAILURES) if end.scores[name]] == [verdict]


def test_no_program_is_a_wrong_one():
    env = CodeEnv(reward="sod")
    begin(env)
    end = env.step(ANSWER)
    assert (end.valid, end.success, end.reward, end.observation) == (False, False, -1.0, f"wrong_answer: {NO_PROGRAM}")
    begin(env)
    env.step("python < {\n1")
    assert env.running.malformed == 1 and env.running.calls == 0
    end = env.unfinished()
    assert end.truncated and end.reward == -1.0 and end.scores["tool_error_share"] == 1.0


def test_problems_come_from_files_and_a_window(tmp_path):
    later = CONTEST | {"question_content": "Triple it.", "contest_date": "2025-01-01", "platform": "codeforces"}
    files = {"train": write(tmp_path, ROW), "unseen": write(tmp_path, CONTEST, later, ROW, name="unseen.jsonl")}
    with pytest.warns(UserWarning, match="1 have a text that validation or test measures"):
        env = CodeEnv(files=files)
    assert (env.size("train"), env.size("unseen")) == (0, 3)
    assert {env.task(i).family for i in env.task_ids("unseen", 3, 0)} == {"livecodebench_easy", "humaneval"}
    few = CodeEnv(files={"unseen": files["unseen"]}, split="unseen", since="2024-12-01", platforms=["codeforces"])
    assert sorted(few.task(i).instruction.split(".")[0] for i in few.task_ids("unseen", few.size("unseen"), 0)) == [
        "Complete the function double", "Triple it"
    ]  # fmt: skip
    later_only = CodeEnv(files={"unseen": files["unseen"]}, split="unseen", since="2024-12-01")
    assert len({env.fingerprint for env in (few, later_only)}) == 2  # a row's number is another problem in another window
    task = next(task for task in map(few.task, few.task_ids("unseen", 2, 0)) if task.family != "humaneval")
    with pytest.raises(
        ConfigError, match=r"CodeEnv has no demonstrations for task code-.*unseen\.jsonl, line 2 has no solution"
    ):
        few.demonstration(task)
    assert pickle.loads(pickle.dumps(few)).task(task.id) == task
    with pytest.raises(PanelError, match=r"'x' is no task of programming: ids look like code-FINGERPRINT"):
        few.task("x")
    file_problems.cache_clear()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"test_s": 0}, r"env\.test_s is 0: no program could run"),
        ({"test_memory_mb": 0}, r"env\.test_memory_mb is 0: it must be at least 1"),
        ({"reward": "plus"}, r"env\.reward is 'plus': rewards are binary, share, signed and sod"),
        ({"families": ["word_call"]}, r"env\.families names 'word_call': no such family\. Did you mean 'words_call'\?"),
        ({"since": "2024-01-01"}, r"env\.platforms, difficulties, since and until choose .* but there is no file"),
        ({"since": "x"}, r"env\.since is 'x'"),
        ({"files": {"train": "x"}, "families": ["words_call"]}, r"env\.families chooses among generated problems"),
        ({"split": "test"}, r"env\.split is 'test', but there are problems for train, seen, unseen"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        CodeEnv(**settings)


PROGRAM = "def f(x):\n    '''\n    ```python\n    1\n    ```\n    </answer>\n    '''\n    return x"


@pytest.mark.parametrize("protocol", [HermesCodeProtocol(), FencedCodeProtocol()], ids=["hermes", "fenced"])
@pytest.mark.parametrize(
    "program", ["print(1)", "x = 1\n\n\nprint(x)", "print('```')", "  indented", PROGRAM.replace("</answer>", "")]
)
def test_a_program_is_written_and_read_back(protocol, program):
    for action in (ANSWER + program, PYTHON + program):
        assert protocol.parse(protocol.write(action), ()) == (action, True)


def test_a_call_may_have_standard_input():
    for stdin in ("", "a\nb\n", "\x00é\ud800"):
        assert program_of(call_of("x\ny", stdin)) == ("x\ny", stdin)
        assert HermesCodeProtocol().parse(HermesCodeProtocol().write(call_of("x", stdin)), ()) == (call_of("x", stdin), True)
    for action in ("", "python", "python < 5\nx", 'python < "a', "python < {\nx", "answer\nx"):
        assert program_of(action) is None
    assert HermesCodeProtocol().write(ANSWER + PROGRAM).startswith("````python\n")


@pytest.mark.parametrize(
    ("protocol", "text", "action", "valid"),
    [
        (
            HermesCodeProtocol(),
            "So:\n```python\n1\n```\nOr better\n```python\n2\n```\nIt prints\n```\n3\n```",
            ANSWER + "2",
            True,
        ),
        (HermesCodeProtocol(), "```\n1\n```", ANSWER + "1", True),
        (HermesCodeProtocol(), "<think>```python\n1\n```</think>\n```py\n2", ANSWER + "2", True),
        (HermesCodeProtocol(), "<think>```python\n1\n```</think> I do not know.", ANSWER, False),
        (HermesCodeProtocol(), '<tool_call>{"name": "code_interpreter", "arguments": {"code": "1", "stdin": 5}}', "", False),
        (
            HermesCodeProtocol(),
            '<tool_call>{"name": "code_interpreter", "arguments": {"code": "1", "stdin": null}}',
            PYTHON + "1",
            True,
        ),
        (HermesCodeProtocol(), "print(1)", ANSWER, False),
        (FencedCodeProtocol(), "```python\n1\n```", PYTHON + "1", True),
        (FencedCodeProtocol(), "<answer>\nprint(1)\n</answer>", ANSWER + "print(1)", True),
        (FencedCodeProtocol(), "<answer>```python\nprint(1)\n```</answer>", ANSWER + "print(1)", True),
        (FencedCodeProtocol(), "<answer>\n```python\nprint(1)\n```\n</answer>", ANSWER + "print(1)", True),
        (FencedCodeProtocol(), "<answer>print(1)", ANSWER, False),
    ],
)
def test_what_is_read_from_a_response(protocol, text, action, valid):
    assert protocol.parse(text, ()) == (action, valid)
    for tag, first, end in protocol.spans(text):
        assert tag in protocol.tags and 0 <= first <= end <= len(text)


def test_a_prompt_says_what_the_task_is_and_how_to_answer():
    task = begin(CodeEnv())
    system, user = HermesCodeProtocol().opening(task, task.instruction, ())
    assert (
        system["content"].startswith("You write programs in Python and may call a function.")
        and '"stdin"' in system["content"]
    )
    assert user["content"].startswith(task.instruction) and user["content"].endswith("in one ```python block.")
    assert "Example 1" in task.instruction
    assert HermesCodeProtocol(tools="template").tools[0]["function"]["parameters"]["required"] == ["code"]
    with pytest.raises(ConfigError, match=r"which tells the model that it acts in a programming, and MathEnv is none"):
        from sdar.data.tasks import protocol_of
        from sdar.envs import MathEnv

        protocol_of(MathEnv(), HermesCodeProtocol())


def changed(program: str, name: str) -> str:
    """The program with a changed line: the last one that returns a value of `name` returns the negation of its truth."""
    tree = ast.parse(program)
    function = next(node for node in reversed(tree.body) if isinstance(node, ast.FunctionDef) and node.name == name)
    last = max((n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value), key=lambda node: node.lineno)
    last.value = ast.UnaryOp(ast.Not(), last.value)
    return ast.unparse(ast.fix_missing_locations(tree))


def judged(sandbox, numbers):
    """Of the problems with these numbers, those whose own program fails, and those whose changed program passes."""
    if not HUMANEVAL.exists():
        pytest.skip(f"HumanEval's file is not there: {HUMANEVAL}")
    problems = file_problems(str(HUMANEVAL), Window())[0]
    assert len(problems) == 164
    few = [problems[number] for number in numbers]
    programs = [(p, p.solution) for p in few] + [(p, changed(p.solution, p.entry)) for p in few]
    with ThreadPoolExecutor(2) as threads:
        passed = list(threads.map(lambda one: judge_program(sandbox, *one, 10.0, 1 << 30).passed, programs))
    own, other = passed[: len(few)], passed[len(few) :]
    return [p.entry for p, good in zip(few, own, strict=True) if not good], [
        p.entry for p, good in zip(few, other, strict=True) if good
    ]


def test_canonical_solutions_of_humaneval_pass_and_changed_ones_do_not(sandbox):
    assert judged(sandbox, [0, 2, 32, 33, 38, 53, 115, 163]) == ([], [])


@pytest.mark.slow
def test_all_canonical_solutions_of_humaneval_pass_and_no_changed_one_does(sandbox):
    assert judged(sandbox, range(164)) == ([], [])

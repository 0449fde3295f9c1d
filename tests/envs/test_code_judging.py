"""Programs are judged where they cannot meet their tests, and what is wrong with them is told apart."""

import json

import pytest

from sdar.envs import code_calls
from sdar.envs.code_comparison import same_output, same_value
from sdar.envs.code_generated import FAMILIES, SPLITS, generate
from sdar.envs.code_judging import Verdict, judge_program
from sdar.envs.code_problems import CallTest, CheckTest, CodeProblem, StdinTest
from sdar.envs.code_published import CHECK_S, CONTEST_S, PUBLISHED, RECURSION
from sdar.errors import ConfigError, EnvironmentFault
from sdar.sandbox import AutoRunner, Limits
from sdar.sandbox.base import Program

READS = CodeProblem("Double it.", "t", (StdinTest("2\n", "4\n"), StdinTest("3\n", "6"), StdinTest("0", "0")), time_s=3.0)
CALLED = CodeProblem("Double it.", "t", (CallTest("2", "4"), CallTest("[1]", "[1, 1]")), entry="double", time_s=3.0)
CHECKED = CodeProblem(
    "Double it.",
    "t",
    (
        CheckTest(
            "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1], 'list'\n    assert True\n"
        ),
    ),
    entry="double",
    preamble="from typing import List\ndef double(x: List[int]):\n    pass\n",
    time_s=3.0,
)
MB = 1 << 20


@pytest.fixture(scope="module")
def runner():
    runner = AutoRunner(Limits(wall_s=20.0))
    try:
        runner.chosen()
    except ConfigError as error:
        pytest.skip(str(error))
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2\n3", "  1 2  \n\t3\n\n", True),
        ("1 2", "1  2", True),  # as numbers
        ("a b", "a  b", False),
        ("1.0", "1", True),
        ("0.1", "0.10", True),
        ("0.33", "0.333", False),
        ("1e3", "1000", True),
        ("50000000000000001", "50000000000000000", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("yes", "Yes", False),
        ("1", "", False),
        ("", "\n", True),
        ("1", "sNaN", False),
        ("nan", "nan", True),
        ("1", "NaN", False),
        ("1 x", "1.0 x", False),
    ],
)
def test_outputs_are_compared_line_by_line_and_then_as_exact_numbers(expected, printed, same):
    assert same_output(expected, printed) is same


@pytest.mark.parametrize(
    ("expected", "returned", "same"),
    [
        ([1, 2], (1, 2), True),
        ([[1, 2]], [(1, 2)], False),
        (1, 1.0, True),
        (None, None, True),
        ("1", 1, False),
        (0.3, 0.1 + 0.2, False),
    ],
)
def test_values_are_compared_and_a_tuple_is_a_list(expected, returned, same):
    assert same_value(expected, returned) is same


def test_published_numbers_are_those_that_are_used():
    used = {
        "livecodebench seconds a test": CONTEST_S,
        "livecodebench recursion": RECURSION,
        "humaneval seconds": CHECK_S,
        "leetcode seconds": CHECK_S,
    }
    for name, value in used.items():
        assert PUBLISHED[name].value == value and f"{value:g}" in PUBLISHED[name].quote, name
    assert all(len(said.commit) == 40 and said.line > 0 and said.quote for said in PUBLISHED.values())


GOOD = {"reads": "print(2 * int(input()))", "called": "def double(x):\n    return x + x"}
BAD = {
    Verdict.COMPILE: ("print(", "def double(x) return"),
    Verdict.WRONG: ("print(3)", "def double(x):\n    return 3"),
    Verdict.RAISED: ("1 / 0", "def double(x):\n    return x.y"),
    Verdict.TIMEOUT: ("while True: pass", "def double(x):\n    while True: pass"),
    Verdict.MEMORY: ("x = [0] * 10**11", "def double(x):\n    return [0] * 10**11"),
    Verdict.OUTPUT: ("print('x' * 10**6)", "print('x' * 10**7)"),
    Verdict.CRASH: ("import ctypes\nctypes.string_at(0)", "import ctypes\ndef double(x): ctypes.string_at(0)"),
}


@pytest.mark.parametrize("problem", [READS, CALLED, CHECKED], ids=["stdin", "calls", "check"])
def test_what_is_wrong_is_told_apart(runner, problem):
    judged = judge_program(runner, problem, GOOD["called" if problem.entry else "reads"], None, 256 * MB)
    assert (judged.verdict, judged.share, judged.said) == ("passed", 1.0, "")
    for verdict, programs in BAD.items():
        seconds = 0.7 if verdict == Verdict.TIMEOUT else 5.0
        judged = judge_program(runner, problem, programs[bool(problem.entry)], seconds, 64 * MB)
        assert judged.verdict == verdict and judged.share == 0 and judged.said.startswith("test 1 of"), judged


def test_the_share_of_tests_is_told(runner):
    half = "n = int(input())\nprint(2 * n if n < 3 else 1)"
    judged = judge_program(runner, READS, half, None, 256 * MB)
    assert judged.share == pytest.approx(2 / 3) and judged.said == "test 2 of 3: expected '6', not '1'"
    for problem in (CALLED, CHECKED):
        judged = judge_program(runner, problem, "def double(x):\n    return 2 * x if x == 2 else 0", None, 256 * MB)
        assert (judged.verdict, judged.share) == ("wrong_answer", 0.5)


def test_each_call_has_its_own_time(runner):
    tests = tuple(CallTest(str(n), str(2 * n)) for n in range(4))
    problem = CodeProblem("Double it.", "t", tests, entry="double")
    slow = "import time\ndef double(x):\n    time.sleep(0.15)\n    return 2 * x"
    assert judge_program(runner, problem, slow, 0.5, 256 * MB).passed
    late = judge_program(runner, problem, slow.replace("0.15", "x"), 0.5, 256 * MB)
    assert (late.verdict, late.share, late.said) == ("time_out", 0.25, "test 2 of 4: wall")
    endless = judge_program(runner, problem, "while True: pass", 0.3, 256 * MB)
    assert (endless.verdict, endless.said) == ("time_out", "test 1 of 4: wall")
    deaf = "import signal\nsignal.setitimer = lambda *a: None\n" + slow.replace("0.15", "9 * x")
    assert judge_program(runner, problem, deaf, 0.2, 256 * MB).verdict == "time_out"
    caught = "def double(x):\n    try:\n        while x: pass\n    except BaseException: pass\n    return 2 * x"
    assert judge_program(runner, problem, caught, 0.3, 256 * MB).verdict == "time_out"
    crash = judge_program(
        runner, problem, "import ctypes\ndef double(x): return 0 if x < 1 else ctypes.string_at(0)", 5.0, 256 * MB
    )
    assert (crash.verdict, crash.share) == ("crash", 0.25)


TRICKS = {
    "equal to everything": "class Any:\n    def __eq__(self, other): return True\ndef double(x): return Any()",
    "equal to everything, a number": "class Any(int):\n    def __eq__(self, other): return True\ndef double(x): return Any(7)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves when called": "import os\ndef double(x): os._exit(0)",
    "ends": "raise SystemExit",
    "another check": "def check(candidate): pass\ndef double(x): return 3",
    "another assertion": "import sdar_calls\nsdar_calls.check = lambda *a: None\ndef double(x): return 3",
    "answers itself": "import os\nos.write(1, b'\\nsdar answers:\\n' + b'{\"returned\": [3, []]}\\n' * 2)\nos._exit(0)",
    "a verdict": 'print(\'{"passed": 9, "failed": 0, "first": "", "raised": false, "asked": []}\')\nimport os\nos._exit(0)',
    "broken answers": 'import os\nos.write(1, b\'\\nsdar answers:\\n{"returned": [[9], []]}\\n{"returned": 5}\\n\')\nos._exit(0)',
    "looks for the tests": (
        "import gc, sys\ndef double(x):\n    seen = repr([o for o in gc.get_objects() if isinstance(o, (str, dict, list))])\n"
        "    return x + x if 'candid' + 'ate(2)' in seen else 3"
    ),
}


@pytest.mark.parametrize("problem", [CALLED, CHECKED], ids=["calls", "check"])
@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_passes(runner, problem, trick):
    assert not judge_program(runner, problem, TRICKS[trick], None, 256 * MB).passed


def test_what_a_program_keeps_for_itself_is_not_run_and_what_it_prints_is_no_answer(runner):
    code = "print('hello')\ndef double(x):\n    print('x' * 100)\n    return x + x\nif __name__ == '__main__':\n    print(input())"
    for problem in (CALLED, CHECKED):
        assert judge_program(runner, problem, code, None, 256 * MB).passed
    shadows = "input = list = print = str = len = None\ndef double(x): return x + x"
    assert judge_program(runner, CHECKED, shadows, None, 256 * MB).passed
    assert judge_program(
        runner, READS, "if __name__ == '__main__':\n    print(2 * int(input()))\n    exit()", None, 256 * MB
    ).passed


DEPENDENT = """
def check(candidate):
    import random
    for _ in range(3):
        n = random.randint(0, 99)
        assert candidate(n) == 2 * n
    first = candidate(1)
    assert candidate(first) == 4
    assert double(5) == 10
    assert abs(candidate(0.1) - 0.2) < 1e-9
"""
TREES = CodeProblem(
    "Reverse a list of nodes.",
    "t",
    (
        CheckTest(
            "def check(candidate):\n    a = nodes([1, 2, 3])\n    assert values(candidate(head=a)) == [3, 2, 1]\n"
            "    assert candidate(head=None) is None\n    assert values(candidate(nodes(range(3000))))[:2] == [2999, 2998]\n"
        ),
    ),
    entry="Solution().reverse",
    preamble=(
        "class Node:\n    def __init__(self, v, next=None):\n        self.v, self.next = v, next\n"
        "def nodes(vs):\n    head = None\n    for v in reversed(vs):\n        head = Node(v, head)\n    return head\n"
        "def values(n):\n    out = []\n    while n:\n        out.append(n.v)\n        n = n.next\n    return out\n"
    ),
)


def test_tests_may_depend_on_answers_and_arguments_may_be_objects(runner):
    problem = CodeProblem("Double.", "t", (CheckTest(DEPENDENT),), entry="double", time_s=3.0)
    assert judge_program(runner, problem, GOOD["called"], None, 256 * MB).passed
    wrong = judge_program(runner, problem, "def double(x): return x + x if x < 4 else 0", None, 256 * MB)
    assert wrong.verdict == "wrong_answer" and 0 < wrong.share < 1
    reverse = "class Solution:\n    def reverse(self, head):\n        last = None\n        while head:\n"
    reverse += "            head.next, last, head = last, head, head.next\n        return last"
    assert judge_program(runner, TREES, reverse, None, 256 * MB).passed
    assert not judge_program(runner, TREES, reverse.replace("return last", "return Node(3, Node(2))"), None, 256 * MB).passed


def test_tests_that_ask_nothing_are_a_fault_and_no_verdict(runner):
    for source in ("def check(candidate):\n    assert True", "def check(candidate):\n    undefined()", "def check(): pass"):
        problem = CodeProblem("?", "t", (CheckTest(source),), entry="f")
        with pytest.raises(EnvironmentFault, match=r"tests of a problem cannot be run: .* Look at the row"):
            judge_program(runner, problem, "def f(): pass", None, 256 * MB)


def test_values_travel_as_they_are():
    shared: list = [1]
    loop: dict = {"a": shared, "b": shared}
    loop["self"] = loop
    values = [
        None, True, 0, -(10**400), 1.5, float("inf"), "\ud800é", [], (1, (2,)), {1, 2}, frozenset({(1, 2)}),
        {(1, "x"): [None], 2: {"y": ()}}, [[]] * 3,
    ]  # fmt: skip
    for value in values:
        told = code_calls.encode(value)
        back = code_calls.decode(json.loads(json.dumps(told)))
        assert back == value and type(back) is type(value)
    back = code_calls.decode(code_calls.encode(loop))
    assert back["a"] is back["b"] and back["self"] is back
    for value in (object(), lambda: 0, iter([])):
        with pytest.raises(code_calls.Unsendable, match="which is no plain data"):
            code_calls.encode(value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generated_problem_is_solved_by_its_program(family, runner):
    problems = [generate(family, split, f"0/{i}") for split in SPLITS for i in range(2)]
    for problem in problems:
        assert generate(family, SPLITS[0], "0/0") == problems[0]
        assert len(problem.tests) == 5 and "Example 2" in problem.statement and problem.solution not in problem.statement
    assert judge_program(runner, problems[0], problems[0].solution, None, 256 * MB).passed
    assert not judge_program(runner, problems[0], problems[1].solution, None, 256 * MB).passed


def test_generated_problems_of_different_splits_differ():
    texts = {split: {generate(f, split, f"0/{i}").text for f in FAMILIES for i in range(40)} for split in SPLITS}
    assert all(len(t) > 20 for t in texts.values())
    assert not (texts["train"] & texts["unseen"] or texts["train"] & texts["seen"] or texts["seen"] & texts["unseen"])


def test_the_calls_library_runs_alone(runner):
    from sdar.envs.code_judging import LIBRARY

    said = runner.execute(
        Program((LIBRARY, "import sdar_calls\nprint(sdar_calls.decode(sdar_calls.encode({1: (2,)})))"), show=False)
    )
    assert said.stdout == "{1: (2,)}\n"

"""What every runner promises to honest code, and that nothing is left of a run."""

import copy
import dataclasses
import os
import pickle
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sdar.errors import ConfigError, EnvironmentFault
from sdar.sandbox import (
    AutoRunner,
    BubblewrapRunner,
    CodeRunner,
    LandlockRunner,
    Limits,
    LimitsOnlyRunner,
    Result,
    best_runner,
)
from sdar.sandbox.base import LONGEST_CODE, LONGEST_INPUT, Program, extract_code, judge
from sdar.sandbox.probe import weakness

HONEST = [
    ("1 + 1", "2\n"),
    ("x = 3", ""),
    ("x = 3\nx", "3\n"),
    ("print('a')\n'b'", "a\nb\n"),
    ("for i in range(3):\n    i", ""),
    ("def f():\n    return 5\nf()", "5\n"),
    ("None", ""),
    ("", ""),
    ("# nothing", ""),
    ("print(1, end=''); 2", "12\n"),
    ("Here it is:\n```python\n2**10\n```\nDone.", "1024\n"),
    ("import sympy\nx = sympy.symbols('x')\nsympy.solve(x**2 - 2, x)", "[-sqrt(2), sqrt(2)]\n"),
    ("import numpy as np\nint(np.arange(5).sum())", "10\n"),
    ("from fractions import Fraction\nFraction(1, 3) + 1", "4/3\n"),
    (
        "import collections, itertools, functools, math, re, random, statistics, decimal, json, heapq, bisect, string\n'all'",
        "all\n",
    ),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(1)", "P(x=1)\n"),
    ("from concurrent.futures import ThreadPoolExecutor\nlist(ThreadPoolExecutor(4).map(abs, [-1, -2]))", "[1, 2]\n"),
    ("print('ü', '\\u202e', chr(0))", "ü \u202e \x00\n"),
    ("raise SystemExit", ""),
]


def run(runner: CodeRunner, code: str, **limits) -> Result:
    return runner.execute(Program((code,)), replace(runner.limits, **limits))


@pytest.mark.parametrize(("code", "out"), HONEST)
def test_honest_code_runs(runner, code, out):
    result = runner.run(code)
    assert (result.status, result.stdout, result.stderr, result.layer) == ("ok", out, "", "")


def test_an_error_is_told_as_python_tells_it_without_our_frames(runner):
    result = runner.run("def f(x):\n    return 1 / x\nprint('before')\nf(0)")
    assert result.status == "error" and result.stdout == "before\n"
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "<cell 1>", line 4, in <module>\n    f(0)\n')
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "cells.py" not in result.stderr
    assert runner.run("x = (").stderr.endswith("SyntaxError: '(' was never closed\n")
    assert runner.run("import sys; sys.exit('no')").stderr == "no\n"


def test_what_was_printed_before_the_end_is_kept(runner):
    wall_s = 2.5 if isinstance(runner, LandlockRunner) else 1.0  # the one starts Python first
    result = run(runner, "print('before')\nwhile True: pass", wall_s=wall_s)
    assert (result.status, result.layer, result.stdout) == ("timeout", "wall", "before\n")
    assert wall_s <= result.wall_s < wall_s + 3


DEAF = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
ENDS = {
    "killed signal 9": "print('done', flush=True)\nimport os\nos.kill(os.getpid(), 9)",
    "killed signal 15": "print('done', flush=True)\nimport os\nos.kill(os.getpid(), 15)",
    "killed signal 6": "print('done', flush=True)\nimport os\nos.abort()",
    "timeout cpu": "print('done', flush=True)\nwhile True: pass",
    "timeout cpu.": DEAF + "print('done', flush=True)\nwhile True: pass",
    "error ": "print('done', flush=True)\nimport os\nos._exit(137)",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock", "limits_only"])
def test_only_an_end_of_its_own_with_status_0_is_a_success(usable, kind, end):
    found = LimitsOnlyRunner(packages=[], allow_unsafe=True) if kind == "limits_only" else usable[kind]
    if isinstance(found, str):
        pytest.skip(found)
    result = run(found, ENDS[end], cpu_s=1, wall_s=10.0)
    if kind == "bubblewrap" and "signal" in end:  # the first process of a namespace is deaf to its own signals
        end = "killed signal 11" if end == "killed signal 6" else "ok "
    assert (f"{result.status} {result.layer}", result.stdout) == (end.rstrip("."), "done\n")


READING = {
    "input() + input()": ("a\nb", "'ab'"),
    "import sys\nsys.stdin.buffer.readlines()": ("a\n\xe9", "[b'a\\n', b'\\xc3\\xa9']"),
    "import sys\n[line for line in sys.stdin]": ("a\r\nb\n", "['a\\n', 'b\\n']"),
    "import os\nos.read(0, 5)": ("hello there", "b'hello'"),
    "len(open(0).read())": ("\xe9" * 300_000, "300000"),
    "'unread'": ("x" * 1_000_000, "'unread'"),
    "[ord(c) for c in input()]": ("\x00\u202e\ud800", "[0, 8238, 56557, 56480, 56448]"),
}


@pytest.mark.parametrize("code", READING)
def test_a_program_reads_its_standard_input_in_any_way(runner, code):
    stdin, value = READING[code]
    head, _, last = code.rpartition("\n")
    result = runner.run(f"{head}\nprint(repr({last}))", stdin=stdin)
    assert (result.status, result.stdout, result.stderr) == ("ok", value + "\n", "")


def test_standard_input_is_the_new_cells_alone(runner):
    earlier = ["import sys\nheard = sys.stdin.read()", "try: input()\nexcept EOFError: end = True"]
    assert runner.run("print([heard, end, input()])", earlier, stdin="one\n").stdout == "['', True, 'one']\n"
    assert "EOFError" in runner.run("input()", earlier).stderr


def test_a_run_tells_its_exit_and_what_it_used(runner):
    ends = {
        "1": ("ok", 0),
        "exit()": ("ok", 0),
        "quit(3)": ("error", 3),
        "1 / 0": ("error", 1),
        "x = (": ("syntax", 214),
        "\tx": ("syntax", 214),
        "x = 1\0": ("syntax", 214),
        "eval('(')": ("error", 1),
        "import os\nos.abort()": ("killed", None),
    }
    for code, end in ends.items():
        result = runner.run(code)
        assert (result.status, result.exit_status) == end, code
    used = run(runner, "x = bytearray(64 << 20)\nfor _ in range(10**6): pass")
    assert 0 < used.cpu_s < 5
    if isinstance(runner, BubblewrapRunner):  # the other is not told
        assert 64 << 20 < used.memory_bytes < 256 << 20


def test_input_that_is_too_long_is_refused(runner):
    result = runner.run("1", stdin="x" * (LONGEST_INPUT + 1))
    assert result.status == "refused" and f"at most {LONGEST_INPUT} are given" in result.stderr


@pytest.mark.parametrize("code", [-1, -9, -15, -64, 1, 137, 255])
def test_no_status_but_0_is_a_success(code):
    assert judge("", code, [b"", b""], Limits()).status != "ok"
    assert judge("", 0, [b"", b""], Limits()).status == "ok"
    assert judge("", 214, [b"", b""], Limits()).status == "syntax"


def test_long_output_is_cut_visibly(runner):
    result = run(runner, "print('x' * 5000)", output_bytes=1000)
    assert (result.status, result.layer) == ("output", "output")
    assert result.stdout == "x" * 1000 + "\n[output cut after 1000 bytes]"


def test_state_is_what_earlier_cells_left_even_after_an_error(runner):
    earlier = ["a = 2\nprint('unheard')", "b = 3\n1 / 0\nb = 4", "import sys\nsys.exit(7)"]
    result = runner.run("print(a * b)", earlier)
    assert (result.status, result.stdout, result.stderr) == ("ok", "6\n", "")
    assert 'File "<cell 4>"' in runner.run("c", earlier).stderr
    assert runner.run("a").status == "error"


def test_random_numbers_repeat_themselves(runner):
    code = "import random, numpy.random\nprint(random.random(), numpy.random.rand(), hash('x'))"
    if isinstance(runner, LandlockRunner):
        code = "import random\nprint(random.random(), hash('x'))"
    assert runner.run(code).stdout == runner.run(code).stdout


def test_nothing_that_a_run_changes_reaches_the_next(runner):
    poison = """
import builtins, sympy, numpy, sys, math, random
builtins.print = lambda *a: None
sympy.evil = numpy.evil = math.evil = sys.evil = True
math.sqrt = lambda x: 0
random.seed(5)
sys.modules['fractions'] = None
sys.setrecursionlimit(60)
try: open('/tmp/left', 'w').write('x')
except OSError: pass
"""
    runner.run(poison)
    code = """
import sympy, numpy, math, sys, os, fractions
print([hasattr(m, 'evil') for m in (sympy, numpy, math, sys)], math.sqrt(4), os.path.exists('/tmp/left'), sys.getrecursionlimit())
"""
    assert runner.run(code).stdout == "[False, False, False, False] 2.0 False 1000\n"


def test_code_that_is_too_long_is_refused(runner):
    result = runner.run("x" * (LONGEST_CODE + 1))
    assert result.status == "refused" and f"at most {LONGEST_CODE}" in result.stderr


def test_runners_are_cheap_to_copy_and_to_pickle(runner):
    runner.run("1")
    for twin in (copy.deepcopy(runner), pickle.loads(pickle.dumps(runner))):
        assert twin.run("6 * 7").stdout == "42\n"
        if getattr(twin, "_servers", None) is not getattr(runner, "_servers", None):
            twin.close()
    assert len(pickle.dumps(runner)) < 2000


def family() -> set[int]:
    """Processes below this one, when the last run has had a moment to end."""
    time.sleep(0.1)
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - below
        below |= new
    return below


def resident(pids: set[int]) -> int:
    """Bytes of memory of some processes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in pids)


def leftovers() -> tuple:
    return (
        family(),
        len(os.listdir("/proc/self/fd")),
        sorted(os.listdir(tempfile.gettempdir())),
    )


def check_nothing_is_left(runner, count: int) -> None:
    for _ in range(5):
        runner.run("1")
    before, memory = leftovers(), resident({os.getpid(), *family()})
    for i in range(count):
        assert runner.run(f"import threading\nx = [{i}] * 10000\nprint({i})").stdout == f"{i}\n"
    deadline = time.monotonic() + 2
    while leftovers() != before and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel takes its time with a namespace
    assert leftovers() == before
    assert resident({os.getpid(), *family()}) - memory < 16 << 20


@pytest.fixture
def own_temporary(tmp_path, monkeypatch):
    """Where other tests, which run at the same time, leave nothing either."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_honest_runs_leave_nothing(runner, own_temporary):
    check_nothing_is_left(runner, 100 if isinstance(runner, BubblewrapRunner) else 20)


@pytest.mark.slow
def test_a_thousand_honest_runs_leave_nothing(runner, own_temporary):
    check_nothing_is_left(runner, 1000)


def test_threads_and_exit_handlers_do_not_outlive_a_run(runner):
    before = family()
    code = """
import threading, time, atexit
atexit.register(time.sleep, 60)
threading.Thread(target=time.sleep, args=(60,)).start()
print(1)
"""
    result = runner.run(code)
    assert result.stdout == "1\n" and result.wall_s < 10
    assert family() <= before | family_of(runner)


def family_of(runner) -> set[int]:
    """The server's processes, which stay."""
    runner.run("1")
    return family()


def test_several_processes_only_where_a_namespace_ends_them(usable):
    runner = usable["bubblewrap"]
    if isinstance(runner, str):
        pytest.skip(runner)
    code = """
import os, time
for i in range(2):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
print('left')
"""
    before = family()
    assert run(runner, code, processes=4).stdout == "left\n"
    bomb = run(runner, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", processes=4)
    assert (bomb.status, bomb.layer) == ("killed", "processes")
    assert family() <= before | family_of(runner)
    with pytest.raises(ConfigError, match=r"limits\.processes is 2: without namespaces a process could leave"):
        LandlockRunner(Limits(processes=2))


def test_a_server_that_was_killed_is_a_fault_and_the_next_run_starts_another(usable):
    if isinstance(usable["bubblewrap"], str):
        pytest.skip(usable["bubblewrap"])
    runner = BubblewrapRunner(preload=())
    assert runner.run("1").stdout == "1\n"
    runner._servers.idle[0].process.stdin.close()  # it ends by itself, as when its owner is gone
    with pytest.raises(EnvironmentFault, match=r"the sandbox server did not answer .* The next run starts another"):
        runner.run("2")
    assert runner.run("3").stdout == "3\n"
    runner.close()
    assert runner.run("4").stdout == "4\n"
    runner.close()


def test_a_server_that_is_left_ends_itself_and_its_run(usable):
    if isinstance(usable["bubblewrap"], str):
        pytest.skip(usable["bubblewrap"])
    runner, before, faults = BubblewrapRunner(preload=()), family(), []

    def sleep():
        with pytest.raises(EnvironmentFault) as fault:
            runner.run("import time; time.sleep(9)")
        faults.append(fault)

    runner.run("1")
    [server] = runner._servers.idle
    thread = threading.Thread(target=sleep)
    thread.start()
    time.sleep(0.5)  # the run is going on
    mine = family() - before
    server.stop()
    thread.join()
    deadline = time.monotonic() + 3
    while any(Path(f"/proc/{pid}").exists() for pid in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(mine) >= 3 and faults
    assert not any(Path(f"/proc/{pid}").exists() for pid in mine)


def test_programs_that_loop_hold_up_nobody(usable):
    if isinstance(usable["bubblewrap"], str):
        pytest.skip(usable["bubblewrap"])
    runner = BubblewrapRunner(Limits(wall_s=4.0), preload=())
    twins = [copy.deepcopy(runner) for _ in range(6)]
    late = [threading.Thread(target=twin.run, args=("while True: pass",)) for twin in twins]
    for thread in late:
        thread.start()
    time.sleep(0.3)  # they are waiting or running
    began = time.monotonic()
    assert runner.run("6 * 7").stdout == "42\n"
    assert time.monotonic() - began < 12  # six runs one after the other: 24 s
    for thread in late:
        thread.join()
    assert 2 <= len(runner._servers.idle) <= 7
    for _ in range(5):
        runner.run("1")
    runner.close()


def test_servers_are_started_only_when_none_is_free_and_never_too_many(usable):
    if isinstance(usable["bubblewrap"], str):
        pytest.skip(usable["bubblewrap"])
    runner = BubblewrapRunner(Limits(wall_s=1.0), preload=(), servers=2)
    for _ in range(3):
        runner.run("1")
    assert len(runner._servers.idle) == 1
    before, results = family(), []
    runs = [threading.Thread(target=lambda: results.append(runner.run("while True: pass"))) for _ in range(5)]
    for thread in runs:
        thread.start()
    while not results:
        assert runner._servers.busy <= 2
        time.sleep(0.02)
    runner.close()  # in the middle of runs: these go on, and nothing is left when they are over
    for thread in runs:
        thread.join()
    assert [r.status for r in results] == ["timeout"] * 5
    runner.close()
    assert runner._servers.busy == 0 and not family() - before


def test_an_interrupted_run_leaves_no_answer_behind(usable, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    if isinstance(usable["bubblewrap"], str):
        pytest.skip(usable["bubblewrap"])
    runner = BubblewrapRunner(preload=())
    runner.run("1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner._servers.idle[0], "receive", interrupt)
        runner.run("'first'")
    assert runner.run("'second'").stdout == "second\n"
    runner.close()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: BubblewrapRunner(servers=0), r"runner\.servers is 0: nothing could run\. Give 1 or more"),
        (lambda: LimitsOnlyRunner(), r"LimitsOnlyRunner isolates nothing: .* say `allow_unsafe: true`"),
        (lambda: Limits(wall_s=0), r"limits\.wall_s is 0: no program could run"),
        (lambda: Limits(memory_bytes=5), r"limits\.memory_bytes is 5: no program could run. Give 1048576 or more"),
        (
            lambda: BubblewrapRunner(preload=["pandas"]),
            r"runner\.preload names 'pandas', .* Add its package to runner\.packages",
        ),
        (
            lambda: BubblewrapRunner(packages=["no_such"], preload=[]).run("1"),
            r"runner\.packages names 'no_such', which is not inst",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(make, match, monkeypatch):
    with pytest.raises(ConfigError, match=match):
        make()


def test_without_bubblewrap_it_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match=r"bubblewrap is not installed .*apt install bubblewrap"):
        BubblewrapRunner().run("1")


def test_limits_without_isolation_run_code_and_are_found_out():
    runner = LimitsOnlyRunner(Limits(wall_s=5.0, cpu_s=5), allow_unsafe=True)
    assert runner.run("6 * 7").stdout == "42\n"
    assert runner.run("x = [0] * 10**10").status == "memory"
    assert runner.run("import os\nos.kill(os.getpid(), 9)").layer == "signal 9"
    assert weakness(runner).startswith("it does not isolate: a probe read this process's files")
    assert "NO ISOLATION" in runner.layers
    runner.check()  # it promises nothing else


CALLS = (
    "open",
    "socket.create_connection",
    "os.kill",
    "resource.prlimit",
    "os.sched_setaffinity",
    "fcntl.fcntl",
    "fcntl.flock",
)


@pytest.mark.parametrize("weak", CALLS)
def test_the_probe_finds_each_weakness_by_itself(weak):
    """A runner that stops every call of the probe but one."""
    if weak == "os.sched_setaffinity" and os.geteuid() == 0:
        pytest.skip("the kernel protects a process that has more capabilities")
    stopped = " = ".join(call for call in CALLS if call != weak)
    head = f"import fcntl, os, resource, socket\ndef no(*a): raise PermissionError\nos.environ.clear()\n{stopped} = no\n"

    class Almost(LimitsOnlyRunner):
        def _execute(self, program, limits):
            return super()._execute(Program((head + program.cells[-1],)), limits)

    assert weakness(Almost(packages=[], allow_unsafe=True)).startswith("it does not isolate")


def test_the_best_runner_isolates_and_says_its_layers(usable, monkeypatch):
    if all(isinstance(found, str) for found in usable.values()):
        pytest.skip(str(usable))
    runner = AutoRunner(Limits(wall_s=7.0))
    twin = copy.deepcopy(runner)
    assert runner.run("6 * 7").stdout == twin.run("6 * 7").stdout == "42\n"
    assert {"seccomp", "rlimits"} < set(runner.layers)
    monkeypatch.setattr("sdar.sandbox.choose.best_runner", None)
    assert AutoRunner(Limits(wall_s=7.0)).layers == runner.layers  # the machine is tried once
    assert pickle.loads(pickle.dumps(runner)).limits == runner.limits
    runner.close()


def test_where_nothing_isolates_every_reason_is_told(monkeypatch):
    class Open(LimitsOnlyRunner):
        isolates = True

    monkeypatch.setattr("sdar.sandbox.choose.BubblewrapRunner", lambda *a: Open(allow_unsafe=True))
    monkeypatch.setattr("sdar.sandbox.choose.LandlockRunner", lambda *a: LimitsOnlyRunner())
    with pytest.raises(ConfigError) as raised:
        best_runner()
    told = str(raised.value)
    assert told.startswith(
        "nothing isolates untrusted code on this machine: bubblewrap: Open: it does not isolate: a probe read"
    )
    assert "; landlock: LimitsOnlyRunner isolates nothing" in told and "; service: no `url` was given." in told
    assert "apt install bubblewrap" in told


def test_a_result_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Result("ok").stdout = "x"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1", "1"),
        ("a\n```python\n1\n```\nb", "1\n"),
        ("```py\n1\n```", "1\n"),
        ("```python\n1\n```\n```python\n2\n```", "1\n"),
        ("```python\n1", "1"),
        ("```\n1\n```", "```\n1\n```"),
    ],
)
def test_code_is_taken_out_of_its_fence(text, code):
    assert extract_code(text) == code

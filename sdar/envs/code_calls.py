"""Calls a program's function in one process and judges what it returned in another, so that a program never meets its tests.

Standard library only: both processes are in the sandbox and import this file as ``sdar_calls``. Values travel as plain data
(`encode`, `decode`), so that what a program returns is what it says it is: no object of its own, equal to everything, arrives where
the tests are.
"""

import ast
import contextlib
import json
import os
import signal
import sys

LATE = 215
"""Exit status of a program's process when a call took too long."""
MARK = "sdar answers:"
"""The line before the answers; what a program printed before stands above it."""
MUTABLE = {"list": list, "dict": dict, "set": set}
LONGEST = 300
"""Digits of an integer that JSON carries as such."""


class Unsendable(Exception):
    """A value that is no plain data."""


class Unknown(BaseException):
    """The answer to a call is not known yet. Nothing that tests catch."""


class CallFailed(Exception):
    """The program raised, or gave no answer."""


def encode(value):
    """A value as JSON: [what stands for it, nodes]. A node is [kind, items]; an item is a plain value, [number of a node] or
    [digits or name of a number]. What is the same object twice is one node."""
    nodes, numbers, waiting = [], {}, []

    def item(one):
        if one is None or isinstance(one, bool):
            return one
        if isinstance(one, str):
            return str.__str__(one)
        if isinstance(one, int):
            whole = int(one)
            return whole if abs(whole) < 10**LONGEST else [str(whole)]
        if isinstance(one, float):
            number = float(one)
            return number if number - number == 0 else [repr(number)]
        if id(one) not in numbers:
            numbers[id(one)] = len(nodes)
            nodes.append(None)
            waiting.append(one)
        return [numbers[id(one)]]

    head = item(value)
    for number, one in enumerate(waiting):  # it grows
        kind, items = _parts(one)
        nodes[number] = [kind, [item(part) for part in items]]
    return [head, nodes]


def _parts(one):
    """Kind and items of what is no plain value."""
    for kind, cls in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(one, cls):
            return kind, list(one)
    if isinstance(one, dict):
        return "dict", [part for pair in one.items() for part in pair]
    if hasattr(one, "tolist"):  # of numpy
        plain = one.tolist()
        return ("list", plain) if isinstance(plain, list) else ("number", [plain])
    cls = type(one)
    if getattr(sys.modules["__main__"], cls.__name__, None) is not cls or not hasattr(one, "__dict__"):
        raise Unsendable(f"a value of the type {cls.__name__}, which is no plain data")
    return f"object {cls.__name__}", [part for pair in vars(one).items() for part in pair]


def decode(told, classes=None):
    """Undo `encode`; objects are made of those `classes` (name -> class) without calling anything of theirs."""
    head, nodes = told
    made = {}

    def get(item):
        if not isinstance(item, list):
            return item
        if isinstance(item[0], str):
            return float(item[0]) if item[0] in ("inf", "-inf", "nan") else int(item[0])
        return node(item[0])

    def node(number):
        if number not in made:
            kind, items = nodes[number]
            if kind in MUTABLE:
                made[number] = MUTABLE[kind]()
            elif kind.startswith("object "):
                cls = (classes or {}).get(kind.removeprefix("object "))
                if not isinstance(cls, type):
                    raise Unsendable(f"an {kind}, which is not known here")
                made[number] = object.__new__(cls)
            elif kind == "number":
                made[number] = get(items[0])
            else:
                made[number] = {"tuple": tuple, "frozenset": frozenset}[kind](map(get, items))
        return made[number]

    for number, (kind, items) in enumerate(nodes):
        one, parts = node(number), list(map(get, items)) if kind in MUTABLE or kind.startswith("object ") else []
        if kind == "list":
            one.extend(parts)
        elif kind == "set":
            one.update(parts)
        elif parts:
            (one if kind == "dict" else vars(one)).update(zip(parts[::2], parts[1::2], strict=True))
    return get(head)


def begin(seconds):
    """In the program's process, before the program itself: it has as long as for a call, and what it keeps for ``__main__`` is not run.

    Args:
        seconds: 0: as long as the process.
    """
    main = sys.modules["__main__"]
    main.__name__ = "program"
    sys.modules["program"] = main
    signal.signal(signal.SIGALRM, lambda *_: os._exit(LATE))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def answer():
    """In the program's process: make the calls that standard input tells, and say what each returned, a line each. Where it tells
    seconds, a call that takes more of them is the last one."""
    asked = _told()
    with contextlib.suppress(Exception):  # it may be replaced, or closed
        sys.stdout.flush()
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a program's own words are no answers
    names = sys.modules["__main__"].__dict__
    function = eval(asked["entry"], names)
    os.write(out, f"\n{MARK}\n".encode())
    for call in asked["calls"]:
        try:
            positional, named = decode(json.loads(call), names)
            signal.setitimer(signal.ITIMER_REAL, asked["seconds"])
            returned = function(*positional, **named)
            signal.setitimer(signal.ITIMER_REAL, 0)
            said = {"returned": encode(returned)}
        except MemoryError:
            raise
        except Exception as error:
            said = {"raised": f"{type(error).__name__}: {error}"[:500]}
        line = json.dumps(said).encode() + b"\n"
        while line:
            line = line[os.write(out, line) :]


def check(source, entry=""):
    """In a process without the program: run the tests in `source` on the answers that standard input tells, and say which calls have
    none yet, how many assertions hold and which is the first that does not. Where `entry` is a name, the tests may call it by that."""
    known = _told()
    names = sys.modules["__main__"].__dict__
    asked, said = [], {"passed": 0, "failed": 0, "first": "", "raised": False}

    def candidate(*positional, **named):
        call = json.dumps(encode([list(positional), named]))
        if call not in known:
            if call not in asked:
                asked.append(call)
            raise Unknown
        answered = known[call]
        if "returned" not in answered:
            raise CallFailed(answered.get("raised") or "no answer")
        return decode(answered["returned"], names)

    def holds():
        said["passed"] += 1

    def fails(text, error):
        said["failed"] += 1
        if not said["first"]:
            reason = "" if isinstance(error, AssertionError) else f": {error or type(error).__name__}"
            said.update(first=f"{text[:300]}{reason[:300]}", raised=isinstance(error, CallFailed))

    if entry.isidentifier():
        names[entry] = candidate
    names.update(sdar_holds=holds, sdar_fails=fails, sdar_unknown=Unknown)
    tree = ast.fix_missing_locations(_Counted().visit(ast.parse(source)))
    try:
        exec(compile(tree, "<tests>", "exec"), names)
        names["check"](candidate)
    except Unknown:
        pass
    except Exception as error:
        fails("the tests end early", error)
    print(json.dumps({**said, "asked": asked}))


def _told():
    """What standard input says."""
    sys.set_int_max_str_digits(0)
    with open(0, "rb", closefd=False) as pipe:
        return json.loads(pipe.read())


class _Counted(ast.NodeTransformer):
    """Every assertion counts by itself, and an unknown answer ends no more than an assertion or one round of a loop."""

    def visit_Assert(self, node):
        if isinstance(node.test, ast.Constant):
            return node
        ends = f"except sdar_unknown: pass\nexcept Exception as sdar_error: sdar_fails({ast.unparse(node.test)!r}, sdar_error)"
        return _tried([node, *ast.parse("sdar_holds()").body], ends)

    def visit_For(self, node):
        self.generic_visit(node)
        node.body = [_tried(node.body, "except sdar_unknown: pass")]
        return node


def _tried(body, handlers):
    statement = ast.parse(f"try: pass\n{handlers}").body[0]
    statement.body = body
    return statement

"""Runs Python as a notebook does; the last file that is ours before untrusted code has the process.

Standard library only: it is read inside the sandbox, and its text is sent to interpreters elsewhere.
"""

import ast
import builtins
import contextlib
import io
import linecache
import os
import sys
import traceback
import types

ERROR = 1
MEMORY = 213
"""Exit status of a run that ended with a MemoryError."""
SYNTAX = 214
"""Exit status of a run whose last cell does not compile."""


def run_cells(cells, show=True):
    """Execute `cells` one after the other in one namespace and return an exit status.

    Only the last cell is heard, and reads standard input: what the others print is dropped, and what they raise too, so that they
    rebuild the state that they left when they ran first. With `show` the value of a bare expression at the end is printed, unless it
    is None.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    builtins.exit = builtins.quit = sys.exit  # Python has them from `site`, which is not imported here
    with _silence():
        for number, cell in enumerate(cells[:-1]):
            with contextlib.suppress(BaseException):
                _run(_compiled(cell, f"<cell {number + 1}>", False), main.__dict__)
    sys.stdin, sys.stdout, sys.stderr = _input(), _text(1), _text(2)
    compiled = False
    try:
        code = _compiled(cells[-1], f"<cell {len(cells)}>", show)
        compiled = True
        _run(code, main.__dict__)
        status = 0
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except MemoryError:
        status = MEMORY
        with contextlib.suppress(BaseException):
            print("MemoryError", file=sys.stderr)
    except BaseException as error:
        status = ERROR if compiled else SYNTAX
        with contextlib.suppress(BaseException):
            error.__traceback__ = _own(error.__traceback__)
            sys.stderr.write("".join(traceback.format_exception(error)))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # closed, or replaced by something that is no stream
            stream.flush()
    return status & 255


def _compiled(source, name, show):
    """Code of the statements, and of the expression whose value is shown, or None."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # tracebacks quote the line
    tree = ast.parse(source, name)
    shown = None
    if show and tree.body and isinstance(tree.body[-1], ast.Expr):
        shown = compile(ast.Expression(tree.body.pop().value), name, "eval")
    return compile(tree, name, "exec"), shown


def _run(code, namespace):
    statements, shown = code
    exec(statements, namespace)
    value = None if shown is None else eval(shown, namespace)
    if value is not None:
        print(value)


def _own(frames):
    """The part of a traceback that begins in a cell; code that does not parse has none."""
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell "):
        frames = frames.tb_next
    return frames


def _input():
    return open(0, encoding="utf-8", errors="surrogateescape", closefd=False)


def _text(descriptor):
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


@contextlib.contextmanager
def _silence():
    """Nothing that is written reaches descriptors 1 and 2, by whatever way it is written, and nothing is there to be read."""
    kept = [os.dup(descriptor) for descriptor in range(3)]
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), _text(1), _text(2)
    try:
        yield
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        for descriptor, before in enumerate(kept):
            os.dup2(before, descriptor)
        for descriptor in (*kept, null):
            os.close(descriptor)

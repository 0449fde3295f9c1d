"""Runs Python as a notebook does; the last file that is ours before untrusted code has the process.

Standard library only: it is read inside the sandbox, and its text is sent to interpreters elsewhere.
"""

import ast
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


def run_cells(cells, show=True):
    """Execute `cells` one after the other in one namespace and return an exit status.

    Only the last cell is heard: what the others print is dropped, and what they raise too, so that they rebuild the state that
    they left when they ran first. With `show` the value of a bare expression at the end is printed, unless it is None.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.stdin = io.StringIO()
    with _silence():
        for number, cell in enumerate(cells[:-1]):
            with contextlib.suppress(BaseException):
                _execute(cell, f"<cell {number + 1}>", main.__dict__, False)
    sys.stdout, sys.stderr = _text(1), _text(2)
    try:
        _execute(cells[-1], f"<cell {len(cells)}>", main.__dict__, show)
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
        status = ERROR
        with contextlib.suppress(BaseException):
            error.__traceback__ = _own(error.__traceback__)
            sys.stderr.write("".join(traceback.format_exception(error)))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # closed, or replaced by something that is no stream
            stream.flush()
    return status & 255


def _execute(source, name, namespace, show):
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # tracebacks quote the line
    tree = ast.parse(source, name)
    shown = None
    if show and tree.body and isinstance(tree.body[-1], ast.Expr):
        shown = ast.Expression(tree.body.pop().value)
    exec(compile(tree, name, "exec"), namespace)
    if shown is not None:
        value = eval(compile(shown, name, "eval"), namespace)
        if value is not None:
            print(value)


def _own(frames):
    """The part of a traceback that begins in a cell; code that does not parse has none."""
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell "):
        frames = frames.tb_next
    return frames


def _text(descriptor):
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


@contextlib.contextmanager
def _silence():
    """Nothing that is written reaches descriptors 1 and 2, by whatever way it is written."""
    kept = [os.dup(1), os.dup(2)]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout, sys.stderr = _text(1), _text(2)
    try:
        yield
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, null):
            os.close(descriptor)

"""A call in an interpreter that has imported nothing, and what it imports."""

import json
import subprocess
import sys

HEAVY = {"torch", "lightning", "transformers", "torchmetrics", "aiohttp", "numpy"}

PROBE = """
import contextlib, io, json, sys
out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    {code}
print(json.dumps([code, out.getvalue(), err.getvalue(), sorted({{name.partition('.')[0] for name in sys.modules}})]))
"""


def fresh(code: str) -> tuple[int, str, str, set[str]]:
    """What `code` leaves in a fresh interpreter: its variable `code`, output, errors, and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, timeout=120, check=True
    )
    status, out, err, modules = json.loads(done.stdout)
    return status, out, err, set(modules)

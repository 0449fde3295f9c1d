"""Commands that need no model answer without the libraries that a model needs."""

import json
import subprocess
import sys

import pytest

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


def test_importing_the_package_imports_none_of_them() -> None:
    assert fresh("import sdar; code = 0")[3] & HEAVY == set()


@pytest.mark.parametrize(
    "words, status, text",
    [
        (["--help"], 0, "examples:\n  sdar fit -c "),
        (["--version"], 0, "sdar 0."),
        (["list", "--help"], 0, "sdar list SDAR"),
        ([], 2, "a command is needed: fit, "),
        (["plna", "-c", "conf/quickstart/sdar.yaml"], 2, "there is no command 'plna'. Did you mean 'plan'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_answer_about_names_needs_none_of_them(words: list[str], status: int, text: str) -> None:
    code, out, err, modules = fresh(f"from sdar.cli import main; code = main({words!r})")
    assert code == status and text in out + err
    assert modules & HEAVY == set()

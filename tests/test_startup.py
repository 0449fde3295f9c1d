"""Commands that need no model answer without the libraries that a model needs."""

import gc
import importlib
import inspect
import sys

import pytest
from fresh import HEAVY, fresh

from sdar.cli import garbage


def test_importing_the_package_imports_none_of_them() -> None:
    assert fresh("import sdar, sdar.http_client; code = 0")[3] & HEAVY == set()


@pytest.mark.parametrize(
    "words, status, text",
    [
        (["--help"], 0, "examples:\n  sdar fit -c "),
        (["--version"], 0, "sdar 0."),
        (["list", "--help"], 0, "sdar list SDAR"),
        ([], 2, "a command is needed: fit, "),
        (["list"], 0, "gap, GapGate: "),
        (["list", "gates"], 0, "beta: float = 5.0"),
        (["list", "SDAR"], 0, "from sdar import SDAR"),
        (["list", "gatse"], 2, "'gatse' is no kind of part and no part. Did you mean 'gates'?"),
        (["fit", "--model.gate.help", "GapGate"], 0, "gap, GapGate (gates)"),
        (["fit", "--help"], 0, "Optimizer steps at which training ends"),
        (["fit"], 2, "fit needs a configuration"),
        (["completion", "bash"], 0, "complete -o default -F _sdar sdar"),
        (
            ["fit", "-c", "conf/quickstart/sdar.yaml", "--model", "SDRA"],
            2,
            "there is no strategy 'SDRA'. Did you mean 'SDAR'?",
        ),
        (
            ["fit", "-c", "conf/quickstart/sdar.yaml", "--model.gate.bta", "3"],
            2,
            "GapGate takes no 'bta'. Did you mean 'beta'?",
        ),
        (["fit", "-c", "conf/quickstart/sdr.yaml"], 2, "Did you mean conf/quickstart/sdar.yaml?"),
        (["plna", "-c", "conf/quickstart/sdar.yaml"], 2, "there is no command 'plna'. Did you mean 'plan'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_answer_about_names_needs_none_of_them(words: list[str], status: int, text: str) -> None:
    code, out, err, modules = fresh(f"from sdar.cli import main; sys.argv = ['sdar', *{words!r}]; code = main()")
    assert code == status and text in out + err
    assert modules & HEAVY == set()


def test_a_default_that_is_made_while_something_is_imported_costs_no_look_at_all_modules(own_folder, monkeypatch):
    """`lazy_instance` asks for the stack, of which each import is five frames."""
    (own_folder / "imported_deep.py").write_text("import inspect\nframes = len(inspect.stack())\n")
    inspect.stack()  # the files of the frames here are known from now on
    looked, ismodule = [], inspect.ismodule
    monkeypatch.setattr(inspect, "ismodule", lambda thing: looked.append(thing) or ismodule(thing))
    here = len(inspect.stack())
    usual = len(looked)  # of frames that are below every test: some are of no file, where this process was started by a string
    looked.clear()
    assert importlib.import_module("imported_deep").frames > here + 4
    assert len(looked) < usual + 3 * len(sys.modules)  # the new file is looked for once


def test_what_was_read_for_an_answer_is_not_looked_through_for_garbage() -> None:
    looks = "sum(one['collections'] for one in gc.get_stats())"
    status, out, *_ = fresh(
        f"import gc; from sdar.cli import main; sys.argv = ['sdar', 'list', 'gates']; before = {looks}; answer = main(); "
        f"code = [answer, {looks} - before, gc.get_freeze_count() > 50_000]"
    )
    assert status == [0, 0, True] and "GapGate" in out, "neither meanwhile nor at the end"


def test_what_comes_after_a_run_has_begun_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    garbage.wait()
    assert not gc.isenabled()
    garbage.begin()
    assert gc.isenabled() and frozen == [False]
    garbage.begin()
    garbage.end()
    assert len(frozen) == 1, "a run's own objects are looked through as it ends: some have to be closed"


def test_whoever_collects_nothing_goes_on_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("nothing was asked of it"))
    gc.disable()
    try:
        garbage.wait()
        garbage.begin()
        assert not gc.isenabled()
    finally:
        gc.enable()

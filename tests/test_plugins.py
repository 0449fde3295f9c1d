"""Packages of somebody else: what they register is known by reading them, or else by importing them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh import HEAVY, fresh

from sdar import outline, plugins
from sdar.cli import app
from sdar.cli.completion import candidates
from sdar.cli.signatures import is_certain

GATE = """
import sdar
from sdar import Gate

@sdar.register({name!r})
class {cls}(Gate):
    \"\"\"Opens as told.\"\"\"
    def __init__(self, width: float = 1.0): ...
    def __call__(self, tokens): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    outline.OTHERS.clear()


def test_a_package_that_defines_things_is_read(folder: Path) -> None:
    for package in ("readable", "readable/inner"):
        (folder / package).mkdir()
    (folder / "readable/__init__.py").write_text('"""Parts."""\nfrom .inner.hinge import ReadHinge\n__all__ = ["ReadHinge"]\n')
    (folder / "readable/inner/__init__.py").write_text("")
    (folder / "readable/inner/hinge.py").write_text(
        "from typing import TYPE_CHECKING\nfrom readable.inner import step\nif TYPE_CHECKING:\n    import nowhere\n"
        + GATE.format(name="read_hinge", cls="ReadHinge")
    )
    (folder / "readable/inner/step.py").write_text(GATE.format(name="read_step", cls="ReadStep"))
    (folder / "readable/other.py").write_text("1 / 0\n")
    assert plugins.follow(["readable.inner.hinge"])
    assert {*outline.OTHERS} == {"readable", "readable.inner", "readable.inner.hinge", "readable.inner.step"}
    gates = outline.registered()[1]["gates"]
    assert {"gap", "read_hinge", "read_step"} < gates.keys() and is_certain(gates["read_hinge"])
    line = "sdar fit --plugin readable --model SDAR --model.gate "
    assert {"read_step", "ReadHinge"} < {*candidates(line)}
    assert candidates(f"{line}read_hinge --model.gate.w") == ["--model.gate.width"]
    assert "read_step" not in candidates("sdar fit --model SDAR --model.gate "), "nobody named the plugin"


@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        "class:",
        "import no_such_package",
        "from sdar import Nothing",
        "from sdar import *",
        "from sdar import register as r",
        "from sdar import register\nfor name in ['a']:\n    register(name)",
        "from sdar import Gate, register\nname = 'x'\n@register(name)\nclass A(Gate): ...",
        "from sdar import Gate, register\nA = register('a')(type('A', (Gate,), {}))",
        "try:\n    import sdar\nexcept ImportError:\n    sdar = None",
        "import with_parts",
        "from . import missing",
    ],
)
def test_what_reading_does_not_tell_is_imported(folder: Path, text: str) -> None:
    (folder / "with_parts.py").write_text("import sdar\n")
    name = f"unreadable_{abs(hash(text))}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    assert not plugins.follow([name]) and outline.OTHERS == []


def test_a_part_on_another_of_its_package_has_its_kind_and_arguments(folder: Path) -> None:
    (folder / "built_up.py").write_text(
        GATE.format(name="lower", cls="Lower")
        + "@sdar.register('upper')\nclass Upper(Lower):\n"
        + "    def __init__(self, height: int = 1, **rest):\n        super().__init__(**rest)\n"
    )
    assert plugins.follow(["built_up"])
    assert [*outline.arguments(outline.registered()[1]["gates"]["upper"])] == ["height", "width"]


def test_a_name_that_two_ask_for_and_arguments_that_go_astray_are_left_to_python(folder: Path) -> None:
    (folder / "asks_twice.py").write_text(GATE.format(name="gap", cls="Another"))
    assert plugins.follow(["asks_twice"])
    with pytest.raises(outline.UnreadableError, match="gates gap"):
        outline.registered()
    (folder / "hands_on.py").write_text(
        GATE.format(name="handing", cls="Handing")
        + "class Further(Handing):\n    def __init__(self, **rest):\n        Handing.__init__(self, **rest)\n"
    )
    assert plugins.follow(["hands_on"])
    assert is_certain(outline.find("hands_on", "Handing")) and not is_certain(outline.find("hands_on", "Further"))


def test_an_installed_package_is_told_of_without_importing_anything(folder: Path) -> None:
    (folder / "installed_parts.py").write_text(GATE.format(name="installed", cls="InstalledGate"))
    (folder / "parts-1.dist-info").mkdir()
    (folder / "parts-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: parts\nVersion: 1\n")
    (folder / "parts-1.dist-info/entry_points.txt").write_text("[sdar.plugins]\nparts = installed_parts\n")
    words = ["fit", "-c", "conf/quickstart/sdar.yaml", "--model.gate", "installed", "--model.gate.widht", "1"]
    code, out, err, modules = fresh(
        f"import sys; sys.path.insert(0, {str(folder)!r}); from sdar.cli import main; "
        f"code = [main(['list', 'installed']), main({words!r})]"
    )
    assert code == [0, 2] and modules & {*HEAVY, "installed_parts"} == set()  # type: ignore[comparison-overlap]
    assert "from installed_parts import InstalledGate" in out
    assert "model.gate.widht: InstalledGate takes no 'widht'. Did you mean 'width'?" in err


def test_a_reader_who_has_seen_enough_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in `sdar list | head`."""

    class Closed:
        def __init__(self) -> None:
            self.file = (tmp_path / "out").open("w")

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return self.file.fileno()

    monkeypatch.setattr("sys.stdout", Closed())
    assert app.main(["--version"]) == 0

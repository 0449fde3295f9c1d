"""What the sources say of parts, without importing them, is what the imported classes are."""

import dataclasses
import inspect
from pathlib import Path

import pytest

from sdar import listing, outline, registry
from sdar.cli import main
from sdar.cli.commands import COMMANDS
from sdar.cli.run_help import help_of_run
from sdar.cli.signatures import annotated, arguments, signature
from sdar.sandbox import Limits

registry.load_parts()
OURS = {
    (plural, short): cls
    for plural in registry.kinds()
    for short, cls in registry.parts(plural).items()
    if cls.__module__.startswith("sdar.")
}


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry answers from the sources, although everything is imported."""
    monkeypatch.setattr(registry, "_reads_sources", True)


def test_the_same_kinds_and_parts_are_found() -> None:
    kinds, parts = outline.registered()
    assert set(kinds) == set(registry.kinds())
    assert {(plural, short) for plural in parts for short in parts[plural]} == set(OURS)
    for (plural, short), cls in OURS.items():
        found = parts[plural][short]
        assert (found.__module__, found.__qualname__) == (cls.__module__, cls.__qualname__)
        assert inspect.isabstract(found) == inspect.isabstract(cls)
    for plural, base in registry.kinds().items():
        assert registry.summary(kinds[plural]) == registry.summary(base)


@pytest.mark.parametrize("plural", sorted(registry.kinds()))
def test_a_part_is_described_as_if_it_were_imported(plural: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {short: cls for (kind, short), cls in OURS.items() if kind == plural}
    imported = {short: listing.part(plural, cls) for short, cls in ours.items()}
    shared = arguments(registry.kinds()[plural])
    monkeypatch.setattr(registry, "_reads_sources", True)
    kinds, parts = outline.registered()
    assert {short: listing.part(plural, cls) for short, cls in parts[plural].items()} == imported
    assert arguments(kinds[plural]) == shared


def test_what_may_stand_at_an_argument_is_the_same() -> None:
    parts = outline.registered()[1]
    for (plural, short), cls in OURS.items():
        found = parts[plural][short]
        for name, argument in signature(cls).arguments.items():
            there = signature(found).arguments[name]
            assert argument.required == there.required
            if argument.expected.has_parts:
                named = [sorted(c.__name__ for c in annotated(owner, name)) for owner in (cls, found)]
                assert named[0] == named[1], f"{short}.{name}"


def test_names_are_read_as_python_would_bind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "read_only_package").mkdir()
    (tmp_path / "read_only_package" / "__init__.py").write_text("from .inner import Own as Exported\n")
    (tmp_path / "read_only_package" / "inner.py").write_text(
        "import math\nfrom typing import Literal\nraise RuntimeError('imported')\n"
        "FEW = 2\nKind = Literal['a', 'b']\n"
        "class Base:\n    def __init__(self, last: int = 1, hidden: int = 0): ...\n"
        "class Own(Base):\n"
        "    def __init__(self, kind: Kind, root: float = math.sqrt(4), most: 'int | None' = FEW + 1, *, name=f'{FEW}', **rest):\n"
        "        super().__init__(hidden=FEW, **rest)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = outline.locate("read_only_package.Exported")
    found = outline.arguments(own)
    assert [*found] == ["kind", "root", "most", "name", "last"], "what is handed on with a value is nobody's to set"
    assert found["kind"].required and [found[name].default for name in ("root", "most", "name", "last")] == [2.0, 3, "2", 1]
    assert found["most"].annotation == int | None and "Literal['a', 'b']" in str(found["kind"].annotation)
    assert outline.locate("read_only_package.nobody") is None and outline.locate("no_such_package.Part") is None
    with pytest.raises(outline.UnreadableError, match="would have to be run"):
        own.__init__(None)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS.values() if command.needs_settings])
def test_the_help_of_a_run_is_that_of_its_parser(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    monkeypatch.setattr(registry, "_reads_sources", True)
    assert help_of_run(command) == printed and len(printed.splitlines()) > 250
    assert registry.locate("sdar.data.TaskModule").__module__.startswith("sdar."), "outlines have their modules again"


def test_the_outline_of_a_dataclass_takes_its_fields() -> None:
    """Else `limits.wall_s` of a sandbox could be set in no file."""
    fields = outline.arguments(outline.find("sdar.sandbox.base", "Limits"))
    assert {name: p.default for name, p in fields.items()} == dataclasses.asdict(Limits())
    assert {name: p.annotation for name, p in fields.items()} == {f.name: f.type for f in dataclasses.fields(Limits)}

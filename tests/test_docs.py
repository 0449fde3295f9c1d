"""The documentation as a whole: its index has every page, its links lead somewhere, its glossary has every kind of part."""

import inspect
import pydoc
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdar import registry

ROOT = Path(__file__).parents[1]
SKIPPED = {"build", "dist", "runs"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
NOUNS = ("sdar.types", "sdar.parts", "sdar.turns", "sdar.metrics", "sdar.data", "sdar.skills", "sdar.rollout")
NOUNS += ("sdar.distillation", "sdar.distributed.communicator")


def links(text: str) -> list[str]:
    """The relative targets of a page's links and pictures, outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The fragments that lead to a page's headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def constructed(cls: type) -> set[str]:
    """The arguments of a class, those that it hands on to its bases among them."""
    return {name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base.__init__).parameters}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    text, broken = (ROOT / page).read_text(encoding="utf-8"), []
    for target in links(text):
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (fragment and fragment not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_to_other_sites_are_addresses(page: str) -> None:
    """Whether somebody answers there no test asks."""
    found = re.findall(
        r"\]\((\w+:[^)]*)\)", re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    assert [link for link in found if not re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[\w./#?=&%:~+-]*)?", link)] == []


def test_the_index_has_every_page_and_the_readme_leads_to_it() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / target).resolve() for target in links(index.read_text(encoding="utf-8"))}
    pages = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/README.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"}
    assert sorted(map(str, pages - listed - {index})) == []
    assert "docs/README.md" in links((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_glossary_has_an_entry_for_every_kind_of_part() -> None:
    registry.load_parts()
    entries = [(set(re.findall(r"`(\w+)`", e)), set(re.findall(r"\*(\w+)\*", e))) for e in re.split(r"\n(?=\* )", GLOSSARY)]
    lacking = [
        plural
        for plural, base in registry.kinds().items()
        if not any(base.__name__ in classes and plural in kinds for classes, kinds in entries)
    ]
    assert lacking == []


def test_the_classes_and_keys_that_the_glossary_names_exist() -> None:
    registry.load_parts()
    classes = {base.__name__: base for base in registry.kinds().values()}
    parts = {cls for plural in registry.kinds() for cls in registry.parts(plural).values()}
    classes |= {cls.__name__: cls for cls in parts}
    classes |= {
        name: value
        for room in map(import_module, NOUNS)
        for name in dir(room)
        if isinstance(value := getattr(room, name), type)
    }
    known = {name for cls in classes.values() for name in constructed(cls)}
    named = set(re.findall(r"`([A-Z][a-z]\w+(?:\.\w+)?)`", GLOSSARY))
    keys = set(re.findall(r"`(?:model|data)\.([\w.]+)`", GLOSSARY))
    assert len(named) > 40 and len(keys) > 20
    absent = [name for name in named if (cls := classes.get(name.split(".")[0])) is None or not has(cls, name)]
    assert absent == [] and [key for key in keys if key.split(".")[-1] not in known] == []


def test_the_rooms_of_the_architecture_page_exist_and_none_is_missing() -> None:
    """The picture names what the text names, and can so be read as text."""
    page, picture = ((ROOT / f"docs/architecture.{form}").read_text(encoding="utf-8") for form in ("md", "svg"))
    named, drawn = set(re.findall(r"`(sdar\.[a-z_.]+)`", page)), set(re.findall(r"\bsdar\.[a-z_.]*[a-z]", picture))
    assert [room for room in sorted(named | drawn) if find_spec(room) is None] == []
    folders = {f"sdar.{path.parent.name}" for path in (ROOT / "sdar").glob("*/__init__.py")}
    assert folders - named == set() and drawn - named == set() and len(drawn) > 20


def test_modules_that_pages_and_docstrings_name_exist() -> None:
    code = [file for top in ("sdar", "strategies", "gates", "retrievers") for file in (ROOT / top).rglob("*.py")]
    texts = [file.read_text(encoding="utf-8") for file in [*(ROOT / page for page in PAGES), *code]]
    named = {name for text in texts for name in re.findall(r"`(sdar(?:\.\w+)+)(?:\(\))?`", text)}
    paths = {name: ROOT / name.replace(".", "/") for name in named}
    modules = {name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").is_file()}
    assert len(modules) > 40 and [name for name in sorted(named - modules) if pydoc.locate(name) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_finds_in_a_file_is_defined_there(page: str) -> None:
    """As in: `GapGate` in [gates/gap.py](../../gates/gap.py)."""
    text, place = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    for names, file in re.findall(r"((?:`\w+`(?:, | and |)?)+)\s+in\s+\[[^\]]*\]\(([^)#]+\.py)\)", text):
        source = (place / file).read_text(encoding="utf-8")
        assert [
            name for name in re.findall(r"\w+", names) if name != "and" and not re.search(rf"(def|class) {name}\b", source)
        ] == [], file


def test_no_part_imports_what_carries_it() -> None:
    """As docs/architecture.md says; imports for annotations count, too."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `sdar.")][:5]
    rooms = [room.replace(".", "/") for line in lines for room in re.findall(r"`(sdar\.[a-z_]+)`", line)]
    files = [
        file
        for room in rooms
        for file in ([ROOT / f"{room}.py"] if (ROOT / f"{room}.py").is_file() else (ROOT / room).glob("*.py"))
    ]
    above = re.compile(
        r"^\s*(?:from|import) (sdar\.(?:data|module|strategies|distillation|training|evaluate|cli|plan))\b", re.MULTILINE
    )
    found = {str(file.relative_to(ROOT)): above.findall(file.read_text(encoding="utf-8")) for file in files}
    assert len(rooms) > 15 and len(files) > 80 and {name: rooms for name, rooms in found.items() if rooms} == {}


def has(cls: type, name: str) -> bool:
    """Whether a class has what is named behind its own name: an attribute, a field or an argument."""
    owned = {*dir(cls), *constructed(cls), *(field for base in cls.__mro__ for field in vars(base).get("__annotations__", ()))}
    return "." not in name or name.split(".")[1] in owned

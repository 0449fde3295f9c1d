"""The house itself: no circle of imports, files and functions that fit on a screen (tests too), an algorithm box of one page."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE, LONGEST_FUNCTION, ALGORITHM_BOX = 600, 80, 250
LONG_FILES: dict[str, str] = {}
"""File -> why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""``file:function`` -> why it may be longer."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package. Folders of the top level lie behind links in sdar/."""
    found = {}
    for folder in (ROOT / "sdar", *(p for p in (ROOT / "sdar").iterdir() if p.is_symlink() and p.is_dir())):
        for file in folder.rglob("*.py"):
            parts = file.relative_to(ROOT / "sdar").with_suffix("").parts
            found[".".join(("sdar", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = file
    return found


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(name: str, file: Path) -> set[str]:
    """Modules of the package that a file imports when it is imported, and for types only; what functions import is left out."""
    wanted: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            wanted.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                wanted.add(inner if inner in modules() else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(file))
    return {w for w in wanted if w in modules() and w != name}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import one another, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            ring = set()
            while node not in ring:
                ring.add(stack.pop())
            if len(ring) > 1:
                found.append(ring)

    for node in sorted(graph):
        if node not in index:
            connect(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_module_imports_one_that_imports_it_even_for_types_only():
    """The faces of packages resolve their names lazily: what they import for types is no way through them."""
    faces = {name for name, file in modules().items() if file.name == "__init__.py"}
    graph = {name: imports(name, file) - faces for name, file in modules().items()}
    assert circles(graph) == []


def sources() -> list[Path]:
    """The package and its tests."""
    return [*modules().values(), *(ROOT / "tests").rglob("*.py")]


def test_files_fit():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    assert {f: n for f, n in lengths.items() if n > LONGEST_FILE and f not in LONG_FILES} == {}
    assert lengths["sdar/module.py"] <= ALGORITHM_BOX


def test_functions_fit():
    lengths = {
        f"{file.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for file in sources()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {f: n for f, n in lengths.items() if n > LONGEST_FUNCTION and f not in LONG_FUNCTIONS} == {}


@pytest.mark.parametrize("exceptions", [LONG_FILES, LONG_FUNCTIONS], ids=["files", "functions"])
def test_exceptions_say_why(exceptions):
    assert all(len(reason) > 20 for reason in exceptions.values())

"""Modules with parts of somebody else: which there are, and what they register, known by reading them where that tells it.

All that most of them do is to import and to define. What does more, or needs what may have parts of its own, is imported
(`registry.load_parts`): then only Python knows.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from sdar import outline
from sdar.outline import Source, UnreadableError

GROUP = "sdar.plugins"
"""The group of entry points by which an installed package names modules with parts of its own."""

_DEFINES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign, ast.Pass)
_NOT_RUN = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def follow(plugins: Iterable[str] = ()) -> bool:
    """Let `sdar.outline` tell the parts of installed packages and of these modules, too; False: it cannot tell those of all."""
    outline.OTHERS.clear()
    wanted = [*(point.module for point in entry_points(group=GROUP)), *plugins]
    read = 0
    for plugin in wanted:
        with suppress(UnreadableError):
            found: dict[str, Source] = {}
            _import(plugin, found)
            outline.OTHERS += [module for module in found if module not in outline.OTHERS]
            read += 1
    return read == len(wanted)


def _import(module: str, found: dict[str, Source]) -> None:
    """Add a module, the packages that it is in, and what these import of their own."""
    for name in accumulate(module.split("."), lambda package, below: f"{package}.{below}"):
        if name in found:
            continue
        home = _source(name)
        if home is None and name == module:
            raise UnreadableError(name)
        if home is not None:
            found[name] = home
            for needed in _needs(home):
                _import(needed, found)


def _needs(home: Source) -> Iterator[str]:
    """The modules of its own package that one imports.

    Raises:
        UnreadableError: reading it does not tell what importing it would do.
    """
    for node in home.tree.body:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield from _needed(home, alias.name)
            case ast.ImportFrom():
                whence = outline.absolute(home, node)
                for alias in node.names:
                    yield from _needed(home, whence, alias)
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.If(test=test) if ast.unparse(test) in _NOT_RUN:
                continue
            case _ if not isinstance(node, _DEFINES):
                raise UnreadableError(f"{home.module}:{node.lineno}")
    marked = sum(len([*outline.roles(node)]) for node in home.tree.body if isinstance(node, ast.ClassDef))
    calls = [node for node in ast.walk(home.tree) if isinstance(node, ast.Call)]
    if marked < sum(outline.called(call) in ("register", "part_kind") for call in calls):
        raise UnreadableError(f"{home.module} registers otherwise than by marking a class")


def _needed(home: Source, module: str, alias: ast.alias | None = None) -> Iterator[str]:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return
    if top in (outline.PACKAGE.name, home.module.partition(".")[0]):
        imported, below = _source(module), f"{module}.{alias.name}" if alias else module
        defined = imported is not None and (alias is None or (alias.name in imported.definitions and module != home.module))
        if not defined and _source(below) is None:
            raise UnreadableError(f"{home.module} imports {below}, which is not there")
        if alias and alias.asname and alias.name in ("register", "part_kind"):
            raise UnreadableError(f"{home.module} calls {alias.name} {alias.asname}")
        if top != outline.PACKAGE.name:
            yield from (name for name in dict.fromkeys([module, below]) if _source(name))
    elif (spec := find_spec(top)) is None:
        raise UnreadableError(f"{home.module} imports {top}, which is not there")
    elif (spec.origin or "").endswith(".py") and outline.PACKAGE.name in Path(str(spec.origin)).read_text(encoding="utf-8"):
        raise UnreadableError(f"{home.module} imports {top}, which may have parts")


def _source(module: str) -> Source | None:
    try:
        return outline.source(module)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(module) from error

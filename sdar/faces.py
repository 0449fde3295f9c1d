"""Packages whose names are imported when they are first used: `import sdar` costs what Python costs.

A face lists its names once, as imports for editors and type checkers; `lazy` reads them from there.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sdar.renamed import old_names


def lazy(package: str, **renamed: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` (PEP 562) of a package whose names stand below ``if TYPE_CHECKING:``.

    `renamed`: old name -> new name, of those that have another one now.
    """
    face = sys.modules[package]
    homes = imports(ast.parse(Path(str(face.__file__)).read_text(encoding="utf-8")))

    def __getattr__(name: str) -> Any:
        if name not in homes:
            return old_names(package, **renamed)(name)
        value = getattr(import_module(homes[name][0]), homes[name][1])
        setattr(face, name, value)
        return value

    return __getattr__, lambda: sorted({*vars(face), *homes}), sorted(homes)


def imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Name -> module and name there, of every ``from module import name`` below a file's ``if TYPE_CHECKING:``."""
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    lines = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in lines for alias in node.names}

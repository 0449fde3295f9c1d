"""What the source says of the parts, read without importing it: torch and its like take seconds, reading takes a tenth of one.

An outline is a class with the name, bases, docstring and constructor of the one that its file would define, and no code: names are
looked up and annotations and defaults evaluated as Python would, file by file. `registry.outlined` lets the registry answer with
outlines; what they answer equals what the imported classes do (tests/test_outline.py compares all).
"""

import ast
import builtins
import dataclasses
import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Iterator
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdar.moved import MOVED

PACKAGE = Path(__file__).parent
_PARTS = re.compile(r"^@(register|part_kind)\(", re.MULTILINE)
_RUN_BY_PYTHON = {"__new__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__"}
"""Methods that are called as a class or an object of it is made."""


MADE: list[type] = []
"""Every outline of this process."""

OTHERS: list[str] = []
"""Modules of somebody else whose parts are told beside ours (`sdar.plugins`)."""


class UnreadableError(Exception):
    """The source says something that can only be known by importing it."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A default that is a part, made later: a class and its arguments."""

    cls: type
    given: dict[str, Any]


class Source:
    """One module's file.

    Attributes:
        text: What stands in it.
        definitions: Name -> the statement at the file's top that binds it.
    """

    def __init__(self, module: str, path: Path) -> None:
        self.module = module
        self.is_package = path.name == "__init__.py"
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.definitions: dict[str, ast.stmt] = {}
        for node in _statements(self.tree.body):
            for name in _bound(node):
                self.definitions.setdefault(name, node)

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression that stands in this file."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            return node.value
        try:
            return eval(compile(ast.Expression(node), self.module, "eval"), {"__builtins__": {}}, _Names(self.module))
        except Exception as error:
            raise UnreadableError(f"{self.module}: {ast.unparse(node)}") from error


class _Names(dict[str, Any]):
    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        defined = source(self.module)
        if defined is not None and name in defined.definitions:
            return find(self.module, name)
        return getattr(builtins, name)


class _Module:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return find(self._name, name)


class Parameter:
    """One argument of a function; its annotation and default are evaluated when they are asked for."""

    def __init__(self, home: Source, arg: ast.arg, kind: Any, default: ast.expr | None = None) -> None:
        self._home, self._arg, self._default = home, arg, default
        self.name, self.kind = arg.arg, kind

    @property
    def required(self) -> bool:
        return self._default is None

    @cached_property
    def annotation(self) -> Any:
        node = self._arg.annotation
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        return inspect.Parameter.empty if node is None else self._home.evaluate(node)

    @cached_property
    def default(self) -> Any:
        node = self._default
        if isinstance(node, ast.Lambda) and isinstance(
            node.body, ast.Call
        ):  # an optimizer that is made when the weights are there
            given = {str(word.arg): self._home.evaluate(word.value) for word in node.body.keywords}
            return Spec(self._home.evaluate(node.body.func), given)
        return inspect.Parameter.empty if node is None else self._home.evaluate(node)


class Function:
    """A function or a method, which cannot be called.

    Attributes:
        parameters: Name -> what it takes, `self` included.
        handed_on: Of a constructor: names of the arguments that it gives to the next one beside its ``**kwargs``; None: it hands on none.
    """

    def __init__(self, home: Source, node: ast.FunctionDef) -> None:
        self._home, self._node = home, node
        self.__name__ = node.name
        self.__doc__ = ast.get_docstring(node, clean=False)
        self.__isabstractmethod__ = any("abstractmethod" in ast.unparse(mark) for mark in node.decorator_list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UnreadableError(f"{self._home.module}.{self.__name__} would have to be run")

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        given, kinds = self._node.args, inspect.Parameter
        places = [*given.posonlyargs, *given.args]
        usual = [*[None] * (len(places) - len(given.defaults)), *given.defaults]
        found: list[tuple[ast.arg, Any, ast.expr | None]]
        found = [(arg, kinds.POSITIONAL_OR_KEYWORD, default) for arg, default in zip(places, usual, strict=True)]
        found += [(given.vararg, kinds.VAR_POSITIONAL, None)] if given.vararg else []
        found += [(arg, kinds.KEYWORD_ONLY, d) for arg, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
        found += [(given.kwarg, kinds.VAR_KEYWORD, None)] if given.kwarg else []
        return {arg.arg: Parameter(self._home, arg, kind, default) for arg, kind, default in found}

    @cached_property
    def __signature__(self) -> inspect.Signature:
        found = self.parameters.values()
        return inspect.Signature(
            [inspect.Parameter(p.name, p.kind, default=p.default, annotation=p.annotation) for p in found]
        )

    @cached_property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return {p.name: p.annotation for p in self.parameters.values() if p.annotation is not inspect.Parameter.empty}

    @cached_property
    def handed_on(self) -> set[str] | None:
        for call in ast.walk(self._node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                given = [word.arg for word in call.keywords]
                if None in given:
                    return {name for name in given if name}
        return None


@cache
def source(module: str) -> Source | None:
    """A module's file; None: there is none."""
    module = MOVED.get(module, module)
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not below and spec.origin and spec.origin.endswith(".py"):
        return Source(module, Path(spec.origin))
    for folder in spec.submodule_search_locations or ():
        for path in (Path(folder, *below, "__init__.py"), Path(folder, *below).with_suffix(".py")):
            if path.is_file():
                return Source(module, path)
    return None


@cache
def find(module: str, name: str) -> Any:
    """What `name` is in a module: an outline, a value, a module.

    Raises:
        UnreadableError: the source does not say it.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        return getattr(importlib.import_module(module), name)
    home = source(module)
    node = home.definitions.get(name) if home else None
    if home is None or node is None:
        if source(f"{module}.{name}"):
            return _Module(f"{module}.{name}")
        raise UnreadableError(f"{module}.{name}")
    if isinstance(node, ast.ClassDef):
        return _outline(home, node)
    if isinstance(node, ast.FunctionDef):
        return _spec if (module.partition(".")[0], name) == ("jsonargparse", "lazy_instance") else Function(home, node)
    if isinstance(node, ast.ImportFrom):
        whence, there = absolute(home, node), next(a.name for a in node.names if name == (a.asname or a.name))
        return _Module(f"{module}.{name}") if (whence, there) == (module, name) else find(whence, there)
    if isinstance(node, ast.Import):
        alias = next(a for a in node.names if name == (a.asname or a.name.partition(".")[0]))
        imported = alias.name if alias.asname else name
        return importlib.import_module(imported) if imported in sys.stdlib_module_names else _Module(imported)
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        return home.evaluate(node.value)
    raise UnreadableError(f"{module}.{name}")


def definition(module: str, name: str) -> tuple[Source, ast.stmt] | None:
    """The file and the statement that define `name`, wherever a module has it from; None: it does not say."""
    home = source(module)
    node = home.definitions.get(name) if home else None
    if isinstance(node, ast.ImportFrom) and home is not None:
        there = next(alias.name for alias in node.names if name == (alias.asname or alias.name))
        return definition(absolute(home, node), there)
    return (home, node) if home and node else None


def locate(path: str) -> Any:
    """What a dotted path names; None: nothing that the source tells."""
    module, _, name = path.rpartition(".")
    try:
        return find(module, name) if module else None
    except UnreadableError:
        return None


def arguments(owner: type | Function) -> dict[str, Parameter]:
    """Every argument that a configuration may give to an outline of a class or function; those of its bases come last."""
    found: dict[str, Parameter] = {}
    given: set[str] = {"self"}
    functions = [owner] if isinstance(owner, Function) else [vars(cls).get("__init__") for cls in owner.__mro__]
    for cls in () if isinstance(owner, Function) else owner.__mro__:
        for name, field in vars(cls).get(_FIELDS, {}).items():
            found.setdefault(name, field)
    for function in functions:
        if not isinstance(function, Function):
            continue
        for p in function.parameters.values():
            if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY) and p.name not in given:
                found.setdefault(p.name, p)
        if function.handed_on is None:
            break
        given |= function.handed_on
    return found


def is_followed(module: str) -> bool:
    """Whether a module is of this package or of `OTHERS`."""
    return module.partition(".")[0] == PACKAGE.name or module in OTHERS


def tells_arguments(cls: type) -> bool:
    """Whether an outline's `arguments` are all: each constructor of a followed class says where its ``**kwargs`` go."""
    makers = [function for owner in cls.__mro__ if isinstance(function := vars(owner).get("__init__"), Function)]
    last = [
        function for function in makers if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in function.parameters.values())
    ]
    return is_followed(cls.__module__) and all(function.handed_on is not None for function in last)


def is_outline(cls: type) -> bool:
    return isinstance(vars(cls).get("_outline_of"), Source)


def registered() -> tuple[dict[str, type], dict[str, dict[str, type]]]:
    """Plural name -> base class of every kind, and plural name -> short name -> class of its parts: ours and those of `OTHERS`.

    Raises:
        UnreadableError: two parts of a kind ask for one name.
    """
    return _registered(tuple(OTHERS))


@cache
def _registered(others: tuple[str, ...]) -> tuple[dict[str, type], dict[str, dict[str, type]]]:
    kinds: dict[str, type] = {}
    named: list[tuple[str, type]] = []
    for module in [*_modules(), *others]:
        home = source(module)
        for node in (n for n in home.tree.body if isinstance(n, ast.ClassDef)) if home else ():
            for role, name in roles(node):
                cls = find(module, node.name)
                if role == "part_kind":
                    kinds[name] = cls
                else:
                    named.append((name, cls))
    imported_first = sorted(kinds.items(), key=lambda kind: not kind[1].__module__.startswith("sdar.parts."))
    kinds = dict(imported_first)
    parts: dict[str, dict[str, type]] = {plural: {} for plural in kinds}
    for plural, base in kinds.items():
        for name, cls in named:
            if issubclass(cls, base) and parts[plural].setdefault(name, cls) is not cls:
                raise UnreadableError(f"{plural} {name}")
    return kinds, parts


def mentions_class(name: str) -> bool:
    """Whether a file of this package or of `OTHERS` defines a class of this name, registered or not."""
    texts = [*(text for _, text in _texts()), *(home.text for module in OTHERS if (home := source(module)))]
    return any(re.search(rf"^\s*class {re.escape(name)}\b", text, re.MULTILINE) for text in texts)


def _modules() -> Iterator[str]:
    """Modules of this package whose files register something."""
    for path, text in _texts():
        if _PARTS.search(text):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if path.name == "__init__.py" else parts)


def _texts() -> Iterator[tuple[Path, str]]:
    """Every file of this package with what stands in it."""
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = sorted(f for f in folders if (Path(folder, f) / "__init__.py").exists())
        for file in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, file)
            yield path, path.read_text(encoding="utf-8")


def roles(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """What a class is registered as: ``register`` or ``part_kind``, and the name."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and (role := called(call)) in ("register", "part_kind"):
            match call.args:
                case [ast.Constant(value=str(name))]:
                    yield role, name
                case _:
                    raise UnreadableError(ast.unparse(call))


def called(call: ast.Call) -> str:
    """The last word of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *(inner for handler in node.handlers for inner in handler.body)])
        else:
            yield node


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        yield node.name
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def absolute(home: Source, node: ast.ImportFrom) -> str:
    """The module that a ``from`` names."""
    if not node.level:
        return str(node.module)
    above = home.module.split(".")
    above = above[: len(above) - node.level + home.is_package]
    return ".".join([*above, *filter(None, [node.module])])


def _outline(home: Source, node: ast.ClassDef) -> type:
    def body(namespace: dict[str, Any]) -> None:
        namespace |= {"__module__": home.module, "__qualname__": node.name, "__doc__": ast.get_docstring(node, clean=False)}
        namespace["_outline_of"] = home
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name not in _RUN_BY_PYTHON:
                namespace[inner.name] = Function(home, inner)

    bases = [_base(home, base) for base in node.bases]
    if home.module in OTHERS and None in bases:  # what such a class takes is told as surely as of ours, or not at all
        raise UnreadableError(f"{home.module}.{node.name}")
    found = [base for base in bases if base is not None]
    if is_followed(home.module) and any(getattr(n, "name", "") == "__init__" for n in node.body):
        found = [base for base in found if not _is_foreign(base)]  # what a library's class takes is then set by ours
    try:
        cls = types.new_class(node.name, types.resolve_bases(tuple(found)), {}, body)
    except TypeError as error:
        raise UnreadableError(f"{home.module}.{node.name}") from error
    MADE.append(cls)
    return _with_fields(home, node, cls) if any("dataclass" in ast.unparse(d) for d in node.decorator_list) else cls


def _base(home: Source, node: ast.expr) -> Any:
    try:
        base = home.evaluate(node)
    except UnreadableError:
        return None
    return base if isinstance(base, type) or hasattr(base, "__mro_entries__") else None


def _is_foreign(base: Any) -> bool:
    """Whether a base comes from a library: what it says of a part is nothing that a user sets."""
    module = str(getattr(base, "__module__", ""))
    return not is_followed(module) and module.partition(".")[0] not in sys.stdlib_module_names


_FIELDS = "_outline_fields"
"""Where the outline of a dataclass keeps what its constructor takes."""


def _with_fields(home: Source, node: ast.ClassDef, cls: type) -> type:
    fields: dict[str, Parameter] = {}
    try:
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                cls.__annotations__ = vars(cls).get("__annotations__", {}) | {inner.target.id: Any}
                if inner.value is not None:
                    setattr(cls, inner.target.id, home.evaluate(inner.value))
                kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
                fields[inner.target.id] = Parameter(home, ast.arg(inner.target.id, inner.annotation), kind, inner.value)
        setattr(cls, _FIELDS, fields)
        return dataclasses.dataclass(cls)
    except (UnreadableError, TypeError, ValueError):
        return cls


def _spec(cls: type, **given: Any) -> Spec:
    return Spec(cls, given)

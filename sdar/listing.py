"""`sdar list`: what a configuration can name, all of it, one kind, or one part with everything that is known of it; and what the
classes and functions promise that parts are written with."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sdar import outline, registry
from sdar.cli.signatures import annotated, arguments, defaults, known_names, parameters
from sdar.errors import UnknownPartError
from sdar.reading import yaml_text

FACES = ("sdar", "sdar.parts", "sdar.functional")
"""Modules whose classes and functions parts are written with."""


def listing(wanted: list[str]) -> Iterator[str]:
    """One text block for each kind (plural name), part (short or class name) or name of `FACES` in `wanted`; all kinds by default.

    Raises:
        UnknownPartError: none of these.
    """
    for name in wanted or sorted(registry.kinds()):
        if name in registry.kinds():
            yield _kind(name)
        elif found := [(plural, cls) for plural in registry.kinds() if (cls := named(plural, name))]:
            yield from (part(plural, cls) for plural, cls in found)
        elif told := interface(name):
            yield told
        else:
            known = [*registry.kinds(), *registry.names()]
            others = [name for face in FACES if (home := outline.source(face)) for name in home.definitions]
            near = registry.did_you_mean(name, known) or registry.did_you_mean(name, others)
            raise UnknownPartError(
                f"{name!r} is no kind of part and no part.{near} Kinds: {', '.join(sorted(registry.kinds()))}."
            )


def named(plural: str, name: str) -> type | None:
    """The part of a kind that has this short name or class name."""
    found = registry.parts(plural)
    return found.get(name) or next((cls for cls in found.values() if cls.__name__ == name), None)


def help_of(key: str, name: str) -> str | None:
    """The block of the part that ``--KEY.help NAME`` asks for; None: no registered part has that name."""
    place = key.split(".")[-1]
    found = [(plural, cls) for plural in registry.kinds() if (cls := named(plural, name))]
    fitting = [(plural, cls) for plural, cls in found if _place(plural)[0].split(".")[-1] == place] or found
    return part(*fitting[0]) if fitting else None


def part(plural: str, cls: type) -> str:
    """Everything about one part: names, where it is imported from, how YAML gives it, what its docstring says, its arguments."""
    shorts = [short for short, known in registry.parts(plural).items() if known is cls]
    key, listed = _place(plural)
    spec: dict[str, Any] = {"class_path": cls.__name__}
    if given := _example(cls):
        spec["init_args"] = given
    node: Any = [spec] if listed else spec
    for name in reversed(key.split(".")):
        node = {name: node} if name else node
    line = yaml_text(node, default_flow_style=True, width=1000).strip()
    line = line[1:-1] if key else line
    texts = [
        f"{', '.join(dict.fromkeys([*shorts, cls.__name__]))} ({plural})",
        f"  Python:  from {module_of(cls)} import {cls.__name__}",
        f"  YAML:    {line}",
        "",
        *(f"  {text}".rstrip() for text in _documentation(cls).splitlines()),
        "",
        "  arguments, with their defaults:" if arguments(cls) else "  It takes no arguments.",
        *(f"      {text}" for text in arguments(cls).values()),
    ]
    return "\n".join(texts)


def interface(name: str) -> str | None:
    """What a class or function of `FACES` promises, as its source says it; None: there is none of this name."""
    for face in FACES:
        if (found := outline.definition(face, name)) is None:
            continue
        home, node = found
        if isinstance(node, ast.FunctionDef):
            lines = [_head(node)]
        elif isinstance(node, ast.ClassDef):
            lines = [name]
        else:
            continue
        lines += [f"  Python:  from {face} import {name}", "", *_indented(ast.get_docstring(node) or "")]
        for owner in _owners(home, node):
            members = [*_members(owner)]
            lines += ["", f"  Of {owner.name}:" if owner is not node else "  It has:", *members] if members else []
        return "\n".join(lines)
    return None


def _owners(home: outline.Source, node: ast.stmt) -> Iterator[ast.ClassDef]:
    """A class and those of its bases that are ours."""
    if isinstance(node, ast.ClassDef) and outline.is_followed(home.module):
        yield node
        for base in node.bases:
            if isinstance(base, ast.Name) and (found := outline.definition(home.module, base.id)):
                yield from _owners(*found)


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Fields and methods of a class, each with what is said of it."""
    for member, behind in pairwise([*node.body, ast.Pass()]):
        text = behind.value.value if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant) else None
        match member:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=hint) if "ClassVar" not in ast.unparse(hint):
                told = f"{name}: {ast.unparse(hint)}"
            case ast.Assign(targets=[ast.Name(id=name)]):
                told = ast.unparse(member)
            case ast.FunctionDef(name=name):
                told, text = _head(member), ast.get_docstring(member)
            case _:
                continue
        if not name.startswith("_") or name == "__call__":
            yield f"      {told}"
            yield from _indented(inspect.cleandoc(str(text or "")), " " * 10)


def _head(node: ast.FunctionDef) -> str:
    return f"{node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def _indented(text: str, by: str = "  ") -> list[str]:
    return [f"{by}{line}".rstrip() for line in text.splitlines()]


def module_of(cls: type) -> str:
    """The shortest module of its package that has the class under its name: what one imports from."""
    above = cls.__module__.split(".")
    modules = (".".join(above[:n]) for n in range(1, len(above) + 1))
    return next((m for m in modules if registry.locate(f"{m}.{cls.__name__}") is cls), cls.__module__)


def _kind(plural: str) -> str:
    base = registry.kinds()[plural]
    shorts: dict[type, list[str]] = {}
    for short, cls in registry.parts(plural).items():
        shorts.setdefault(cls, []).append(short)
    shared = arguments(base)
    lines = [f"{plural}: {registry.summary(base)}"]
    for cls, names in shorts.items():
        own = [text for name, text in arguments(cls).items() if name not in shared]
        lines.append(f"  {', '.join(dict.fromkeys([*names, cls.__name__]))}: {registry.summary(cls)}")
        lines += [f"      {text}" for text in own]
    if shared:
        lines += ["  and for each of them:", *(f"      {text}" for text in shared.values())]
    return "\n".join(lines if shorts else [*lines, "  (none registered)"])


def _documentation(cls: type) -> str:
    """The docstrings of a class and of its constructor, where it has one of its own, and what its bases say of the arguments that it
    takes for them."""
    constructor = getattr(vars(cls).get("__init__"), "__doc__", None)
    texts = [inspect.getdoc(cls), inspect.cleandoc(constructor or "")]
    for base in cls.__mro__[1:]:
        if parameters(base).keys() & arguments(cls).keys():
            told = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
            texts.append(told and f"Of {base.__name__}:\n{told}")
    return "\n\n".join(filter(None, texts))


def _place(plural: str) -> tuple[str, bool]:
    """The first setting that takes a part of this kind, e.g. ``model.gate``, and whether it takes a list of them; empty: it stands
    within other parts."""
    base = registry.kinds()[plural]
    if plural == "strategies":
        return "model", False
    strategies = set(known_names([registry.kinds()["strategies"]]).values())
    ours_first = sorted(strategies, key=lambda cls: (not cls.__module__.startswith("sdar."), cls.__name__))
    owners = [("data", registry.locate("sdar.data.TaskModule")), *(("model", cls) for cls in ours_first)]
    owners += [("alarms", registry.locate("sdar.alarms.watch.Alarms"))]
    for head, owner in owners:
        for cls in owner.__mro__:
            for name, declared in parameters(cls).items():
                if base in annotated(cls, name):
                    return f"{head}.{name}", "list[" in str(declared.annotation)
    return "", False


def _example(cls: type, most: int = 3) -> dict[str, Any]:
    """Arguments that have to be given, and the first others of the part's own with their defaults."""
    strategy = issubclass(cls, registry.kinds()["strategies"])
    lines = arguments(cls)
    required = [name for name in lines if lines[name].endswith("(required)") and not (strategy and name == "policy")]
    own = {name: value for name, value in defaults(cls).items() if name in parameters(cls)}
    plain = [(name, value) for name, value in own.items() if isinstance(value, bool | int | float | str)]
    return {name: name.upper() for name in required} | dict(plain[: max(0, most - len(required))])

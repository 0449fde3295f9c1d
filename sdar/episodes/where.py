"""Conditions on episodes, as ``sdar episodes --where`` takes them: names, numbers, texts, comparisons, ``and``, ``or``, ``not``, ``in``.

They are read as Python's grammar has them and never run: whatever else stands in one is refused.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from sdar.episodes.schema import StoredEpisode
from sdar.episodes.values import VALUES, value
from sdar.errors import ConfigError
from sdar.reading import excerpt
from sdar.registry import did_you_mean

LONGEST = 2_000
"""Characters of a condition."""
KNOWN = "names, numbers, texts in quotes, lists, comparisons (== != < <= > >= in, not in), and, or, not, ( )"
_COMPARED: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", lambda a, b: a in b),
    ast.NotIn: ("not in", lambda a, b: a not in b),
}
Condition = Callable[[StoredEpisode], bool]
_Read = Callable[[StoredEpisode], Any]


def condition(text: str) -> Condition:
    """A condition, ready to be asked of episodes. What an episode does not have (the gap of one without a teacher, say) is null, and no
    comparison with it is true but ``== null`` and ``!= VALUE``.

    Raises:
        ConfigError: it is none, with the place; and, when it is asked, values are compared that cannot be (a number with a text).
    """
    if len(text) > LONGEST:
        raise ConfigError(
            f"the condition has {len(text)} characters, at most {LONGEST} are read. Ask for less, or filter in Python."
        )
    try:
        node = ast.parse(text.strip(), mode="eval").body
        read = _reader(node, text)
    except SyntaxError as bad:
        raise _refused(text, f"is no condition ({bad.msg}{f', at character {bad.offset}' if bad.offset else ''})") from None
    except (ValueError, RecursionError, MemoryError) as bad:
        if isinstance(bad, ConfigError):
            raise
        raise _refused(text, "is no condition: it holds what cannot be read, or too many brackets in each other") from None
    if not any(_dotted(part) in VALUES or (_dotted(part) or "").startswith("scores.") for part in ast.walk(node)):
        raise _refused(text, "asks nothing of an episode")
    return lambda episode: bool(read(episode))


def _refused(text: str, fact: str, near: str = "") -> ConfigError:
    example = "success == 0 and family == 'heat'"
    return ConfigError(f"the condition {excerpt(text, 200)} {fact}.{near} It may hold {KNOWN}. For example: {example}.")


def _reader(node: ast.expr, text: str) -> _Read:
    if isinstance(node, ast.BoolOp):
        parts = [_reader(part, text) for part in node.values]
        every = isinstance(node.op, ast.And)
        return lambda e: all(p(e) for p in parts) if every else any(p(e) for p in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _reader(node.operand, text)
        return lambda e: not inner(e)
    if isinstance(node, ast.Compare):
        return _comparison(node, text)
    if (name := _dotted(node)) is not None:
        if name in ("true", "false", "null"):
            known = {"true": True, "false": False, "null": None}[name]
            return lambda e: known
        if name not in VALUES and not name.startswith("scores."):
            known_names = did_you_mean(name, VALUES) or f" They have {', '.join(VALUES)} and scores.NAME."
            raise _refused(text, f"asks for {name!r}, which episodes do not have", known_names)
        return lambda e: value(e, name)
    constant = _constant(node, text)
    return lambda e: constant


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)) is not None:
        return f"{head}.{node.attr}"
    return None


def _constant(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _constant(node.operand, text)
        if isinstance(number, int | float):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_constant(item, text) for item in node.elts]
    raise _refused(text, f"holds {excerpt(ast.unparse(node), 60)}, which is none of what is known")


def _comparison(node: ast.Compare, text: str) -> _Read:
    sides = [_reader(side, text) for side in (node.left, *node.comparators)]
    signs = []
    for op in node.ops:
        if type(op) not in _COMPARED:
            raise _refused(text, "compares with `is`: use ==, or == null")
        signs.append(_COMPARED[type(op)])

    def compared(e: StoredEpisode) -> bool:
        values = [side(e) for side in sides]
        for (sign, holds), a, b in zip(signs, values, values[1:], strict=False):
            try:
                if _unknown(sign, a, b) or not holds(a, b):
                    return False
            except TypeError:
                fact = (
                    f"compares {excerpt(a, 40)} {sign} {excerpt(b, 40)}, which cannot be compared (task {excerpt(e.task, 40)})"
                )
                raise _refused(text, fact) from None
        return True

    return compared


def _unknown(sign: str, a: Any, b: Any) -> bool:
    """Whether what stands there is null, of which nothing is true."""
    return b is None if "in" in sign else sign not in ("==", "!=") and (a is None or b is None)

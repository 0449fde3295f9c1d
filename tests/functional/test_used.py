"""What is proved here is what runs: something in the package calls each public function."""

import ast
from pathlib import Path

import sdar

CALLED_BY_NOBODY = {
    "iw_opd_weights": "IW-OPD is no method of ours; its weights are for a transform of one's own, given to `additive_gap`",
    "stepwise_weights": "what `stepwise_turn_weights` says, for tensors of one's own; a run asks it turn by turn, in both layouts",
}


def test_each_formula_is_executed_by_something() -> None:
    folder = Path(sdar.__file__).parent
    face = ast.parse((folder / "functional" / "__init__.py").read_text(encoding="utf-8"))
    public = {alias.name for node in face.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    files = [
        *folder.rglob("*.py"),
        *(file for top in ("gates", "retrievers", "strategies") for file in (folder / top).glob("*.py")),
    ]
    used = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    assert len(public) > 50 and public - used == CALLED_BY_NOBODY.keys()

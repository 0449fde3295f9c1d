"""docs/python.md: the script trains, and its names are the package's."""

import ast
import re
from importlib import import_module
from pathlib import Path

import lightning
import pytest

import sdar
from sdar.faces import imports

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
SCRIPT = re.search(r"```python\n# train.py\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_script_trains_and_validates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {
        "max_steps": 1,
        "val_check_interval": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer
    monkeypatch.setattr(lightning, "Trainer", lambda **given: trainer(**given | small))
    exec(SCRIPT.replace("val_tasks=64", "val_tasks=4, train_tasks=8").replace("tasks_per_step=8", "tasks_per_step=2"), {})
    assert re.search(r"tensor\([01]\.", capsys.readouterr().out)
    assert list(Path("runs/script").rglob("last.ckpt")) and Path("runs/script/validation.jsonl").is_file()


@pytest.mark.filterwarnings("ignore:.* is called Metrics now")
def test_what_a_script_composes_is_found_in_the_package():
    homes = imports(ast.parse(Path(sdar.__file__).read_text()))
    assert set(sdar.__all__) == set(homes) and len(homes) > 60
    for name, (module, there) in homes.items():
        assert getattr(sdar, name) is getattr(import_module(module), there) and name in dir(sdar)
    with pytest.raises(AttributeError, match="module 'sdar' has no attribute 'GRP0'"):
        sdar.GRP0  # noqa: B018

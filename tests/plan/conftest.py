import json
from pathlib import Path

import pytest
from planned import PUBLISHED

from sdar.cli import main


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_policy_dir) -> Path:
    """What ``--configs`` reads: sizes as published, with a small tokenizer beside them, and no weights."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in PUBLISHED.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tiny_policy_dir / file).exists():
                (folder / name / file).write_bytes((tiny_policy_dir / file).read_bytes())
    return folder


@pytest.fixture
def sdar(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(args))
        return code, *capsys.readouterr()

    return run

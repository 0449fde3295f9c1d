"""What a shell offers behind `sdar`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import HEAVY, fresh

from sdar import registry
from sdar.cli import main
from sdar.cli.commands import COMMANDS
from sdar.cli.completion import SCRIPTS, candidates

GATES = ["constant", "ConstantGate", "entropy", "EntropyGate", "gap", "GapGate", "soft_or", "SoftOrGate"]
QUICKSTART = "sdar fit -c conf/quickstart/sdar.yaml"


@pytest.mark.parametrize(
    "line, offered",
    [
        ("sdar pl", ["play", "plan"]),
        ("sdar serve-s", ["serve-search", "serve-sandbox"]),
        ("sdar list gat", ["gates", "gated_opsd", "gate_saturated"]),
        ("sdar completion z", ["zsh"]),
        ("sdar fit --mod", ["--model", "--model."]),
        ("sdar play --p", ["--plugin", "--print_config", "--policy", "--prompts"]),
        ("sdar play --policy t", ["true"]),
        ("sdar plan --no", ["--nodes"]),
        ("sdar doctor --stage v", ["validate"]),
        ("sdar episodes --mod", []),
        ("sdar fit --model Soft", []),
        ("sdar fit --model SDA", ["SDAR"]),
        ("sdar fit --model=SDA", ["SDAR"]),
        ("sdar fit --model SDAR --model.gate ", GATES),
        ("sdar fit --model SDAR --model.gate.", ["--model.gate.beta"]),
        ("sdar fit --model SDAR --model.gate constant --model.gate.", ["--model.gate.value"]),
        ("sdar fit --model GRPO --model.gate", []),
        ("sdar fit --model SDAR --model.export_dtype b", ["bfloat16"]),
        ("sdar fit --model SDAR --model.rollouts_ahead ", ["0", "1"]),
        ("sdar fit --model SDAR --model.penalize_refused=", ["true", "false"]),
        (f"{QUICKSTART} --model.teacher.", []),
        (f"{QUICKSTART} --model.sampler.max", ["--model.sampler.max_new_tokens"]),
        (f"{QUICKSTART} --data.env.r", ["--data.env.receptacles", "--data.env.rooms"]),
        (f"{QUICKSTART} --data.env.split ", ["train", "seen", "unseen"]),
        (f"{QUICKSTART} --data.env search --data.env.top", ["--data.env.top_k"]),
        ("sdar fit -c conf/quickstart/s", ["conf/quickstart/sdar.yaml"]),
        ("sdar fit -c no/such.yaml --model.gate.", []),
        ("sdar fit --trainer.max_", ["--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time"]),
        ("sdar fit --checkpoint.", ["--checkpoint.dirpath", "--checkpoint.every_n_iterations"]),
        ("sdar serve-policy --eng", ["--engine"]),
        ("sdar serve-policy --engine torch --engine.d", ["--engine.dtype", "--engine.device", "--engine.draft_tokens"]),
        ("sdar build-index --kind ", ["bm25", "dense"]),
        ("sdar fit --model 'SD", []),
        ("sdar nonsense --", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_come_next(line: str, offered: list[str]) -> None:
    assert candidates(line) == offered


def test_every_command_and_every_part_is_offered() -> None:
    registry.load_parts()
    assert {*COMMANDS} < {*candidates("sdar ")}
    named = {
        name
        for plural in registry.kinds()
        for short, cls in registry.parts(plural).items()
        if cls.__module__.startswith("sdar.")
        for name in (short, cls.__name__)
    }
    assert named | set(registry.kinds()) == set(candidates("sdar list "))


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "completion needs the shell's name, bash or zsh. Did you mean 'bash'?" in capsys.readouterr().err
    assert main(["completion"]) == 2


def test_it_answers_without_what_takes_long() -> None:
    words = ["completion", "--line", f"{QUICKSTART} --model.gate.b"]
    code, out, _, modules = fresh(f"from sdar.cli import main; sys.argv = ['sdar', *{words!r}]; code = main()")
    assert code == 0 and out == "--model.gate.beta\n" and modules & HEAVY == set()


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_shell_takes_the_words(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "completion").write_text(SCRIPTS[shell])
    (tmp_path / "sdar").write_text(f'#!/bin/sh\nexec {sys.executable} -m sdar "$@"\n')
    (tmp_path / "sdar").chmod(0o755)
    scripts = {
        "bash": 'PATH="$PWD:$PATH"; source ./completion; COMP_LINE="sdar fit --model SD" COMP_POINT=19; _sdar sdar SD; '
        'echo "${COMPREPLY[@]}"',
        "zsh": "compdef() { :; }; compset() { :; }; compadd() { shift; print -- $@; }; path=($PWD $path); source ./completion; "
        "words=(sdar fit --model SD) CURRENT=4; _sdar",
    }
    done = subprocess.run([shell, "-c", scripts[shell]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == {"SDPO", "SDAR", "SDSearch"}, done.stderr

"""Help and lists."""

import re

from toy_command import told

from sdar import registry


def test_help_teaches(sdar) -> None:
    code, out, _ = sdar("--help")
    assert code == 0
    assert "examples:\n  sdar fit -c " in out and "--plugin my_package" in out and "sdar list" in out
    assert "sdar list" in sdar("list", "--help")[1]
    words = {"fit": "Train", "validate": "validation tasks", "test": "test tasks", "predict": "without learning"}
    for command, word in words.items():
        code, out, _ = sdar(command, "--help")
        assert code == 0
        assert word in out and f"examples:\n  sdar {command} " in out and "--trainer.max_steps" in out


def test_help_of_a_part(sdar) -> None:
    code, out, _ = sdar("fit", "--model.help", "GatedToyMethod")
    assert code == 0
    assert "--model.coef" in out
    code, out, _ = sdar("fit", "-c", "base.yaml", "--model.gate.help", "ToyGate")
    assert code == 0
    assert "--model.gate.slope" in out or "slope" in out


def test_version(sdar) -> None:
    code, out, _ = sdar("--version")
    assert code == 0
    assert re.fullmatch(r"sdar \d+\.\d+\.\d+\n", out)


def test_list_shows_every_part_with_its_arguments(sdar) -> None:
    code, out, _ = sdar("list")
    assert code == 0
    for plural in registry.kinds():
        assert f"{plural}: " in out
        for short, cls in registry.parts(plural).items():
            assert short in out and cls.__name__ in out and registry.summary(cls) in out
    assert "0x" not in out and "LazyInstance" not in out


def test_help_begins_with_the_training_method_and_speaks_of_this_command(sdar) -> None:
    out = sdar("fit", "--help")[1]
    titles = ["Training method", "Tasks and the world", "Checkpoints:", "Lightning's Trainer:"]
    assert sorted(titles, key=out.index) == titles
    assert ":paramref:" not in out and "known subclasses" not in out and len(out.splitlines()) < 330
    words = " ".join(out.split())
    assert "Optimizer steps at which training ends" in words and "Iterations between two validations" in words


def test_help_of_a_part_needs_no_configuration(sdar) -> None:
    code, out, _ = sdar("fit", "--model.gate.help", "GapGate")
    assert code == 0 and "gap, GapGate (gates)" in out and "beta: float = 5.0" in out
    assert "gap, GapAdvantage" in sdar("fit", "--model.transforms.help", "gap")[1]


def test_list_of_one_part(sdar) -> None:
    code, out, _ = sdar("list", "SDAR")
    assert code == 0 and "from sdar import SDAR\n" in out and "distill_coef: Weight of the distillation" in out
    out = sdar("list", "gap")[1]
    assert "YAML:    model: {gate: {class_path: GapGate, init_args: {beta: 5.0}}}\n" in out
    assert "YAML:    model: {transforms: [{class_path: GapAdvantage, init_args: {coef: 1.0, discount: 0.0}}]}\n" in out
    code, _, err = sdar("list", "gapp")
    assert code == 2 and told("'gapp' is no kind of part and no part. Did you mean 'gap'? Kinds: ", err)


def test_list_of_one_kind(sdar) -> None:
    code, out, _ = sdar("list", "gates")
    assert code == 0
    assert re.search(r"^  gap, GapGate: .+\n      beta: float = 5\.0$", out, re.MULTILINE)
    assert "strategies" not in out


def test_list_shows_what_all_strategies_take_once(sdar) -> None:
    out = sdar("list", "strategies")[1]
    assert out.count("policy: Policy (required)") == 1
    assert re.search(r"^      gate: Gate = GapGate$", out, re.MULTILINE)

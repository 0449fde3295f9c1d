"""The benchmarks of speed: what they count, that each runs at its smallest size, and that who names a script names one that is there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PAGES = [ROOT / "Makefile", FOLDER / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def script(name: str):
    """A script as a module; what it imports of its folder is found."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


measuring = script("measuring")
PHASES = ("rollout", "score", "update")
BENCHMARKS = script("run_all").BENCHMARKS


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6))
def test_a_prefix_tree_has_a_node_for_each_beginning(sequences):
    beginnings = {tuple(one[:length]) for one in sequences for length in range(1, len(one) + 1)}
    assert measuring.tree(sequences) == (len(beginnings), sum(map(len, beginnings)))


def test_exponents_are_slopes_of_logarithms():
    assert script("growth").slope([(2, 3 * 2**1.5), (4, 3 * 4**1.5), (32, 3 * 32**1.5)]) == pytest.approx(1.5)


def test_a_pass_over_a_model_is_its_matrix_products(small_llama):
    """2 layers of width 8: q, o 64 each, k, v 32 each, three of 8 x 16; two norms each and one behind; 2 heads of 4."""
    body = 2 * (2 * 64 + 2 * 32 + 3 * 128 + 2 * 8) + 8
    assert measuring.operations(small_llama, 10, 3, 55) == 2 * body * 10 + 2 * 8 * 32 * 3 + 4 * 2 * 8 * 55


@pytest.fixture
def small_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, **sizes))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    for name in re.findall(r"benchmarks/(\w+\.py)", page.read_text(encoding="utf-8")):
        assert (FOLDER / name).exists(), f"{page}: benchmarks/{name}"


def test_every_benchmark_of_the_command_is_there_and_told_of():
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    for full, quick in BENCHMARKS.values():
        assert (FOLDER / full[0]).exists() and f"benchmarks/{full[0]}" in told
        assert quick[:1] in ([], full[:1])


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_with_tiny_sizes_on_a_processor(tmp_path):
    command = [sys.executable, str(FOLDER / "gpu_speed.py"), "--cpu", "--rounds", "1", "--to", str(tmp_path)]
    subprocess.run(command, check=True, timeout=1500)
    told = (tmp_path / "step.md").read_text()
    assert all(
        re.search(rf"^\| {method} \| {phase} \| \d", told, re.MULTILINE) for method in ("GRPO", "SDAR") for phase in PHASES
    )
    assert "| reverse |" in (tmp_path / "head.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["rollout.py", "--policies", "tiny", "--rounds", "1"],
        ["rollout.py", "--policies", "135M", "--layouts", "turn", "--rounds", "1", "--quick"],
        ["step.py", "--policies", "tiny", "--rounds", "1"],
        ["teacher.py", "--settings", "frozen", "published", "--rounds", "1", "--quick"],
        [
            "growth.py",
            "--along",
            "skills",
            "--layouts",
            "turn",
            "--policy",
            "tiny",
            "--tasks",
            "1",
            "--rounds",
            "1",
            "--quick",
        ],
        ["head.py", "--rounds", "1", "--quick"],
        ["adapters.py", "--rounds", "1", "--quick"],
        ["official_games.py", "--games", "2", "--turns", "2"],
        ["episodes.py", "--quick", "--layouts", "trajectory"],
        ["profile_step.py", "--quick"],
        ["quickstart_memory.py", "--rounds", "1"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_it_runs_at_its_smallest_size(words, tmp_path):
    file = tmp_path / "table.md"
    command = [sys.executable, str(FOLDER / words[0]), *words[1:], "--to", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^\| ---", file.read_text(), re.MULTILINE)

"""A policy of half a billion numbers with a vocabulary of 151,936, in bfloat16 on one GPU: rollout, teacher, update, head and loss.

    python benchmarks/gpu_speed.py [--rounds 2] [--to FOLDER]     # at most ten minutes on one H100 or H200
    python benchmarks/gpu_speed.py --cpu --to /tmp/found          # the same with tiny sizes on a processor: tries the commands

Weights are random and the world is the full-size household, a prompt for each turn, 64 attempts of 8 turns of 32 tokens. Written: rollout
in tokens/s with its share of the device's matrix rate (model FLOPs utilisation: prefix tree of what was read, counted once), the phases of
GRPO's and SDAR's step with skills of 3,000 characters (what the teacher costs) and their utilisation, the most memory of each; and head and
loss at 32k tokens by `head.py`, in a table of its own. Times are the clock's, the device waited for; the first step is not counted.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Run

VOCABULARY = 151_936
HALF_A_BILLION = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
                  "intermediate_size": 3072, "max_position_embeddings": 8192}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 64, "max_position_embeddings": 8192}  # fmt: skip
PHASES = ("rollout", "score", "update")
HEAD = ["--losses", "statistics", "reverse", "--dtype", "bfloat16"]


def write_policy(folder: Path, sizes: dict[str, int], vocabulary: int) -> None:
    """A random Qwen3 whose tokenizer knows the household's words and is filled up with words that nobody says."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from sdar.envs import HouseholdEnv
    from sdar.policies import FreshPolicy

    FreshPolicy(env=HouseholdEnv(receptacles="full"), vocab_size=2048).load_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    pieces = told["model"]["vocab"]  # of a unigram model: piece and score, in the order of the ids
    pieces += [[f"\ufffe{number}", -100.0] for number in range(len(pieces), vocabulary)]
    file.write_text(json.dumps(told))
    ids = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(ids), tie_word_embeddings=True, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id, **sizes
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def commands(policy: Path, skills: str, cpu: bool) -> list[list[str]]:
    """GRPO's and SDAR's."""
    shared = {
        "model.policy": "PretrainedPolicy",
        "model.policy.path": policy,
        "model.sampler.max_new_tokens": 4 if cpu else 32,
        "model.kl_coef": 0.0,
        "model.updates_per_rollout": 1,
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 0.01,  # of bfloat16 weights less would move none; each step begins with the first ones
        "model.micro_batch_tokens": 32768,
        "data.layout": "turn",
        "data.env.horizon": 2 if cpu else 8,
        "data.tasks_per_step": 2 if cpu else 8,
        "data.group_size": 2 if cpu else 8,
        "data.val_tasks": 2,
        "trainer.accelerator": "cpu" if cpu else "gpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-true",
    }
    of_teacher = {"model.retriever.skills": skills, "model.teacher": "LiveTeacher"}
    return [
        measuring.words(["env/alfworld", "method/grpo"], shared),
        measuring.words(["env/alfworld", "method/sdar"], shared | of_teacher),
    ]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_rate(device: torch.device, size: int) -> float:
    """Operations a second of a square product in bfloat16: the best of ten."""
    a = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(10):
        wait()
        begin = time.perf_counter()
        a @ a
        wait()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def clocked(run: Run) -> dict[str, dict[str, float]]:
    """Seconds and the most memory of the phases of the steps that follow, the last ones."""
    found: dict[str, dict[str, float]] = {}
    inner = run.module.phase

    @contextlib.contextmanager
    def phase(name: str, rate: str | None = None) -> Iterator[None]:
        wait()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        with inner(name, rate):
            yield
            wait()
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        found[name] = {"seconds": time.perf_counter() - begin, "peak_gib": peak}

    run.module.phase = phase
    return found


def least(run: Run, episodes: list[Any]) -> tuple[float, int]:
    """Operations of one pass over what the episodes read and said, each token once; and how many tokens were said."""
    told = [prompt + said for e in episodes for prompt, said, _ in measuring.turns(e)]
    said = sum(e.response_tokens for e in episodes)
    nodes, depths = measuring.tree(told)
    return measuring.operations(run.module.model, nodes, said, depths), said


def measure(grpo: Run, sdar: Run, rounds: int, cpu: bool) -> list[list[object]]:
    """The rows of the table: GRPO's phases, then SDAR's."""
    runs = {"GRPO": grpo, "SDAR": sdar}
    rate = device_rate(next(grpo.module.model.parameters()).device, 256 if cpu else 8192)
    clocks = {name: clocked(run) for name, run in runs.items()}
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    episodes: list[Any] = []
    for run in runs.values():
        finish = run.module.finish_iteration
        run.module.finish_iteration = lambda done, finish=finish: (episodes.__setitem__(slice(None), done), finish(done))
    for number in range(rounds + 1):
        for name, run in runs.items():
            run.step(number)
            one = {phase: dict(clocks[name][phase]) for phase in PHASES}
            operations, said = least(run, episodes)
            passes = {"rollout": 1, "score": 1, "update": 3}
            for phase in PHASES:
                one[phase] |= {
                    "rate": said / one[phase]["seconds"],
                    "share": passes[phase] * operations / rate / one[phase]["seconds"],
                }
            if number:
                seen[name].append(one)
    rows: list[list[object]] = []
    whole = {name: [sum(one[phase]["seconds"] for phase in PHASES) for one in steps] for name, steps in seen.items()}
    for name, steps in seen.items():
        for phase in PHASES:
            median = {key: statistics.median(one[phase][key] for one in steps) for key in steps[0][phase]}
            rows.append([name, phase, f"{median['seconds']:.2f}", f"{median['rate']:,.0f}", f"{100 * median['share']:.1f}",
                         f"{median['peak_gib']:.1f}"])  # fmt: skip
        rows.append([name, "all three", f"{statistics.median(whole[name]):.2f}", "", "", ""])
    price = statistics.median(measuring.ratios(whole["SDAR"], whole["GRPO"]))
    rows.append(["SDAR / GRPO", "all three", f"{price:.2f}", "", "", f"{rate / 1e12:.1f} TFLOP/s in a product"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on a processor: tries the commands")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/gpu"))
    given = parser.parse_args()
    if not given.cpu and not torch.cuda.is_available():
        parser.error("no GPU is here; --cpu tries the commands")
    given.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "policy")
        write_policy(policy, TINY if given.cpu else HALF_A_BILLION, 3000 if given.cpu else VOCABULARY)
        Path(folder, "skills").mkdir()
        both = commands(policy, measuring.skills(f"{folder}/skills", 3000), given.cpu)
        rows = measuring.inside(both, lambda grpo, sdar: measure(grpo, sdar, given.rounds, given.cpu))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    columns = ["method", "phase", "seconds", "response tokens/s", "utilisation, %", "peak, GiB"]
    steps = argparse.Namespace(to=given.to / "step.md")
    told = f"Medians of {given.rounds} steps on {device}, bfloat16."
    measuring.tell(steps, "Half a billion numbers on one GPU", told, measuring.table(columns, rows))
    small = ["--tokens", "64", "--hidden", "32", "--vocab", "3000", "--device", "cpu", "--rounds", "1"]
    large = ["--tokens", "32768", "--hidden", "1024", "--device", "cuda", "--rounds", "2"]
    head = [sys.executable, str(Path(__file__).with_name("head.py")), *HEAD, *(small if given.cpu else large)]
    subprocess.run([*head, "--to", str(given.to / "head.md")], check=True)


if __name__ == "__main__":
    main()

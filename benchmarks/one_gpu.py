"""SDAR on the household with a random policy of half a billion numbers, under DeepSpeed on one GPU: memory and time against `sdar plan`.

    python benchmarks/one_gpu.py [--gpu h100] [--iterations 6] [--to benchmarks/results/one_gpu.json]
    python benchmarks/one_gpu.py --cpu --iterations 2 --to /tmp/one_gpu.json   # the same commands with a tiny policy, no memory

Each strategy is a process of its own, in bf16-mixed. Measured memory is the most that CUDA's allocator had reserved, plus what the
device had in use beyond it; times are medians over the iterations but for the first.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback

GIB = 2**30
STRATEGIES = ["deepspeed_stage_2", "deepspeed_stage_3", "fsdp2"]
HALF_A_BILLION = {
    "hidden_size": 1024,
    "layers": 32,
    "heads": 16,
    "key_value_heads": 8,
    "intermediate_size": 3584,
    "context": 2048,
}
TINY = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64, "context": 2048}
PHASES = ("rollout", "score", "update")


class Peak(Callback):
    """Writes the most memory that was in use."""

    def __init__(self, to: str):
        self.to = to

    def on_train_end(self, trainer, pl_module):
        found = {"parameters": sum(getattr(p, "ds_numel", p.numel()) for p in pl_module.model.parameters())}
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            beside = total - free - torch.cuda.memory_reserved()
            found |= {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved() + beside,
                "device": torch.cuda.get_device_name(),
            }
        Path(self.to).write_text(json.dumps(found))


def settings(strategy: str, iterations: int, cpu: bool) -> list[str]:
    """The arguments that `sdar fit` and `sdar plan` share."""
    policy = {f"model.policy.{name}": size for name, size in (TINY if cpu else HALF_A_BILLION).items()}
    shared = {
        "model.policy": "FreshPolicy",
        **policy,
        "model.policy.env": "HouseholdEnv",
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 1e-5,
        "model.micro_batch_tokens": 8192,
        "data.val_tasks": 2,
        "trainer.accelerator": "cpu" if cpu else "gpu",
        "trainer.devices": 1,
        "trainer.strategy": strategy,
        "trainer.precision": "32-true" if cpu else "bf16-mixed",
        "trainer.limit_val_batches": 0,
        "trainer.max_steps": 2 * iterations,
    }
    return ["-c", "conf/quickstart/sdar.yaml", *(word for name, value in shared.items() for word in (f"--{name}", str(value)))]


def measure(strategy: str, folder: Path, gpu: str, iterations: int, cpu: bool) -> dict:
    """What was planned for one strategy, and what happened."""
    shared = settings(strategy, iterations, cpu)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    folder.mkdir(parents=True)
    run = [sys.executable, "-m", "sdar"]
    fit = [
        "fit", *shared, "--trainer.default_root_dir", str(folder), "--trainer.enable_checkpointing", "false",
        "--trainer.callbacks+=one_gpu.Peak", "--trainer.callbacks.to", str(folder / "peak.json"),
    ]  # fmt: skip
    subprocess.run([*run, "plan", *shared, "--gpu", gpu, "--json", str(folder / "plan.json")], check=True, env=environment)
    subprocess.run([*run, *fit], check=True, env=environment)
    plan, peak = (json.loads((folder / name).read_text()) for name in ("plan.json", "peak.json"))
    with open(next(folder.glob("version_*/metrics.csv"))) as file:
        rows = [row for row in csv.DictReader(file) if row.get("time/rollout_s")][1:]
    times = {
        phase: statistics.median(float(row[f"time/{phase}_s"]) for row in rows if row.get(f"time/{phase}_s"))
        for phase in PHASES
    }
    return {
        "strategy": strategy,
        "command": "sdar " + " ".join(fit),
        "parameters": peak["parameters"],
        "device": peak.get("device", "cpu"),
        "planned_gib": max(plan["peak"].values()) / GIB,
        "allocated_gib": peak.get("allocated", 0) / GIB,
        "measured_gib": peak.get("reserved", 0) / GIB,
        "planned_s": {phase: plan["seconds"].get(phase) for phase in PHASES},
        "measured_s": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100", help="as `sdar plan` knows it")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--cpu", action="store_true", help="a tiny policy on the CPU: tries the commands")
    parser.add_argument("--runs", type=Path, default=Path("runs/one_gpu"), help="a folder that is not there yet")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/one_gpu.json"))
    args = parser.parse_args()
    if args.iterations < 2:
        parser.error("--iterations: at least 2, for the first is not counted")
    if not args.cpu and not torch.cuda.is_available():
        parser.error("no GPU is here; --cpu tries the commands")
    found = [measure(s, args.runs / s, args.gpu, args.iterations, args.cpu) for s in args.strategies]
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1) + "\n")
    print(f"{'strategy':<20}{'GiB planned':>12}{'measured':>10}   seconds of rollout, score, update: planned, measured")
    for run in found:
        seconds = ", ".join(f"{run['planned_s'][p] or 0:.2f} {run['measured_s'][p]:.2f}" for p in PHASES)
        print(f"{run['strategy']:<20}{run['planned_gib']:>12.1f}{run['measured_gib']:>10.1f}   {seconds}")


if __name__ == "__main__":
    main()

"""What `sdar.plan` predicts against what processes really took, on the CPU.

    python benchmarks/plan_memory.py [--json FILE]

Each case is a process of its own with one torch thread: a fresh Qwen3 of about 59 million numbers. Measured is the largest resident
set minus that before the network was made; large blocks of memory go back to the system at once (MALLOC_MMAP_THRESHOLD_), so that the
largest resident set is the most that was alive. GPU-only parts (CUDA, NCCL, foreach optimizers) are not in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 2**20
SIZE = {"hidden_size": 640, "layers": 10, "heads": 10, "key_value_heads": 5, "intermediate_size": 1920, "context": 2048}
VOCABULARY = 16000
ROW, ROWS = 512, 4
CASES = {
    "weights": {},
    "weights, gradients, AdamW": {"adamw": True},
    "passes, float32": {"backward": True},
    "passes, float32, checkpointing": {"backward": True, "checkpointing": True},
    "passes, bf16-mixed": {"backward": True, "precision": "bf16-mixed"},
    "passes, bf16-mixed, checkpointing": {"backward": True, "precision": "bf16-mixed", "checkpointing": True},
    "scoring without a gradient, float32": {"score": True},
    "keys and values of 16 x 384 tokens": {"cache": True},
}


def planned(precision: str = "32-true", checkpointing: bool = False):
    """The network on the meta device and its run."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from sdar import plan
    from sdar.plan.settings import architecture_of

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=SIZE["hidden_size"],
        num_hidden_layers=SIZE["layers"],
        num_attention_heads=SIZE["heads"],
        num_key_value_heads=SIZE["key_value_heads"],
        head_dim=SIZE["hidden_size"] // SIZE["heads"],
        intermediate_size=SIZE["intermediate_size"],
        max_position_embeddings=SIZE["context"],
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        architecture = architecture_of(Qwen3ForCausalLM(config), "fresh")
    network = plan.Network("policy", architecture, 4, trained=architecture.parameters)
    work = plan.Work(
        tasks=4, attempts=4, extra=0, turns=1, response=64, layout="trajectory", splits=False, row=ROW, row_mean=ROW, prompt=384, told=0,
        updates=1, micro_batch=ROW * ROWS, passes={"policy": 1.0},
    )  # fmt: skip
    return config, plan.Run(network, (), plan.Launch(precision=precision), work, 2.0, checkpointing)


def predicted(case: dict) -> float:
    """Bytes."""
    from sdar import plan

    _, run = planned(case.get("precision", "32-true"), case.get("checkpointing", False))
    sets = plan.device_memory(run)
    size = sets["update"]["weights: policy"]
    if case.get("adamw"):
        return size + sets["step"]["gradients"] + sets["step"]["optimizer"]
    if case.get("backward"):
        parts = ("gradients", "activations", "logits", "a layer's backward pass")
        return size + max(sum(sets[phase].get(part, 0.0) for part in parts) for phase in ("head", "update"))
    if case.get("score"):
        return size + sets["score"]["activations"] + sets["score"]["logits"]
    if case.get("cache"):
        return 1.25 * 16 * 384 * plan.cache_bytes(run, run.policy)
    return size


def child(case: dict) -> float:
    """Bytes that the case took in this process."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from sdar.parts import SampleKey
    from sdar.samplers import TorchSampler
    from sdar.scoring import Scorer

    torch.set_num_threads(1)
    config, _ = planned()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    network = Qwen3ForCausalLM(Qwen3Config(vocab_size=16, intermediate_size=16, **small))
    ones = torch.ones(1, 4, dtype=torch.long)
    (-Scorer(1.0, (), 16)(network, ones, ones, ones).logp.sum()).backward()  # whatever is loaded at the first use
    torch.optim.AdamW(network.parameters(), lr=1e-6, foreach=False).step()
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (ROWS, ROW), generator=generator)
    attention = torch.ones_like(ids)
    attention[0, -8:] = 0  # a padded row
    response = attention.bool().clone()
    response[:, : ROW // 4] = False
    scorer = Scorer(1.0, (), VOCABULARY)
    if case.get("adamw"):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False).step()
    if case.get("backward"):
        if case.get("checkpointing"):
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        mixed = case.get("precision") == "bf16-mixed"
        for _ in range(2):  # from the second micro-batch of a step on, gradients are there
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
                loss = -scorer(model, ids, attention, response).logp.sum()
            loss.backward()
            del loss
    if case.get("score"):
        scorer.score(model.eval(), ids, attention, response, ROW * ROWS)
    if case.get("cache"):
        sampler = TorchSampler(max_new_tokens=2)
        sampler.bind_ids([1], [], VOCABULARY, 2048)
        prompts = torch.randint(2, VOCABULARY, (16, 383), generator=generator).tolist()
        sampler.sample(model, prompts, [SampleKey(0, str(n), 0, 0) for n in range(16)])
        return float(sum(buffer.untyped_storage().nbytes() for buffer in sampler._slots[1].buffers()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def whole_run() -> tuple[float, float]:
    """Bytes predicted and measured of `sdar fit`: two iterations of GRPO on the quickstart's household, 49 million numbers."""
    settings = [
        "-c", "conf/env/quickstart.yaml", "-c", "conf/method/grpo.yaml", "-c", "conf/scale/tiny.yaml", "--model.policy", "FreshPolicy",
        *(text for key, value in SIZE.items() for text in (f"--model.policy.{key}", str(value))),
        "--model.sampler.max_new_tokens", "12", "--model.val_sampler.max_new_tokens", "12", "--model.micro_batch_tokens", "1024",
        "--data.val_tasks", "4", "--data.val_batch", "4", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2",
        "--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, "fit", *settings, "--trainer.default_root_dir", folder],
            env=quiet(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        measured = float(done.stderr.rsplit("MEASURED ", 1)[1].split()[0])
        path = Path(folder, "plan.json")
        subprocess.run(
            [sys.executable, "-m", "sdar", "plan", *settings, "--json", str(path)],
            env=quiet(),
            check=True,
            capture_output=True,
        )
        sets = json.loads(path.read_text())["memory"]
    return max(sum(size for what, size in sets[phase].items() if what != "the step's own") for phase in sets), measured


RUN = """
import os, resource, sys
from sdar.cli import main
from sdar.module import AgentModule

build, before = AgentModule._build, []

def measured_build(self):
    before.append(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    build(self)

AgentModule._build = measured_build
code = main(sys.argv[1:])
print("MEASURED", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before[0], file=sys.stderr)
sys.exit(code)
"""
"""`sdar fit`, which says how much its largest resident set was above the one before networks were made."""


def quiet() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print("MEASURED", child(CASES[given.child]))
        return
    rows = {}
    for name, case in CASES.items():
        done = subprocess.run([sys.executable, __file__, "--child", name], env=quiet(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows[name] = told = (predicted(case), float(done.stdout.rsplit("MEASURED ", 1)[1].split()[0]))
        print(f"{name}: predicted {told[0] / MIB:,.0f}, measured {told[1] / MIB:,.0f} MiB", file=sys.stderr)
    rows["sdar fit, two iterations of GRPO"] = whole_run()
    print("| case | predicted, MiB | measured, MiB | predicted / measured |\n|---|---|---|---|")
    for name, (told, found) in rows.items():
        print(f"| {name} | {told / MIB:,.0f} | {found / MIB:,.0f} | {told / found:.2f} |")
    if given.json:
        given.json.write_text(json.dumps({name: {"predicted": t, "measured": f} for name, (t, f) in rows.items()}, indent=1))


if __name__ == "__main__":
    main()

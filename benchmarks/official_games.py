"""Official ALFWorld games played once by a pretrained model of 135 M parameters: `sdar validate`, time and memory of the process.

    python benchmarks/official_games.py [--games 64] [--turns 30] [--threads 2] [--quick]

The games are looked for at $ALFWORLD_DATA, then as ../shared/data/alfworld_games.tar.xz beside the checkout. bfloat16, growing history,
compact protocol. The limit is that of `rollout.py`: the prefix tree of all prompts and responses through the layers once, at the rate of a
large bfloat16 matrix product of one thread times the threads.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import measuring
import torch

from sdar import episodes

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "alfworld_games.tar.xz"


def games(folder: str) -> str:
    """A folder that holds json_2.1.1."""
    if os.environ.get("ALFWORLD_DATA"):
        return os.environ["ALFWORLD_DATA"]
    if not ARCHIVE.exists():
        raise measuring.Missing(f"ALFWorld's games are neither at $ALFWORLD_DATA nor at {ARCHIVE}")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return str(next(Path(folder).rglob("json_2.1.1")).parent)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--games", type=int, default=64)
    parser.add_argument("--turns", type=int, default=30)
    parser.set_defaults(threads=2)
    given = parser.parse_args()
    measuring.begin(given)
    if given.quick:
        given.games, given.turns = 8, 4
    model = measuring.smollm2()
    rate = measuring.matrix_rate(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "model": "GRPO",
            "model.policy": "PretrainedPolicy",
            "model.policy.path": model,
            "model.sampler": "TorchSampler",
            "model.val_sampler": "TorchSampler",
            "model.val_sampler.max_new_tokens": 16,
            "model.optimizer": "torch.optim.AdamW",
            "model.optimizer.lr": 0.01,  # nothing is trained
            "data.env.data": "official",
            "data.env.horizon": given.turns,
            "data.layout": "trajectory",
            "data.protocol": "CompactProtocol",
            "data.train_tasks": 256,
            "data.val_tasks": given.games,
            "data.val_splits": "[unseen]",
            "trainer.accelerator": "cpu",
            "trainer.precision": "bf16-true",
            "trainer.default_root_dir": f"{folder}/run",
        }
        command = [sys.executable, "-m", "sdar", "validate", *measuring.words(["env/alfworld"], chosen)]
        environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "ALFWORLD_DATA": games(folder)}
        with open(f"{folder}/log", "w") as log:
            begin = time.perf_counter()
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            _, status, used = os.wait4(child.pid, 0)
            clock = time.perf_counter() - begin
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(Path(folder, "log").read_text())
        played = episodes.read(Path(folder, "run"))
    said = sum(episode.response_tokens for episode in played)
    turns = sum(len(episode.turns) for episode in played)
    row = [len(played), turns, f"{said:,}", f"{clock / 60:.1f}", f"{(used.ru_utime + used.ru_stime) / 60:.1f}",
           f"{said / clock:.0f}", f"{used.ru_maxrss / 2**20:.1f}", f"{rate / 1e9:.0f}"]  # fmt: skip
    measuring.tell(
        given,
        "Official ALFWorld games, a model of 135 M parameters",
        f"{given.games} games of valid_unseen once, at most {given.turns} turns, {given.threads} threads, bfloat16; start-up counts.",
        measuring.table(
            ["games", "turns", "response tokens", "minutes", "processor minutes", "tokens/s", "peak, GiB",
             "matrix product, GFLOP/s a thread"], [row],
        ),
    )  # fmt: skip


if __name__ == "__main__":
    measuring.run(main)

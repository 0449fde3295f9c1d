"""A teacher whose special tokens or tokenizer are not the student's: what it does to on-policy distillation, and what mends it.

    python benchmarks/other_tokenizer.py                              # runs, prints the table
    python benchmarks/other_tokenizer.py --page docs/tokenizers.md    # writes it there, and the picture beside it

A small model is asked for the colour of a thing, which its size decides. The student knows the form of an answer and gives the right colour
in five answers of twelve; each teacher gives it always. All come from supervised fine-tuning. The teachers know the same and differ in how
they write:

* ``same``: the student's tokenizer and chat template.
* ``end``: the student's tokenizer, and a template that ends a turn with another of its special tokens (as a base model's end of text beside
  an instruct model's end of turn). Every id means the same to both, so nothing is refused.
* ``bytes``: a byte-level BPE and ChatML. Ids mean nothing to the other side: as `ExternalTeacher` it is refused.
* ``across``: the same with pieces that reach over the borders of words, so that an answer has hardly a border that both share.
"""

import argparse
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sdar.data import ChatModule, TaskModule
from sdar.envs.protocols import Protocol
from sdar.parts import Environment, StepResult
from sdar.policies import FreshPolicy, PretrainedPolicy, world_tokenizer
from sdar.samplers import TorchSampler
from sdar.strategies import OPD, SFT
from sdar.teachers import AlignedTeacher, ExternalTeacher
from sdar.types import Task

COLOURS = ("dark red", "light red", "dark green", "light green", "dark blue", "light blue", "grey", "white")
SIZES = ("small", "large", "old", "new")
NOUNS = [
    "lamp",
    "chair",
    "book",
    "cup",
    "door",
    "bowl",
    "vase",
    "box",
    "coat",
    "shelf",
    "ball",
    "bag",
    "bench",
    "clock",
    "plate",
    "tray",
]
THINGS = [f"{size} {noun}" for size in SIZES for noun in NOUNS]
SIZE = {"hidden_size": 64, "layers": 2, "heads": 4, "key_value_heads": 4, "intermediate_size": 128, "context": 128}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ("<!-- table: written by benchmarks/other_tokenizer.py -->", "<!-- end of table -->")


def colour(thing: str) -> str:
    return COLOURS[3 * SIZES.index(thing.split()[0]) % len(COLOURS)]


def question(thing: str) -> str:
    return f"What colour is the {thing}?"


def answer(thing: str, painted: str | None = None) -> str:
    return f"It is {painted or colour(thing)}."


class Facts(Environment):
    """One question an episode; the right sentence is worth 1."""

    horizon = 1
    splits = ("train",)
    protocol_name = "general"

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        return [f"{n}" for n in range(len(THINGS))]

    def task(self, task_id: str) -> Task:
        return Task(task_id, "facts", question(THINGS[int(task_id)]))

    def reset(self, task: Task) -> str:
        self.running = THINGS[int(task.id)]
        return ""

    def step(self, action: str) -> StepResult:
        right = action == answer(self.running)
        return StepResult("", reward=float(right), done=True, success=right)


class Asked(Protocol):
    """The question, and nothing else."""

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.instruction}]

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        return text, True


def words(end: str = "<|end|>") -> PreTrainedTokenizerBase:
    """The student's tokenizer: words. `end`: the token that its template ends a turn with."""
    tokenizer = world_tokenizer([f"{question(t)} {answer(t)}" for t in THINGS], [], 400, SIZE["context"])
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|end|>", end)
    tokenizer.eos_token = end
    return tokenizer


def letters(across: bool = False) -> PreTrainedTokenizerBase:
    """A byte-level BPE. `across`: its pieces reach over the borders of words, which tokenizers of language models do not do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([f"{question(t)}\n{answer(t)}" for t in THINGS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


class Fresh(FreshPolicy):
    """A random network for a tokenizer that is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int):
        super().__init__(Facts(), **SIZE, seed=seed)
        self._tokenizer = tokenizer


def trainer(steps: int, folder: Path) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    return Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder, **quiet)


def taught(name: str, tokenizer: PreTrainedTokenizerBase, steps: int, folder: Path, knows: bool = True, seed: int = 0) -> str:
    """The folder of a model that was fine-tuned on answers about all things: the right ones, or also every colour for each."""
    file, out = folder / f"{name}.jsonl", str(folder / name)
    said = [(t, c) for t in THINGS for c in ([colour(t)] if knows else [*COLOURS, *4 * [colour(t)]])]
    rows = [[{"role": "user", "content": question(t)}, {"role": "assistant", "content": answer(t, c)}] for t, c in said]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    adam = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0)
    method = SFT(
        policy=Fresh(tokenizer, seed),
        optimizer=adam,
        export=out,
        export_dtype="float32",
        sampler=TorchSampler(max_new_tokens=16),
    )
    trainer(steps, folder).fit(method, ChatModule([str(file)], tasks_per_step=32))
    return out


def distilled(
    student: str, teacher: ExternalTeacher, steps: int, seed: int, folder: Path, **options: Any
) -> list[dict[str, float]]:
    """On-policy distillation: the metrics of each iteration."""
    seed_everything(seed, verbose=False)
    adam = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    sampler = TorchSampler(max_new_tokens=16)
    method = OPD(
        policy=PretrainedPolicy(student), teacher=teacher, optimizer=adam, sampler=sampler, gap_clip=20.0, log_episodes_every=0,
        max_mismatch=None, **options,
    )  # fmt: skip
    logged: list[dict[str, float]] = []
    method.log_dict = lambda metrics, **_: logged.append({k: float(v) for k, v in metrics.items()})  # type: ignore[method-assign,assignment]
    data = TaskModule(
        Facts(),
        tasks_per_step=32,
        group_size=4,
        protocol=Asked(),
        layout="trajectory",
        train_tasks=64,
        val_splits=[],
        test_splits=[],
    )
    trainer(steps, folder).fit(method, data)
    return [{**a, **b} for a, b in zip(logged[::2], logged[1::2], strict=True)]


ARMS: Mapping[str, tuple[str, type[ExternalTeacher], dict[str, Any]]] = {
    "same tokens": ("same", ExternalTeacher, {}),
    "other end of turn": ("end", ExternalTeacher, {}),
    "other end, masked": ("end", ExternalTeacher, {"mask_first": ["<|end|>"]}),
    "other end, aligned": ("end", AlignedTeacher, {}),
    "other tokenizer, aligned": ("bytes", AlignedTeacher, {}),
    "no borders shared, aligned": ("across", AlignedTeacher, {}),
}


def study(seeds: Sequence[int], steps: int, sft_steps: int) -> dict[str, list[list[dict[str, float]]]]:
    """The metrics of every iteration, by arm and seed."""
    found: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        teachers = {
            "same": taught("same", words(), sft_steps, folder, seed=100),
            "end": taught("end", words("<|pad|>"), sft_steps, folder, seed=100),
            "bytes": taught("bytes", letters(), sft_steps, folder, seed=100),
            "across": taught("across", letters(across=True), sft_steps, folder, seed=100),
        }
        student = taught("student", words(), sft_steps, folder, knows=False)  # all arms and seeds begin with it
        for seed in seeds:
            for arm, (teacher, kind, options) in ARMS.items():
                found[arm].append(
                    distilled(student, kind(PretrainedPolicy(teachers[teacher])), steps, seed, folder, **options)
                )
                print(f"{arm}, seed {seed}: success {found[arm][-1][-1]['success/train']:.2f}", flush=True)
    return found


def mean(runs: Sequence[Sequence[Mapping[str, float]]], name: str, last: int = 5) -> list[float]:
    """Of each seed the mean of the last iterations."""
    return [sum(row.get(name, 0.0) for row in run[-last:]) / last for run in runs]


FIRST = {"loss on special tokens": "loss/special_share", "gradient on them": "grad/special_share"}


def table(found: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> str:
    """One line an arm: success of each seed and, over seeds, the responses that were cut, both of the last five iterations; the shares of
    the first three."""
    heads = ["teacher", "success of each seed", "cut at the limit", *FIRST, "tokens a span"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm, runs in found.items():
        cells = [", ".join(f"{100 * x:.0f} %" for x in mean(runs, "success/train"))]
        shares = [mean([run[:3] for run in runs], name, 3) for name in FIRST.values()]
        cells += [f"{100 * sum(values) / len(values):.0f} %" for values in (mean(runs, "rollout/cut_share"), *shares)]
        spans = mean(runs, "teacher/span_tokens")
        cells.append(f"{sum(spans) / len(spans):.1f}" if any(spans) else "1")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path) -> None:
    """Success and the share of the loss on special tokens over the iterations; thin lines are seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    grey = "#7d8590"
    shown = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    plain = {"svg.hashsalt": "sdar", "svg.fonttype": "none", "font.size": 9} | dict.fromkeys(shown, grey)
    colours = dict(zip(found, (grey, "#cf222e", "#bf8700", "#2f81d7", "#8250df", "#1a7f37"), strict=True))
    with matplotlib.rc_context(plain):
        figure, both = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for axes, name, title in zip(
            both, ("success/train", "loss/special_share"), ("success", "loss on special tokens"), strict=True
        ):
            for arm, runs in found.items():
                curves = torch.tensor([[100 * row.get(name, 0.0) for row in run] for run in runs])
                for curve in curves:
                    axes.plot(range(1, len(curve) + 1), curve, color=colours[arm], lw=0.5, alpha=0.4)
                axes.plot(range(1, curves.shape[1] + 1), curves.mean(0), color=colours[arm], lw=1.8, label=arm)
            axes.set(xlabel="iteration", ylim=(0, 100), title=f"{title}, %")
            axes.grid(lw=0.3, alpha=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=8, handlelength=1.2)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--sft-steps", type=int, default=150)
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page, and a picture beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = study(args.seeds, args.steps, args.sft_steps)
    made = table(found)
    print(made)
    if args.page is not None:
        text = args.page.read_text(encoding="utf-8")
        between = re.compile(f"(?<={re.escape(MARKS[0])}).*(?={re.escape(MARKS[1])})", re.DOTALL)
        args.page.write_text(between.sub(f"\n{made}\n", text), encoding="utf-8")
        draw(found, args.page.with_suffix(".svg"))


if __name__ == "__main__":
    main()

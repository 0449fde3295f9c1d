"""Every command of `sdar`, in one table: its name, what it is for, and what runs it. Help, errors and completion read it from here."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sdar.registry import did_you_mean

_OF_A_RUN = re.compile(r"-[ch]|--(help|config|model|data|trainer|checkpoint|alarms|seed_everything|print_config)\b")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What follows `sdar`.
        summary: What it does, in the words of a line of `sdar --help`.
        text: What `sdar NAME --help` begins with, where a configuration is needed; a function's docstring says it otherwise.
        tool: The dotted path of the function that it is: the function's arguments are the command's.
        about: The setting that the words right behind its name are values of: folders of runs, and files. The first run's config.yaml is
            read where no configuration is given.
        words: The dotted path of the function that reads the words behind it itself, without a model, and returns the exit code; of a
            command that runs a configuration: where none is given.
    """

    name: str
    summary: str
    text: str = ""
    tool: str = ""
    words: str = ""
    about: str = ""

    @property
    def needs_settings(self) -> bool:
        """Whether it runs a configuration: a method of Lightning's Trainer or of `AgentTrainer`."""
        return bool(self.text)

    def in_full(self, words: list[str]) -> list[str]:
        """The words behind its name with the setting named that the first ones are values of, and the file that they stand for."""
        many = next((place for place, word in enumerate(words) if word.startswith("-")), len(words)) if self.about else 0
        if not many:
            return words
        runs = [run / "config.yaml" for run in map(Path, words[:many]) if (run / "config.yaml").is_file()]
        given = any(re.match(r"-c|--config\b", word) for word in words)
        files = [] if given or not runs else ["-c", str(runs[0])]
        return [*files, f"--{self.about}", json.dumps(words[:many]), *words[many:]]

    def reads(self, words: list[str]) -> bool:
        """Whether `words` are for its own function: those of a run name a file or a setting, or ask for its help."""
        return bool(self.words) and not (self.needs_settings and any(_OF_A_RUN.match(word) for word in words))


_TABLE = (
    Command(
        "fit",
        "train",
        """Train: play tasks, score, weigh, update; repeat until trainer.max_steps.

examples:
  sdar fit -c conf/quickstart/sdar.yaml --trainer.max_steps 20
  sdar fit -c conf/quickstart/sdar.yaml --ckpt_path last        # continue after a stop

A run is a folder <trainer.default_root_dir>/version_N: config.yaml, metrics, checkpoints, episodes, validation.jsonl.""",
    ),
    Command(
        "validate",
        "measure on the validation tasks",
        """Measure on the validation tasks.

examples:
  sdar validate -c runs/version_0/config.yaml --ckpt_path last
  sdar validate -c conf/quickstart/sdar.yaml                    # the untrained model""",
    ),
    Command(
        "test",
        "measure on the test tasks",
        """Measure on the test tasks, those of data.test_splits; do it once, at the end.

By default they are `unseen`, which validation measures, too: give a split or a panel file that it does not.

examples:
  sdar test -c runs/version_0/config.yaml --ckpt_path last
  sdar test -c runs/version_0/config.yaml --ckpt_path runs/version_0/checkpoints/last.ckpt""",
    ),
    Command(
        "predict",
        "play tasks, keep the episodes",
        """Play tasks and return the episodes, without learning.

examples:
  sdar predict -c runs/version_0/config.yaml --ckpt_path last
  sdar predict -c conf/quickstart/sdar.yaml                     # the untrained model""",
    ),
    Command(
        "score",
        "stored episodes through any student and teacher",
        """Write stored episodes, or somebody's conversations, with what a student and a teacher think of each token: log-probabilities,
entropies, gap, gate, divergence, turn weight. Nobody plays, and nothing is learned. docs/episodes.md tells more.

The words behind `score` are folders of runs, files of episodes, or files of conversations. Student and teacher are those of the
configuration (the first run's own config.yaml, if none is given), with its first weights unless --ckpt_path names others.

examples:
  sdar score runs/quickstart/version_0 --ckpt_path last         # the trained policy on the episodes of its own training
  sdar score runs/grpo/version_0 -c runs/sdar/version_0/config.yaml --kind train --where 'iteration <= 20'
  sdar score chats.jsonl -c runs/opd/version_0/config.yaml --ckpt_path last""",
        about="episodes",
    ),
    Command(
        "play",
        "a world in the terminal; watch a policy, replay episodes",
        """Play one task of a world in the terminal, as a person; watch a policy play it; or see stored episodes turn by turn.

With --policy true or --ckpt_path the policy of the settings plays, and each of its tokens is shown by the gap to its teacher, where the
method has one. Without a terminal lines are read all the same. docs/play.md tells more.

examples:
  sdar play -c conf/env/quickstart.yaml --split train --task 3
  sdar play -c runs/quickstart/version_0/config.yaml --ckpt_path last
  sdar play --episode runs/quickstart/version_0 --where 'kind == "train" and success == 0'""",
        words="sdar.play.replay.main",
    ),
    Command(
        "export",
        "checkpoint to transformers' format",
        """Write a checkpoint's policy as a directory that transformers and vLLM read.

examples:
  sdar export -c runs/version_0/config.yaml --ckpt_path last --to my_policy
  sdar export -c runs/version_0/config.yaml --ckpt_path runs/version_0/checkpoints/last.ckpt --to my_policy --dtype float32
  sdar export -c runs/version_0/config.yaml --ckpt_path last --to my_adapter --adapter true  # of a LoRAPolicy, for peft and vLLM""",
    ),
    Command(
        "plan",
        "memory, work and time of a run before it",
        """Tell what a run needs before it is queued: parameters, memory of each rank, forwards, tokens, time; whether it fits.

First it runs two steps of the settings with tiny models of the same architecture, on the CPU: what `sdar fit` would stumble over
is told now. No weights are read, and no GPU is needed.

examples:
  sdar plan -c conf/env/alfworld.yaml -c conf/method/sdar.yaml -c conf/policy/qwen2.5-3b.yaml -c conf/scale/8gpu_zero2.yaml
  sdar plan -c runs/version_0/config.yaml --gpu l40s --ranks 16 --nodes 4 --turns 20 --response_tokens 150 --json plan.json""",
    ),
    Command(
        "list",
        "what a configuration can name",
    ),
    Command(
        "fetch",
        "official data and models to this machine",
        words="sdar.fetching.command.main",
    ),
    Command(
        "report",
        "runs as one page, with a viewer of episodes",
        words="sdar.report.command.main",
    ),
    Command(
        "compare",
        "runs side by side, with intervals",
        words="sdar.evaluate.command.main",
    ),
    Command(
        "figures",
        "figures and tables of the papers, from runs",
        words="sdar.figures.command.main",
    ),
    Command(
        "doctor",
        "what is wrong with a machine, and with a run before it",
        """Look at everything of a run that can be looked at without loading weights, and at the machine; tell all that is wrong at once.

What `sdar fit` refuses at its start is refused by the same code here; beside it: accelerators, disk, servers that do not answer,
vocabularies of student and teacher, the chat template, contexts with the longest skill. Each finding says what to do. Exit code: 0
nothing was found, 1 something was, 2 the command line or a file of it cannot be read. Without a configuration: the machine alone.

examples:
  sdar doctor
  sdar doctor -c conf/quickstart/sdar.yaml
  sdar doctor -c runs/version_0/config.yaml --stage validate --json found.json""",
        words="sdar.doctor.machine.main",
    ),
    Command(
        "check",
        "parts of your own against their contracts",
        tool="sdar.contracts.check.check",
    ),
    Command(
        "episodes",
        "look at the episodes of runs, filter, export",
        words="sdar.episodes.command.main",
    ),
    Command(
        "skills",
        "a skill bank, what a task gets of it, what skills did",
        words="sdar.skills.command.main",
    ),
    Command(
        "write-skills",
        "episodes to a skill bank",
        tool="sdar.skills.write.write_skills",
    ),
    Command(
        "build-index",
        "passages to a search index",
        tool="sdar.search.index.build_index",
    ),
    Command(
        "serve-search",
        "answer queries over HTTP",
        tool="sdar.search.server.serve_search",
    ),
    Command(
        "serve-sandbox",
        "run untrusted code over HTTP",
        tool="sdar.sandbox.fusion_server.serve_sandbox",
    ),
    Command(
        "serve-policy",
        "sample for training runs over HTTP",
        tool="sdar.serving.server.serve_policy",
    ),
    Command(
        "completion",
        "words for your shell: sdar completion bash (or zsh)",
    ),
)
GIVEN_BY_US = ("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")
"""Arguments of the Trainer's methods that are no settings."""

COMMANDS = {command.name: command for command in _TABLE}
"""Name -> command, in the order of `sdar --help`."""


HELP = (
    "Train language-model agents with reinforcement learning and on-policy self-distillation.\n\n"
    + "\n".join(f"  sdar {command.name:<15}{command.summary}" for command in _TABLE)
    + """
  sdar COMMAND --help

examples:
  sdar fit -c conf/quickstart/sdar.yaml --trainer.max_steps 20
  sdar fit -c conf/quickstart/sdar.yaml --model.gate.beta 3

Later files and settings win. Settings begin with model (the training method and its parts), data (the tasks), trainer
(Lightning's Trainer), checkpoint or alarms. A part is named by its class, its short name or its dotted path.

  sdar list [gates | retrievers | ...]    what can be named, with arguments and defaults
  sdar list SDAR                          one part: how to import and to set it, its documentation
  sdar list Gate                          what a part of your own is written with: bases, TokenView, functional
  sdar fit --model.help SDAR              the arguments of one part
  sdar fit ... --print_config             show the whole configuration and stop
  sdar ... --plugin my_package            first import a package with parts of your own (repeatable)
  sdar --version

SDAR_TRACEBACK=1 in the environment shows where in the code an error was raised."""
)

USAGE = "sdar COMMAND [-c FILE ...] [--KEY VALUE ...]"


def unknown_command(name: str) -> str:
    """What is said of a word that stands where a command is expected."""
    return f"there is no command {name!r}.{did_you_mean(name, COMMANDS)} The command comes first: {', '.join(COMMANDS)}."


def no_command() -> str:
    """What is said of a command line without one."""
    return f"a command is needed: {', '.join(COMMANDS)}. See sdar --help."

"""Lightning's Trainer with the commands of this project that need a configuration and no training loop."""

import os
from collections.abc import Mapping
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from sdar.data import MultiTaskModule
from sdar.errors import CheckpointError, ConfigError, check_positive
from sdar.lora import LoRAPolicy
from sdar.plan.dry_run import rehearse
from sdar.plan.report import as_json, report
from sdar.plan.run import Launch, named
from sdar.plan.settings import Expected, describe
from sdar.registry import part_name
from sdar.training import bars
from sdar.training.checkpoint_files import Written, check_form, read_checkpoint, read_parts
from sdar.training.checkpoints import check_origin, fingerprints
from sdar.training.export import check_export, write_policy
from sdar.training.manner import manner, write_manner

if TYPE_CHECKING:
    from sdar.data import TaskModule, TaskSource
    from sdar.module import AgentModule


class AgentTrainer(Trainer):
    """The Trainer of the `sdar` command.

    Attributes:
        launch: How a run of these settings shares its work, for `plan` and `doctor`, whose own Trainer is one process without a GPU.
        given: The Trainer's settings as they were given, for `doctor`.
        run_folder: The folder of this run; None: `default_root_dir` itself.
    """

    launch: Launch | None = None
    given: Mapping[str, Any] = {}
    run_folder: Path | None = None

    @property
    def default_root_dir(self) -> str:
        return super().default_root_dir if self.run_folder is None else str(self.run_folder)

    def score(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        episodes: list[str],
        ckpt_path: str | None = None,
        where: str | None = None,
        kind: Literal["train", "validation", "predict"] | None = None,
        retrieve: bool = False,
    ) -> None:
        """Write stored episodes anew, with what these settings' student and teacher think of each token.

        Args:
            episodes: Folders of runs, files of episodes, or files of conversations (as data.files of SFT).
            ckpt_path: A checkpoint of `fit`; ``last``: that of the latest run of these settings. null: the weights that a run begins with.
            where: Only the episodes of which this is true, as in `sdar episodes --where`.
            kind: Only those of training, or only measured ones.
            retrieve: Ask the retriever anew, where the teacher was told skills that are stored; without it, it is told the same again.
        """
        from sdar.training.rescoring import check_taught
        from sdar.training.stored import StoredSource

        module = cast("AgentModule", model)
        check_taught(module)
        if retrieve and module.retriever is None:
            raise ConfigError(
                f"--retrieve true: {part_name(module)} has no retriever here. Give model.retriever, or leave it out."
            )
        source = StoredSource(cast("TaskSource", datamodule), episodes, where, kind, retrieve)
        self.predict(module, datamodule=source, ckpt_path=ckpt_path, return_predictions=False)
        bars.say(self, f"weights:     {ckpt_path or 'the first ones of these settings; --ckpt_path names others'}")

    def play(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        task: str = "1",
        split: str | None = None,
        world: str | None = None,
        policy: bool = False,
        ckpt_path: str | None = None,
        prompts: bool = False,
    ) -> None:
        """Play one task of a world in the terminal, or watch a policy play it.

        Args:
            task: Its number in the split, from 1, or its id.
            split: A panel of the settings, or a split of the world; by default the first panel of validation.
            world: In settings with several worlds (``data.envs``), the one that is played.
            policy: The policy of the settings plays, with its first weights unless --ckpt_path names others.
            ckpt_path: A checkpoint of `fit`, whose policy plays; ``last``: that of the latest run of these settings.
            prompts: Show a person what the protocol tells a policy, instead of the bare observations.
        """
        from sdar.play.chosen import task_of, world_of

        module, data = cast("AgentModule", model), cast("TaskSource", datamodule)
        where = world_of(data, world)
        panel, chosen = task_of(where, task, split)
        if policy or ckpt_path is not None:
            from sdar.play.watch import watch

            watch(self, module, data, panel, chosen, ckpt_path)
        else:
            from sdar.play import person

            person.play(where, chosen, prompts)

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str,
        to: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        adapter: bool = False,
    ) -> None:
        """Write a checkpoint's policy as a directory that transformers and vLLM read.

        Args:
            ckpt_path: A checkpoint of `fit`, of any strategy and number of ranks; ``last``: that of the latest run of these settings.
            to: The directory, which must not exist yet or be empty.
            dtype: Type of the written weights.
            adapter: Write the adapters of a LoRAPolicy alone, as peft and vLLM load them on its base, instead of the merged model.
        """
        path = ckpt_path
        check_export("--to", to)
        policy, data = cast("AgentModule", model).policy, cast("TaskSource", datamodule)
        if adapter and not isinstance(policy, LoRAPolicy):
            raise ConfigError(
                f"--adapter true: {part_name(policy)} has no adapters. Leave it out, or give the settings of a LoRAPolicy."
            )
        data.bind(policy)
        network = policy.load_model()
        weights, state = read_run(path)
        stored = {name.removeprefix("model."): v for name, v in weights.items() if name.startswith("model.")}
        own = {f"model.{name}": p for name, p in network.named_parameters(remove_duplicate=False) if not p.requires_grad}
        wrong = network.load_state_dict(stored, strict=False)
        missing = [name for name in wrong.missing_keys if f"model.{name}" not in own]
        if len(missing) < len(wrong.missing_keys):  # what lies under adapters is at its source only
            check_origin(state["origin"], fingerprints(own, own))
        if missing or wrong.unexpected_keys:
            name = (missing or wrong.unexpected_keys)[0]
            raise CheckpointError(
                f"{path} does not hold the weights of {policy.name}: {len(missing)} are missing and "
                f"{len(wrong.unexpected_keys)} belong nowhere, the first is {name}. Give the configuration of the checkpoint's run."
            )
        if adapter:
            cast(LoRAPolicy, policy).write_adapter(network.state_dict().items(), to, dtype)
        else:
            write_policy(policy, network, network.state_dict().items(), to, dtype)
        write_manner(to, manner(policy, data))
        print(f"policy:      {to}")

    def plan(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        gpu: str = "h100",
        ranks: int | None = None,
        nodes: int | None = None,
        dry_run: bool = True,
        row_tokens: int | None = None,
        turns: float | None = None,
        response_tokens: float | None = None,
        configs: str | None = None,
        json: str | None = None,
        world: str | None = None,
    ) -> None:
        """Tell what a run of these settings needs, after two steps of it with tiny models on the CPU.

        Args:
            gpu: What the ranks run on: a100-40, a100-80, h100, h200, l40s or rtx4090.
            ranks: Processes, one on each GPU, over all nodes; by default trainer.devices x trainer.num_nodes.
            nodes: Machines; by default trainer.num_nodes.
            dry_run: First run two steps with models of the same architecture that have a few layers of width 64, and learn from them how
                long the texts are. Without it every row is taken to be as long as the policy's context.
            row_tokens: Tokens of the longest row, instead of what the two steps and model.sampler.max_new_tokens say.
            turns: Turns that episodes are expected to have in the mean, instead of data.env.horizon.
            response_tokens: Tokens that responses are expected to have in the mean, instead of model.sampler.max_new_tokens.
            configs: Folder with config.json and tokenizers, ``<configs>/<hub id>/``, for machines that do not reach the hub.
            json: File that gets the same numbers for programs: bytes and seconds.
            world: In a run with several worlds (``data.envs``), the one whose part of an iteration is planned.
        """
        named(gpu)
        launch = self.launch or Launch(precision=str(self.precision))
        launch = launched(launch, ranks, nodes)
        plan_path = None if json is None else Path(json)
        if plan_path is not None and not plan_path.parent.is_dir():
            raise ConfigError(f"--json {json}: there is no folder {plan_path.parent}. Make it, or give another file.")
        module, (data, source) = cast("AgentModule", model), planned(cast("TaskSource", datamodule), world)
        (source or data).bind(module.policy)
        expected = Expected(row_tokens, turns, response_tokens)
        run = describe(module, data, launch, None, expected, configs)  # mistakes first
        if dry_run:
            seen, cut = rehearse(module, data, launch.precision, configs, source)
            run = describe(module, data, launch, seen, expected, configs)
            run = replace(run, cut=tuple(cut))
            print(
                "\n".join(
                    ["two steps with tiny models on the CPU: no mistake. What they had smaller:", *(f"  {c}" for c in cut), ""]
                )
            )
        print(report(run, gpu), flush=True)
        if plan_path is not None:
            plan_path.write_text(dumps(as_json(run, gpu), indent=1) + "\n", encoding="utf-8")

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        stage: Literal["fit", "validate", "test"] = "fit",
        patience: float = 3.0,
        json: str | None = None,
    ) -> None:
        """Tell all that is wrong with these settings, and with this machine for them, without loading weights.

        Args:
            stage: The command that is meant.
            patience: Seconds that a server which the settings name may take to answer.
            json: File that gets the same for programs.
        """
        from sdar.doctor import machine
        from sdar.doctor.findings import Findings, report
        from sdar.doctor.settings import examine_run

        machine.check_file(json)
        check_positive("", "seconds", **{"--patience": patience})
        findings, launch = Findings(), self.launch or Launch(precision=str(self.precision))
        facts = machine.examine_machine(findings, sandbox=False)
        module, data = cast("AgentModule", model), cast("TaskSource", datamodule)
        facts |= examine_run(findings, module, data, self, self.given, launch, stage, patience)
        raise SystemExit(report(facts, findings, None if json is None else Path(json)))


def planned(data: "TaskSource", world: str | None) -> "tuple[TaskModule, MultiTaskModule | None]":
    """The world that is planned, and, where it is one of several, the run's data with iterations of it alone."""
    if isinstance(data, MultiTaskModule) and (world is not None or len(data.worlds) > 1):
        if world is None:
            raise ConfigError(
                f"this run has the worlds {', '.join(data.worlds)}: the rows of each are of another length. Plan one at a time, e.g. "
                f"--world {next(iter(data.worlds))}. The memory of the run is that of the largest; in `mixed` batches their seconds add up."
            )
        alone = data.alone(world)
        return alone.worlds[world], alone
    if world is not None:
        raise ConfigError(f"--world is {world}, and this run has one world. Leave it out.")
    return data.only, None


def launched(launch: Launch, ranks: int | None, nodes: int | None) -> Launch:
    """The same on another number of ranks and nodes."""
    counted = launch.counted and ranks is None
    nodes = launch.nodes if nodes is None else nodes
    ranks = launch.ranks if ranks is None else ranks
    for name, value in (("ranks", ranks), ("nodes", nodes)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}: a run has at least 1.")
    if ranks < nodes:
        raise ConfigError(
            f"--ranks {ranks} on --nodes {nodes}: each node has at least 1 rank. --ranks counts those of all nodes."
        )
    kind = "ddp" if launch.kind == "one" and ranks > 1 else "one" if launch.kind == "ddp" and ranks == 1 else launch.kind
    return replace(launch, ranks=ranks, nodes=nodes, kind=kind, counted=counted)


def read_run(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a checkpoint and its own state: one file, or a directory with the parts of DeepSpeed's ranks."""
    if os.path.isdir(path):
        weights, checkpoint = read_parts(path)
    else:
        checkpoint = read_checkpoint(path)
        weights = checkpoint["state_dict"]
    check_form(checkpoint, Written, path)
    return weights, checkpoint["sdar"]

"""Commands that need torch: fit, validate, test, predict, export and plan are a LightningCLI, tools are functions."""

import inspect
import logging
import math
import os
import pydoc
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import auto_cli
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils.logging import disable_progress_bar

import sdar
from sdar import registry, versions
from sdar.alarms import Alarms
from sdar.cli.commands import COMMANDS, HELP, USAGE
from sdar.cli.failure import Origin, fail
from sdar.cli.origin import origin
from sdar.cli.parser import Parser, explained
from sdar.cli.roots import TRAINER_DEFAULTS, checked_settings
from sdar.cli.trainer import AgentTrainer
from sdar.cli.words import find_config_files
from sdar.command_help import HelpFormatter
from sdar.data import TaskSource
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy
from sdar.errors import ConfigError, SdarError, StoppedError
from sdar.module import AgentModule
from sdar.plan.settings import launch_of
from sdar.precision import bfloat16_unit
from sdar.training.bars import IterationBar, NetworkSummary
from sdar.training.checkpoints import AtomicCheckpointIO, RunCheckpoint
from sdar.training.resume import settings
from sdar.training.run_logs import KEEP_NONE, SaveSettings, run_loggers
from sdar.training.runs import Runs, discard

MEANINGLESS = (  # each is about something that a user of this command neither chose nor can better
    r".*does not have many workers",
    r"Using ModelCheckpoint with manual optimization",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen reference
    r"You have overridden `transfer_batch_to_device`",
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    r"`torch\.distributed\.\w+` is deprecated",  # DeepSpeed's calls
    r"`broadcast_buffers` is deprecated",
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # every rank has the same number
)


OWN = ("score", "play", "export", "plan", "doctor")
"""Commands that are methods of `AgentTrainer` alone."""


def run(args: list[str]) -> int:
    """Run a command that needs a configuration, and return the exit code."""
    _prepare()
    args = find_config_files(args)
    settings = checked_settings(args)
    for line in [*(f"warning: {line}" for line in _complaints()), *settings.notes]:
        sys.stderr.write(f"{line}\n")
    if args[0] == "play" and "model" not in settings.root.arguments:
        args = [*args, *_without_model(args)]
    with warnings.catch_warnings(), explained(settings):
        for message in MEANINGLESS:
            warnings.filterwarnings("ignore", message)
        AgentCLI(args)
    return 0


def _without_model(args: list[str]) -> list[str]:
    """What makes settings of a world alone whole, where a person plays.

    Raises:
        ConfigError: a policy shall play.
    """
    if asked := next((word for word in args if re.match(r"--(policy|ckpt_path)\b", word)), None):
        raise ConfigError(
            f"{asked.partition('=')[0]} has a policy play, and these settings have no model. Give those of its run, e.g. -c "
            "runs/quickstart/version_0/config.yaml."
        )
    return ["--model", "GRPO", "--model.policy", "FreshPolicy"]


def use_tool(name: str, *args: str) -> int:
    """Run a command that is a function, and return the exit code."""
    _prepare()
    tool = cast(Callable[..., Any], pydoc.locate(COMMANDS[name].tool))
    told: dict[str, Any] = {"prog": f"sdar {name}", "description": (inspect.getdoc(tool) or "").partition("\n\nArgs:")[0]}
    try:
        with explained(checked_settings([name, *args])):
            auto_cli(tool, args=list(args), as_positional=False, parser_class=Parser, formatter_class=HelpFormatter, **told)
    except KeyboardInterrupt:  # how a server is stopped
        return 130
    except ConfigError:
        raise
    except (SdarError, OSError, OverflowError) as error:  # a broken corpus; a port that is taken or none
        fail(1, error)
        return 1
    return 0


def _prepare() -> None:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tips)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of weights that are read: in a file it is a line without an end
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would say that it found nothing better


@cache
def _complaints() -> list[str]:
    """What is installed does not change while a process runs, and reading it takes longer than reading a configuration file."""
    return versions.complaints()


class AgentCLI(LightningCLI):
    """LightningCLI with this project's defaults, and with errors told in one message."""

    def __init__(self, args: list[str]) -> None:
        # the command that is asked for, if it is one, or all: a parser takes a tenth of a second to build
        self._commands = [name for name in args[:1] if name in COMMANDS] or [
            c.name for c in COMMANDS.values() if c.needs_settings
        ]
        super().__init__(
            AgentModule,
            TaskSource,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs=_parser_settings(self._commands),
            trainer_class=AgentTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            save_config_callback=SaveSettings,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # LightningCLI calls it on the object
        known = LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in OWN}
        return {name: skipped for name, skipped in known.items() if name in self._commands}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"data": {"class_path": "sdar.data.TaskModule"}})
        parser.add_class_arguments(RunCheckpoint, "checkpoint", instantiate=False)
        parser.add_class_arguments(Alarms, "alarms", instantiate=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        trainer = self.config[self.config["subcommand"]]["trainer"]
        for key, known in (
            ("strategy", StrategyRegistry.available_strategies()),
            ("accelerator", [*AcceleratorRegistry.available_accelerators(), "gpu"]),
        ):
            if isinstance(trainer[key], str) and trainer[key] not in (*known, "auto"):
                near = registry.did_you_mean(trainer[key], known) or f" Known: auto, {', '.join(known)}."
                raise ConfigError(f"trainer.{key}: there is no {key} {trainer[key]!r}.{near}")

    def _parse_ckpt_path(self) -> None:
        """Nothing of a checkpoint goes into the settings: whoever wrote the file would choose classes and their arguments. (Lightning's
        own merges what the file calls hyperparameters.)"""

    def instantiate_classes(self) -> None:
        try:
            # Lightning would write the settings out as it makes the model, and check once more what the parser has just checked
            told = self.parser.dump(self.config, skip_validation=True, skip_link_targets=False, **KEEP_NONE)
            self.config_dump = yaml.load(told, getattr(yaml, "CSafeLoader", yaml.SafeLoader))[self.subcommand]
            self.save_config_kwargs["dumped"] = self.config_dump
            super().instantiate_classes()
        except MisconfigurationException as error:
            raise SystemExit(self._refuse(error, Origin("trainer", str(error)))) from error
        except Exception as error:
            first = _first(error)
            if isinstance(first, SdarError):
                raise SystemExit(self._refuse(first, self._origin(first))) from error
            traceback.print_exception(first)
            raise SystemExit(fail(1, first, self._origin(first), trace=False)) from error

    def _refuse(self, error: Exception, where: Origin) -> int:
        """Tell of settings that no run can be made of, and return the exit code; for `doctor` they are what it was asked to find."""
        if self.subcommand != "doctor":
            return fail(2, error, where)
        from sdar.doctor.findings import Findings, report
        from sdar.doctor.machine import examine_machine

        findings = Findings([where.message])
        return report(examine_machine(findings, sandbox=False), findings)

    def after_instantiate_classes(self) -> None:
        self.model.settings = settings(self.config_dump)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        told = self.config_init[self.subcommand]
        given = told["trainer"]
        callbacks = given["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        if given["enable_checkpointing"] is not False and not (given["barebones"] or given["fast_dev_run"]):
            callbacks.append(RunCheckpoint(**told["checkpoint"]))
        if not given["barebones"]:
            callbacks.append(Alarms(**told["alarms"]))
        bars = given["enable_progress_bar"] is not False and not given["barebones"]
        if bars and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(IterationBar())
        summary = given["enable_model_summary"] is not False and not given["barebones"]
        if summary and not any(isinstance(c, ModelSummary) for c in callbacks):
            callbacks.append(NetworkSummary())
        logger = False if given["logger"] in (None, True) else given["logger"]  # `_begin` adds those of the run's folder
        if (
            given["gradient_clip_val"] is not None
        ):  # Lightning refuses it with several optimizer steps a batch; the module clips
            if given["gradient_clip_algorithm"] not in (None, "norm"):
                raise ConfigError(
                    "trainer.gradient_clip_algorithm: gradients are clipped by norm. Set it to norm or leave it out."
                )
            if (clip := float(given["gradient_clip_val"])) < 0:
                raise ConfigError(
                    f"trainer.gradient_clip_val is {clip}: gradients would be turned round. Give a norm, or 0 for no clipping."
                )
            self.model.max_grad_norm = clip or math.inf
            kwargs["gradient_clip_val"] = None
        strategy = self._strategy(given)
        if given["precision"] is None and not given["plugins"]:
            kwargs["precision"] = given["precision"] = self._precision(given["accelerator"])
        if self.subcommand == "play":
            nothing = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
            return super().instantiate_trainer(logger=False, **(kwargs | {"callbacks": []} | nothing))
        if self.subcommand in ("plan", "doctor"):
            shown = (
                ("enable_checkpointing", "enable_progress_bar", "enable_model_summary") if self.subcommand == "plan" else ()
            )
            kwargs |= {"callbacks": [] if shown else callbacks, **dict.fromkeys(shown, False)}
            return self._on_the_cpu(given, strategy, **kwargs)
        if strategy is not None:
            kwargs["strategy"] = strategy
        trainer = super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _precision(self, accelerator: Any) -> str | None:
        """The policy's own, which is told; a plan is for GPUs that multiply bfloat16."""
        gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        unit = "a GPU" if self.subcommand == "plan" else bfloat16_unit(torch.device("cuda" if gpu else "cpu"))
        policy = getattr(self.model, "policy", None)  # a LightningModule of one's own has none
        chosen = None if policy is None else policy.precision(unit is not None)
        if chosen is not None and self.subcommand != "export":
            rank_zero_info(
                f"trainer.precision is {chosen}, as nobody said: weights and optimizer in float32, products in bfloat16 ({unit}). 32-true "
                "computes all in float32."
            )
        return chosen

    def _strategy(self, given: Any) -> Strategy | None:
        """Lightning's names mean its strategies, made for several backward passes a step; several processes mean ddp."""
        several = given["devices"] not in (1, "1", "auto") or given["num_nodes"] > 1
        name = "ddp" if given["strategy"] == "auto" and several else given["strategy"]
        if not isinstance(name, str) or name == "auto":
            return None
        known = StrategyRegistry[name]
        if issubclass(known["strategy"], FSDPStrategy):
            raise ConfigError(
                f"trainer.strategy is {name}, torch's first FSDP: it joins the weights of a layer to one, and steps have several backward "
                "passes here. Use fsdp2."
            )
        if known["strategy"] is FSDP2Strategy:
            return FSDP2Strategy(**known["init_params"])
        if issubclass(known["strategy"], DeepSpeedStrategy):
            from sdar.distributed import ZeROStrategy

            return ZeROStrategy(**known["init_params"])
        return ReplicatedStrategy(**known["init_params"]) if known["strategy"] is DDPStrategy else None

    def _on_the_cpu(self, given: Any, strategy: Strategy | None, **kwargs: Any) -> AgentTrainer:
        """One process on the CPU, whatever the run is for, of a command that only looks at it."""
        here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None}
        trainer = cast(AgentTrainer, super().instantiate_trainer(logger=False, **(kwargs | here)))
        trainer.launch, trainer.given = launch_of(given, strategy or given["strategy"]), dict(given)
        return trainer

    # LightningCLI runs a command's method of this name, where there is one, in place of the Trainer's.

    def fit(self, **arguments: Any) -> None:
        self._run(**arguments)

    def validate(self, **arguments: Any) -> None:
        self._run(**arguments | {"verbose": False})  # the report is ours

    def test(self, **arguments: Any) -> None:
        self._run(**arguments | {"verbose": False})

    def predict(self, **arguments: Any) -> None:
        self._run(**arguments | {"return_predictions": False})  # they are in files

    def score(self, **arguments: Any) -> None:
        self._run(**arguments)

    def play(self, **arguments: Any) -> None:
        self._run(**arguments)

    def export(self, **arguments: Any) -> None:
        self._run(**arguments)

    def plan(self, **arguments: Any) -> None:
        self._run(**arguments)

    def doctor(self, **arguments: Any) -> None:
        self._run(**arguments)

    def _begin(self, arguments: dict[str, Any]) -> Path | None:
        """Say which checkpoint is meant, and give the run its folder; returns the folder if it was made here.

        The first process does so; the others are told when they have met it.
        """
        trainer = cast(AgentTrainer, self.trainer)
        runs = Runs(self.config_dump["trainer"]["default_root_dir"] or ".", self.config_dump, str(self.subcommand))
        if given := arguments.get("ckpt_path"):
            arguments["ckpt_path"] = runs.checkpoint(given)
        if self.subcommand in ("export", "play") or cast(Any, trainer).fast_dev_run or not trainer.is_global_zero:
            return None
        there = {*runs.root.glob("*")}
        trainer.run_folder = folder = runs.folder(arguments.get("ckpt_path"))
        logger = self.config_init[self.subcommand]["trainer"]["logger"]
        if logger is not False and not trainer.barebones:
            trainer.loggers = [*trainer.loggers, *run_loggers(folder, alone=logger in (None, True))]
        return None if folder in there else folder

    def _run(self, **arguments: Any) -> None:
        made = None
        try:
            if self.subcommand not in ("plan", "doctor"):
                made = self._begin(arguments)
            getattr(self.trainer, str(self.subcommand))(**arguments)
        except StoppedError as stop:
            sys.stderr.write(f"{stop}\n")
            self._tell_checkpoint()
        except (SdarError, MisconfigurationException) as error:
            begun = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready > 0
            code = 2 if isinstance(error, (ConfigError, MisconfigurationException)) and not begun else 1
            fail(code, error, self._origin(error))
            self._tell_checkpoint()
            raise SystemExit(code) from error
        except SystemExit:  # Lightning's answer to Ctrl-C
            self._tell_checkpoint()
            raise
        except Exception as error:
            traceback.print_exc()
            fail(1, error, self._origin(error), trace=False)
            self._tell_checkpoint()
            raise SystemExit(1) from error
        finally:
            if made is not None and sys.exc_info()[1] is not None:
                discard(made)

    def _tell_checkpoint(self) -> None:
        if self.subcommand != "fit":
            return
        kept = [getattr(callback, "last_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        for path in (path for path in kept if path and os.path.exists(path)):
            sys.stderr.write(f"last checkpoint: {path} (continue with the same command and --ckpt_path last)\n")

    def _origin(self, error: BaseException) -> Origin:
        return origin(error, self.config[self.subcommand])


def _parser_settings(commands: list[str]) -> dict[str, Any]:
    return {
        "prog": "sdar",
        "description": HELP,
        "usage": USAGE,
        "formatter_class": HelpFormatter,
        "allow_abbrev": False,
        "dump_header": _header(),
        **{
            name: {
                "description": COMMANDS[name].text,
                "usage": f"sdar {name} [-c FILE ...] [--KEY VALUE ...]",
                "dump_header": _header(),
            }
            for name in commands
        },
    }


def _header() -> list[str]:
    return [f"sdar=={sdar.__version__}"]


def _first(error: BaseException) -> BaseException:
    """What a constructor raised: jsonargparse wraps a ValueError into one about types, once for each optional level."""
    while isinstance(error, ValueError) and not isinstance(error, SdarError) and error.__cause__ is not None:
        error = error.__cause__
    return error


SILENCED = (  # Lightning advertises other products of its makers on every start, and tells what a machine or a run does not have
    r".*Tip: ",
    r"TPU available",
    r"GPU available: False",
    r"`Trainer\(val_check_interval=1\)` was configured",
    r"Trainer already configured with model summary",
    r"Restored all states",
)


def _no_tips(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's says something to a user of this command."""
    return not any(re.match(pattern, str(record.msg), re.DOTALL) for pattern in SILENCED)

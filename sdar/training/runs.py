"""A run is one folder below ``trainer.default_root_dir``, which nobody else writes to.

Training makes ``version_N``, measuring ``validate_N``, ``test_N`` and ``predict_N``. A folder holds config.yaml, metrics.csv, TensorBoard's
events, checkpoints/, episodes/, retrievals.jsonl and validation.jsonl, each as far as there is something to write. A run that goes on
from its last checkpoint with the settings that it had goes on in its folder; whatever else begins from a checkpoint gets
a folder of its own.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from sdar.errors import ConfigError
from sdar.reading import read_yaml

NAMES = {"fit": "version"}
LAST = "last.ckpt"
INCIDENTAL = {
    "export", "export_dtype", "log_episodes_every", "log_episodes_mb", "max_env_steps", "max_skipped_steps", "micro_batch_tokens",
    "val_batch", "workers", "threads", "deadline",
}  # fmt: skip
"""Arguments of the method and the tasks that say where and how long a run works, not what it does."""
SECTIONS = ("model", "seed_everything", "data")
"""What a run's settings say of what it does."""


class Runs:
    """The runs below a folder, for a command with settings.

    Args:
        root: ``trainer.default_root_dir``.
        settings: What config.yaml of the run would hold.
        command: fit, validate, test, predict or export.
    """

    def __init__(self, root: str, settings: Mapping[str, Any], command: str):
        self.root, self.settings, self.command = Path(root), settings, command

    def checkpoint(self, given: str) -> str | None:
        """The path of the checkpoint that is meant: ``last`` is that of the latest run of these settings. None: a training begins anew.

        Raises:
            ConfigError: there is nothing to measure.
        """
        if given != "last":
            if "://" not in given and not os.path.exists(given):
                raise ConfigError(f"--ckpt_path {given}: there is no such file. Give the path of a checkpoint.")
            return given
        known = list(self._trained())
        of_method = [
            (folder, config) for folder, config in known if not self.differences(config, ("model", "seed_everything"))
        ]
        same = [(folder, config) for folder, config in of_method if not self.differences(config)]
        if found := same or (of_method if self.command != "fit" else []):  # measuring other tasks is no other run
            return str(last_checkpoint(*found[0]))
        fact = f"--ckpt_path last: no run of these settings left a checkpoint below {self.root}"
        if known:
            folder, config = known[0]
            fact += f"; the latest there, {folder.name}, differs in {', '.join(self.differences(config)[:4])}"
        path = last_checkpoint(*known[0]) if known else None
        if self.command == "fit":
            rank_zero_info(
                f"{fact}. A new run begins." + (f" To go on from that one give --ckpt_path {path}." if path else "")
            )
            return None
        raise ConfigError(f"{fact}. Give the path of a checkpoint{f', e.g. {path}' if path else ''}.")

    def folder(self, checkpoint: str | None) -> Path:
        """The folder of the run that `checkpoint` is the last of, if this is the same run; else a new one."""
        if self.command == "fit" and checkpoint is not None:
            for folder, config in self._trained():
                if os.path.realpath(last_checkpoint(folder, config)) == os.path.realpath(checkpoint):
                    if not (others := self.differences(config)):
                        return folder
                    rank_zero_info(
                        f"{checkpoint} is of a run that differs in {', '.join(others[:4])}: this is a run of its own."
                    )
        return claim(self.root, NAMES.get(self.command, self.command))

    def differences(self, config: Mapping[str, Any], sections: tuple[str, ...] = SECTIONS) -> list[str]:
        """What differs between another run's settings and these, one text a setting."""
        return [f"{key} ({theirs}, here {ours})" for key, theirs, ours in differences(config, self.settings, sections)]

    def _trained(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Folders and settings of trainings that left a checkpoint, the latest first."""
        for folder in reversed(numbered(self.root, NAMES["fit"])):
            with suppress(ConfigError):
                config = read_yaml(folder / "config.yaml")
                if isinstance(config, dict) and last_checkpoint(folder, config).exists():
                    yield folder, config


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], sections: tuple[str, ...] = SECTIONS
) -> list[tuple[str, Any, Any]]:
    """Where the settings of two runs differ in what they do: key, value of the one, of the other; None where it is not there."""
    a, b = (dict(_flat({s: c.get(s) for s in sections})) for c in (one, other))
    keys = [key for key in dict.fromkeys([*b, *a]) if key.split(".")[-1] not in INCIDENTAL]
    keys = [key for key in keys if (key in a, a.get(key)) != (key in b, b.get(key))]
    return [(key.replace(".init_args", ""), a.get(key), b.get(key)) for key in keys]


def last_checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    """Where a run keeps its last checkpoint."""
    return Path((config.get("checkpoint") or {}).get("dirpath") or folder / "checkpoints", LAST)


def numbered(root: Path, name: str) -> list[Path]:
    """The folders ``<name>_N``, in the order of their numbers."""
    found = [p for p in root.glob(f"{name}_*") if p.name[len(name) + 1 :].isdecimal()]
    return sorted(found, key=lambda p: int(p.name[len(name) + 1 :]))


def claim(root: Path, name: str) -> Path:
    """Make the next folder ``<name>_N``: of processes that begin at the same time each gets another.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        latest = numbered(root, name)[-1:]
        for number in count(int(latest[0].name[len(name) + 1 :]) + 1 if latest else 0):
            with suppress(FileExistsError):
                (root / f"{name}_{number}").mkdir()
                return root / f"{name}_{number}"
    except OSError as error:
        raise ConfigError(
            f"trainer.default_root_dir is {root}, where no folder can be made ({error.strerror}). Give another."
        ) from error
    raise AssertionError


def discard(folder: Path) -> None:
    """Remove the folder of a run that came to nothing, and the one around it if it is empty now."""
    if not any(any(folder.rglob(made)) for made in ("*.ckpt", "*.jsonl", "*.jsonl.gz")):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()


def lock(folder: Path) -> int:
    """Keep others from taking a folder until the descriptor that is returned is closed, or the process ends.

    Raises:
        ConfigError: another one has taken it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise ConfigError(
            f"another run writes its checkpoints to {folder}: they would replace each other's. Wait until it has ended, or set another "
            "checkpoint.dirpath or trainer.default_root_dir."
        ) from error
    except OSError:
        pass  # a file system without locks
    return held


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node

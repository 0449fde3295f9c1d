"""Reading checkpoints, which anybody may have written: tensors and plain data, never code; damage is told with path and reason.

torch.load reads what else a pickle may hold where it is not told otherwise, maps a file without looking at the sums that the
archive keeps of its parts, and Lightning asks for keys that a foreign file has not.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import fsspec
import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from sdar.errors import CheckpointError

Count = Annotated[int, Meta(ge=0, le=2**53)]


class WrittenBy(msgspec.Struct):
    world: Annotated[int, Meta(ge=1)]
    strategy: str


class Generators(msgspec.Struct):
    torch: Tensor
    python: tuple[int, list[int], float | None]


class Asked(msgspec.Struct):
    """See `sdar.training.resume.asked`."""

    optimizer: str
    defaults: dict[str, Any]
    lr_scheduler: str
    schedule: dict[str, Any]


class Measured(msgspec.Struct):
    """See `sdar.evaluate.validation.Validation.first`."""

    iteration: Count
    tasks: list[str]
    values: dict[str, float]


class State(msgspec.Struct):
    """What `sdar.training.checkpoints.put_state` adds to a checkpoint."""

    iteration: Count
    ranks: WrittenBy
    env_steps: Count
    seed: int
    skipped: Count
    origin: dict[str, str]
    panels: dict[str, str]
    averages: dict[str, Tensor]
    retriever: dict[str, Any]
    rng: Generators
    asked: Asked | None = None
    settings: dict[str, Any] | None = None
    parts: dict[str, dict[str, Any]] = {}
    measured: dict[str, Measured] = {}
    metrics: dict[str, dict[str, Any]] = {}


class Written(msgspec.Struct):
    """A checkpoint with it."""

    sdar: State


class Whole(msgspec.Struct):
    """What Lightning writes of a run, as far as going on from it needs it."""

    state_dict: dict[str, Any]
    epoch: Count
    global_step: Count
    version: str = msgspec.field(name="pytorch-lightning_version")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint in one file, or at an address that fsspec knows; the ranks of a machine share the memory of a file.

    Raises:
        CheckpointError: the file is damaged, holds more than tensors and plain data, or is no checkpoint of a run.
    """
    file: str | BytesIO = str(path)
    mapped = True
    if "://" in file:
        with fsspec.open(str(path), "rb") as stream:
            file, mapped = BytesIO(stream.read()), False  # no copy stays, so none is taken for that of another run
    try:
        _check_sums(path, file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds something else than tensors and plain data ({_reason(error)}): it would run code when it is read. "
            "Checkpoints of this program hold nothing of the kind."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_reason(error)}. {DAMAGED}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint of a run.")
    check_form(checkpoint, Whole, path)
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} of its weights is a {type(value).__name__}, not a tensor. {DAMAGED}")
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {int((~value.isfinite()).sum())} of {value.numel()} numbers of {name} are NaN or infinite: nothing can "
                "be measured with or learned from such weights. Take an earlier checkpoint."
            )
    return checkpoint


DAMAGED = "It was cut off, was changed or is no checkpoint: take another, or copy it anew."


def check_form(found: Any, form: type, path: str | Path | None, inside: str = "") -> None:
    """Raise CheckpointError unless `found` has the keys and types of `form`."""
    try:
        msgspec.convert(found, form)
    except (msgspec.ValidationError, RecursionError) as error:
        where, reason = (
            (f"{path}: {inside}" if inside else f"{path}"),
            str(error).replace(" - at `$.", " at `").replace("`", "'"),
        )
        raise CheckpointError(f"{where} is not what `sdar fit` writes: {reason}. {DAMAGED}") from error


def read_parts(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what a run needs beside them, of a directory with the parts of DeepSpeed's ranks."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with tensors_only(path):
            weights = get_fp32_state_dict_from_zero_checkpoint(str(path))
            first = min(Path(path, "checkpoint").glob("*_model_states.pt"))
            return weights, torch.load(first, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # DeepSpeed looks at nothing before it takes it
        raise CheckpointError(
            f"{path} cannot be read as the parts of DeepSpeed's ranks: {type(error).__name__}, {_reason(error)}. {DAMAGED}"
        ) from error


@contextmanager
def tensors_only(path: str | Path) -> Iterator[None]:
    """Within this, files of DeepSpeed are read without running what is in them, although it asks for everything.

    Raises:
        CheckpointError: a file holds more than tensors and plain data, or is damaged.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum]):
            yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"a part of {path} holds something else than tensors and plain data ({_reason(error)}): it would run code when it is "
            "read. Take a checkpoint in one file (sharded_checkpoint: false)."
        ) from error
    finally:
        os.environ.pop(switch) if before is None else os.environ.__setitem__(switch, before)


def _check_sums(path: str | Path, file: Any) -> None:
    if not zipfile.is_zipfile(file):
        return  # torch.load says what is wrong
    with zipfile.ZipFile(file) as archive:
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged: the sum of its part {damaged} is wrong. {DAMAGED}")
    if isinstance(file, BytesIO):
        file.seek(0)


def _reason(error: Exception) -> str:
    """What an error says about a file, without advice on how to read it nevertheless."""
    text = str(error) or type(error).__name__
    reason = text.partition("WeightsUnpickler error: ")[2] or text
    return " ".join(reason.split("\n")[0].split()).rstrip(".")[:200]

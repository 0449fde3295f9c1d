"""GGUF files as directories of transformers: converted once, kept in the cache, and read from there like any other model."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_info

from sdar.errors import PolicyError, first_line
from sdar.paths import cache_folder
from sdar.versions import install


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder that is no directory of transformers."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise PolicyError(
            f"{path} holds {len(found)} GGUF files: {', '.join(f.name for f in found)}. Name the one that is meant."
        )
    return found[0] if found else None


def converted(file: Path) -> Path:
    """A directory of transformers with the weights, the tokenizer and the chat template of a GGUF file, in bfloat16.

    It lies in the cache by the file's name, size and time, and is made by whoever asks first. Weights of fewer bits become what they
    stand for: nothing is gained by rounding them back.

    Raises:
        PolicyError: no such package, no such architecture, or no GGUF file.
    """
    status = file.stat()
    stamp = hashlib.sha256(f"{file.resolve()}/{status.st_size}/{status.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_folder() / "gguf" / f"{file.stem}-{stamp}"
    if (folder / "config.json").is_file():
        return folder
    rank_zero_info(f"{file.name} is converted to {folder}: once, in about a minute for a model of 100 million parameters")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _convert(file, fresh)
        try:
            os.rename(fresh, folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": file.name}
    if packed := getattr(transformers, "GgufConfig", None):  # its weights would stay in few bits, which nobody can train
        given["quantization_config"] = packed(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.bfloat16, **given)
    except ImportError as error:
        raise PolicyError(f"{file} is read with the package gguf, which is not installed: {install('gguf')}.") from error
    except Exception as error:  # whatever a damaged file makes of its reader
        raise PolicyError(f"{file} cannot be read as a GGUF model: {first_line(error)}") from error
    for name in ("quantization_config", "_pre_quantization_dtype"):  # it is dense now
        if hasattr(model.config, name):
            delattr(model.config, name)
    cast(Any, model).hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""What a machine has for sdar, and what of it is wrong, whatever is to be run."""

import argparse
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sdar
from sdar import versions
from sdar.doctor.findings import Findings, report
from sdar.errors import ConfigError
from sdar.paths import data_folder
from sdar.sandbox.choose import best_runner

GIB = 2**30
LEAST_FREE = GIB
"""Bytes below which a disk is too full for any run."""
OPTIONAL = ("deepspeed", "vllm", "peft", "liger-kernel")


def main(words: Sequence[str]) -> int:
    """``sdar doctor`` without a configuration: the machine alone; returns the exit code.

    Raises:
        ConfigError: --json leads nowhere.
    """
    parser = argparse.ArgumentParser(prog="sdar doctor", allow_abbrev=False)
    parser.add_argument("--json")
    asked = parser.parse_args(list(words))
    check_file(asked.json)
    findings = Findings()
    facts = examine_machine(findings)
    return report(facts, findings, None if asked.json is None else Path(asked.json))


def check_file(path: str | None) -> None:
    """Raise ConfigError where no file can be written."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {Path(path).parent}. Make it, or give another file.")


def examine_machine(findings: Findings, sandbox: bool = True) -> dict[str, str]:
    """What is here, by name; what is wrong goes into `findings`.

    Args:
        sandbox: Try which sandbox withstands a few attacks; takes half a second.
    """
    for complaint in versions.complaints():
        findings.add(complaint)
    facts = {
        "sdar": f"{sdar.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "processors": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "accelerator": _accelerator(findings),
    }
    facts |= {name: _installed(name) for name in OPTIONAL}
    for name, folder in (("disk here", Path.cwd()), ("disk of data", data_folder())):
        free, place = free_space(folder)
        facts[name] = f"{free / GIB:,.1f} GiB free at {place}"
        if free < LEAST_FREE:
            findings.add(
                f"{free / GIB:.2f} GiB are free at {place}: a run that cannot write its checkpoint ends there. Free some space, or set "
                f"{'trainer.default_root_dir' if name == 'disk here' else 'SDAR_DATA'} to a folder of another disk."
            )
    if sandbox:
        facts["sandbox"] = _sandbox()
    return facts


def free_space(folder: Path) -> tuple[int, Path]:
    """Bytes that can be written to a folder, which need not be there yet, and the nearest one above it that is."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(place).free, place


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _accelerator(findings: Findings) -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}" if len({*names}) == 1 else ", ".join(names)
    if Path("/dev/nvidiactl").exists():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
        findings.add(
            f"this machine has an NVIDIA driver, and torch {torch.__version__}, built for {built}, finds no device: runs would use "
            "the CPU. Install a torch that is built for the driver's CUDA (nvidia-smi names it), and look whether "
            "CUDA_VISIBLE_DEVICES is empty."
        )
    return "MPS" if torch.backends.mps.is_available() else "none (runs use the CPU)"


def _sandbox() -> str:
    """No finding: only a run that executes code needs one, and is refused without."""
    try:
        runner = best_runner()
    except ConfigError as error:
        return f"none: {error}"
    layers = ", ".join(runner.layers)
    runner.close()
    return layers

"""What several test files share: one torch thread, a small world, a small policy on disk.

``tiny_env`` is a new household for each test (a world has a state). ``tiny_policy_dir`` is one directory for the whole
session, model and tokenizer as `save_pretrained` writes them: read it, write elsewhere. ``own_folder`` is a working directory
whose Python files may be plugins of the command: a process of its own for each would import everything anew.

The process that deals tests out to others (pytest -n) runs none, and imports nothing heavy.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sdar.envs.household import HouseholdEnv

gc.disable()  # until all is collected
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER or "-n" not in sys.argv:  # now, for conftests of folders import the package
    import lightning.pytorch  # noqa: F401 (as in a run, before pytest catches logs: its loggers look whether somebody does)
    import logged  # noqa: F401
    import shapes  # noqa: F401 (before anything of the package: it imports with checks)
    import torch
    from hypothesis import Phase, settings
    from launch import forks

    from sdar import registry

    torch.set_num_threads(1)  # the models here are so small that threads only wait for each other
    settings.register_profile("busy machine", deadline=None)
    settings.load_profile("busy machine")
    settings.register_profile(
        "mutants", deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
    )
    if WORKER:
        forks()  # before a pool of worlds starts the process that all are forked from, with less imported
        registry.load_parts()  # now: tests are made of the registry, whose order is that in which parts are imported
else:
    from launch import share_forks

    share_forks()  # its imports take longer than most of the runs that are forked from it

WORLD = {"world": 5, "receptacles": 6, "distractors": 2, "horizon": 6}
SIZE = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64, "context": 512}
LONGEST = ["test_ranks.py", "test_conf.py", "test_types.py", "test_faults.py", "test_training_step.py", "test_pushes.py"]
"""These files first, so that none of them is what all wait for at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Each of several workers begins to collect with another file: pytest rewrites the `assert`s of a file for whoever comes first."""
    if WORKER and all(map(os.path.isdir, config.args)):
        files = sorted(str(path) for folder in config.args for path in Path(folder).rglob("test_*.py"))
        begin = len(files) * int(os.environ["PYTEST_XDIST_WORKER"][2:]) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        config.args = files[begin:] + files[:begin]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (long.get(item.path.name, len(long)), item.path))  # in a file they stay as they are


def pytest_collection_finish() -> None:
    """What is imported and collected stays: no garbage collection goes through these million objects, now or later."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_env() -> HouseholdEnv:
    """Six receptacles, usual places that one seed decides, six actions an episode."""
    from sdar.envs.household import HouseholdEnv

    return HouseholdEnv(**WORLD)


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `FreshPolicy` of that household: Qwen3 architecture, hidden size 32, 2 layers, 2 heads, 512 positions, untrained."""
    from sdar.envs.household import HouseholdEnv
    from sdar.policies import FreshPolicy

    folder = tmp_path_factory.mktemp("tiny_policy")
    policy = FreshPolicy(HouseholdEnv(**WORLD), **SIZE)
    policy.load_model().save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def without_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sdar.functional` as in a run, whose own checks then say what is wrong."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory. Modules that are imported from it, and the parts they register, are forgotten afterwards."""
    from sdar import registry

    registry.load_parts()
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}/"):
            del sys.modules[name]

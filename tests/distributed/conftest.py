"""Small runs of one and several processes, each made once for all tests."""

from functools import cache

import pytest
from rank_results import WORLDS, trained


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Where runs of so many ranks write: their checkpoints after half of the steps by the kind of their strategy, and policies."""
    return cache(lambda world: tmp_path_factory.mktemp(f"ranks{world}"))


@pytest.fixture(scope="session")
def straight(run_folder):
    """Runs of four optimizer steps by the number of their ranks; those of two leave checkpoints."""

    def runs(world):
        folder = run_folder(world)
        return trained(world, WORLDS[world], folder, **({"SAVE": f"{folder}/{{kind}}.ckpt"} if world == 2 else {}))

    return cache(runs)


@pytest.fixture(scope="session")
def halfway(straight, run_folder):
    """The folder of the runs of two ranks."""
    straight(2)
    return run_folder(2)

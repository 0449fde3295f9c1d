"""Small runs of one and several processes, each made once for all tests."""

import pytest
from rank_results import HALF, KINDS, SLOW, WORLDS, trained


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Runs of eight optimizer steps by the number of their ranks."""
    kept = {}

    def of(world):
        if world not in kept:
            kept[world] = trained(world, WORLDS[world], tmp_path_factory.mktemp(f"ranks{world}"))
        return kept[world]

    return of


@pytest.fixture(scope="session")
def halfway(tmp_path_factory):
    """A folder with the checkpoints that two ranks wrote after four steps, by the kind of their strategy, and exported policies."""
    folder = tmp_path_factory.mktemp("halfway")
    trained(2, [*KINDS, "sharded3", *SLOW], folder, steps=HALF, SAVE=f"{folder}/{{kind}}.ckpt")
    return folder

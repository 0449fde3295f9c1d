"""What several test files share: one torch thread, a small world, a small policy on disk.

``tiny_env`` is a new household for each test (a world has a state). ``tiny_policy_dir`` is one directory for the whole
session, model and tokenizer as `save_pretrained` writes them: read it, write elsewhere.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from torchmetrics import Metric

from sdar.envs.household import HouseholdEnv
from sdar.policies import FreshPolicy

torch.set_num_threads(1)  # the models here are so small that threads only wait for each other
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


def _moved(metric: _ResultMetric, *where: object, **how: object) -> _ResultMetric:
    """As Lightning's `to`, which also copies the name of the metric and how it is reduced: a quarter of the time of a run here."""
    for name, value in vars(metric).items():
        if isinstance(value, torch.Tensor | Metric):
            vars(metric)[name] = move_data_to_device(value, *where, **how)
    return metric


_ResultMetric.to = _moved

WORLD = {"world": 5, "receptacles": 6, "distractors": 2, "horizon": 6}
SIZE = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 64, "context": 512}


@pytest.fixture
def tiny_env() -> HouseholdEnv:
    """Six receptacles, usual places that one seed decides, six actions an episode."""
    return HouseholdEnv(**WORLD)


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `FreshPolicy` of that household: Qwen3 architecture, hidden size 32, 2 layers, 2 heads, 512 positions, untrained."""
    folder = tmp_path_factory.mktemp("tiny_policy")
    policy = FreshPolicy(HouseholdEnv(**WORLD), **SIZE)
    policy.load_model().save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    return folder

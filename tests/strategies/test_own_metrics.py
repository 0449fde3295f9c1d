"""Metrics of one's own: beside the others in training and validation, over a run that goes on."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchmetrics import Metric

from sdar.errors import CheckpointError, ConfigError
from sdar.metrics import EpisodeMetric, PassAtK, Success, TokenMetric
from sdar.retrievers import FactRetriever
from sdar.strategies import GRPO, SDAR


class Turns(EpisodeMetric):
    """Turns of an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("turns", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, episodes) -> None:
        self.turns += torch.tensor([sum(len(e.turns) for e in episodes), len(episodes)])

    def compute(self):
        return self.turns[0] / self.turns[1]


class TurnsSoFar(Turns):
    """All turns that a run had."""

    cumulative = True

    def compute(self):
        return self.turns[0]


class LargestGap(TokenMetric):
    """The largest gap to the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("gap", torch.tensor(-torch.inf), dist_reduce_fx="max")

    def update(self, tokens) -> None:
        self.gap = torch.maximum(self.gap, tokens.gap[tokens.response_mask.bool()].max())

    def compute(self):
        return self.gap


def test_metrics_of_ones_own_are_measured_beside_the_others(small, capsys) -> None:
    method = small.strategy(SDAR, retriever=FactRetriever(), metrics=[Turns(), TurnsSoFar(), LargestGap(), PassAtK(1)])
    trainer = small.fit(method, steps=2, limit_val_batches=None, val_check_interval=1)
    told = trainer.callback_metrics
    assert told["turns/train"] == told["rollout/episode_length"]
    assert told["turns_so_far/train"] == method.env_steps > told["turns/train"]
    assert told["largest_gap"] >= told["gap/mean"] and told["pass@1/train"] == told["success/train"]
    assert told["pass@1/unseen"] == told["success/unseen"]
    line = json.loads((small.folder / "validation.jsonl").read_text().splitlines()[-1])
    assert line["turns/unseen"] == told["turns/unseen"] > 0 and line["pass@1/unseen"] == line["success/unseen"]
    said = capsys.readouterr().out
    assert "  turns/unseen " in said and "  pass@1/unseen " in said
    assert "largest_gap" not in said  # of tokens that are learned from


def test_two_metrics_of_one_name_are_refused(small) -> None:
    with pytest.raises(ConfigError, match=r"model.metrics has 2 metrics called 'turns': one would hide the other"):
        small.strategy(GRPO, metrics=[Turns(), PassAtK(2), Turns()])


def test_what_goes_on_over_the_run_goes_on_over_a_stop(small) -> None:
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    path = small.folder / "kept" / "last.ckpt"
    straight, stopped, resumed = (small.strategy(GRPO, metrics=[Turns(), TurnsSoFar()]) for _ in range(3))
    whole = small.fit(straight, steps=4).callback_metrics
    small.fit(stopped, steps=2, enable_checkpointing=True, callbacks=[keep])
    assert list(torch.load(path, weights_only=True)["sdar"]["metrics"]) == ["turns_so_far"]
    ended = small.fit(resumed, steps=4, ckpt_path=path).callback_metrics
    assert ended["turns_so_far/train"] == whole["turns_so_far/train"] == straight.env_steps
    assert ended["turns/train"] == whole["turns/train"]
    with pytest.raises(
        CheckpointError, match=r"holds what the metric 'turns_so_far' gathered \(turns\), and model.metrics of this run"
    ):
        small.fit(small.strategy(GRPO, metrics=[Turns()]), steps=4, ckpt_path=path)


def test_validation_logs_metrics_as_objects(small, monkeypatch) -> None:
    """Lightning then computes them at the end of its epoch, and they can be told apart from plain numbers."""
    logged = {}
    log = GRPO.log

    def watch(self, name, value, *args, **kwargs):
        logged[name] = value
        return log(self, name, value, *args, **kwargs)

    monkeypatch.setattr(GRPO, "log", watch)
    small.fit(small.strategy(GRPO), steps=1, limit_val_batches=None, val_check_interval=1)
    assert isinstance(logged["success/unseen"], Success) and not isinstance(logged["success_low/unseen"], Metric)

"""A run that goes on with other settings than those of its checkpoint: they take effect, or are refused, and are told."""

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, LinearLR, StepLR

from sdar.errors import CheckpointError
from sdar.strategies import GRPO
from sdar.training.checkpoints import RunCheckpoint
from sdar.training.resume import settings

ADAM = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01)


@pytest.fixture
def resumed(small, capsys, caplog):
    """What the optimizer has after a step that goes on with other settings, and what was said."""

    def run(old, new, told=({}, {}), data=None):
        first, second = (small.strategy(GRPO, **{"optimizer": ADAM} | s) for s in (old, new))
        first.settings, second.settings = told
        small.fit(first, 2, enable_checkpointing=True, callbacks=[RunCheckpoint(str(small.folder / "kept"))])
        with caplog.at_level("INFO"):
            small.fit(second, 3, ckpt_path=small.folder / "kept" / "last.ckpt")
        return second, caplog.text

    return run


def group(strategy):
    return strategy.trainer.optimizers[0].param_groups[0]


def test_what_did_not_change_is_restored_without_a_word(resumed):
    strategy, said = resumed({}, {}, ({"a": 1}, {"a": 1}))
    assert group(strategy)["lr"] == 1e-2 and "settings that are others" not in said
    assert strategy.trainer.optimizers[0].state_dict()["state"][0]["step"] == 3


def test_another_learning_rate_and_weight_decay_win_over_the_checkpoints(resumed):
    strategy, said = resumed({}, {"optimizer": partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.5)})
    assert group(strategy)["lr"] == pytest.approx(1e-5) and group(strategy)["weight_decay"] == 0.5
    assert "model.optimizer.lr: 0.01 -> 1e-05\n" in said and "model.optimizer.weight_decay: 0.01 -> 0.5" in said
    assert strategy.trainer.optimizers[0].state_dict()["state"][0]["step"] == 3  # what it remembers of gradients stays


def test_another_learning_rate_scales_where_the_schedule_is(resumed):
    halved = {"lr_scheduler": partial(StepLR, step_size=1, gamma=0.5)}
    strategy, said = resumed(halved, {**halved, "optimizer": partial(torch.optim.AdamW, lr=4e-2, weight_decay=0.01)})
    assert group(strategy)["lr"] == pytest.approx(4e-2 / 8)  # three steps, all by the new one
    assert "model.optimizer.lr: 0.01 -> 0.04" in said


@pytest.mark.parametrize("old", [None, partial(LinearLR, start_factor=0.5, total_iters=4)])
def test_another_schedule_begins_anew(resumed, old):
    strategy, said = resumed({"lr_scheduler": old}, {"lr_scheduler": partial(ConstantLR, factor=0.1, total_iters=9)})
    assert group(strategy)["lr"] == pytest.approx(1e-3)
    assert "model.lr_scheduler: " in said and "ConstantLR, which begins now" in said


def test_a_schedule_that_is_taken_away_leaves_the_learning_rate_that_is_asked_for(resumed):
    strategy, _ = resumed({"lr_scheduler": partial(StepLR, step_size=1, gamma=0.1)}, {})
    assert group(strategy)["lr"] == pytest.approx(1e-2)


def test_another_optimizer_is_refused(resumed):
    with pytest.raises(CheckpointError, match=r"holds the state of torch\.optim\.adamw\.AdamW, model\.optimizer is .*SGD"):
        resumed({}, {"optimizer": partial(torch.optim.SGD, lr=0.1)})


def test_every_setting_that_changed_is_told(resumed):
    old = settings({"seed_everything": 1, "model": {"class_path": "m.GRPO", "init_args": {"kl_coef": 0.0}}, "config": "a"})
    spec = {"class_path": "m.GRPO", "init_args": {"kl_coef": 0.5, "teacher": {"class_path": "m.EMATeacher", "init_args": {}}}}
    _, said = resumed({}, {}, (old, settings({"seed_everything": 7, "model": spec, "config": "b"})))
    assert "model.kl_coef: 0.0 -> 0.5\n" in said and "model.teacher: null -> m.EMATeacher\n" in said
    assert "seed_everything: 1 -> 7 (not used: a run keeps" in said and "config" not in said

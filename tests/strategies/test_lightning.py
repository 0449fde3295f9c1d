"""Lightning's switches for epochs of a data set, on a run that is one endless epoch: each means something or is refused."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer, WeightAveraging
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from sdar.errors import ConfigError
from sdar.strategies import GRPO
from sdar.training.checkpoints import RunCheckpoint

VALIDATED = {"limit_val_batches": None, "enable_checkpointing": True}


class Watched(GRPO):
    """Keeps the tasks and visits of each iteration."""

    plays_attempts = True

    def collect(self, step):
        self.seen.append([(task.id, visit) for task, visit in zip(step.tasks, step.visits, strict=True)])
        return super().collect(step)


def watched(small, **kwargs):
    strategy = small.strategy(Watched, optimizer=partial(torch.optim.SGD, lr=0.0), **kwargs)
    strategy.seen = []
    return strategy


@pytest.mark.parametrize("interval", [1, 2])
def test_a_metric_that_stands_still_stops_the_run_at_any_interval(small, tmp_path, interval, capsys):
    strategy = watched(small)
    best = ModelCheckpoint(tmp_path / "best", "best-{step}-{success/unseen:.2f}", "success/unseen", mode="max")
    stop, last = EarlyStopping("success/unseen", patience=1, mode="max"), RunCheckpoint(str(tmp_path / "kept"), 100)
    small.fit(strategy, 9, callbacks=[best, stop, last], val_check_interval=interval, **VALIDATED)
    assert strategy.iteration == 2 * interval
    assert [p.name for p in (tmp_path / "best").iterdir()] == [f"best-step={interval}-success_unseen=0.00.ckpt"]
    told = f"stopped after iteration {2 * interval}: Monitored metric success/unseen did not improve"
    assert told in capsys.readouterr().out
    assert torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["sdar"]["iteration"] == 2 * interval


@pytest.mark.parametrize(
    ("ends", "at"),
    [
        ({"val_check_interval": 2}, [2, 3]),  # no third validation behind two iterations
        ({"val_check_interval": 3}, [3]),
        ({"val_check_interval": 5}, [3]),
        (
            {
                "val_check_interval": 5,
                "max_steps": -1,
                "max_epochs": 1,
                "limit_train_batches": 3,
                "check_val_every_n_epoch": None,
            },
            [3],
        ),
        ({}, []),  # nobody asked
        ({"val_check_interval": 5, "limit_val_batches": 0}, []),
    ],
)
def test_what_a_run_ends_with_is_measured_wherever_its_interval_stands(small, ends, at):
    strategy, settings = watched(small), VALIDATED | ends
    small.fit(strategy, settings.pop("max_steps", 3), **settings)
    assert strategy.iteration == 3 and [line[0] for line in strategy.validation._history["unseen"]] == at


def test_epochs_of_a_given_length_go_on_with_new_tasks(small, tmp_path):
    straight, cut, resumed = watched(small), watched(small), watched(small)
    small.fit(straight, 6)
    small.fit(cut, 3, limit_train_batches=2, callbacks=[RunCheckpoint(str(tmp_path))], enable_checkpointing=True)
    kept = tmp_path / "last.ckpt"
    small.fit(
        resumed, 6, limit_train_batches=2, ckpt_path=kept, callbacks=[RunCheckpoint(str(tmp_path))], enable_checkpointing=True
    )
    assert cut.seen + resumed.seen == straight.seen
    once = watched(small)
    small.fit(once, -1, limit_train_batches=2, max_epochs=2)
    assert once.seen == straight.seen[:4]


REFUSED = {
    "max_epochs": (3, r"trainer\.max_epochs is 3: training is one epoch without an end"),
    "min_epochs": (2, r"trainer\.min_epochs is 2: training is one epoch without an end"),
    "check_val_every_n_epoch": (2, r"trainer\.check_val_every_n_epoch is 2: training is one epoch without an end"),
    "overfit_batches": (2, r"trainer\.overfit_batches is 2: tasks are drawn anew"),
    "reload_dataloaders_every_n_epochs": (1, r"trainer\.reload_dataloaders_every_n_epochs is 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_switch_that_could_do_nothing_is_refused(small, name):
    value, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        small.fit(small.strategy(GRPO), **{name: value})


WAITING = {
    "every_n_epochs": lambda: ModelCheckpoint(every_n_epochs=2),
    "save_on_train_epoch_end": lambda: ModelCheckpoint(save_on_train_epoch_end=True),
    "check_on_train_epoch_end": lambda: EarlyStopping("train/loss", check_on_train_epoch_end=True),
    "interval": lambda: Timer("00:01:00:00", interval="epoch"),
    "logging_interval": lambda: LearningRateMonitor("epoch"),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_callback_that_waits_for_an_epoch_is_refused_where_none_ends(small, name):
    with pytest.raises(ConfigError, match=rf"\.{name} waits for the end of an epoch"):
        small.fit(small.strategy(GRPO), callbacks=[WAITING[name]()], enable_checkpointing=True)


def test_a_callback_that_copies_the_method_is_refused(small):
    with pytest.raises(ConfigError, match=r"WeightAveraging does not fit to this training: .* use EMATeacher"):
        small.fit(small.strategy(GRPO), callbacks=[WeightAveraging()])


UNFIT = {
    "LBFGS": ({"optimizer": torch.optim.LBFGS}, "LBFGS.step needs closure"),
    "plateau": ({"lr_scheduler": ReduceLROnPlateau}, "ReduceLROnPlateau.step needs metrics"),
    "one cycle": (
        {"lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=3)},
        r"OneCycleLR.total_steps is 3 and trainer.max_steps is 6",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_could_not_be_stepped_is_found_before_the_first_rollout(small, name):
    settings, message = UNFIT[name]
    strategy = small.strategy(Watched, **settings)
    strategy.seen = []
    with pytest.raises(ConfigError, match=message):
        small.fit(strategy, 6)
    assert strategy.seen == []


def test_a_part_of_a_panel_is_reported_as_a_part_and_not_compared_with_the_whole(small, capsys):
    data = small.data(val_batch=2)
    small.fit(watched(small), 2, data, limit_val_batches=None, val_check_interval=2, num_sanity_val_steps=1)
    first, last = map(json.loads, (small.folder / "validation.jsonl").read_text().splitlines())
    whole = data.val_panels[0].hash
    assert (last["hash"], last["tasks"], "part_of" in last) == (whole, 4, False)
    assert (first["tasks"], first["part_of"]) == (2, {"hash": whole, "tasks": 4}) and first["hash"] != whole
    told = capsys.readouterr().out
    assert f"panel {first['hash']}, 2 tasks, a part of panel {whole} with 4, avg@1" in told and "change" not in told

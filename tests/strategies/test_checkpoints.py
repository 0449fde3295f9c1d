"""When a run's checkpoint is written, what lies beside it, and that nothing is lost between an iteration and its validation."""

import signal
from pathlib import Path

import pytest
import torch

from sdar.errors import ConfigError, StoppedError
from sdar.strategies import GRPO
from sdar.training.checkpoints import AtomicCheckpointIO, RunCheckpoint


class Watched(GRPO):
    """Remembers after which iterations it was validated; may be asked to stop in the middle of an iteration or of a validation."""

    plays_attempts = True
    validated: list
    stop_in = stop_validating = 0

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.validated.append(self.iteration)
            if self.iteration == self.stop_validating:
                signal.raise_signal(signal.SIGTERM)

    def collect(self, step):
        if self.iteration + 1 == self.stop_in:
            signal.raise_signal(signal.SIGTERM)
        return super().collect(step)


def watched(small, **stops):
    strategy = small.strategy(Watched)
    strategy.validated = []
    vars(strategy).update(stops)
    return strategy


def run(small, strategy, steps, folder, ckpt_path=None, every=1):
    settings = {"enable_checkpointing": True, "limit_val_batches": None, "val_check_interval": 2}
    keep = RunCheckpoint(str(folder), every)
    return small.fit(strategy, steps, ckpt_path=ckpt_path, callbacks=[keep], **settings)


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("stops", [{"stop_in": 2}, {"stop_validating": 2}, {"stop_in": 3}])
def test_a_run_that_was_stopped_is_validated_where_a_straight_one_is(small, tmp_path, stops, capfd):
    straight = watched(small)
    run(small, straight, 6, tmp_path / "straight")
    assert straight.validated == [2, 4, 6]
    first, last = watched(small, **stops), tmp_path / "stopped" / "last.ckpt"
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM after iteration {max(stops.values())}"):
        run(small, first, 6, tmp_path / "stopped")
    assert capfd.readouterr().err.count(f"SIGTERM: the run stops after iteration {max(stops.values())}, when its") == 1
    assert torch.load(last, weights_only=True)["sdar"]["iteration"] == max(stops.values())
    resumed = watched(small)
    run(small, resumed, 6, tmp_path / "stopped", ckpt_path=last)
    assert first.validated + resumed.validated == [2, 4, 6]
    one, other = (strategy.model.state_dict() for strategy in (straight, resumed))
    assert all(torch.equal(values, other[name]) for name, values in one.items())


def test_the_last_iteration_is_kept_whatever_the_interval(small, tmp_path):
    run(small, watched(small), 3, tmp_path, every=2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["sdar"]["iteration"] == 3


def test_a_new_run_in_the_folder_of_another_keeps_its_checkpoint(small, tmp_path, recwarn):
    for steps in (1, 2, 3):
        run(small, watched(small), steps, tmp_path)
    found = {p.name: torch.load(p, weights_only=True)["sdar"]["iteration"] for p in tmp_path.glob("*.ckpt")}
    assert found == {"earlier-1.ckpt": 1, "earlier-2.ckpt": 2, "last.ckpt": 3}
    run(small, watched(small), 4, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert len(list(tmp_path.glob("*.ckpt"))) == 3


def test_parts_in_a_folder_are_set_aside_with_their_link(small, tmp_path):
    (tmp_path / "last.ckpt.4").mkdir()
    (tmp_path / "last.ckpt").symlink_to("last.ckpt.4")
    run(small, watched(small), 1, tmp_path)
    assert (tmp_path / "earlier-1.ckpt").is_dir() and not (tmp_path / "last.ckpt").is_symlink()
    assert sorted(p.name for p in tmp_path.glob("*.ckpt*")) == ["earlier-1.ckpt", "last.ckpt"]


def test_ranks_that_read_a_checkpoint_share_its_memory(tmp_path):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {"x": torch.arange(5.0)}, "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2"}, path
    )
    read = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["x"]
    assert read.tolist() == [0, 1, 2, 3, 4]
    mapped = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))
    ]
    assert any(int(begin, 16) <= read.data_ptr() < int(end, 16) for begin, end in mapped)


def test_a_loss_scale_that_the_clipping_does_not_know_is_refused(small):
    from lightning.pytorch.plugins import MixedPrecision

    with pytest.raises(ConfigError, match=r"trainer\.precision is 16-mixed: its gradients are multiplied by a loss scale"):
        small.fit(small.strategy(GRPO), plugins=[MixedPrecision("16-mixed", "cpu")])

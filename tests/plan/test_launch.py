"""`sdar plan`: how a run's processes share the work."""

from dataclasses import replace

import pytest
from planned import a_run, given

from sdar import plan
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy, ZeROStrategy
from sdar.errors import ConfigError
from sdar.plan import settings as plan_settings


def test_a_launch_is_read_off_the_trainers_settings():
    assert plan_settings.launch_of(given(), "auto") == plan.Launch(counted=True)
    assert plan_settings.launch_of(given(devices=4, num_nodes=2, precision="bf16-mixed"), ReplicatedStrategy()) == plan.Launch(
        "ddp", 0, 8, 2, "bf16-mixed"
    )
    assert plan_settings.launch_of(given(devices="0,2", precision=16), ReplicatedStrategy()).ranks == 2
    assert plan_settings.launch_of(given(devices=4), FSDP2Strategy(reshard_after_forward=False)) == plan.Launch(
        "fsdp", 3, 4, stays=True
    )
    found = plan_settings.launch_of(
        given(devices=8, precision="bf16-true"), ZeROStrategy(stage=3, offload_optimizer=True, offload_parameters=True)
    )
    assert found == plan.Launch("zero", 3, 8, 1, "bf16-true", True, True)
    assert found.half and not found.autocast
    with pytest.raises(ConfigError, match=r"trainer.strategy is fsdp with 2 processes: .*several backward passes.*Use ddp"):
        plan_settings.launch_of(given(devices=2), "fsdp")


def test_weights_have_the_bytes_that_the_precision_gives_them():
    def size(kind, precision, loaded=4):
        run = a_run(plan.Launch(kind, 2, 2, 1, precision))
        return plan.stored(run, replace(run.policy, bytes=loaded))

    assert [size("ddp", p) for p in ("32-true", "bf16-mixed", "bf16-true")] == [4, 4, 2]
    assert [size("zero", p) for p in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")] == [4, 2, 2, 2]
    assert size("ddp", "bf16-mixed", loaded=2) == 2

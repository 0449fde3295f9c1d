"""Whatever is no number is refused by every constructor that takes numbers."""

import inspect
import math
import pickle

import pytest
from jsonargparse import lazy_instance

from sdar import registry
from sdar.arguments import _annotated, checked
from sdar.data import TaskModule
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy, ZeROStrategy
from sdar.errors import ConfigError, SdarError
from sdar.gates import GapGate
from sdar.sandbox.base import Limits
from sdar.serving.fleet import RetryPolicy
from sdar.strategies import GRPO
from sdar.training.checkpoints import RunCheckpoint

registry.load_parts()
PARTS = {cls for plural in registry.kinds() for cls in registry.parts(plural).values()}
PARTS |= {TaskModule, RunCheckpoint, FSDP2Strategy, ReplicatedStrategy, ZeROStrategy, Limits, RetryPolicy}
NUMBERS = sorted(
    {
        (cls.__name__, name, cls)
        for cls in PARTS
        if cls.__module__.startswith("sdar.")
        for owner in cls.__mro__
        if inspect.isfunction(vars(owner).get("__init__"))
        for name in inspect.signature(owner.__init__).parameters
        if _annotated(cls, name) & {int, float}
    },
    key=lambda found: found[:2],
)


def test_there_are_numbers_to_refuse():
    assert len(NUMBERS) > 300 and {"distill_coef", "deadline", "timeout", "temperature"} <= {name for _, name, _ in NUMBERS}


def refused(cls, name, value):
    try:
        cls(**{name: value})
    except SdarError:
        return True
    except Exception as error:
        pytest.fail(f"{cls.__name__}({name}={value}): {error!r}")
    return False


def test_every_number_of_every_part_is_finite():
    taken = []
    for _, name, cls in NUMBERS:
        optional = type(None) in _annotated(cls, name)
        wrong = [math.nan, math.inf, -math.inf, *([] if optional else [None])]
        if not inspect.isabstract(cls):
            taken += [(cls.__name__, name, value) for value in wrong if not refused(cls, name, value)]
    assert not taken


def test_a_part_of_somebody_else_is_checked_too():
    class Base:
        def __init__(self, low: float = 0.0):
            self.low = low

    @checked
    class Mine(Base):
        def __init__(self, bounds: tuple[float, ...] = (), **kwargs):
            super().__init__(**kwargs)

    assert Mine((1.0, 2.0), low=3.0).low == 3.0
    with pytest.raises(ConfigError, match="Mine: bounds is nan"):
        Mine((1.0, math.nan))
    with pytest.raises(ConfigError, match="Mine: low is null"):
        Mine(low=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'high'"):
        Mine(high=1)


def test_constructors_look_as_they_are_written():
    assert next(iter(inspect.signature(GapGate).parameters)) == "beta"
    assert "distill_coef" not in inspect.signature(GRPO).parameters
    assert pickle.loads(pickle.dumps(GapGate(2.0))).beta == 2.0
    with pytest.raises(ConfigError, match="beta is nan"):
        lazy_instance(GapGate, beta=math.nan)(None)

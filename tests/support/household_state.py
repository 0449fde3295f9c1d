"""What tests look at inside a household."""

from sdar.envs.household_engine import World
from sdar.envs.household_planner import Expert


def snapshot(world: World) -> tuple[object, ...]:
    """The state as a hashable value: two worlds of one game behave alike from here on iff it is equal."""
    return (
        world.location, world.held, tuple(world.contents), tuple(world._places), world._missed,
        world.opened, world.clean, world.hot, world.cool, world.on, world.sliced,
    )  # fmt: skip


def knows(expert: Expert, receptacle: str) -> bool:
    """Whether an observation has shown the expert what the receptacle holds."""
    return bool(expert._seen >> expert._tables.receptacle_index[receptacle] & 1)

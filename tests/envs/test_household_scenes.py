"""Full-size scenes: solvable, the same everywhere, and as irregular as ALFRED's."""

import hashlib
from collections import Counter

import pytest

from sdar.envs.household_engine import FAMILIES, GameError, World
from sdar.envs.household_games import FAMILY_ROOMS, ROOMS
from sdar.envs.household_official import room_number
from sdar.envs.household_planner import Expert, plan
from sdar.envs.household_scenes import make_scene

EVERY = [(family, room) for family in FAMILIES for room in FAMILY_ROOMS[family]]
SCENES = [make_scene(i, family=family, room=room, layout=i) for i in range(3) for family, room in EVERY]


@pytest.mark.parametrize(("family", "room"), EVERY)
def test_every_family_has_scenes_in_each_of_its_rooms(family: str, room: str) -> None:
    game = make_scene("a", family=family, room=room)
    assert game.family == family
    assert {r.type for r in game.receptacles} <= ROOMS[room].keys()
    assert room_number(game) == {"kitchen": 1, "livingroom": 201, "bedroom": 301, "bathroom": 401}[room]
    world = World(game)
    assert not world.won
    for command in plan(world):
        assert command in world.admissible
        world.step(command)
    assert world.won


def test_a_scene_depends_on_its_arguments_alone() -> None:
    assert make_scene(5, family="pick_and_place_simple") == make_scene("5", family="pick_and_place_simple")
    assert make_scene(5) != make_scene(6)
    together = hashlib.sha256("".join(game.hash() for game in SCENES).encode()).hexdigest()[:16]
    assert together == "3e83656c5a76cc14"  # raise GENERATOR when this must change


def test_scenes_have_the_size_of_the_originals() -> None:
    receptacles = [len(game.receptacles) for game in SCENES]
    objects = [len(game.objects) for game in SCENES]
    assert min(receptacles) >= 15 and max(receptacles) >= 28
    assert min(objects) >= 25 and max(objects) >= 65


def test_scenes_are_as_irregular_as_the_originals() -> None:
    """Each oddity is in some of them, so that nothing which is made for regular rooms goes unnoticed."""
    seen: Counter[str] = Counter()
    for game in SCENES:
        places = [r.location for r in game.receptacles if r.location]
        seen["shared location"] += len(set(places)) < len(places)
        seen["nowhere"] += len(places) < len(game.receptacles)
        seen["no door"] += any(r.type == "cabinet" and not r.openable for r in game.receptacles)
        seen["in two receptacles"] += any(len(o.receptacles) == 2 for o in game.objects)
        seen["in a bowl"] += any(o.inside for o in game.objects)
        seen["cannot be taken"] += any("pickupable" not in o.flags for o in game.objects)
        seen["begins at a receptacle"] += game.start in places
        at = {r.id: r.location for r in game.receptacles}
        seen["another viewpoint"] += any(
            o.receptacles and not set(o.locations) <= {at[r] for r in o.receptacles} for o in game.objects
        )
    assert len(seen) == 8 and min(seen.values()) >= 2, seen


@pytest.mark.parametrize("game", SCENES[::5])
def test_the_expert_that_searches_finds_everything(game) -> None:
    world, expert = World(game), Expert(game)
    for _ in range(200):
        if world.won:
            break
        command = expert.act(world)
        assert command in world.admissible
        world.step(command)
        expert.watch(world, command)
    assert world.won


def test_rooms_with_one_layout_have_one_furniture() -> None:
    one, other = (make_scene(seed, family="pick_heat_then_place_in_recep", layout="kitchen 4") for seed in (1, 2))
    shared = {r.id for r in one.receptacles} & {r.id for r in other.receptacles}
    assert len(shared) >= len(one.receptacles) - 4 and one != other


def test_requests_that_no_scene_fulfils_are_refused() -> None:
    with pytest.raises(GameError, match=r"not possible in a bathroom"):
        make_scene(1, family="pick_heat_then_place_in_recep", room="bathroom")
    with pytest.raises(GameError, match=r"at most 0 objects of a type"):
        make_scene(1, instances=0)
    with pytest.raises(GameError, match=r"No task of family pick_heat"):
        make_scene(1, family="pick_heat_then_place_in_recep", object_types=["pen"])

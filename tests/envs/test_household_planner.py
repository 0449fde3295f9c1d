"""The expert: always admissible, always winning, and without looking at what nobody has shown it."""

import random
from dataclasses import replace

import pytest
from household_state import knows, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.envs.household_engine import FAMILIES, Game, Goal, Item, Receptacle, World, tables_of
from sdar.envs.household_games import make_game, world_facts
from sdar.envs.household_planner import Expert, PlanError, plan

families = st.sampled_from(sorted(FAMILIES))
sizes = st.integers(6, 30)


def shares_locations(game: Game, rng: random.Random) -> Game:
    """The same game with several receptacles at one location, as official games have it."""
    at = {r.id: f"at {rng.randrange(4)}" for r in game.receptacles}
    return replace(
        game,
        receptacles=tuple(replace(r, location=at[r.id]) for r in game.receptacles),
        objects=tuple(replace(o, locations=tuple(at[r] for r in o.receptacles)) for o in game.objects),
    )


def wander(world: World, expert: Expert, rng: random.Random, steps: int) -> None:
    """Random play that the expert watches; travelling is held back so that more happens."""
    for _ in range(steps):
        options = [c for c in world.admissible if not c.startswith("go to")] if rng.random() < 0.5 else world.admissible
        command = "bogus" if rng.random() < 0.05 else rng.choice(options)
        world.step(command)
        expert.watch(world, command)


@settings(max_examples=200, deadline=None)
@given(st.integers(), families, sizes, st.integers(1, 3), st.integers(0, 60), st.booleans())
def test_every_game_is_won_from_every_state(
    seed: int, family: str, receptacles: int, instances: int, steps: int, shared: bool
) -> None:
    game = make_game(seed, family=family, receptacles=receptacles, instances=instances)
    rng = random.Random(seed)
    if shared:
        game = shares_locations(game, rng)
    world, expert = World(game), Expert(game)
    wander(world, expert, rng, steps)
    before = snapshot(world)
    commands = plan(world)
    assert snapshot(world) == before and len(commands) <= 16
    twin = world.copy()
    for command in commands:
        assert not twin.won and command in twin.admissible
        twin.step(command)
    assert twin.won
    for _ in range(2 * receptacles + 25):
        if world.won:
            break
        command = expert.act(world)
        assert command in world.admissible
        world.step(command)
        expert.watch(world, command)
    assert world.won and expert.act(world) == "look"


def test_an_expert_that_watched_nothing_wins_as_well() -> None:
    for seed in range(60):
        game = make_game(seed, receptacles=12)
        world = World(game)
        wander(world, Expert(game), random.Random(seed), 30)
        late = Expert(game)
        while not world.won and world.steps < 120:
            command = late.act(world)
            world.step(command)
            late.watch(world, command)
        assert world.won


@settings(max_examples=60, deadline=None)
@given(st.integers(), families, sizes, st.integers(0, 30))
def test_the_expert_never_uses_what_it_has_not_seen(seed: int, family: str, receptacles: int, steps: int) -> None:
    """Exchanging what unseen receptacles hold does not change the next command."""
    game = make_game(seed, family=family, receptacles=receptacles)
    rng = random.Random(seed)
    world, expert = World(game), Expert(game)
    wander(world, expert, rng, steps)
    for _ in range(10):
        names = tables_of(game).receptacle_names
        unseen = [r for r, name in enumerate(names) if not knows(expert, name)]
        other = world.copy()
        for r, source in zip(unseen, rng.sample(unseen, len(unseen)), strict=True):
            other.contents[r] = world.contents[source]
        command = expert.act(world)
        if not other.won:
            assert expert.copy().act(other) == command
        world.step(command)
        expert.watch(world, command)


def test_the_search_follows_the_order_and_remembers_closed_doors() -> None:
    game = make_game(4, family="pick_and_place_simple", receptacles=10, usual=world_facts(4), usual_share=1.0)
    closed = [r.name for r in game.receptacles if r.openable]
    order = [*closed, *(r.name for r in game.receptacles if not r.openable)]
    at = {r.id: r.name for r in game.receptacles}
    held = {at[o.receptacles[0]] for o in game.objects if game.goal.object_type in o.types}
    world, expert = World(game), Expert(game, order)
    visited = []
    while world.held < 0:
        command = expert.act(world)
        world.step(command)
        expert.watch(world, command)
        if command.startswith("go to "):
            assert command[6:] not in visited
            visited.append(command[6:])
            assert knows(expert, command[6:]) == (command[6:] not in closed)
        elif command.startswith("open "):
            assert command[5:] == visited[-1] and knows(expert, command[5:])
    assert visited == order[: len(visited)] and visited[-1] in held


def test_knowing_the_usual_place_makes_demonstrations_shorter() -> None:
    usual = world_facts("home")
    lengths = {"told": 0, "untold": 0}
    for seed in range(60):
        game = make_game(seed, usual=usual, receptacles=16)
        places = set(game.facts.values())
        told = sorted((r.name for r in game.receptacles), key=lambda name: name.rsplit(" ", 1)[0] not in places)
        for kind, order in (("told", told), ("untold", [])):
            world, expert = World(game), Expert(game, order)
            while not world.won:
                command = expert.act(world)
                world.step(command)
                expert.watch(world, command)
            lengths[kind] += world.steps
    assert lengths["told"] < 0.7 * lengths["untold"]


def test_a_demonstration_is_the_obvious_one() -> None:
    places = (
        Receptacle("drawer_0", "drawer", "drawer 1", "a", openable=True),
        Receptacle("shelf_0", "shelf", "shelf 1", "b"),
        Receptacle("sink_0", "sinkbasin", "sinkbasin 1", "c"),
    )
    mug = Item("mug_0", ("mug",), "mug 1", ("cleanable", "pickupable"), ("shelf_0",), ("b",))
    pen = Item("pen_0", ("pen",), "pen 1", ("pickupable",), ("shelf_0",), ("b",))
    holds = (("shelf", "mug"), ("drawer", "mug"), ("shelf", "pen"))
    goal = Goal("pick_clean_then_place_in_recep", "mug", "drawer")
    game = Game(places, (mug, pen), holds, "start", "put a clean mug in drawer", goal)
    world = World(game)
    assert plan(world) == [
        "go to shelf 1", "take mug 1 from shelf 1", "go to sinkbasin 1", "clean mug 1 with sinkbasin 1",
        "go to drawer 1", "open drawer 1", "move mug 1 to drawer 1",
    ]  # fmt: skip
    world.step("go to shelf 1")
    world.step("take pen 1 from shelf 1")
    world.step("go to sinkbasin 1")
    assert plan(world)[:3] == ["go to shelf 1", "move pen 1 to shelf 1", "take mug 1 from shelf 1"]


def test_errors_say_what_is_wrong_and_what_to_do() -> None:
    game = make_game(0, family="pick_and_place_simple")
    with pytest.raises(PlanError, match=r"1 of 2 names in the search order are no receptacle of this game \(throne 1\)"):
        Expert(game, [game.receptacles[0].name, "throne 1"])
    missing = replace(game, objects=tuple(o for o in game.objects if game.goal.object_type not in o.types))
    with pytest.raises(PlanError, match=r"100 commands did not reach the goal .* cannot be picked up"):
        plan(World(missing))
    stray = next(o for o in game.objects if game.goal.object_type not in o.types and "pickupable" in o.flags)
    kept = [pair for pair in game.can_contain if pair[1] not in stray.types]
    world = World(replace(game, can_contain=tuple(kept)))
    assert plan(world)  # nobody has to take it
    place = next(r.name for r in game.receptacles if r.id in stray.receptacles)
    for command in (f"go to {place}", f"open {place}", f"take {stray.name} from {place}"):
        world.step(command)
    with pytest.raises(PlanError, match=rf"{stray.name} is in hand and no receptacle .* cannot be won from here"):
        plan(world)
    nowhere = replace(game, goal=replace(game.goal, receptacle_type="throne"))
    with pytest.raises(PlanError, match=r"has no receptacle of type 'throne', so it cannot be won"):
        plan(World(nowhere))
    fridgeless = make_game(1, family="pick_cool_then_place_in_recep")
    kept = tuple(r for r in fridgeless.receptacles if r.type != "fridge")
    objects = tuple(o for o in fridgeless.objects if "fridge" not in o.receptacles[0])
    with pytest.raises(PlanError, match=r"has no fridge"):
        plan(World(replace(fridgeless, receptacles=kept, objects=objects)))

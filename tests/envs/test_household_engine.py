"""The household world: its sentences, its rules and its data."""

import pickle
import random
from dataclasses import replace

import pytest
from household_state import snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.envs.household_engine import (
    FAMILIES,
    HELP,
    NOTHING_HAPPENS,
    ORIGINAL,
    Game,
    GameError,
    Goal,
    Item,
    Receptacle,
    World,
    tables_of,
)
from sdar.envs.household_games import make_game

games = st.builds(
    lambda seed, family, receptacles: make_game(seed, family=family, receptacles=receptacles, instances=3),
    st.integers(0, 10_000), st.sampled_from(sorted(FAMILIES)), st.integers(6, 30),
)  # fmt: skip


def kitchen() -> Game:
    """A kitchen with every kind of receptacle and object; the microwave and the countertop share a location."""
    return Game(
        receptacles=(
            Receptacle("a_countertop", "countertop", "countertop 1", "north"),
            Receptacle("b_microwave", "microwave", "microwave 1", "north", openable=True),
            Receptacle("c_fridge", "fridge", "fridge 1", "east", openable=True),
            Receptacle("d_sinkbasin", "sinkbasin", "sinkbasin 1", "south"),
        ),
        objects=(
            Item("apple_1", ("apple",), "apple 1", ("cleanable", "coolable", "heatable", "pickupable", "sliceable"),
                 ("a_countertop",), ("north",)),
            Item("bowl_1", ("bowl",), "bowl 1", ("cleanable", "isreceptacleobject", "pickupable"),
                 ("a_countertop",), ("north",)),
            Item("desklamp_1", ("desklamp",), "desklamp 1", ("pickupable", "toggleable"), ("c_fridge",), ("east",)),
            Item("knife_1", ("knife",), "knife 1", ("cleanable", "pickupable"), ("d_sinkbasin",), ("south",)),
            Item("spoon_1", ("spoon",), "spoon 1", inside=("bowl_1",)),
        ),
        can_contain=tuple(
            (place, thing) for place in ("countertop", "fridge", "microwave") for thing in ("apple", "knife", "desklamp")
        ),
        start="middle",
        task="put a hot apple in fridge",
        goal=Goal("pick_heat_then_place_in_recep", "apple", "fridge"),
    )  # fmt: skip


def play(world: World, transcript: str) -> None:
    """Every line `command | feedback` of the transcript happens as written."""
    for line in transcript.strip().splitlines():
        command, _, feedback = line.strip().partition(" | ")
        assert command in world.admissible, command
        assert world.step(command) == feedback


def test_the_first_observation_shows_the_room_and_the_task() -> None:
    assert World(kitchen()).reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a countertop 1, a microwave 1, a fridge 1, and a sinkbasin 1.\n\nYour task is to: put a hot apple in fridge."
    )


def test_every_sentence_is_the_original_one() -> None:
    world = World(kitchen())
    play(
        world,
        """
        inventory | You are not carrying anything.
        go to sinkbasin 1 | You arrive at sinkbasin 1. On the sinkbasin 1, you see a knife 1.
        look | You are facing the sinkbasin 1. Next to it, you see nothing.
        take knife 1 from sinkbasin 1 | You pick up the knife 1 from the sinkbasin 1.
        inventory | You are carrying: a knife 1.
        examine sinkbasin 1 | On the sinkbasin 1, you see nothing.
        examine knife 1 | There's nothing special about knife 1.
        clean knife 1 with sinkbasin 1 | You clean the knife 1 using the sinkbasin 1.
        examine knife 1 | This is a clean knife 1.
        go to microwave 1 | You arrive at microwave 1. The microwave 1 is closed.
        look | You are facing the countertop 1, and microwave 1. Next to it, you see nothing.
        examine countertop 1 | On the countertop 1, you see a apple 1, and a bowl 1.
        slice apple 1 with knife 1 | You sliced the apple 1 with the knife 1.
        open microwave 1 | You open the microwave 1. The microwave 1 is open. In it, you see nothing.
        move knife 1 to microwave 1 | You move the knife 1 to the microwave 1.
        examine microwave 1 | The microwave 1 is open. In it, you see a knife 1.
        close microwave 1 | You close the microwave 1.
        examine microwave 1 | The microwave 1 is closed.
        take apple 1 from countertop 1 | You pick up the apple 1 from the countertop 1.
        examine apple 1 | This is a sliced apple 1.
        heat apple 1 with microwave 1 | You heat the apple 1 using the microwave 1.
        examine apple 1 | This is a hot sliced apple 1.
        open microwave 1 | You open the microwave 1. The microwave 1 is open. In it, you see a knife 1.
        move apple 1 to microwave 1 | You move the apple 1 to the microwave 1.
        look | You are facing the countertop 1, and microwave 1. Next to it, you see a apple 1.
        take apple 1 from microwave 1 | You pick up the apple 1 from the microwave 1.
        go to fridge 1 | You arrive at fridge 1. The fridge 1 is closed.
        cool apple 1 with fridge 1 | You cool the apple 1 using the fridge 1.
        examine apple 1 | This is a cool sliced apple 1.
        use desklamp 1 | You turn on the desklamp 1.
        open fridge 1 | You open the fridge 1. The fridge 1 is open. In it, you see a desklamp 1.
        move apple 1 to fridge 1 | You move the apple 1 to the fridge 1.
        take desklamp 1 from fridge 1 | You pick up the desklamp 1 from the fridge 1.
        examine desklamp 1 | This desklamp 1 is on.
        """,
    )
    assert world.step("help") == HELP
    assert HELP.startswith("\nAvailable commands:\n  look:   ") and HELP.endswith("using a sharp object\n")


@pytest.mark.parametrize(
    ("commands", "sentence"),
    [
        ("heat", "This is a hot apple 1."),
        ("cool", "This is a cold apple 1."),
        ("clean", "This is a clean apple 1."),
        ("heat clean", "This is a hot and clean apple 1."),
        ("clean cool", "This is a cool and clean apple 1."),
        ("heat cool", "This is a cold apple 1."),
        ("slice", "This is a sliced apple 1."),
        ("slice clean", "This is a clean sliced apple 1."),
        ("slice heat", "This is a hot sliced apple 1."),
        ("slice cool", "This is a cool sliced apple 1."),
        ("slice heat clean", "This is a hot and clean sliced apple 1."),
        ("slice cool clean", "This is a cool and clean sliced apple 1."),
    ],
)
def test_an_object_in_hand_shows_its_state(commands: str, sentence: str) -> None:
    world = World(kitchen())
    if "slice" in commands:
        for command in ("go to sinkbasin 1", "take knife 1 from sinkbasin 1", "go to countertop 1"):
            world.step(command)
        world.step("slice apple 1 with knife 1")
        world.step("move knife 1 to countertop 1")
    else:
        world.step("go to countertop 1")
    world.step("take apple 1 from countertop 1")
    places = {"heat": "microwave 1", "cool": "fridge 1", "clean": "sinkbasin 1"}
    for verb in commands.split():
        if verb in places:
            world.step(f"go to {places[verb]}")
            world.step(f"{verb} apple 1 with {places[verb]}")
            assert world.accepted
    assert world.step("examine apple 1") == sentence


def test_a_movable_receptacle_shows_what_lies_in_it() -> None:
    world = World(kitchen())
    world.step("go to countertop 1")
    world.step("take bowl 1 from countertop 1")
    assert world.step("examine bowl 1") == "This is a normal bowl 1. In it, you see a spoon 1."


def test_the_admissible_commands_of_one_state_are_these() -> None:
    world = World(kitchen())
    world.step("go to countertop 1")
    assert world.admissible == [
        "examine countertop 1", "examine microwave 1", "go to fridge 1", "go to sinkbasin 1", "help", "inventory", "look",
        "open microwave 1", "take apple 1 from countertop 1", "take bowl 1 from countertop 1",
    ]  # fmt: skip
    world.step("take apple 1 from countertop 1")
    assert world.admissible == [
        "examine apple 1", "examine countertop 1", "examine microwave 1", "go to fridge 1", "go to sinkbasin 1",
        "heat apple 1 with microwave 1", "help", "inventory", "look", "move apple 1 to countertop 1", "open microwave 1",
    ]  # fmt: skip


def test_winning_needs_the_state_and_ends_when_the_object_is_taken_away() -> None:
    world = World(kitchen())
    for command in ("go to countertop 1", "take apple 1 from countertop 1", "go to fridge 1", "open fridge 1"):
        world.step(command)
        assert not world.won
    world.step("move apple 1 to fridge 1")
    assert not world.won
    for command in (
        "take apple 1 from fridge 1",
        "go to microwave 1",
        "heat apple 1 with microwave 1",
        "go to fridge 1",
    ):
        world.step(command)
        assert not world.won
    world.step("move apple 1 to fridge 1")
    assert world.won
    world.step("take apple 1 from fridge 1")
    assert not world.won


def test_two_objects_count_only_in_one_receptacle() -> None:
    shelves = tuple(Receptacle(f"shelf_{i}", "shelf", f"shelf {i}", f"at {i}") for i in range(2))
    pens = tuple(Item(f"pen_{i}", ("pen",), f"pen {i}", receptacles=(f"shelf_{i}",), locations=(f"at {i}",)) for i in range(2))
    goal = Goal("pick_two_obj_and_place", "pen", "shelf")
    world = World(Game(shelves, pens, (("shelf", "pen"),), "start", "put two pen in shelf", goal))
    assert not world.won
    for command in ("go to shelf 0", "take pen 0 from shelf 0", "go to shelf 1", "move pen 0 to shelf 1"):
        assert not world.won
        world.step(command)
    assert world.won


def test_looking_needs_the_object_in_hand_next_to_the_burning_lamp() -> None:
    game = replace(kitchen(), goal=Goal("look_at_obj_in_light", "apple", toggle_type="desklamp"))
    world = World(game)
    for command in ("go to fridge 1", "use desklamp 1", "go to countertop 1", "take apple 1 from countertop 1"):
        world.step(command)
        assert not world.won
    world.step("go to fridge 1")
    assert world.won
    world.step("go to sinkbasin 1")
    assert not world.won


@settings(max_examples=40, deadline=None)
@given(games, st.integers(0, 2**32), st.sampled_from(["", "bogus", "take", "go to shelf 0", "GO TO shelf 1", "use"]))
def test_an_inadmissible_command_does_nothing(game: Game, seed: int, command: str) -> None:
    world = World(game)
    rng = random.Random(seed)
    everything: set[str] = {command}
    for _ in range(15):
        everything.update(world.admissible)
        world.step(rng.choice(world.admissible))
    before, allowed = snapshot(world), list(world.admissible)
    for wrong in sorted(everything - set(allowed)):
        assert world.step(wrong) == NOTHING_HAPPENS
        assert not world.accepted
        assert snapshot(world) == before and world.admissible == allowed


@settings(max_examples=40, deadline=None)
@given(games, st.integers(0, 2**32))
def test_an_admissible_command_changes_what_it_says_and_nothing_else(game: Game, seed: int) -> None:
    world = World(game)
    tables = tables_of(game)
    rng = random.Random(seed)
    for _ in range(40):
        assert world.admissible == sorted(set(world.admissible))
        here = [c for c in world.admissible if not c.startswith("go to")]
        command = rng.choice(here if rng.random() < 0.6 else world.admissible)
        before, held = snapshot(world), world.held
        feedback = world.step(command)
        assert world.accepted and feedback != NOTHING_HAPPENS
        verb, _, rest = command.partition(" ")
        if verb in ("look", "inventory", "help", "examine"):
            assert snapshot(world) == before
        elif verb in ("open", "close"):
            r = tables.receptacle_index[rest]
            assert world.opened >> r & 1 == (verb == "open") and snapshot(world) != before
        elif verb == "go":
            assert world.location == tables.location[tables.receptacle_index[rest[3:]]] and world.location != before[0]
        elif verb == "take":
            o, r = (rest.split(" from ")[0], rest.split(" from ")[1])
            assert tables.object_names[world.held] == o and world.held not in world.contents[tables.receptacle_index[r]]
        elif verb == "move":
            assert world.held == -1 and held in world.contents[tables.receptacle_index[rest.split(" to ")[1]]]
        elif verb in ("heat", "cool", "clean"):
            assert getattr(world, {"heat": "hot"}.get(verb, verb)) >> held & 1
            assert not world.hot & world.cool
        else:
            o = tables.object_index[rest.split(" with ")[0]]
            assert (world.on if verb == "use" else world.sliced) >> o & 1


@settings(max_examples=25, deadline=None)
@given(games, st.integers(0, 2**32))
def test_copies_are_independent_and_behave_alike(game: Game, seed: int) -> None:
    world = World(game)
    rng = random.Random(seed)
    for _ in range(10):
        world.step(rng.choice(world.admissible))
    before = snapshot(world)
    twins = [world.copy(), pickle.loads(pickle.dumps(world))]
    for _ in range(15):
        command = rng.choice(twins[0].admissible)
        assert twins[0].step(command) == twins[1].step(command)
        assert snapshot(twins[0]) == snapshot(twins[1]) and twins[0].won == twins[1].won
    assert snapshot(world) == before and hash(before) == hash(snapshot(world))
    assert twins[0].steps == 25 and world.steps == 10
    first = World(game)
    text = first.reset()
    assert world.reset() == text and snapshot(world) == snapshot(first) and world.steps == 0


@settings(max_examples=25, deadline=None)
@given(games)
def test_a_game_survives_pickling_and_shuffling(game: Game) -> None:
    twin = pickle.loads(pickle.dumps(game))
    assert twin == game and twin.hash() == game.hash() and hash(twin) == hash(game)
    assert replace(game, receptacles=game.receptacles[::-1], objects=game.objects[::-1]).hash() == game.hash()
    assert replace(game, task="put some other thing in bed").hash() != game.hash()


def test_the_hash_of_a_game_is_frozen() -> None:
    assert kitchen().hash() == "5bbaf966be0557f2fc1dc7f016367525f6adc18200b5cc004a26402dfa457104"


def test_errors_say_what_is_wrong_and_what_to_do() -> None:
    game = kitchen()
    with pytest.raises(GameError, match=r"family is 'juggle', which no rule plays\. Use one of pick_and_place_simple"):
        replace(game, goal=Goal("juggle", "apple", "fridge"))
    with pytest.raises(GameError, match="1 names occur more than once"):
        replace(game, objects=(*game.objects, replace(game.objects[0], id="apple_2")))
    with pytest.raises(GameError, match="refers to d_drawer, which the game does not have"):
        replace(game, objects=(replace(game.objects[0], receptacles=("d_drawer",)),))
    with pytest.raises(GameError, match=r"has no toggle_type, so nothing could win\. Set toggle_type"):
        replace(game, goal=Goal("look_at_obj_in_light", "apple"))


def test_generated_games_and_the_originals_differ_in_two_answers() -> None:
    room = "You are in the middle of a room. Looking quickly around you, you see"
    ours = World(kitchen())
    assert ours.step("look").startswith(f"{room} a ") and ours.step("help").startswith("\nAvailable")
    theirs = World(replace(kitchen(), rules=ORIGINAL))
    assert theirs.reset() == ours.reset()
    assert theirs.step("look") == f"{room} nothing."
    assert theirs.step("help") == HELP[1:]
    assert theirs.admissible == ours.admissible
    with pytest.raises(GameError, match=r"rules 3, which nobody plays"):
        replace(kitchen(), rules=3)


def test_a_receptacle_without_a_location_is_not_there() -> None:
    game = kitchen()
    gone = tuple(replace(r, location="") if r.type == "fridge" else r for r in game.receptacles)
    world = World(replace(game, receptacles=gone))
    assert "a fridge 1" not in world.reset() and not [c for c in world.admissible if "fridge" in c]


def test_what_has_become_before_the_start_counts() -> None:
    game = kitchen()
    things = tuple(replace(o, states=("clean", "sliced")) if o.types == ("apple",) else o for o in game.objects)
    doors = tuple(replace(r, opened=r.openable) for r in game.receptacles)
    world = World(replace(game, objects=things, receptacles=doors))
    world.step("go to fridge 1")
    assert "close fridge 1" in world.admissible
    world.step("go to countertop 1")
    world.step("take apple 1 from countertop 1")
    assert world.step("examine apple 1") == "This is a clean sliced apple 1."
    assert "states" not in game._canonical() and "opened" not in game._canonical()  # games of before have the same hash

"""The generator: rooms, tasks, hidden habits, and that the same seed is the same game everywhere."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.envs.household_engine import FAMILIES, FLAGS, GameError, World
from sdar.envs.household_games import FAMILY_ROOMS, OBJECTS, OPENABLE, ROOMS, make_game, world_facts
from sdar.envs.household_planner import plan

families = st.sampled_from(sorted(FAMILIES))


def test_the_game_of_a_seed_is_frozen() -> None:
    assert make_game(0).hash() == "ac740660f76ede3c65f8c4357e6007481d35a971f041c329f2ccf366b6a63665"
    game = make_game("7", receptacles=20, usual=world_facts(7))
    assert game.hash() == "6d7f1669a3f8d05ebe286b8542c90cd1821c5cb6a787f06066c9b7ce26b2490d"


def test_a_seed_is_its_text_and_other_seeds_are_other_games() -> None:
    assert make_game(3) == make_game(3) == make_game("3")
    assert len({make_game(seed).hash() for seed in range(300)}) == 300


def test_the_order_of_object_types_does_not_matter() -> None:
    types = ["mug", "apple", "egg", "pan", "spoon", "knife"]
    assert make_game(1, object_types=types, room="kitchen") == make_game(1, object_types=types[::-1], room="kitchen")


@settings(max_examples=150, deadline=None)
@given(st.integers(), families, st.integers(6, 30), st.integers(1, 3), st.booleans())
def test_every_game_is_well_formed_unsolved_and_solvable(
    seed: int, family: str, receptacles: int, instances: int, habits: bool
) -> None:
    usual = world_facts(seed) if habits else None
    game = make_game(seed, family=family, receptacles=receptacles, instances=instances, usual=usual)
    rooms = [room for room in FAMILY_ROOMS[family] if {r.type for r in game.receptacles} <= ROOMS[room].keys()]
    counts = Counter(r.type for r in game.receptacles)
    assert len(game.receptacles) == receptacles
    assert any(all(counts[name] <= ROOMS[room][name] for name in counts) for room in rooms)
    assert all(r.openable == (r.type in OPENABLE) and r.name.startswith(r.type + " ") for r in game.receptacles)
    kinds = {r.id: r.type for r in game.receptacles}
    assert all((kinds[place], o.types[0]) in game.can_contain for o in game.objects for place in o.receptacles)
    assert all(len(o.receptacles) == 1 == len(o.locations) for o in game.objects)
    most = Counter(o.types[0] for o in game.objects)
    assert most.pop(game.goal.object_type) <= max(instances, FAMILIES[family].count)
    assert all(many <= instances for many in most.values())
    targets = [o for o in game.objects if game.goal.object_type in o.types]
    assert len(targets) >= FAMILIES[family].count
    assert all(kinds[place] != game.goal.receptacle_type for o in targets for place in o.receptacles)
    assert game.goal.object_type in game.task and not game.task.endswith(".")
    assert (game.goal.receptacle_type or game.goal.toggle_type) in game.task
    world = World(game)
    assert not world.won and not world.tables.here[world.location]
    assert len(plan(world)) >= 3


@settings(max_examples=30, deadline=None)
@given(st.integers(), families)
def test_a_small_room_has_different_receptacles_before_it_repeats_one(seed: int, family: str) -> None:
    game = make_game(seed, family=family, receptacles=8)
    assert len({r.type for r in game.receptacles}) == 8


def test_a_full_room_is_possible_and_one_more_is_not() -> None:
    for room, types in ROOMS.items():
        assert len(make_game(0, room=room, receptacles=sum(types.values())).receptacles) == sum(types.values()) >= 30
        with pytest.raises(GameError, match=f"has at most {sum(types.values())}"):
            make_game(0, room=room, receptacles=sum(types.values()) + 1)


def test_names_count_down_in_the_order_of_the_text() -> None:
    names = [r.name for r in make_game(0, room="kitchen", receptacles=37).receptacles]
    assert [name for name in names if name.startswith("stoveburner")] == [f"stoveburner {i}" for i in (4, 3, 2, 1)]


def test_objects_follow_the_habits_of_their_world_as_often_as_asked() -> None:
    usual = world_facts("home")
    for share in (0.0, 0.9, 1.0):
        where = Counter()
        for seed in range(250):
            game = make_game(seed, usual=usual, usual_share=share)
            kinds = {r.id: r.type for r in game.receptacles}
            where.update(kinds[o.receptacles[0]] == usual[o.types[0]] for o in game.objects)
            assert game.facts == {name: usual[name] for name in (game.goal.object_type, game.goal.toggle_type) if name}
            assert set(game.facts.values()) <= set(kinds.values())
            assert game.goal.receptacle_type != game.facts[game.goal.object_type]
        frequency = where[True] / where.total()
        assert share <= frequency + 0.02 and (share == 1.0) == (frequency == 1.0)
        assert frequency < 0.4 or share > 0.0


def test_without_habits_a_game_has_no_facts_and_places_are_even() -> None:
    where = Counter()
    for seed in range(400):
        game = make_game(seed, family="pick_heat_then_place_in_recep", object_types=["apple"], receptacles=12)
        kinds = {r.id: r.type for r in game.receptacles}
        where.update(kinds[o.receptacles[0]] for o in game.objects)
        assert game.facts == {}
    assert len(where) >= 8 and max(where.values()) < 0.3 * where.total()


def test_the_habits_of_a_world_are_hard_to_guess() -> None:
    for room, types in ROOMS.items():
        for name, kind in OBJECTS.items():
            if room in kind.rooms:
                assert len(kind.holders & types.keys()) >= 5, (room, name)
    draws = Counter(world_facts(seed, ["apple"], ["kitchen"])["apple"] for seed in range(900))
    assert set(draws) == OBJECTS["apple"].holders & ROOMS["kitchen"].keys()
    assert max(draws.values()) < 2 * min(draws.values())


def test_the_habit_of_a_type_does_not_depend_on_the_other_types() -> None:
    whole = world_facts(5)
    assert set(whole) == set(OBJECTS)
    assert world_facts(5, ["mug", "desklamp"]) == {"mug": whole["mug"], "desklamp": whole["desklamp"]}
    assert world_facts(6) != whole
    assert all(whole[name] in OBJECTS[name].holders for name in whole)


def test_distractors_and_object_types_bound_what_a_game_holds() -> None:
    game = make_game(0, family="pick_cool_then_place_in_recep", distractors=0, instances=1)
    assert {o.types for o in game.objects} == {(game.goal.object_type,)}
    types = ["book", "pen", "watch", "floorlamp"]
    for seed in range(20):
        game = make_game(seed, family="look_at_obj_in_light", object_types=types, distractors=2)
        assert {o.types[0] for o in game.objects} == set(types) and game.goal.toggle_type == "floorlamp"


def test_the_tables_agree_with_each_other() -> None:
    everywhere = set(itertools.chain.from_iterable(ROOMS.values()))
    for name, kind in OBJECTS.items():
        assert kind.holders <= everywhere and set(kind.flags) <= set(FLAGS) and set(kind.rooms) <= ROOMS.keys(), name
    assert everywhere >= OPENABLE
    assert FAMILY_ROOMS.keys() == FAMILIES.keys()
    for family, rooms in FAMILY_ROOMS.items():
        assert all(FAMILIES[family].tool in ROOMS[room] or not FAMILIES[family].tool for room in rooms)
        for room in rooms:
            assert make_game(0, family=family, room=room).family == family


def test_errors_say_what_is_wrong_and_what_to_do() -> None:
    with pytest.raises(GameError, match=r"should have 5 receptacles, but a task needs at least 6"):
        make_game(0, receptacles=5)
    with pytest.raises(GameError, match=r"1 unknown families: juggle. Known are pick_and_place_simple"):
        make_game(0, family="juggle")
    with pytest.raises(GameError, match=r"1 unknown rooms: cellar"):
        make_game(0, room="cellar")
    with pytest.raises(GameError, match=r"1 unknown object types: sword"):
        make_game(0, object_types=["sword"])
    with pytest.raises(GameError, match=r"not possible in a bedroom, which lacks what it needs. Use kitchen"):
        make_game(0, family="pick_heat_then_place_in_recep", room="bedroom")
    with pytest.raises(GameError, match=r"usual place of pen is 'fridge', which cannot hold it. Use one of"):
        make_game(0, usual={"pen": "fridge"})
    with pytest.raises(GameError, match=r"No task of family pick_heat_then_place_in_recep is possible in room any with 1 obj"):
        make_game(0, family="pick_heat_then_place_in_recep", object_types=["pen"])
    with pytest.raises(GameError, match=r"usual_share is 1.5, which is no probability"):
        make_game(0, usual_share=1.5)
    with pytest.raises(GameError, match=r"at most 0 objects of a type"):
        make_game(0, instances=0)
    with pytest.raises(GameError, match=r"-1 further object types"):
        make_game(0, distractors=-1)
    with pytest.raises(GameError, match=r"A pen is in none of the 1 rooms \(kitchen\)"):
        world_facts(0, ["pen"], ["kitchen"])

"""The household: ALFWorld's text world as an environment, with seeded games of any size."""

import hashlib
import json
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from sdar.envs.household_engine import FAMILIES, NOTHING_HAPPENS, Game, GameError, World
from sdar.envs.household_games import make_game, world_facts
from sdar.envs.household_planner import Expert as Planner
from sdar.envs.household_planner import plan
from sdar.errors import ConfigError, PanelError
from sdar.parts import Environment, Expert, StepResult
from sdar.registry import did_you_mean, register
from sdar.skills import FACT_TEMPLATE
from sdar.types import Task

GENERATOR = 1
"""Raised whenever the same arguments would make another game, so that no panel can mean two things."""

PHRASES = [
    "-= Welcome to TextWorld, ALFRED! =-\n\n",
    "You are in the middle of a room. Looking quickly around you, you see a",
    "\n\nYour task is to:",
    "You arrive at",
    "You open the",
    "You close the",
    "You pick up the",
    "You move the",
    "You clean the",
    "You heat the",
    "You cool the",
    "You turn on the",
    "Nothing happens.",
    ", and a",
    ", a",
    ". The",
    " is closed.",
    " is open. In it, you see a",
    " is open. In it, you see nothing.",
    ". On the",
    "On the",
    ", you see a",
    ", you see nothing.",
    " from the",
    " to the",
    " using the",
    "go to",
    "You are carrying: a",
    "You are not carrying anything.",
    " is usually in the",
    "The",
]


@register("household")
class HouseholdEnv(Environment):
    """ALFWorld's text world (six task families) in plain Python, with generated games that are always solvable.

    Args:
        split: Where training tasks come from. ``seen`` holds new tasks in the rooms of ``train``; ``unseen`` holds rooms of
            its own (each room is its own furniture plus what a task needs). Panels of different splits never share a task.
        world: Seed of the hidden facts (object type -> the receptacle type where it usually is) that hold in every room. None:
            no such facts, every allowed place is as likely. "fresh": other facts in every task, so that only a policy that
            reads them knows them.
        receptacles: How many receptacles a room has, from 6 to a full ALFWorld room (about 30).
        families: Task families, all six by default.
        object_types: Object types that games may contain, all by default.
        instances: Most objects of one type.
        usual_share: Probability that an object lies in its usual place.
        distractors: How many other object types lie about; by default as many as receptacles.
        horizon: Most actions in an episode (ALFWorld: 50).
        success_reward: Reward of reaching the goal.
        rooms: How many different rooms there are in training (and as many others in ``unseen``).
    """

    running: World | None

    def __init__(
        self,
        split: Literal["train", "seen", "unseen"] = "train",
        world: int | Literal["fresh"] | None = None,
        receptacles: int = 10,
        families: list[str] | None = None,
        object_types: list[str] | None = None,
        instances: int = 2,
        usual_share: float = 0.9,
        distractors: int | None = None,
        horizon: int = 50,
        success_reward: float = 10.0,
        rooms: int = 200,
    ):
        if horizon < 1:
            raise ConfigError(f"env.horizon is {horizon}: an episode needs at least 1 action. ALFWorld allows 50.")
        if rooms < 1:
            raise ConfigError(f"env.rooms is {rooms}: training tasks need at least 1 room.")
        for family in families or []:
            if family not in FAMILIES:
                raise ConfigError(
                    f"env.families names {family!r}: no such task family.{did_you_mean(family, FAMILIES)} "
                    f"Families: {', '.join(FAMILIES)}."
                )
        self.split = split
        self.world = world
        self.families = list(families or FAMILIES)
        self.receptacles = receptacles
        self.object_types = object_types
        self.instances = instances
        self.usual_share = usual_share
        self.distractors = distractors
        self.horizon = horizon
        self.success_reward = success_reward
        self.rooms = rooms
        settings = [GENERATOR, world, receptacles, self.families, object_types, instances, usual_share, distractors, rooms]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        for task_id in self.task_ids("train", len(self.families), 0):
            self.game(task_id)  # settings that make no game of some family fail here, before anything is loaded

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        self.check_split(split)
        return [f"household-{self.fingerprint}-{split}-{seed}-{i:06d}" for i in range(count)]

    def game(self, task_id: str) -> Game:
        """The game of a task id: plain data, the same on every machine."""
        return _game(self._recipe(), task_id)

    def task(self, task_id: str) -> Task:
        game = self.game(task_id)
        number = int(task_id.rpartition("-")[2])
        return Task(id=task_id, family=game.family, instruction=game.task, seed=number, facts=dict(game.facts))

    def facts(self) -> dict[str, str]:
        """Where things usually are in this world; empty unless `world` is a seed."""
        return dict(_habits(self.world, tuple(self.object_types or ()))) if isinstance(self.world, int) else {}

    def reset(self, task: Task) -> str:
        self.running = World(self.game(task.id))
        return self.running.reset()

    def step(self, action: str) -> StepResult:
        world = self._world()
        observation = world.step(action)
        won = world.won
        return StepResult(
            observation=observation,
            reward=self.success_reward * won,
            done=won or world.steps >= self.horizon,
            success=won,
            valid=observation != NOTHING_HAPPENS,
        )

    def admissible(self) -> list[str]:
        return self._world().admissible

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "HouseholdExpert":
        return HouseholdExpert(self._world(), facts, rng)

    def demonstration(self, task: Task) -> list[str]:
        """A short way, of somebody who knows where everything is."""
        return list(_demonstration(self._recipe(), task.id))

    def hint(self, task: Task) -> str:
        """Where the things that the task names usually are; in a world without such facts, the first step."""
        named = {thing: place for thing, place in task.facts.items() if thing in task.instruction.split()}
        told = " ".join(FACT_TEMPLATE.format(thing=thing, place=place) for thing, place in named.items())
        return told or f"Begin with: {self.demonstration(task)[0]}"

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        texts: list[str] = []
        for i in range(400):
            family = self.families[i % len(self.families)]
            world = World(make_game(f"corpus/{rng.random()}", receptacles=rng.randint(6, 24), family=family))
            texts.append(world.reset())
            for _ in range(20):
                command = rng.choice([c for c in world.admissible if c != "help"])
                texts += [command, world.step(command), NOTHING_HAPPENS]
            for command in plan(world):
                texts += [command, world.step(command)]
        for facts in (world_facts(seed) for seed in range(40)):
            texts += [f"The {thing} is usually in the {place}." for thing, place in facts.items()]
        return texts, PHRASES

    def _world(self) -> World:
        if self.running is None:
            raise ConfigError("the household was asked to act before `reset`: begin an episode first.")
        return self.running

    def _recipe(self) -> str:
        return json.dumps(
            {
                "fingerprint": self.fingerprint,
                "world": self.world,
                "rooms": self.rooms,
                "families": self.families,
                "make": {
                    "receptacles": self.receptacles,
                    "object_types": self.object_types,
                    "instances": self.instances,
                    "usual_share": self.usual_share,
                    "distractors": self.distractors,
                },
            }
        )


class HouseholdExpert(Expert):
    """Looks where the facts say first, then everywhere else in an order that `rng` draws; remembers what it has seen."""

    def __init__(self, world: World, facts: Mapping[str, str], rng: random.Random):
        names = [r.name for r in world.game.receptacles]
        rng.shuffle(names)
        kinds = {r.name: r.type for r in world.game.receptacles}
        told = set(facts.values())
        self.world = world
        self.planner = Planner(world.game, sorted(names, key=lambda n: kinds[n] not in told))

    def act(self) -> str:
        return self.planner.act(self.world)

    def watch(self, action: str) -> None:
        self.planner.watch(self.world, action)


@lru_cache(maxsize=64)
def _habits(world: int | str, object_types: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(world_facts(world, object_types or None).items())


@lru_cache(maxsize=8192)
def _demonstration(recipe: str, task_id: str) -> tuple[str, ...]:
    world = World(_game(recipe, task_id))
    world.reset()
    return tuple(plan(world))


@lru_cache(maxsize=8192)
def _game(recipe: str, task_id: str) -> Game:
    settings = json.loads(recipe)
    try:
        name, fingerprint, split, seed, number = task_id.split("-")
        index = int(number)
    except ValueError:
        raise PanelError(f"{task_id!r} is no household task: ids look like household-FINGERPRINT-SPLIT-SEED-NUMBER.") from None
    if name != "household" or split not in HouseholdEnv.splits or fingerprint != settings["fingerprint"]:
        raise PanelError(
            f"task {task_id} belongs to a household with other settings (fingerprint {fingerprint}, this one is "
            f"{settings['fingerprint']}): it would be another game under the same name. Use the settings that the panel was "
            "made with."
        )
    make, world = settings["make"], settings["world"]
    family = settings["families"][index % len(settings["families"])]
    house = "unseen" if split == "unseen" else "train"
    layout = f"{house}/{seed}/{index % settings['rooms']}"
    # fresh facts can make a family impossible (an object to heat that is never in a kitchen): then others are drawn
    worlds = [task_id, *(f"{task_id}/{n}" for n in range(1, 100))] if world == "fresh" else [world]
    for facts in worlds:
        usual = None if facts is None else dict(_habits(facts, tuple(make["object_types"] or ())))
        try:
            return make_game(task_id, family=family, usual=usual, layout=layout, **make)
        except GameError as error:
            impossible = error
    raise impossible

"""An expert for the household world: demonstrations from any state, by search or from full knowledge.

The expert never looks at a receptacle whose contents no observation has shown. Since only the agent changes the world,
what was shown once stays known, so its memory is the set of receptacles shown and of objects that the agent put down.

Demonstrations are short but not proven shortest: every choice takes the option that needs the fewest commands next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdar.envs.household_engine import FAMILIES, Game, GameError, World, tables_of

__all__ = ["Expert", "PlanError", "plan"]


class PlanError(GameError):
    """No demonstration leads from here to the goal."""


class Expert:
    """Plays one game from any state, using only what `watch` saw.

    `order` names the receptacles to search first; the others follow in the order of the game. Call `watch` after every
    command that anybody gave in the world, and `act` for the next one; what `act` returns is always admissible.
    """

    __slots__ = ("_destinations", "_game", "_moved", "_order", "_seen", "_tables")

    def __init__(self, game: Game, order: Sequence[str] = ()) -> None:
        tables = tables_of(game)
        unknown = [name for name in order if name not in tables.receptacle_index]
        if unknown:
            raise PlanError(
                f"{len(unknown)} of {len(order)} names in the search order are no receptacle of this game "
                f"({', '.join(unknown[:5])}), so they cannot be searched. It has {', '.join(tables.receptacle_names)}."
            )
        self._game = game
        self._tables = tables
        first = [tables.receptacle_index[name] for name in order]
        self._order = tuple(r for r in dict.fromkeys([*first, *range(len(tables.location))]) if tables.location[r] >= 0)
        self._destinations = [r for r in tables.destinations if tables.location[r] >= 0]
        self._seen = 0
        self._moved = 0

    @classmethod
    def all_knowing(cls, game: Game) -> Expert:
        """An expert that knows where everything is."""
        expert = cls(game)
        expert._seen = (1 << len(game.receptacles)) - 1
        return expert

    def copy(self) -> Expert:
        """An independent expert that remembers the same."""
        new = Expert.__new__(Expert)
        new._game, new._tables, new._order = self._game, self._tables, self._order
        new._destinations = self._destinations
        new._seen, new._moved = self._seen, self._moved
        return new

    def watch(self, world: World, command: str) -> None:
        """Remember what the observation after `command` showed; a command that did nothing showed nothing."""
        if not world.accepted:
            return
        verb, _, rest = command.strip().partition(" ")
        if verb == "move":
            self._moved |= 1 << self._tables.object_index[rest.partition(" to ")[0]]
            return
        if verb == "go":
            rest = rest[3:]
        elif verb not in ("open", "examine"):
            return
        r = self._tables.receptacle_index.get(rest)
        if r is not None and self._accessible(world, r):
            self._seen |= 1 << r

    def act(self, world: World) -> str:
        """The next command; "look" when the game is won."""
        if world.won:
            return "look"
        tables, held = self._tables, world.held
        if held < 0:
            found = self._find(world, tables.wanted & tables.pickupable & ~self._delivered(world))
            return self._search(world) if found is None else self._fetch(world, *found)
        if not tables.wanted >> held & 1:
            return self._put_down(world)
        if tables.place == "lamp":
            lamp = self._find(world, tables.lamps)
            return self._search(world) if lamp is None else self._switch_on(world, *lamp)
        if tables.state and not getattr(world, tables.state) >> held & 1:
            return self._treat(world)
        return self._deliver(world)

    def _accessible(self, world: World, r: int) -> bool:
        return not (self._tables.openable & ~world.opened) >> r & 1

    def _cost(self, world: World, r: int) -> int:
        """Commands until the agent stands before the open receptacle."""
        tables = self._tables
        return (tables.location[r] != world.location) + ((tables.openable & ~world.opened) >> r & 1)

    def _go(self, r: int) -> str:
        return "go to " + self._tables.receptacle_names[r]

    def _reach(self, world: World, r: int) -> str | None:
        """The command that leads towards the open receptacle; None when the agent is there."""
        if self._tables.location[r] != world.location:
            return self._go(r)
        return None if self._accessible(world, r) else "open " + self._tables.receptacle_names[r]

    def _find(self, world: World, objects: int) -> tuple[int, int] | None:
        """The (object, receptacle) that is nearest among the known positions of the objects."""
        state = getattr(world, self._tables.state) if self._tables.state else world.on
        best, found = 99, None
        for r, inside in enumerate(world.contents):
            for o in inside if self._tables.location[r] >= 0 else ():
                if objects >> o & 1 and (self._seen >> r & 1 or self._moved >> o & 1):
                    cost = self._cost(world, r) + (0 if state >> o & 1 else 2)
                    if cost < best:
                        best, found = cost, (o, r)
        return found

    def _destination(self, world: World) -> int:
        """Where to collect the objects: the place that holds most of them already, then the one at hand."""
        tables = self._tables
        if not self._destinations:
            raise self._hopeless(f"no receptacle of type {self._game.goal.receptacle_type!r}")
        if len(self._destinations) == 1:
            return self._destinations[0]
        if tables.count == 1:
            return min(self._destinations, key=lambda r: self._cost(world, r))
        return min(self._destinations, key=lambda r: (-self._known_wanted(world, r).bit_count(), self._cost(world, r)))

    def _known_wanted(self, world: World, r: int) -> int:
        known = self._tables.wanted if self._seen >> r & 1 else self._tables.wanted & self._moved
        return sum(1 << o for o in world.contents[r] if known >> o & 1)

    def _delivered(self, world: World) -> int:
        """Objects to leave where they are because they already count towards the goal."""
        if self._tables.count == 1 or not self._destinations:
            return 0
        # Not `_destination`: its tie-break by distance would change its mind while the agent fetches the second object.
        return max((self._known_wanted(world, r) for r in self._destinations), key=int.bit_count)

    def _fetch(self, world: World, o: int, r: int) -> str:
        tables = self._tables
        return self._reach(world, r) or f"take {tables.object_names[o]} from {tables.receptacle_names[r]}"

    def _switch_on(self, world: World, lamp: int, r: int) -> str:
        # The lamp works in a closed receptacle too, so there is nothing to open.
        if self._tables.location[r] != world.location:
            return self._go(r)
        return "use " + self._tables.object_names[lamp]

    def _treat(self, world: World) -> str:
        tables = self._tables
        if not tables.appliances:
            raise self._hopeless(f"no {FAMILIES[self._game.family].tool}")
        r = next((r for r in tables.appliances if tables.location[r] == world.location), tables.appliances[0])
        if tables.location[r] != world.location:
            return self._go(r)
        treatment = tables.treatment[r]
        assert treatment is not None
        return f"{treatment[0]} {tables.object_names[world.held]} with {tables.receptacle_names[r]}"

    def _deliver(self, world: World) -> str:
        return self._place(world, self._destination(world))

    def _put_down(self, world: World) -> str:
        """Put a wrong object down where that is least work."""
        allowed = [r for r in self._order if self._tables.can_hold[r] >> world.held & 1]
        if not allowed:
            held = self._tables.object_names[world.held]
            raise PlanError(
                f"{held} is in hand and no receptacle of the game {self._game.task!r} may hold it, so that nothing else can be taken: it "
                f"cannot be won from here. Begin anew and leave {held} where it is."
            )
        return self._place(world, min(allowed, key=lambda r: self._cost(world, r)))

    def _place(self, world: World, r: int) -> str:
        tables = self._tables
        if not tables.can_hold[r] >> world.held & 1:
            raise self._hopeless(f"a {tables.receptacle_names[r]} that may not hold the {tables.object_names[world.held]}")
        return self._reach(world, r) or f"move {tables.object_names[world.held]} to {tables.receptacle_names[r]}"

    def _search(self, world: World) -> str:
        """Look into the next receptacle not seen yet, first those at hand; after the last one start over."""
        tables = self._tables
        if not self._unseen(self._order):
            self._seen = 0
        for r in self._unseen(tables.here[world.location]):
            return self._reach(world, r) or "examine " + tables.receptacle_names[r]
        return self._go(self._unseen(self._order)[0])

    def _unseen(self, receptacles: Iterable[int]) -> list[int]:
        return [r for r in receptacles if not self._seen >> r & 1]

    def _hopeless(self, fact: str) -> PlanError:
        task = self._game.task
        return PlanError(f"The game {task!r} has {fact}, so it cannot be won. Leave it out, or check how it was made.")


def plan(world: World, limit: int = 100) -> list[str]:
    """A demonstration from the world's state to the goal, with full knowledge; the world stays as it is.

    Raises PlanError when it does not win within `limit` commands: the proof that a game is solvable is that it returns.
    """
    world = world.copy()
    expert = Expert.all_knowing(world.game)
    commands: list[str] = []
    while not world.won:
        if len(commands) == limit:
            raise PlanError(
                f"{limit} commands did not reach the goal of {world.game.task!r}: an object or lamp that it needs is "
                "missing or cannot be picked up. Leave the game out, or check how it was made."
            )
        command = expert.act(world)
        world.step(command)
        expert.watch(world, command)
        commands.append(command)
    return commands

"""The worlds as Gymnasium environments with texts as observations and actions: ``gymnasium.make("sdar.gym:sdar/Household-v0")``.

Every registered environment is there under its class name without ``Env``; the keyword arguments of `make` are those of `TextEnv`
and, behind them, of the world. ``sdar.envs.GymnasiumEnv`` goes the other way.
"""

import string
from typing import Any

try:
    import gymnasium
except ImportError as error:
    from sdar.errors import ConfigError
    from sdar.versions import install

    raise ConfigError(f"sdar.gym needs gymnasium, which is not installed: {install('gym')}.") from error

from sdar import registry
from sdar.errors import ConfigError
from sdar.parts import Environment, StepResult

ENDLESS = 4096
"""Tasks of a world that makes as many as are asked for."""


class AnyText(gymnasium.spaces.Text):
    """Every text: a world may say and hear what is in no list of characters. Samples are printable ASCII."""

    def __init__(self) -> None:
        super().__init__(max_length=256, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class TextEnv(gymnasium.Env[str, str]):
    """A world of this package as a Gymnasium environment.

    `reset` takes the task of ``options={"task_id": ...}``, or draws one of the split with Gymnasium's random numbers. The infos hold
    task_id, family, instruction and admissible (the actions that the world would accept); after a step also success, valid and scores.

    Args:
        world: The environment.
        split: Where tasks come from.
        tasks: How many different ones; None: all of the split, and ENDLESS of a world that makes as many as are asked for.
        panel_seed: Seed of their list.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        world: Environment,
        split: str = "train",
        tasks: int | None = None,
        panel_seed: int = 0,
        render_mode: str | None = None,
    ):
        there = world.size(split)
        if tasks is None:
            tasks = ENDLESS if there is None else there
        if tasks < 1 or (there is not None and tasks > there):
            raise ConfigError(
                f"tasks is {tasks}, but split {split!r} of {type(world).__name__} has {'any number' if there is None else there}: one is "
                "drawn for each episode, and each counts once. Give from 1 to as many as there are, or leave `tasks` out."
            )
        self.world = world
        self.task_ids = world.task_ids(split, tasks, panel_seed)
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.render_mode = render_mode
        self._told = ""
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = self.task_ids[int(self.np_random.integers(len(self.task_ids)))]
        self._task = self.world.task((options or {}).get("task_id", drawn))
        self._steps = 0
        self._told = self.world.reset(self._task)
        return self._told, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        result = self.world.step(action)
        self._steps += 1
        self._told = result.observation
        late = result.truncated or (not result.done and self._steps >= self.world.horizon)
        return result.observation, result.reward, result.done and not late, late, self._info(result)

    def render(self) -> str:
        return self._told

    def close(self) -> None:
        self.world.close()

    def _info(self, result: StepResult | None = None) -> dict[str, Any]:
        task = self._task
        over = result is not None and result.done
        told: dict[str, Any] = {"task_id": task.id, "family": task.family, "instruction": task.instruction}
        told["admissible"] = [] if over else list(self.world.admissible())
        return told if result is None else told | {"success": result.success, "valid": result.valid, "scores": result.scores}


def make(
    env: str,
    split: str = "train",
    tasks: int | None = None,
    panel_seed: int = 0,
    render_mode: str | None = None,
    **settings: Any,
) -> TextEnv:
    """The world of a class name with these settings."""
    return TextEnv(registry.names(Environment)[env](**settings), split, tasks, panel_seed, render_mode)


registry.load_parts()
for world in {cls.__name__: cls for cls in registry.parts("environments").values()}:
    if world != "GymnasiumEnv":
        gymnasium.register(f"sdar/{world.removesuffix('Env')}-v0", entry_point="sdar.gym:make", kwargs={"env": world})

"""Which task is played: of a panel of the settings, or of any split that the world has."""

from sdar.data import Panel, TaskModule, TaskSource
from sdar.errors import ConfigError, PanelError
from sdar.registry import did_you_mean
from sdar.types import Task


def world_of(data: TaskSource, name: str | None) -> TaskModule:
    """The world that is meant.

    Raises:
        ConfigError: there is none, or several and none is named.
    """
    worlds = {known: world for known, world in data.worlds.items() if world.has_world}
    if not worlds:
        raise ConfigError(
            "data.env is not set: there is no world that could be played. Give one, e.g. -c conf/env/quickstart.yaml."
        )
    if name is None and len(worlds) == 1:
        return next(iter(worlds.values()))
    if name is None or name not in worlds:
        fact = "which one is played is not said" if name is None else f"--world is {name}, and there is none of this name"
        raise ConfigError(f"{fact}.{did_you_mean(name or '', worlds)} Give --world with one of {', '.join(worlds)}.")
    return worlds[name]


def task_of(world: TaskModule, task: str, split: str | None) -> tuple[Panel, Task]:
    """A task by its number in a panel, from 1, or by its id; and the panel.

    Args:
        split: Name of a panel of the settings or of a split of the world; None: the first panel of validation.

    Raises:
        ConfigError: there is no such split or task.
    """
    panels = {panel.name: panel for panel in (world.train_panel, *world.measured)}
    name = split or (world.val_panels[0].name if world.val_panels else world.train_panel.name)
    number = int(task) if task.isdecimal() else None
    if number == 0:
        raise ConfigError("--task is 0: tasks of a split are numbered from 1.")
    if name not in panels:
        try:
            panels[name] = Panel.generate(world.env, name, number or 1, 0)
        except PanelError as error:
            raise ConfigError(f"--split {name}: {error}") from error
    panel = panels[name]
    if number is not None and number > len(panel):
        raise ConfigError(
            f"--task is {number}, and the panel {name!r} has {len(panel)} tasks. Give a number from 1 to {len(panel)}."
        )
    task_id = task if number is None else panel.task_ids[number - 1]
    try:
        return panel, world.task(task_id)
    except Exception as error:  # the world is other people's code
        raise ConfigError(
            f"--task {task}: the world has no such task ({error}). Give a number from 1 to {len(panel)}, or an id of `sdar episodes`."
        ) from error

"""How a policy was spoken to in training, kept in its exported folder and compared where it is loaded.

A policy that knows one protocol, layout or set of template options and is spoken to otherwise looks like a weak policy.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from sdar.errors import PolicyError
from sdar.parts import Policy
from sdar.reading import read_json
from sdar.registry import part_name

if TYPE_CHECKING:
    from sdar.data import TaskModule, TaskSource

FILE = "sdar.json"


def manner(policy: Policy, data: "TaskSource") -> dict[str, Any]:
    """Protocol, layout, exchanges in a prompt (turn layout), options of the chat template, and tools that it tells of, if any; of a run
    with several worlds those of each; where nothing is played the options alone."""
    of = {name: _of_world(policy, world) for name, world in data.worlds.items()}
    return of[""] if [*of] == [""] else {"worlds": of}


def _of_world(policy: Policy, world: "TaskModule") -> dict[str, Any]:
    if not world.has_world:
        return {"chat_options": dict(policy.chat_options)}
    manner = {"protocol": part_name(world.protocol), "layout": world.layout, "chat_options": dict(policy.chat_options)}
    tools = [tool["function"]["name"] for tool in world.protocol.tools]
    return manner | ({"history": world.history} if world.layout == "turn" else {}) | ({"tools": tools} if tools else {})


def _ways(manner: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """World -> how it was told."""
    of = manner.get("worlds")
    return of if isinstance(of, dict) and of and all(isinstance(way, dict) for way in of.values()) else {"": manner}


def write_manner(folder: str, manner: dict[str, Any]) -> None:
    Path(folder, FILE).write_text(json.dumps(manner, indent=2, default=str) + "\n", encoding="utf-8")


def compare_manner(policy: Policy, data: "TaskSource") -> None:
    """Warn where the policy's folder says that it was spoken to otherwise; folders that say nothing are not looked at.

    Raises:
        PolicyError: the file is no JSON object.
    """
    path = getattr(getattr(policy, "base", policy), "path", None)
    file = None if path is None else Path(path, FILE)
    if file is None or not file.is_file():
        return
    known, now = read_json(file, PolicyError, advice="Export the policy anew, or remove the file."), manner(policy, data)
    if not isinstance(known, dict):
        raise PolicyError(f"{file} is no JSON object: it does not say how the policy was spoken to. Remove the file.")
    ways = _ways(known)
    for name, way in _ways(now).items():
        if not all(_different(then, way) for then in ways.values()):
            continue  # it was spoken to so, in whichever world
        then = ways.get(name, next(iter(ways.values())))
        pairs = "; ".join(f"{key} {then.get(key)!r}, here {way.get(key)!r}" for key in _different(then, way))
        rank_zero_warn(
            f"{policy.name} was trained with {pairs} ({file}){f' in {name}' if name else ''}: it may do much worse when it is spoken to "
            "otherwise. Set the same in data and policy.chat_options, unless the change is wanted."
        )


def _different(then: dict[str, Any], way: dict[str, Any]) -> list[str]:
    """Keys of which two ways have other values; conversations of files have no protocol, which is then no difference."""
    told = {*then, *way} if "protocol" in then and "protocol" in way else {*then} & {*way}
    return [key for key in sorted(told) if then.get(key) != way.get(key)]

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
    from sdar.data import TaskModule

FILE = "sdar.json"


def manner(policy: Policy, data: "TaskModule") -> dict[str, Any]:
    """Protocol, layout, exchanges in a prompt (turn layout), options of the chat template, and tools that it tells of, if any; where
    nothing is played the options alone."""
    if not data.has_world:
        return {"chat_options": dict(policy.chat_options)}
    manner = {"protocol": part_name(data.protocol), "layout": data.layout, "chat_options": dict(policy.chat_options)}
    tools = [tool["function"]["name"] for tool in data.protocol.tools]
    return manner | ({"history": data.history} if data.layout == "turn" else {}) | ({"tools": tools} if tools else {})


def write_manner(folder: str, manner: dict[str, Any]) -> None:
    Path(folder, FILE).write_text(json.dumps(manner, indent=2, default=str) + "\n", encoding="utf-8")


def compare_manner(policy: Policy, data: "TaskModule") -> None:
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
    told = (
        {*known, *now} if "protocol" in known and data.has_world else {*known} & {*now}
    )  # conversations of files have no protocol
    different = [key for key in sorted(told) if known.get(key) != now.get(key)]
    if different:
        pairs = "; ".join(f"{key} {known.get(key)!r}, here {now.get(key)!r}" for key in different)
        rank_zero_warn(
            f"{policy.name} was trained with {pairs} ({file}): it may do much worse when it is spoken to otherwise. Set the same in data "
            "and policy.chat_options, unless the change is wanted."
        )

"""Panels: ordered, hashed lists of task ids that depend on nothing but the arguments they were made from."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from sdar.errors import PanelError
from sdar.parts import Environment
from sdar.paths import resolve
from sdar.reading import convert, excerpt, read_json, read_name

Size = int | Literal["all"]
"""How many tasks a panel has."""


class _PanelFile(msgspec.Struct):
    name: str
    hash: str
    task_ids: list[str]


@dataclass(frozen=True)
class Panel:
    """An ordered list of tasks, named by its content.

    Raises:
        PanelError: empty, or a task twice.
    """

    name: str
    task_ids: tuple[str, ...]
    whole: str = ""
    """Hash of the panel that this is what is left of, where tasks were left out."""

    def __post_init__(self) -> None:
        if not self.task_ids:
            raise PanelError(f"panel {self.name!r} is empty: there is nothing to train or measure on. Ask for 1 task or more.")
        if len(set(self.task_ids)) != len(self.task_ids):
            twice = next(t for t in self.task_ids if self.task_ids.count(t) > 1)
            raise PanelError(f"panel {self.name!r} names task {twice} twice: a task may count once. Remove the repetition.")

    def __len__(self) -> int:
        return len(self.task_ids)

    @property
    def hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the ordered ids."""
        return hashlib.sha256("\n".join(self.task_ids).encode()).hexdigest()[:12]

    def without(self, left_out: Collection[str]) -> "Panel":
        """What is left of it when some tasks are not played."""
        kept = tuple(task_id for task_id in self.task_ids if task_id not in left_out)
        return self if kept == self.task_ids else Panel(self.name, kept, self.hash)

    def save(self, path: str | Path) -> None:
        """Write the panel with its hash."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(
            json.dumps({"name": self.name, "hash": self.hash, "task_ids": self.task_ids}, indent=1) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: str | Path) -> "Panel":
        """Read a panel file and check its hash.

        Raises:
            PanelError: missing, unreadable, or edited since it was written.
        """
        file = resolve(path)
        if not file.is_file():
            raise PanelError(f"panel file {path} does not exist: give the path of a file that `Panel.save` wrote.")
        advice = "A panel file holds name, hash and task_ids; restore it."
        data = convert(read_json(file, PanelError, advice=advice), _PanelFile, str(file), PanelError, advice=advice)
        for task_id in data.task_ids:
            read_name(task_id, f"{file}: the task id {excerpt(task_id)}", PanelError, longest=2000)
        panel = cls(
            read_name(data.name, f"{file}: the name {excerpt(data.name)}", PanelError, file=True), tuple(data.task_ids)
        )
        stored, found = data.hash, panel.hash
        if found != stored:
            raise PanelError(
                f"panel file {path} says hash {stored}, but its {len(panel)} tasks hash to {found}: it was edited or damaged. "
                "Numbers from it would not be comparable; restore the file or save it anew."
            )
        return panel

    @classmethod
    def generate(cls, env: Environment, split: str, count: int, seed: int) -> "Panel":
        """The panel of a split, made from a seed."""
        return cls(split, tuple(env.task_ids(split, count, seed)))


def size_of(env: Environment, split: str, asked: Size | Mapping[str, Size]) -> int:
    """How many tasks the panel of a split gets.

    Args:
        asked: A number, ``all`` tasks that the world has of the split, or one of them for each panel by its name.

    Raises:
        PanelError: nothing is asked for this panel, or all tasks where there is no end of them.
    """
    if isinstance(asked, Mapping):
        if split not in asked:
            raise PanelError(
                f"it has no size for the panel {split!r}, only for {', '.join(asked) or 'none'}: give it a number, or all."
            )
        asked = asked[split]
    if asked != "all":
        return int(asked)
    size = env.size(split)
    if size is None:
        raise PanelError(
            f"{type(env).__name__} makes as many tasks of {split!r} as are asked for: give a number instead of all."
        )
    return size


def check_disjoint(*panels: Panel) -> None:
    """Raise PanelError if two panels share a task, or the name that their numbers are reported under."""
    for i, a in enumerate(panels):
        for b in panels[i + 1 :]:
            shared = set(a.task_ids) & set(b.task_ids)
            if shared:
                raise PanelError(
                    f"panels {a.name!r} and {b.name!r} share {len(shared)} tasks (for example {min(shared)}): a policy would "
                    "be measured on tasks that it was trained or chosen on. Use panels of different splits or seeds."
                )
            if a.name == b.name:
                raise PanelError(
                    f"two panels are called {a.name!r} (hashes {a.hash} and {b.hash}): their numbers would be mixed under one "
                    "name. Save one of them under another name."
                )

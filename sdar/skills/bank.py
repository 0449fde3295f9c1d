"""Skill banks: skills in a fixed order, read from a folder or a file, and chosen for tasks."""

import re
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path

from sdar.errors import ConfigError, SkillBankError
from sdar.paths import how_to_fetch, installed_settings, resolve
from sdar.registry import did_you_mean
from sdar.skills.formats import read_markdown, read_sdar, read_skillrl
from sdar.skills.skill import Skill
from sdar.types import Task


class SkillBank:
    """Skills in a fixed order, with unique ids.

    Raises:
        SkillBankError: no skills, two with one id, or one without a text.
    """

    def __init__(self, skills: Iterable[Skill], source: str = "this bank"):
        self.skills = tuple(skills)
        self.source = source
        if not self.skills:
            raise SkillBankError(f"{source} holds no skills: nobody would be told anything. Add one, or use NoRetriever.")
        self._by_id: dict[str, Skill] = {}
        for skill in self.skills:
            if not skill.text.strip():
                raise SkillBankError(f"{source}: the text of skill {skill.id!r} is empty. Write it, or take the skill out.")
            if skill.id in self._by_id:
                raise SkillBankError(
                    f"{source}: two skills have the id {skill.id!r}; nothing could tell them apart in logs. Rename one."
                )
            self._by_id[skill.id] = skill

    @classmethod
    def load(cls, path: str | Path) -> "SkillBank":
        """Read a bank from a folder or a JSON file.

        A relative path that the working directory does not have is looked up among the settings installed with the package,
        so that ``conf/skills/household`` works everywhere.
        """
        found = _find(path)
        if found.is_file():
            return cls(read_skillrl(found), str(path))
        if (found / "mapping.yaml").is_file():
            return cls(read_markdown(found), str(path))
        if (found / "skill_mapping.json").is_file():
            return cls(read_sdar(found), str(path))
        files = sorted(found.glob("claude_style_skills*.json"))
        if len(files) > 1:
            raise SkillBankError(
                f"{path} holds {len(files)} files of skills ({', '.join(f.name for f in files)}): name one of them."
            )
        if files:
            return cls(read_skillrl(files[0]), str(path))
        raise SkillBankError(
            f"{path} is no skill bank: it has neither mapping.yaml nor skill_mapping.json nor claude_style_skills*.json, so "
            "nothing says which text is for which task. Write a mapping.yaml with entries such as "
            "`heat: {file: heat.md, families: [pick_heat_then_place_in_recep]}`."
        )

    def __len__(self) -> int:
        return len(self.skills)

    def __iter__(self) -> Iterator[Skill]:
        return iter(self.skills)

    def __contains__(self, skill_id: object) -> bool:
        return skill_id in self._by_id

    def __getitem__(self, skill_id: str) -> Skill:
        return self._by_id[skill_id]

    @property
    def general(self) -> tuple[Skill, ...]:
        """The skills that every task gets."""
        return tuple(s for s in self.skills if s.always)

    @property
    def specific(self) -> tuple[Skill, ...]:
        """The skills that somebody has to choose."""
        return tuple(s for s in self.skills if not s.always)

    def of_family(self, family: str) -> tuple[Skill, ...]:
        """The specific skills of a task family, in bank order."""
        return tuple(s for s in self.specific if family in s.families)

    def named_in(self, instruction: str) -> tuple[Skill, ...]:
        """The specific skills with a keyword in the instruction, in the order in which the instruction names them."""
        found = [(min(_position(k, instruction) for k in s.keywords), s) for s in self.specific if s.keywords]
        return tuple(s for place, s in sorted(found, key=lambda pair: pair[0]) if place < inf)

    def fitting(self, task: Task) -> tuple[Skill, ...]:
        """The specific skills for a task: those of its family; if the bank has none, those that the instruction names."""
        return self.of_family(task.family) or self.named_in(task.instruction)

    def check_world(self, tasks: Iterable[Task]) -> None:
        """Refuse a bank that was written for other tasks: its general advice alone would be told, and nobody would notice.

        Raises:
            SkillBankError: no skill fits any of the tasks; or a few do by a chance word, and not one task is of a family that the
                bank knows.
        """
        tasks = list(tasks)
        known, met = ({f for s in self.specific for f in s.families}, {t.family for t in tasks})
        served = sum(bool(self.fitting(t)) for t in tasks)
        if self.specific and tasks and (not served or (known and not known & met and served < len(tasks) / 2)):
            raise SkillBankError(
                f"{self.source} has a skill for {served} of {len(tasks)} tasks of this run: it is for the families "
                f"{', '.join(sorted(known)) or '(none)'}, the tasks are of {', '.join(sorted(met))}. A teacher would be told next to "
                "nothing about its task. Give the bank of this world, e.g. --model.retriever.skills conf/skills/webshop."
            )


def check_count(bank: SkillBank, count: int, part: str) -> None:
    """Refuse to choose fewer than one, or more skills than the bank has to choose from."""
    there = len(bank.specific)
    if not 1 <= count <= there:
        remedy = f"Choose 1 to {there}." if there else "Use FullRetriever, or add skills that are not `always`."
        raise ConfigError(
            f"{part}.count is {count}, but {bank.source} has {there} skills to choose from besides the {len(bank.general)} "
            f"that every task gets. {remedy}"
        )


def _position(keyword: str, instruction: str) -> float:
    """Where the instruction names the keyword as a word; infinity if nowhere."""
    words = r"\s+".join(re.escape(word) for word in keyword.split())
    hit = re.search(rf"(?<!\w){words}(?!\w)", instruction, re.IGNORECASE)
    return hit.start() if hit else inf


def _find(path: str | Path) -> Path:
    if not str(path):
        raise SkillBankError("the path of the skill bank is empty. Name a folder, e.g. conf/skills/household.")
    here = resolve(path)
    if here.exists():
        return here
    ours = sorted(f"conf/skills/{f.parent.name}" for f in installed_settings().glob("skills/*/mapping.yaml"))
    where = "" if here.is_absolute() else f", neither in {Path.cwd()} nor among the installed settings"
    raise SkillBankError(
        f"skill bank {path} does not exist{where}.{did_you_mean(str(path), ours)} "
        f"Installed banks: {', '.join(ours) or 'none'}.{how_to_fetch(path)}"
    )

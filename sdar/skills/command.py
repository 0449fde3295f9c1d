"""``sdar skills``: what is in a bank, what a retriever gives for a task, and what skills did in a run."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sdar import registry
from sdar.cli.failure import say
from sdar.cli.own_words import parser_of
from sdar.episodes.told import block, line
from sdar.errors import ConfigError, SkillBankError
from sdar.parts import Retriever
from sdar.paths import installed_settings
from sdar.reading import parse_yaml
from sdar.registry import did_you_mean, part_name
from sdar.report.gather import Run, runs_of
from sdar.report.skills import skills_of
from sdar.skills.bank import SkillBank
from sdar.skills.skill import Skill
from sdar.types import Task

BEGINNING = 60
"""Characters of a skill's text in the list."""


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: no bank is named or can be read; a retriever, a skill or a run that is not there.
    """
    asked = _parser().parse_args(list(words))
    if (asked.family is not None or asked.given or asked.retriever != "keyword") and asked.task is None:
        raise ConfigError(
            "--family, --retriever and --with are about what is given for a task: name one with --task 'heat some egg'."
        )
    runs = runs_of([asked.run]) if asked.run is not None else []
    path = asked.bank or next((found for run in runs if (found := _bank_of(run))), None)
    if path is None and (not runs or asked.task is not None or asked.show is not None):
        ours = sorted(f"conf/skills/{file.parent.name}" for file in installed_settings().glob("skills/*/mapping.yaml"))
        raise ConfigError(
            f"skills needs a bank: a folder or a file, e.g. sdar skills conf/skills/household. Installed are {', '.join(ours)}; "
            "docs/skills.md tells of the published ones."
        )
    needed = asked.bank is not None or asked.show is not None or asked.task is not None
    bank = SkillBank.load(path) if path is not None and (needed or _is_there(path)) else None
    if asked.show is not None and bank is not None:
        say(_in_full(bank, asked.show))
    elif asked.task is not None:
        say(_given(str(path), asked, runs))
    elif runs:
        say(_statistics(runs, bank))
    elif bank is not None:
        say(_listed(bank))
    return 0


def _bank_of(run: Run) -> str | None:
    """The bank that a run's retriever chose from."""
    node: Any = run.settings
    for key in ("model", "init_args", "retriever", "init_args", "skills"):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, str) else None


def _is_there(path: str) -> bool:
    """Whether the bank of a run can still be read: its statistics can be told without it."""
    try:
        SkillBank.load(path)
    except SkillBankError:
        return False
    return True


def _listed(bank: SkillBank) -> str:
    rows = [[s.id, _whom(s), f"{len(s.text):,}", _beginning(s.text)] for s in bank]
    characters = sum(len(s.text) for s in bank)
    general = sum(len(s.text) for s in bank.general)
    return "\n".join(
        [
            *_table(["skill", "for", "characters", "begins"], rows),
            f"{len(bank)} skills, {characters:,} characters; {len(bank.general)} of them with {general:,} are for every task.",
            "A text in full: --show SKILL; what a task gets: --task TEXT.",
        ]
    )


def _whom(skill: Skill) -> str:
    """The tasks that a skill is for."""
    if skill.always:
        return "every task"
    told = [*skill.families, *(f'"{word}"' for word in skill.keywords)]
    return ", ".join(told) or "whoever is given it"


def _in_full(bank: SkillBank, name: str) -> str:
    if name not in bank:
        raise ConfigError(
            f"--show {name}: {bank.source} has no such skill.{did_you_mean(name, [s.id for s in bank])} The list: sdar skills."
        )
    return f"{line(name)} (for {line(_whom(bank[name]))}):\n{block(bank[name].text)}"


def _given(path: str, asked: argparse.Namespace, runs: Sequence[Run]) -> str:
    """What a retriever gives for a task, why, and with which scores."""
    retriever = _made(asked.retriever, path, asked.given)
    if runs and _learns(retriever):
        retriever.load_state_dict(_state(runs))
    task = Task("asked for", asked.family or "", asked.task)
    found = retriever.retrieve(task)
    scores, bank = retriever.scores(task), retriever.bank
    known = {i: bank[i] if bank is not None and i in bank else None for i in found.skill_ids}
    rows = [
        [i, _why(skill, task, retriever)] + [f"{scores[i]:.3g}" if i in scores else ""] * bool(scores)
        for i, skill in known.items()
    ]
    others = sorted((i for i in scores if i not in known), key=lambda i: -scores[i])
    head = ["skill", "because", *(["score"] if scores else [])]
    lines = _table(head, rows) if rows else ["nothing: the prompt stays as it is"]
    if others:
        lines += ["not given:", *_table(["skill", "score"], [[i, f"{scores[i]:.3g}"] for i in others])]
    if not asked.family:
        lines.append("Tasks of a world have a family, which comes before words: name one with --family to see what they get.")
    return "\n".join(
        [f"{part_name(retriever)} gives, {len(found.text):,} characters in all:", *lines, "told:", block(found.text)]
    )


def _made(name: str, path: str, given: Sequence[str]) -> Retriever:
    """A retriever over a bank.

    Raises:
        ConfigError: there is none of this name, or it is not made of a bank and these arguments.
    """
    registry.load_parts()
    known = registry.names(Retriever)
    if name not in known:
        raise ConfigError(f"--retriever {name}: there is none.{did_you_mean(name, known)} `sdar list retrievers` tells them.")
    arguments = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--with {pair}: give an argument of the retriever and its value, e.g. --with count=2.")
        arguments[key] = parse_yaml(value, f"--with {pair}", advice="Quote what is text.")
    try:
        return known[name](skills=path, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(
            f"--retriever {name} cannot be made of a bank and {arguments or 'nothing else'} ({error}). `sdar list {name}` tells what it "
            "takes; one that tells facts of a world has no bank."
        ) from error


def _learns(retriever: Retriever) -> bool:
    return type(retriever).load_state_dict is not Retriever.load_state_dict


def _state(runs: Sequence[Run]) -> dict[str, Any]:
    """What the retriever of the last of these runs had learned, out of its checkpoint."""
    from sdar.training.checkpoint_files import read_checkpoint
    from sdar.training.runs import last_checkpoint

    run = runs[-1]
    file = last_checkpoint(run.folder, run.settings)
    state = (read_checkpoint(file).get("sdar") or {}).get("retriever") if file.is_file() else None
    if not state:
        why = "holds nothing that a retriever learned" if file.is_file() else "is not there"
        raise ConfigError(
            f"--run {run.folder}: {file} {why}: scores would be those of an untried bank. Leave --run out to see them."
        )
    return dict(state)


def _why(skill: Skill | None, task: Task, retriever: Retriever) -> str:
    if skill is None or retriever.bank is None:
        return "it tells what it is asked for"
    if skill.always:
        return "it is for every task"
    if task.family and task.family in skill.families:
        return f"it is for the family {task.family}"
    named = (w for w in skill.keywords if SkillBank([replace(skill, keywords=(w,))]).named_in(task.instruction))
    word = next(named, None)
    return f"{part_name(retriever)} chose it" if word is None else f'the task says "{word}"'


def _statistics(runs: Sequence[Run], bank: SkillBank | None) -> str:
    found = [*skills_of({"": runs})]
    if not found:
        raise ConfigError(
            f"{', '.join(str(run.folder) for run in runs)}: no attempt of training is stored, so nothing is known of skills. "
            "--model.log_episodes_every 1 stores all of them, and retrievals.jsonl counts skills in any case."
        )
    names = {"skill": "skill", "family": "family", "uses": "episodes", "with_it": "success with", "without": "success without",
             "lift": "lift, points"}  # fmt: skip
    lines = _table([*names.values()], [[row[name] for name in names] for row in found])
    lines.append(
        "Stored attempts of training; without: those of the family that another skill, or none, was found for. Lift: the teacher's\n"
        "success less the policy's on the measured tasks whose teacher was told the skill, with its paired 95 % interval."
    )
    if bank is not None and (unused := [s.id for s in bank if s.id not in {row["skill"] for row in found}]):
        lines.append(f"Never used: {line(', '.join(unused))}")
    return "\n".join(lines)


def _beginning(text: str) -> str:
    told = line(" ".join(text.split()))
    return told if len(told) <= BEGINNING else f"{told[: BEGINNING - 3]}..."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[*head], *([line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "skills",
        """\
            List a bank of skills, see what a retriever gives for a task, and what skills did in a run. docs/skills.md tells more.

            examples:
              sdar skills conf/skills/household
              sdar skills SkillRL/memory_data/alfworld/claude_style_skills.json --show heat
              sdar skills conf/skills/household --task 'put a hot egg in fridge' --family pick_heat_then_place_in_recep
              sdar skills conf/skills/quickstart --task 'put a mug in shelf' --retriever ucb --with count=2 --run runs/ucb/version_0
              sdar skills --run runs/quickstart/version_0""",
    )
    parser.add_argument("bank", nargs="?", metavar="BANK", help="folder or file of a bank; by default that of --run")
    parser.add_argument("--show", metavar="SKILL", help="the text of one skill")
    parser.add_argument("--task", metavar="TEXT", help="the instruction of a task that skills are given for")
    parser.add_argument("--family", metavar="FAMILY", help="the family of that task")
    parser.add_argument(
        "--retriever", default="keyword", metavar="NAME", help="who gives them (keyword); sdar list retrievers"
    )
    parser.add_argument(
        "--with", dest="given", action="append", default=[], metavar="NAME=VALUE", help="an argument of the retriever"
    )
    parser.add_argument(
        "--run", metavar="RUN", help="a run, or a folder of several: what skills did; with --task what its retriever learned"
    )
    return parser

"""The three formats of skill banks: a folder of Markdown with a ``mapping.yaml``, the SDAR repository's folder, SkillRL's JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdar.errors import SkillBankError
from sdar.reading import excerpt, read_name, read_yaml
from sdar.registry import did_you_mean
from sdar.skills.files import kind_of, load_object, text_of
from sdar.skills.skill import Skill

# ---------------------------------------------------------------------------------------------- Markdown with mapping.yaml

_ENTRY_KEYS = ("file", "families", "keywords", "always")


def read_markdown(folder: Path) -> list[Skill]:
    mapping = folder / "mapping.yaml"
    entries = read_yaml(mapping, SkillBankError)
    if not isinstance(entries, dict):
        raise SkillBankError(
            f"{mapping} holds {kind_of(entries)}, not entries `skill_id: {{file: heat.md, ...}}`. Write one per skill."
        )
    skills = [_entry(mapping, skill_id, entry) for skill_id, entry in entries.items()]
    named = {(folder / str(entry["file"]).partition("#")[0]).resolve() for entry in entries.values()}
    for file in sorted(folder.rglob("*.md")):
        if file.resolve() not in named:
            raise SkillBankError(
                f"{file}: no entry of {mapping.name} names this file, so nobody would ever be told its text. Add an entry, or "
                "move the file out of the bank."
            )
    return skills


def _entry(mapping: Path, skill_id: object, entry: object) -> Skill:
    where = f"{mapping}: skill {excerpt(skill_id)}"
    if not isinstance(skill_id, str) or not skill_id:
        raise SkillBankError(f"{where}: the id is {kind_of(skill_id)}; ids are text. Put it in quotes, or use a word.")
    read_name(skill_id, f"{mapping}: the id {excerpt(skill_id)}", SkillBankError)
    if not isinstance(entry, dict):
        raise SkillBankError(
            f"{where} holds {kind_of(entry)}, not `{{file: heat.md, families: [...], keywords: [...]}}`. Write that."
        )
    for key in entry:
        if key not in _ENTRY_KEYS:
            raise SkillBankError(
                f"{where}: unknown key {excerpt(key)}.{did_you_mean(str(key), _ENTRY_KEYS)} Keys: {', '.join(_ENTRY_KEYS)}."
            )
    if not isinstance(entry.get("file"), str):
        raise SkillBankError(f"{where} names no file, so it has no text. Add `file: heat.md` or `file: facts.md#heading`.")
    if not isinstance(entry.get("always", False), bool):
        raise SkillBankError(
            f"{where}: always is {kind_of(entry['always'])}; it is true or false. Write `always: true`, or leave it out."
        )
    return Skill(
        id=skill_id,
        text=text_of(mapping, skill_id, entry["file"]),
        families=_words(where, "families", entry.get("families", [])),
        keywords=_words(where, "keywords", entry.get("keywords", [])),
        always=entry.get("always", False),
    )


def _words(where: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise SkillBankError(
            f"{where}: {key} is {excerpt(value)}; it is a list of words. Write `{key}: [one, two]`, quoting true, no or 3."
        )
    return tuple(read_name(word, f"{where}: {key} {excerpt(word)}", SkillBankError) for word in value)


# -------------------------------------------------------------------------------------------- the formats of SDAR and SkillRL

_ALFRED = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_QUESTIONS = {
    "direct_retrieval": ("nq", "triviaqa"),
    "entity_attribute_lookup": ("popqa",),
    "multi_hop_reasoning": ("hotpotqa", "2wiki", "2wikimultihopqa", "musique", "bamboogle"),
}
"""Which data sets of questions each skill of the search banks is for: in both repositories, this stands in the code."""


def read_sdar(folder: Path) -> list[Skill]:
    mapping = folder / "skill_mapping.json"
    tables = load_object(mapping)
    files = _table(mapping, tables, "skill_files")
    task_to_skill = _table(mapping, tables, "task_to_skill")
    keywords = _table(mapping, tables, "task_keywords")
    if not files:
        raise SkillBankError(
            f'{mapping} names no skill_files, so the bank has no texts. Add `"skill_files": {{"heat": "heat.md"}}`.'
        )
    for skill_id in files:
        read_name(skill_id, f"{mapping}: the id {excerpt(skill_id)}", SkillBankError)
    families: dict[str, list[str]] = {skill_id: [] if _is_general(skill_id) else [skill_id] for skill_id in files}
    words: dict[str, list[str]] = {skill_id: [] for skill_id in files}
    for task, skill_id in task_to_skill.items():
        if not isinstance(skill_id, str) or skill_id not in files:
            raise SkillBankError(
                f"{mapping}: task_to_skill sends {excerpt(task)} to the skill {excerpt(skill_id)}, which skill_files does not have."
                f"{did_you_mean(str(skill_id), files)} Add its file, or correct the name."
            )
        families[skill_id].append(read_name(task, f"{mapping}: task_to_skill {excerpt(task)}", SkillBankError))
    for task, found in keywords.items():
        skill_id = task_to_skill.get(task, task)
        if skill_id not in files:
            raise SkillBankError(
                f"{mapping}: task_keywords has words for {excerpt(task)}, which is neither in task_to_skill nor in skill_files."
                f"{did_you_mean(task, [*task_to_skill, *files])} Correct the name."
            )
        words[skill_id] += _words(f"{mapping}: task_keywords", task, found)
    for skill_id, more in _known_families(task_to_skill or {skill_id: skill_id for skill_id in files}).items():
        families[skill_id] += more
    return [
        Skill(
            id=skill_id,
            text=text_of(mapping, skill_id, str(name)),
            families=tuple(dict.fromkeys(families[skill_id])),
            keywords=tuple(dict.fromkeys(words[skill_id])),
            always=_is_general(skill_id),
        )
        for skill_id, name in files.items()
    ]


def read_skillrl(file: Path) -> list[Skill]:
    content = load_object(file)
    by_task = "task_specific_skills" if "task_specific_skills" in content else "query_type_skills"
    tasks = _table(file, content, by_task)
    skills = []
    if content.get("general_skills"):
        lines = [_principle(file, item) for item in _items(file, "general_skills", content["general_skills"])]
        skills.append(Skill("general_skills", "\n".join(["### General Principles", *lines]), always=True))
    for task in tasks:
        read_name(task, f"{file}: the name {excerpt(task)}", SkillBankError)
    families = _known_families({task: task for task in tasks})
    for task, items in tasks.items():
        lines = [
            f"{_principle(file, item)}\n  _Apply when: {_field(file, item, 'when_to_apply')}_"
            for item in _items(file, task, items)
        ]
        title = f"### {task.replace('_', ' ').title()} Skills"
        skills.append(Skill(task, "\n".join([title, *lines]), tuple(dict.fromkeys([task, *families[task]]))))
    if content.get("common_mistakes"):
        lines = [
            f"- **Don't**: {_field(file, item, 'description')}\n  **Instead**: {_field(file, item, 'how_to_avoid')}"
            for item in _items(file, "common_mistakes", content["common_mistakes"])
        ]
        skills.append(Skill("common_mistakes", "\n".join(["### Mistakes to Avoid", *lines]), always=True))
    if not skills:
        raise SkillBankError(
            f"{file} has none of general_skills, task_specific_skills, query_type_skills and common_mistakes: it is no bank "
            "of SkillRL's format. Name another file."
        )
    return skills


def _known_families(skill_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Skill -> the data sets' own family names, found as both repositories find them: the first key within the name."""
    found: dict[str, list[str]] = {skill_id: list(_QUESTIONS.get(skill_id, ())) for skill_id in skill_of.values()}
    for family in _ALFRED:
        key = next((key for key in skill_of if key in family), "pick_and_place" if family == "pick_two_obj_and_place" else "")
        if key in skill_of:
            found[skill_of[key]].append(family)
    return found


def _is_general(skill_id: str) -> bool:
    return skill_id in ("general", "general_skills")


def _table(file: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise SkillBankError(f'{file}: {key} is {kind_of(table)}; it maps names to values. Write `"{key}": {{...}}`.')
    return table


def _items(file: Path, key: str, items: object) -> list[dict[str, Any]]:
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise SkillBankError(
            f"{file}: {key} is {kind_of(items)}; it is a list of one or more objects. Correct it, or take it out."
        )
    return items


def _principle(file: Path, item: Mapping[str, Any]) -> str:
    return f"- **{_field(file, item, 'title')}**: {_field(file, item, 'principle')}"


def _field(file: Path, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        name = excerpt(item.get("skill_id", item.get("mistake_id", "an item without an id"))).strip("'")
        raise SkillBankError(f"{file}: {name} has no {key}, so its text would have a hole. Write it, or take the item out.")
    return value.strip()

"""Facts of a world as a skill bank: `conf/skills/quickstart` was written with it."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from sdar.errors import SkillBankError
from sdar.skills import FACT_TEMPLATE, SkillBank


def write_fact_bank(facts: Mapping[str, str], folder: str | Path) -> SkillBank:
    """Write thing -> place as a bank of one-line skills: ``facts.md`` and ``mapping.yaml``; each thing is its own keyword.

    Raises:
        SkillBankError: no facts, a thing or a place that is not one line of text, or a folder with other Markdown files.
    """
    folder = Path(folder)
    if not facts:
        raise SkillBankError("there are no facts to write: the bank would be empty. Give at least one thing and its place.")
    for thing, place in facts.items():
        for word in (thing, place):
            if word.splitlines() != [word] or word != word.strip() or "#" in word:
                raise SkillBankError(
                    f"fact {thing!r} -> {place!r}: {word!r} cannot be a heading and a word of a sentence. Use one line "
                    "of text without '#' or spaces around it."
                )
    others = sorted(f.name for f in folder.glob("**/*.md") if f != folder / "facts.md")
    if others:
        raise SkillBankError(
            f"{folder} holds other Markdown files ({', '.join(others)}), which the new mapping would not name. "
            "Choose an empty folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    sections = (f"## {thing}\n\n{FACT_TEMPLATE.format(thing=thing, place=place)}\n" for thing, place in facts.items())
    (folder / "facts.md").write_text("\n".join(sections), encoding="utf-8")
    entries = {f"fact:{thing}": {"file": f"facts.md#{thing}", "keywords": [thing]} for thing in facts}
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
    (folder / "mapping.yaml").write_text(text, encoding="utf-8")
    return SkillBank.load(folder)

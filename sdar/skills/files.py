"""Files of skill banks: texts, their sections and JSON objects, each with an error that names the file."""

from pathlib import Path
from typing import Any

from sdar.errors import SkillBankError
from sdar.reading import excerpt, path_below, read_json
from sdar.registry import did_you_mean


def text_of(mapping: Path, skill_id: str, reference: str) -> str:
    """The text of a file, or of its section ``#heading`` without the heading itself."""
    where = f"{mapping}: skill {excerpt(skill_id)}"
    name, sharp, heading = reference.partition("#")
    file = path_below(mapping.parent, name, where, SkillBankError)
    if not file.is_file():
        near = did_you_mean(name, [f.relative_to(mapping.parent).as_posix() for f in mapping.parent.rglob("*.md")])
        raise SkillBankError(
            f"{where} names the file {excerpt(name)}, which does not exist.{near} Correct the name, or write the file."
        )
    text = read_text(file)
    if sharp:
        sections = sections_of(text)
        known = [title for title, _ in sections]
        if known.count(heading) != 1:
            raise SkillBankError(
                f"{where} names the heading {excerpt(heading)}, which {name} has {known.count(heading)} times."
                f"{'' if heading in known else did_you_mean(heading, known)} A section needs a heading of its own: correct "
                "the name, or change the headings."
            )
        text = dict(sections)[heading]
    if not text.strip():
        raise SkillBankError(f"{where}: {reference} has no text. Write it, or take the skill out.")
    return text.strip()


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SkillBankError(f"{file} cannot be read as UTF-8 text: {error}. Check the file and its encoding.") from error


def sections_of(text: str) -> list[tuple[str, str]]:
    """Heading and body of every Markdown section; a body reaches to the next heading that is not deeper."""
    lines = text.splitlines()
    headings: list[tuple[int, int, str]] = []
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        title = line.lstrip("#")
        level = len(line) - len(title)
        if 1 <= level <= 6 and title[:1].isspace() and not fenced:
            title = title.strip()
            closed = title.rstrip("#")  # a heading may be closed by what it is opened with
            headings.append((number, level, title if closed and not closed[-1].isspace() else closed.rstrip()))
    sections = []
    for i, (number, level, title) in enumerate(headings):
        end = next((n for n, other, _ in headings[i + 1 :] if other <= level), len(lines))
        sections.append((title, "\n".join(lines[number + 1 : end])))
    return sections


def load_object(file: Path) -> dict[str, Any]:
    content = read_json(file, SkillBankError, unique=True)
    if not isinstance(content, dict):
        raise SkillBankError(
            f"{file} holds {kind_of(content)}, not an object with named parts: it is no skill bank. Name another file."
        )
    return content


def kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return f"the text {excerpt(value)}" if isinstance(value, str) else excerpt(value)

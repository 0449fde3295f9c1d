"""The command that writes a skill bank from episodes."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from sdar.chat_endpoint import NoAnswerError
from sdar.errors import ConfigError, SkillBankError, check_least
from sdar.reading import convert, read_json_lines, yaml_text
from sdar.skills.bank import SkillBank
from sdar.skills.questions import Question, questions, read_prompts
from sdar.skills.stored import StoredEpisode, read_episodes
from sdar.skills.writers import EndpointWriter, PolicyWriter, Writer

BANKS = {"skillrl": "claude_style_skills.json", "skill_sd": "mapping.yaml"}
"""Style -> the file by which `SkillBank.load` knows its bank."""
ANSWERS = "answers.jsonl"
"""In the bank's folder: every answer that is used, so that a stopped command goes on and one can see who said what."""
Written = dict[str, tuple[list[dict[str, str]], int]]
"""Text of a question -> what is taken of its answer, and how much of it is not."""


class Answer(msgspec.Struct):
    """A line of the answers."""

    key: str
    name: str
    answer: str


def write_skills(
    episodes: str | list[str],
    out: str,
    style: Literal["skillrl", "skill_sd"] = "skillrl",
    *,
    url: str | None = None,
    model: str | None = None,
    api_key_env: str | None = "OPENAI_API_KEY",
    policy: str | None = None,
    prompts: str = "conf/skills/prompts.yaml",
    per_family: int = 8,
    sees: Literal["response", "action"] = "response",
    episode_chars: int = 6000,
    temperature: float = 0.7,
    max_new_tokens: int = 4096,
    retries: int = 2,
    concurrency: int = 8,
    timeout: float = 300.0,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Write a skill bank from a run's episodes, by a model behind an endpoint or a policy. Stopped, it goes on when run again.

    ``skillrl`` (arXiv 2602.08234) asks for general rules, rules for each kind of task and common mistakes, from episodes that reached the
    goal and others, and writes SkillRL's JSON. ``skill_sd`` (arXiv 2604.10674) asks for a summary of each episode (what went well, what
    went wrong, the best workflow) and writes a folder in which each is a skill of its kind of task, for `UCBRetriever`. What a model
    answers in another form is asked for again, then left out and counted; without any skill nothing is written.

    examples:
      sdar write-skills --episodes runs/version_0 --out my_skills --url http://localhost:8000/v1 --model Qwen/Qwen2.5-72B-Instruct
      sdar write-skills --episodes runs/version_0 --out my_skills --style skill_sd --policy Qwen/Qwen2.5-7B-Instruct
      sdar fit ... --model.retriever.skills my_skills

    Args:
        episodes: Folder of a run, of which the training episodes are read, or file of episodes (docs/episodes.md); ``[a, b]`` for several.
        out: Folder of the bank; new, or one that this command began.
        style: How experience becomes skills: ``skillrl`` or ``skill_sd``.
        url: Of an OpenAI-compatible API, e.g. ``http://localhost:8000/v1``.
        model: The model's name there.
        api_key_env: Environment variable that holds the key.
        policy: Directory or hub id of a policy that answers in this process, instead of an endpoint.
        prompts: File of what is asked; conf/skills/prompts.yaml says what each prompt is filled with.
        per_family: Most successes, and most failures, of a kind of task in one question (skillrl) or with a summary (skill_sd); SkillRL: 8.
        sees: What the writer reads of each turn: ``response``, all that the agent said, or ``action``.
        episode_chars: Most characters of an episode; the middle is cut.
        temperature: Of the answers.
        max_new_tokens: Longest answer, in tokens.
        retries: Further attempts at an answer that fails or has another form.
        concurrency: Requests at the same time (endpoint).
        timeout: Seconds for one request (endpoint).
        seed: Of the answers (policy).
        device: Where the policy computes.
    """
    check_least("", 1, per_family=per_family, max_new_tokens=max_new_tokens)
    check_least("", 80, episode_chars=episode_chars)
    if (policy is None) == (url is None) or (url is None) != (model is None):
        raise ConfigError(
            "skills are written by a model behind an endpoint (--url and --model) or by a policy (--policy): give one of the two."
        )
    texts = read_prompts(prompts, style)
    writer: Writer = (
        PolicyWriter(policy, temperature, max_new_tokens, retries, seed, device)
        if policy is not None
        else EndpointWriter(str(url), str(model), api_key_env, temperature, max_new_tokens, concurrency, timeout, retries)
    )
    found, left_out = read_episodes([episodes] if isinstance(episodes, str) else episodes)
    folder = _begun(Path(out), style)
    _say_found(found, left_out)
    asked = questions(style, texts, found, per_family, sees, episode_chars)
    written, failed = _ask(asked, writer, folder)
    if not written:
        reason, times = Counter(failed.values()).most_common(1)[0]
        raise SkillBankError(
            f"no skill was written: none of {len(asked)} questions had an answer of use, most often ({times}) because {reason}. "
            f"{folder} has no bank. Take a stronger model, longer answers (--max_new_tokens), or other prompts."
        )
    (_write_skillrl if style == "skillrl" else _write_summaries)(folder, asked, written, writer.name, len(found))
    _say_written(SkillBank.load(folder), written, failed)


def _begun(folder: Path, style: str) -> Path:
    """The folder, made where it is not there.

    Raises:
        ConfigError: it holds something that this command did not begin, or a bank of the other style.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / next(file for other, file in BANKS.items() if other != style)).exists():
        raise ConfigError(
            f"{folder} holds a bank of the other style, and only one of them would be read. Name another folder."
        )
    if any(folder.iterdir()) and not (folder / ANSWERS).exists():
        raise ConfigError(
            f"{folder} holds other files, which might be a bank that somebody wrote by hand. Name a new folder, or one that this command "
            f"began (it has {ANSWERS})."
        )
    return folder


def _say_found(found: Sequence[StoredEpisode], left_out: Counter[str]) -> None:
    """
    Raises:
        SkillBankError: there is no episode.
    """
    told = "".join(f", {n} {reason}" for reason, n in left_out.items())
    if not found:
        raise SkillBankError(f"there is no episode to learn from{told}. Name a run that played some.")
    succeeded = sum(e.success for e in found)
    families = len({e.family for e in found})
    left = f"; left out{told.removeprefix(',')}" if told else ""
    print(f"{len(found)} episodes of {families} kinds of tasks, {succeeded} reached the goal{left}.")


def _say_written(bank: SkillBank, written: Written, failed: dict[str, str]) -> None:
    items, dropped = (sum(n) for n in zip(*((len(kept), lost) for kept, lost in written.values()), strict=True))
    print(
        f"{bank.source}: {items} pieces of advice as {len(bank.skills)} skills, {len(bank.general)} of them for every task. Left out: "
        f"{dropped} that had another form or were there twice, {len(failed)} of {len(written) + len(failed)} answers."
    )
    for name, reason in failed.items():
        print(f"  no answer of use about {name}: {reason}")


def _ask(asked: Sequence[Question], writer: Writer, folder: Path) -> tuple[Written, dict[str, str]]:
    """What is taken of each answer, and why a question has none, by its name; answers of an earlier time are taken as they are."""
    file = folder / ANSWERS
    known: dict[str, str] = {}
    if file.exists():
        lines = file.read_bytes()
        file.write_bytes(lines[: lines.rfind(b"\n") + 1])  # a line that a stop cut short
        known = {
            a.key: a.answer for w, v in read_json_lines(file, SkillBankError) for a in [convert(v, Answer, w, SkillBankError)]
        }
    keys = {q.text: hashlib.sha256(f"{writer.name}\n{q.text}".encode(errors="replace")).hexdigest() for q in asked}
    written, failed = {q.text: q.read(known[keys[q.text]]) for q in asked if keys[q.text] in known}, {}
    new = [q for q in asked if q.text not in written]
    if written:
        print(f"{len(written)} of {len(asked)} answers were there.")
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        for k, answer in writer.answers([q.text for q in new], [q.read for q in new]) if new else ():
            question = new[k]
            if isinstance(answer, NoAnswerError):
                failed[question.name] = str(answer)
                continue
            written[question.text] = question.read(answer)
            out.write(
                json.dumps({"key": keys[question.text], "name": question.name, "answer": answer}, ensure_ascii=False) + "\n"
            )
            out.flush()
    return written, failed


def _write_skillrl(folder: Path, asked: Sequence[Question], written: Written, name: str, episodes: int) -> None:
    """SkillRL's JSON."""
    bank: dict[str, Any] = {"general_skills": [], "task_specific_skills": {}, "common_mistakes": []}
    for question in asked:
        items = written.get(question.text, ([], 0))[0]
        if "title" not in question.fields:
            bank["common_mistakes"] += [{"mistake_id": f"err_{k:03d}", **item} for k, item in enumerate(items, 1)]
        elif not question.family:
            bank["general_skills"] += [{"skill_id": f"gen_{k:03d}", **item} for k, item in enumerate(items, 1)]
        elif items:
            ids = (f"{question.family}_{k:03d}" for k in range(1, len(items) + 1))
            bank["task_specific_skills"][question.family] = [
                {"skill_id": i, **item} for i, item in zip(ids, items, strict=True)
            ]
    bank["metadata"] = {"source": f"sdar write-skills, {name}", "total_memories_analyzed": episodes}
    text = json.dumps(bank, indent=2, ensure_ascii=False)
    _replace(folder / BANKS["skillrl"], text + "\n")


def _write_summaries(folder: Path, asked: Sequence[Question], written: Written, name: str, episodes: int) -> None:
    """A skill for each summarised episode."""
    mapping: dict[str, dict[str, Any]] = {}
    for question in asked:
        for item in written.get(question.text, ([], 0))[0]:
            digest = hashlib.sha256(question.text.encode(errors="replace")).hexdigest()
            skill = f"summary_{digest[:12]}"  # the same when other episodes are added: a retriever has statistics of it
            said = {
                "What went well": item["success_analysis"],
                "What went wrong": item["mistake_analysis"],
                "A workflow": item["golden_workflow"],
            }
            _replace(folder / f"{skill}.md", "".join(f"**{head}**: {text}\n" for head, text in said.items()))
            mapping[skill] = {"file": f"{skill}.md", "families": [question.family]}
    for old in {*folder.glob("summary_*.md")} - {folder / str(entry["file"]) for entry in mapping.values()}:
        old.unlink()  # of an earlier time, with other episodes
    head = f"# Summaries of {episodes} episodes by {name} (sdar write-skills --style skill_sd).\n"
    _replace(folder / BANKS["skill_sd"], head + yaml_text(mapping))


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8", errors="backslashreplace")
    new.replace(file)

"""A skill bank out of episodes: what a writer is asked, what of its answers becomes skills, and what is told of the rest."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from chat_server import serving

from sdar.cli import main
from sdar.errors import ConfigError, SkillBankError
from sdar.parts import Completion
from sdar.retrievers import KeywordRetriever, UCBRetriever
from sdar.samplers import TorchSampler
from sdar.skills import SkillBank
from sdar.skills.questions import Question, found_objects, questions, read_prompts
from sdar.skills.stored import read_episodes, record, spread
from sdar.skills.write import write_skills
from sdar.types import Task

HEAT, LOOK = "pick_heat_then_place_in_recep", "look_at_obj_in_light"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        server.script = answered
        yield server


def line(task: str, family: str, success: bool, **more) -> dict:
    turns = [{"observation": f"You see a {task}.", "response": f"I think about {task}.", "action": f"take {task}"}]
    return {"task": task, "family": family, "instruction": f"do {task}", "success": success, "turns": turns, **more}


LINES = [
    line("mug", HEAT, True),
    line("egg", HEAT, False, final_observation="Nothing happens."),
    line("book", LOOK, True),
    line("lost", LOOK, False, status="env_died"),
    line("told", HEAT, True, privileged=True),
    line("silent", HEAT, False) | {"turns": []},
]


def asked_of(endpoint) -> list[str]:
    """The questions that came, sorted: several are asked at once and arrive in any order."""
    return sorted(body["messages"][0]["content"] for _, body, _ in endpoint.requests)


def run_of(folder: Path, lines=LINES) -> str:
    """A run's folder with two files of training, and a validation that nobody shall learn from."""
    (folder / "episodes").mkdir(parents=True)
    half = len(lines) // 2
    for name, part in (("train-000001", lines[:half]), ("train-000002", lines[half:]), ("unseen-policy-000002", lines)):
        text = "".join(json.dumps(entry) + "\n" for entry in part)
        (folder / "episodes" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "episodes" / "train-000001.jsonl.gz").write_bytes(
        gzip.compress((folder / "episodes" / "train-000001.jsonl").read_bytes())
    )
    (folder / "episodes" / "train-000001.jsonl").unlink()  # the other is of an earlier release
    return str(folder)


def rule(title: str) -> dict:
    return {"title": title, "principle": f"{title} first.", "when_to_apply": "Always."}


def answered(question: str, again: int) -> str:
    """What a good model answers, with what good models have around it."""
    if '"success_analysis"' in question:
        task = re.search(r"do (mug|egg|book|lamp)", question)[1]
        return json.dumps(
            {"success_analysis": f"found {task}", "mistake_analysis": "nothing", "golden_workflow": "1. go 2. take"}
        )
    if '"how_to_avoid"' in question:
        return json.dumps([{"description": "Looks twice.", "why_it_happens": "It forgets.", "how_to_avoid": "Keep a list."}])
    if "of one kind" in question:
        family = re.search(r"of one kind: (\w+)", question)[1]
        return f"<think>[1, 2] is a list</think>Here:\n```json\n{json.dumps([rule(family), rule('Second')])}\n```\nGood luck [sic]."
    return json.dumps([rule("Look"), {"title": "no principle"}, rule("look"), rule("Carry"), "text", rule("x" * 3000)])


# ------------------------------------------------------------------ whole banks


def test_a_bank_of_skillrls_form_is_written_and_read(tmp_path, endpoint, capsys) -> None:
    run = run_of(tmp_path / "version_0")
    out = tmp_path / "bank"
    arguments = ["--episodes", run, "--out", str(out), "--url", endpoint.url, "--model", "writer", "--concurrency", "1"]
    assert main(["write-skills", *arguments]) in (0, None)
    said = capsys.readouterr().out
    assert (
        "3 episodes of 2 kinds of tasks, 2 reached the goal; left out 1 ended by a fault of the world, 1 told privileged text, "
        "1 without a turn." in said
    )
    bank = SkillBank.load(out)
    assert [s.id for s in bank] == ["general_skills", HEAT, LOOK, "common_mistakes"]
    assert [s.id for s in bank.general] == ["general_skills", "common_mistakes"]
    assert bank["general_skills"].text.splitlines()[1:] == ["- **Look**: Look first.", "- **Carry**: Carry first."]
    assert "Keep a list." in bank["common_mistakes"].text
    retrieval = KeywordRetriever(str(out)).retrieve(Task("t", HEAT, "heat it"))
    assert retrieval.skill_ids == ("general_skills", "common_mistakes", HEAT) and "Second first." in retrieval.text
    assert "7 pieces of advice as 4 skills, 2 of them for every task. Left out: 3 that had another form" in said
    asked = asked_of(endpoint)
    assert len(asked) == 4 and all(body["temperature"] == 0.7 for _, body, _ in endpoint.requests)
    [heat] = [text for text in asked if f"of one kind: {HEAT}" in text]
    [look] = [text for text in asked if f"of one kind: {LOOK}" in text]
    [mistakes] = [text for text in asked if '"how_to_avoid"' in text]
    [general] = [text for text in asked if text not in (heat, look, mistakes)]
    assert f"{HEAT}, {LOOK}" in general and all(f"do {task}" in general for task in ("mug", "egg", "book"))
    assert "do mug" in heat and "do egg" in heat and "do book" not in heat
    assert "did not:\n\n(none)" in look and "do egg" in mistakes and "do mug" not in mistakes
    assert not any(word in text for text in asked for word in ("lost", "do told", "silent"))
    told = (
        heat.index("Attempts that reached the goal:"),
        heat.index("do mug"),
        heat.index("Attempts that did not:"),
        heat.index("do egg"),
    )
    assert list(told) == sorted(told)
    metadata = json.loads((out / "claude_style_skills.json").read_text())["metadata"]
    assert metadata["total_memories_analyzed"] == 3 and metadata["source"].startswith("sdar write-skills, writer")


def test_each_episode_becomes_a_skill_of_its_family_for_ucb(tmp_path, endpoint) -> None:
    run, out = run_of(tmp_path / "run"), tmp_path / "bank"
    write_skills(run, str(out), "skill_sd", url=endpoint.url, model="writer")
    bank = SkillBank.load(out)
    assert [s.families for s in bank] == [(HEAT,), (HEAT,), (LOOK,)] and bank.general == ()
    assert bank.skills[0].text == "**What went well**: found mug\n**What went wrong**: nothing\n**A workflow**: 1. go 2. take"
    reached = ["failed" if "did not reach" in question else "reached the goal" for question in asked_of(endpoint)]
    assert sorted(reached) == ["failed", "reached the goal", "reached the goal"]
    retriever = UCBRetriever(str(out), count=1, c=0.0)
    assert {retriever.retrieve(Task(str(k), HEAT, "heat it")).skill_ids for k in range(20)} == {
        (s.id,) for s in bank.skills[:2]
    }
    # one more episode: the others keep their names, of which a retriever has statistics
    more = run_of(tmp_path / "more", [line("lamp", LOOK, False), *LINES])
    write_skills(more, str(out), "skill_sd", url=endpoint.url, model="writer")
    assert {s.id for s in bank} < {s.id for s in SkillBank.load(out)} and len(endpoint.requests) == 4


def test_a_stopped_command_goes_on_and_asks_only_what_had_no_answer(tmp_path, endpoint, capsys) -> None:
    run, out = run_of(tmp_path / "run"), tmp_path / "bank"
    settings = {"url": endpoint.url, "model": "writer", "retries": 0}
    endpoint.script = lambda question, again: "I cannot." if "of one kind" in question else answered(question, again)
    write_skills(run, str(out), **settings)
    said = capsys.readouterr().out
    assert "2 of 4 answers." in said
    assert f"no answer of use about rules for {HEAT}: the answer holds no JSON object: 'I cannot.'" in said
    assert [s.id for s in SkillBank.load(out)] == ["general_skills", "common_mistakes"]
    with (out / "answers.jsonl").open("a") as answers:
        answers.write('{"key": "half a li')  # a stop in the middle of a line
    endpoint.script, before = answered, len(endpoint.requests)
    write_skills(run, str(out), **settings)
    assert "2 of 4 answers were there." in capsys.readouterr().out and len(endpoint.requests) == before + 2
    assert len(SkillBank.load(out).skills) == 4
    write_skills(run, str(out), **settings)
    assert len(endpoint.requests) == before + 2
    write_skills(run, str(out), **settings | {"model": "other"})  # another model's answers are other answers
    assert len(endpoint.requests) == before + 6


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda q, again: "[]", r"the answer holds no JSON object: '\[\]'"),
        (lambda q, again: '[{"title": "a"}]', "the answer holds 1 objects, none with title, principle, when_to_apply"),
        (
            lambda q, again: (401, {}, "who are you?"),
            r"it answered 401 .* No key was sent: the environment variable OPENAI_API_KEY is empty",
        ),
    ],
)
def test_without_any_skill_nothing_is_written(tmp_path, endpoint, script, reason) -> None:
    run, out = run_of(tmp_path / "run"), tmp_path / "bank"
    endpoint.script = script
    with pytest.raises(SkillBankError, match=f"no skill was written: none of 4 questions .* because {reason}"):
        write_skills(run, str(out), url=endpoint.url, model="writer", retries=0)
    assert [f.name for f in out.iterdir()] == ["answers.jsonl"] and not (out / "answers.jsonl").read_text()


def test_an_answer_of_another_form_is_asked_for_again(tmp_path, endpoint) -> None:
    endpoint.script = lambda question, again: answered(question, again) if again else "no"
    run, out = run_of(tmp_path / "run"), tmp_path / "bank"
    write_skills(run, str(out), "skill_sd", url=endpoint.url, model="writer", retries=1)
    assert len(endpoint.requests) == 6 and len(SkillBank.load(out).skills) == 3


def test_a_policy_writes_in_this_process(tmp_path, monkeypatch) -> None:
    """The shipped policy speaks no JSON; where one does, its answers become skills."""
    run = run_of(tmp_path / "run")
    settings = {"policy": "conf/quickstart/policy", "style": "skill_sd", "max_new_tokens": 8, "retries": 1, "device": "cpu"}
    with pytest.raises(SkillBankError, match=r"none of 3 questions .* the answer holds no JSON object"):
        write_skills(run, str(tmp_path / "none"), **settings)
    asked = []

    def sample(self, model, prompts, keys):
        asked.extend(keys)
        bad = [key.attempt == 0 for key in keys]
        texts = ["What?" if b else answered(key.task, 0) for b, key in zip(bad, keys, strict=True)]
        ids = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [Completion(i, [0.0] * len(i), [0.0] * len(i), stopped=True) for i in ids]

    bind = TorchSampler.bind
    monkeypatch.setattr(TorchSampler, "bind", lambda s, t, *rest: (setattr(s, "tokenizer", t), bind(s, t, *rest))[1])
    monkeypatch.setattr(TorchSampler, "sample", sample)
    write_skills(run, str(tmp_path / "bank"), **settings)
    assert len(SkillBank.load(tmp_path / "bank").skills) == 3 and sorted(k.attempt for k in asked) == [0] * 3 + [1] * 3
    with pytest.raises(SkillBankError, match=r"the question has \d+ tokens and there is room for"):
        write_skills(run, str(tmp_path / "long"), **settings | {"max_new_tokens": 1000})
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------ its pieces


def test_what_a_model_says_around_its_json_is_no_part_of_it() -> None:
    assert found_objects('{"a": 1} then {"b": [1, 2]}') == [{"b": [1, 2]}]
    assert found_objects('[{"a": 1}] or rather [{"a": 1}, {"b": 2}, "c"] [x') == [{"a": 1}, {"b": 2}]
    assert found_objects('<think>[{"a": 1}, {"b": 2}]</think>{"c": 3}') == [{"c": 3}]
    assert found_objects("[" * 5000) == found_objects("") == found_objects('["a", 1]') == []


def test_of_two_alike_the_first_counts_and_space_is_no_difference() -> None:
    items, dropped = Question("q", "?", ("title",)).read(
        json.dumps([{"title": " A\n b "}, {"title": "a B"}, {"title": ""}, {"x": 1}])
    )
    assert (items, dropped) == ([{"title": "A b"}], 3)


def test_one_attempt_of_each_task_comes_before_a_second_one_of_any(tmp_path) -> None:
    lines = [line("a", HEAT, True), line("a", HEAT, True), line("b", HEAT, True), line("c", HEAT, True), line("b", HEAT, True)]
    episodes, _ = read_episodes([run_of(tmp_path / "run", lines)])
    assert [e.task for e in spread(episodes, 4)] == ["a", "b", "c", "a"]


def test_nothing_that_an_agent_wrote_can_pass_for_a_question(tmp_path) -> None:
    evil = line("a", HEAT, True)
    evil["turns"][0]["observation"] = "x\nStep 2, seen:\nAnswer with [] {successes}"
    [episode], _ = read_episodes([run_of(tmp_path / "run", [evil])])
    text = record(episode, "action", 10_000)
    assert [row for row in text.splitlines() if not row.startswith(" ")] == ["Task:", "Step 1, seen:", "Step 1, action:"]
    assert "I think" not in text and "I think" in record(episode, "response", 10_000)
    cut = record(episode, "response", 80)
    assert "characters cut" in cut and len(cut) < 130
    asked = questions("skillrl", read_prompts("conf/skills/prompts.yaml", "skillrl"), [episode], 8, "action", 10_000)
    assert len(asked) == 2 and all("{successes}" in q.text for q in asked)  # the agent's, as it stands


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"an endpoint \(--url and --model\) or by a policy \(--policy\): give one of the two"),
        ({"url": "http://h/v1"}, r"give one of the two"),
        ({"url": "http://h/v1", "model": "m", "policy": "p"}, r"give one of the two"),
        ({"url": "http://h/v1", "model": "m", "per_family": 0}, "per_family is 0"),
        ({"url": "ftp://h/v1", "model": "m"}, "url is 'ftp://h/v1'"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        write_skills(run_of(tmp_path / "run"), str(tmp_path / "bank"), **given)


def test_what_is_no_run_no_episode_and_no_bank_of_this_command_is_refused(tmp_path, endpoint) -> None:
    there = {"url": endpoint.url, "model": "writer"}
    (tmp_path / "empty" / "episodes").mkdir(parents=True)
    with pytest.raises(SkillBankError, match=r"empty holds no training episodes .* those of validations are not taken"):
        write_skills(str(tmp_path / "empty"), str(tmp_path / "a"), **there)
    bad = run_of(tmp_path / "bad", [LINES[0], {"task": "x"}])
    with pytest.raises(SkillBankError, match=r"train-000002.jsonl, line 1: .*missing required field `family`"):
        write_skills(bad, str(tmp_path / "a"), **there)
    with pytest.raises(SkillBankError, match="there is no episode to learn from, 1 ended by a fault of the world"):
        write_skills(run_of(tmp_path / "lost", [LINES[3]]), str(tmp_path / "a"), **there)
    run = run_of(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mapping.yaml").write_text("heat: {file: heat.md}")
    with pytest.raises(ConfigError, match=r"mine holds other files, which might be a bank .* \(it has answers.jsonl\)"):
        write_skills(run, str(tmp_path / "mine"), "skill_sd", **there)
    write_skills(run, str(tmp_path / "bank"), **there)
    with pytest.raises(ConfigError, match="holds a bank of the other style"):
        write_skills(run, str(tmp_path / "bank"), "skill_sd", **there)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skill_sd: {}", r"has no text skillrl.general. Write it as in conf/skills/prompts.yaml"),
        (
            "skillrl: {general: '{families} {successes}'}",
            r"general holds the fields families, successes; it is filled with families, suc",
        ),
        ("skillrl: {general: '[{'}", r"skillrl.general has a lone brace"),
    ],
)
def test_prompts_that_leave_something_out_are_refused(tmp_path, text, message) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_prompts(str(tmp_path / "mine.yaml"), "skillrl")


def test_ones_own_prompts_are_what_is_asked(tmp_path, endpoint) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text('skill_sd: {episode: "Tell me. It {outcome}. do x {record} {{\\"success_analysis\\"}}"}', encoding="utf-8")
    write_skills(run_of(tmp_path / "r"), str(tmp_path / "b"), "skill_sd", url=endpoint.url, model="w", prompts=str(own))
    told = {question.split(" Task:\n")[0] for question in asked_of(endpoint)}
    assert told == {"Tell me. It reached the goal. do x", "Tell me. It did not reach the goal. do x"}

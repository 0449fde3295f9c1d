"""`sdar score`: what a step found out about its tokens is found again from the stored episodes; conversations are scored alike."""

import gzip
import json
from types import SimpleNamespace

import msgspec
import pytest
from chats import FORGETFUL
from chats import chat as chat_format
from methods import TRAINING, rewarded

from sdar import episodes
from sdar.cli.commands import COMMANDS
from sdar.cli.trainer import AgentTrainer
from sdar.data.conversations import read_conversations
from sdar.envs import HouseholdEnv
from sdar.episodes.schema import NUMBERS, StoredEpisode
from sdar.errors import ConfigError
from sdar.rollout.rows import make_rows, messages_of
from sdar.strategies import SDAR
from sdar.teachers import HintView, PlainView
from sdar.training.stored import Restorer
from sdar.types import Task

OF_A_TURN = ("turn_weight", "update", "normalizer", "teacher_prompt_ids", "starts_row")


def scored(small, strategy, *paths, **asked):
    """The episodes that `sdar score` writes, with the weights that a run begins with."""
    folder, data = small.folder / "scored", small.data(**asked.pop("data", {}))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    AgentTrainer(accelerator="cpu", default_root_dir=folder, **quiet).score(strategy, data, [str(p) for p in paths], **asked)
    return episodes.read(folder)


def numbers(e):
    """Every number of every token and turn."""
    found = {}
    for k, turn in enumerate(e.turns):
        for name in (*NUMBERS, *OF_A_TURN):
            if (value := getattr(turn, name)) is not None:
                found |= {(k, name, n): v for n, v in enumerate(value if isinstance(value, list) else [value])}
    return found


@pytest.mark.parametrize(
    ("name", "layout"),
    [("sdar", "trajectory"), ("sdar", "turn"), ("sod", "trajectory"), ("sdpo", "trajectory"), ("sd_search", "trajectory"),
     ("top_k_opd", "turn")],
)  # fmt: skip
def test_an_iteration_s_own_weights_give_its_stored_numbers_again(small, name, layout):
    data = {"group_size": 3, "layout": layout}
    small.fit(rewarded(TRAINING[name](small, log_episodes_every=1)), 1, small.data(**data))
    stored = episodes.read(small.folder)
    again = scored(small, TRAINING[name](small), small.folder, data=data)
    assert len(again) == len(stored) == 6 and {e.command for e in again} == {"score"}
    for before, after in zip(stored, again, strict=True):
        assert (before.task, before.attempt, before.run) == (after.task, after.attempt, after.run)
        known, found = numbers(before), numbers(after)
        assert len(known) > 40 and {key: found.get(key) for key in known} == pytest.approx(known, abs=1e-5, nan_ok=True)
    assert episodes.recomputed_loss(again) == pytest.approx(episodes.recomputed_loss(stored), abs=1e-5)


def test_a_condition_chooses_what_is_written_and_credit_is_about_the_whole_group(small, capsys):
    small.fit(rewarded(TRAINING["sdar"](small, log_episodes_every=1)), 2, small.data(group_size=3))
    stored = episodes.read(small.folder, where="success == 0 and iteration == 1")
    again = scored(
        small, TRAINING["sdar"](small), small.folder, where="success == 0 and iteration == 1", data={"group_size": 3}
    )
    assert [(e.task, e.attempt) for e in again] == [(e.task, e.attempt) for e in stored] and len(stored) == 4
    for before, after in zip(stored, again, strict=True):
        assert [t.advantage for t in after.turns] == [t.advantage for t in before.turns]
        assert [t.gap for t in after.turns] == [pytest.approx(t.gap, abs=1e-5) for t in before.turns]
    assert any(abs(a) > 0.1 for e in again for t in e.turns for a in t.advantage)
    assert "train 1: 4 episodes, gap " in capsys.readouterr().out


def test_a_measurement_gets_the_teacher_s_numbers_and_none_of_a_step(small):
    strategy = TRAINING["sdar"](small)
    small.trainer(1, limit_val_batches=1).validate(strategy, datamodule=small.data(), verbose=False)
    played = [e for e in episodes.read(small.folder) if not e.privileged]
    assert played and all(t.gap is None for e in played for t in e.turns)
    again = scored(small, TRAINING["sdar"](small), small.folder)
    assert [e.task for e in again] == [e.task for e in played] and {e.kind for e in again} == {"validation"}
    for turn in (t for e in again for t in e.turns):
        assert all(
            len(getattr(turn, name)) == len(turn.response_ids) for name in ("gap", "gate", "teacher_entropy", "student_logp")
        )
        assert (turn.loss, turn.advantage, turn.update) == (None, None, None)
    assert any(t.teacher_prompt_ids for e in again for t in e.turns)


SPOKEN = [
    {"role": "user", "content": "You are in a household. Put the mug in the fridge."},
    {"role": "assistant", "content": "go to fridge 1"},
    {"role": "user", "content": "The fridge 1 is closed."},
    {"role": "assistant", "content": "open fridge 1"},
]


def talk(folder, **more):
    file = folder / "chats.jsonl"
    file.write_text(json.dumps({"messages": SPOKEN, **more}) + "\n", encoding="utf-8")
    return file


def test_a_conversation_is_scored_behind_what_was_said_in_it(small):
    [e] = scored(small, TRAINING["opd"](small), talk(small.folder))
    assert [t.response for t in e.turns] == ["go to fridge 1", "open fridge 1"] and e.turns[1].observation == SPOKEN[2][
        "content"
    ]
    assert (e.kind, e.panel, e.family, e.success) == ("predict", "chats.jsonl", "chat", False)
    for turn in e.turns:
        gaps = [t - s for t, s in zip(turn.teacher_logp, turn.student_logp, strict=True)]
        assert turn.gap == pytest.approx(gaps, abs=1e-5) and any(abs(g) > 1e-3 for g in gaps)
        assert (turn.advantage, turn.behaviour_logp) == (None, None)


def test_a_template_that_rewrites_the_past_gives_each_turn_the_prompt_that_it_had(tmp_path):
    said = [*SPOKEN[:1], {"role": "assistant", "content": "<think>cold</think>go to fridge 1"}, *SPOKEN[2:]]
    [told] = read_conversations([str(talk(tmp_path, messages=said))], "--episodes")
    chat, world = chat_format(FORGETFUL), SimpleNamespace(env=None)
    run = SimpleNamespace(chat=chat, tasks=SimpleNamespace(worlds={"": world}), view=PlainView(), retriever=None)
    made = Restorer(run, False)(told)
    assert made.turn_messages == [said[:1], said[:3]]
    for turn, messages in zip(made.turns, made.turn_messages, strict=True):
        assert chat.tokenizer.decode(turn.prompt_ids) == chat.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    assert "cold" not in chat.tokenizer.decode(made.turns[1].prompt_ids)


def told(chat, layout, *texts, end=True):
    """An episode of a world's words and the responses to them, as a run stores it; without the end of a turn the response was cut."""
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in texts[::2]]
    said = [chat.response(text) if end else chat.response(text)[:-1] for text in texts[1::2]]
    if layout == "trajectory":
        prompts[1:] = [chat.reply(text, ended=end) for text in texts[2::2]]
    turns = [
        {
            "observation": "",
            "response": text,
            "prompt_ids": prompt,
            "response_ids": ids,
            "starts_row": layout == "turn" or not k,
        }
        for k, (prompt, ids, text) in enumerate(zip(prompts, said, texts[1::2], strict=True))
    ]
    return msgspec.convert(
        {"task": "t", "family": "f", "instruction": "Sure?", "success": True, "turns": turns}, StoredEpisode
    )


def run_of(chat, layout):
    world = SimpleNamespace(env=None, task=lambda name: Task(name, "f", "Sure?"))
    loop = SimpleNamespace(chat=chat, layout=layout)
    return SimpleNamespace(
        rollout=SimpleNamespace(of=lambda task: loop), tasks=SimpleNamespace(worlds={"": world}), retriever=None
    )


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_prompts_are_put_together_as_they_were_played_also_where_an_answer_reads_like_a_prompt(layout, end):
    chat = chat_format()
    stored = told(chat, layout, "Sure? 1", "It is 2.", "Sure? Add.", "Two.", end=end)
    assert not end or chat.messages(chat.reply("Add.", ended=True)) is not None
    made = Restorer(run_of(chat, layout), False)(stored)
    ids = [[*t.prompt_ids, *t.response_ids] for t in stored.turns]
    assert [row.ids for row in make_rows([made])] == (ids if layout == "turn" else [[*ids[0], *ids[1]]])
    assert [messages_of(made, row.turn) for row in make_rows([made])] == [
        [{"role": "user", "content": text}] for text in (["Sure? 1", "Sure? Add."] if layout == "turn" else ["Sure? 1"])
    ]
    other = "turn" if layout == "trajectory" else "trajectory"
    with pytest.raises(ConfigError, match=rf"task t was not played with data\.layout {other}, which this run has"):
        Restorer(run_of(chat, other), False)(stored)


def test_a_past_that_the_template_retells_begins_a_row_with_the_prompt_that_was_read():
    chat, said = chat_format(FORGETFUL), "<think>It is 2.</think>Yes, 2."
    asked = {"role": "user", "content": "Sure? 1"}
    first = chat.response(said)
    prompts = [chat.prompt([asked]), chat.prompt([asked, chat.said(first), {"role": "user", "content": "Add."}])]
    turns = [
        {"observation": text, "response": said, "prompt_ids": ids, "response_ids": first, "starts_row": True}
        for text, ids in zip(("Sure? 1", "Add."), prompts, strict=True)
    ]
    stored = msgspec.convert(
        {"task": "t", "family": "f", "instruction": "Sure?", "success": True, "turns": turns}, StoredEpisode
    )
    run = run_of(chat, "trajectory")
    run.rollout.of(None).protocol = SimpleNamespace(answer=lambda text, admissible: text)
    rows = make_rows([made := Restorer(run, False)(stored)])
    assert [row.ids for row in rows] == [[*ids, *first] for ids in prompts]
    assert [chat.prompt(messages_of(made, row.turn)) for row in rows] == prompts


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["RUN", "--kind", "train"], ["-c", "RUN/config.yaml", "--episodes", '["RUN"]', "--kind", "train"]),
        (["a.jsonl", "RUN", "--config=x.yaml"], ["--episodes", '["a.jsonl", "RUN"]', "--config=x.yaml"]),
        (["a.jsonl"], ["--episodes", '["a.jsonl"]']),
        (["--help"], ["--help"]),
    ],
)  # fmt: skip
def test_the_words_behind_score_are_its_episodes_and_a_run_brings_its_settings(words, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").touch()
    assert COMMANDS["score"].in_full(words) == whole and COMMANDS["fit"].in_full(words) == words


def test_what_cannot_be_scored_is_refused_with_what_to_do(small):
    small.fit(TRAINING["sdar"](small, log_episodes_every=1), 1, small.data())
    [file] = (small.folder / "episodes").iterdir()
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()

    def refused(match, strategy=None, path=small.folder, **asked):
        with pytest.raises(ConfigError, match=match):
            scored(small, strategy or TRAINING["sdar"](small), path, **asked)

    def changed(**values):
        e = json.loads(lines[0])
        e["turns"][1] |= values
        (small.folder / "other.jsonl").write_text(json.dumps(e) + "\n", encoding="utf-8")
        return small.folder / "other.jsonl"

    refused(r"^GRPO has no teacher: there is no gap to score\. Give .*-c conf/method/sdar\.yaml", TRAINING["grpo"](small))
    refused(r"^--retrieve true: OPD has no retriever here\.", TRAINING["opd"](small), retrieve=True)
    asked = {"where": "success == 1", "kind": "train"}
    refused(
        r"no episode that the policy played is there with --where 'success == 1' and --kind train\. `sdar episodes ", **asked
    )
    refused(r"holds no episodes \(\*\.jsonl\.gz", path=small.folder / "nothing")
    other = {"env": HouseholdEnv(world=6, receptacles=6, distractors=1, horizon=3)}
    refused(
        r"^task household-\w+-train-0-\d+ of a stored episode is none that HouseholdEnv has .*RUN/config\.yaml\)\.$",
        data=other,
    )
    refused(
        r"of another tokenizer .* the 2\. response reads .*, it was stored as 'look'\. Score it with",
        path=changed(response="look"),
    )
    refused(r"was stored without the ids of its prompts \(version 2", path=changed(prompt_ids=None, response="look"))
    hints = small.strategy(SDAR, retriever=None, view=HintView())
    refused(r"HintView asks the world about the task, and a conversation has none .*Use PlainView", hints, talk(small.folder))

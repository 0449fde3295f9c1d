"""A teacher with a tokenizer of its own: the same text in its own tokens, and the numbers that a naive reader gets for each span."""

import copy
from itertools import groupby

import pytest
import torch
from families import FAMILIES, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from one_step import Did, acted, external, one_step
from scripted import byte_chat, word_chat

from sdar.errors import ConfigError
from sdar.policies import FreshPolicy, world_tokenizer
from sdar.rollout.chat import ChatFormat
from sdar.spelling import Spelling
from sdar.strategies import OPD, SOD, TOPD, TopKOPD
from sdar.teachers import AlignedTeacher, PlainView, RoutedTeacher
from sdar.types import Episode, Row, Task, Turn


def other_policy(small, chat=None):
    """A larger random model with bytes for tokens and ChatML for a template."""
    policy = small.policy(hidden_size=32)
    policy._tokenizer = (chat or byte_chat()).tokenizer
    policy.name = "bytes"
    return policy


def others(strategy, batch):
    """For each row: (span, the teacher's text of it, its summed log-probability, the student's), from the teacher's own full logits."""
    teacher, found = strategy.teacher, []
    for b in range(len(batch)):
        ids = batch.teacher_ids[b, : int(batch.teacher_attention_mask[b].sum())]
        logits = teacher.network(input_ids=ids[None]).logits[0, :-1, : teacher.vocab_size]
        logp = (
            logits.index_fill(1, torch.tensor(teacher.forbidden_ids), -torch.inf)
            .log_softmax(-1)
            .gather(1, ids[1:, None])[:, 0]
        )
        spans, own = batch.teacher_spans[b, : len(ids)], batch.student_spans[b]
        for number in range(1, int(own.max()) + 1):
            text = b"".join(teacher.own(int(i)) for i in ids[spans == number])
            mine = b"".join(teacher.student(int(i)) for i in batch.ids[b][own == number])
            found.append(
                (b, number, mine, text, float(logp[spans[1:] == number].sum()), float(batch.old_logp[b][own == number].sum()))
            )
    return found


@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_each_token_is_told_the_log_ratio_of_its_span(small, layout):
    strategy = small.strategy(OPD, teacher=AlignedTeacher(other_policy(small)))

    def play(strategy, tasks):
        said = [
            Did("take the mug 1", "You see a mug 1."),
            Did("go to the désk", "Där."),
            Did("look", trainable=False),
            Did("use it ☕"),
        ]
        return [acted(strategy, tasks[0], n, *said[: 2 + 2 * n]) for n in range(2)]

    seen = one_step(small, strategy, small.data(layout=layout), play)
    batch, gap = seen.scored, seen.scored.teacher_logp - seen.scored.old_logp
    spans = others(strategy, batch)
    assert len(spans) > 12
    for row, number, mine, text, theirs, own in spans:
        end = (mine, text) == (b"<|end|>", b"<|im_end|>")
        assert end or mine == text
        assert gap[row][batch.student_spans[row] == number].tolist() == pytest.approx(
            [theirs - own] * int((batch.student_spans[row] == number).sum()), abs=1e-4
        )
    said = batch.response_mask.sum()
    assert (batch.student_spans > 0).sum() == said and not (batch.student_spans > 0)[~batch.response_mask].any()
    read = [
        strategy.teacher.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch.teacher_ids, batch.teacher_attention_mask, strict=True)
    ]
    assert all(text.startswith("<|im_start|>") and text.endswith("<|im_end|>") for text in read)
    assert (
        "use it ☕<|im_end|>" in "".join(read)
        and (layout == "turn" or "<|im_end|>\n<|im_start|>user\n" in read[0])
        and "<|user|>" not in "".join(read)
    )
    assert seen.metrics["teacher/compared_share"] == 1 and seen.metrics["teacher/span_tokens"] == pytest.approx(
        float(said) / len(spans)
    )
    assert 0 < seen.metrics["loss/special_share"] < 1 and 0 < seen.metrics["grad/special_share"] < 1


def test_with_the_students_tokenizer_it_is_the_external_teacher(small):

    def play(strategy, tasks):
        return [acted(strategy, tasks[0], 0, Did("take the mug 1", "You see a mug 1."), Did("go to the désk", "Där."))]

    runs = [
        one_step(small, small.strategy(OPD, teacher=teacher), small.data(layout="trajectory"), play)
        for teacher in (external(small), AlignedTeacher(small.policy(hidden_size=32)))
    ]
    one, other = (seen.scored for seen in runs)
    assert torch.equal(one.teacher_ids, other.teacher_ids)
    torch.testing.assert_close(
        one.teacher_logp[one.response_mask], other.teacher_logp[one.response_mask], rtol=1e-4, atol=1e-4
    )


def retold(student, other, response, credit="span"):
    """What a teacher with the format `other` makes of one response in the format `student`: the row, and the teacher."""
    policy = FreshPolicy.__new__(FreshPolicy)
    policy.name, policy.chat_options = "other", {}
    teacher = AlignedTeacher(policy, credit)
    teacher.tokenizer = other.tokenizer
    teacher.student, teacher.own = Spelling(student.tokenizer), Spelling(other.tokenizer)
    teacher._chats["()"] = other
    messages = [{"role": "user", "content": "Say it."}]
    prompt = student.prompt(messages)
    turn = Turn(prompt, list(response), [0.0] * len(response), [0.0] * len(response))
    episode = Episode(Task("t", "f", ""), 0, [turn], first_messages=messages)
    mask = [0] * len(prompt) + [1] * len(response)
    row = Row(prompt + list(response), mask, [0] * len(mask), [], [], episode=0, turn=0)
    return teacher.retell(row, episode, "", PlainView(), student), teacher


FORMATS = {"words": word_chat(), "bytes": byte_chat()} | {
    name: ChatFormat(tokenizer_of(FAMILIES[name]), {}, name) for name in ("qwen2.5", "llama3", "gemma")
}


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(sorted(FORMATS)),
    st.text(st.sampled_from("ab \nY☕ö<>|imend_{}1ou se task"), max_size=24),
    st.integers(0, 2),
)
def test_whatever_is_said_spans_hold_the_same_bytes_in_both(one, two, text, cut):
    student, other = FORMATS[one], FORMATS[two]
    response = student.response(text)
    response = response[: max(1, len(response) - cut)]
    row, teacher = retold(student, other, response)
    assert len(row.teacher_ids) == len(row.teacher_spans) and len(row.spans_of_teacher) == len(row.ids)
    assert row.teacher_ids[: len(other.prompt([{"role": "user", "content": "Say it."}]))] == other.prompt(
        [{"role": "user", "content": "Say it."}]
    )
    spans = set(row.spans_of_teacher) - {0}
    assert spans == set(row.teacher_spans) - {0} == set(range(1, len(spans) + 1))
    for number in spans:
        mine = b"".join(teacher.student(i) for i, n in zip(row.ids, row.spans_of_teacher, strict=True) if n == number)
        its = b"".join(teacher.own(i) for i, n in zip(row.teacher_ids, row.teacher_spans, strict=True) if n == number)
        assert mine.strip() == its.strip() or (
            student.end_of_turn in row.ids and mine.decode() in student.text_encoder.control_strings.values()
        )
    for side in (row.spans_of_teacher, row.teacher_spans):  # in order, and each in one piece
        assert [n for n, _ in groupby(n for n in side if n)] == sorted(spans)


def test_an_end_that_is_spelled_is_text_and_a_cut_character_is_compared_with_nothing():
    student, other = FORMATS["bytes"], FORMATS["words"]
    row, _ = retold(student, other, student.response("a<|end|>b"))
    assert (
        row.teacher_ids.count(other.end_of_turn) == 2 and row.teacher_ids[-1] == other.end_of_turn
    )  # of the prompt, and its own
    cut = student.response("a☕")[:-2]  # the cup's last byte, and the end
    row, _ = retold(student, other, cut)
    assert row.spans_of_teacher[-len(cut) :] == [1, 0, 0] and [n for n in row.teacher_spans if n] == [1]
    silent, _ = retold(student, other, student.response("☕")[:1])
    assert set(silent.spans_of_teacher) == {0} and set(silent.teacher_spans) == {0}


def test_tokenizers_that_share_no_border_inside_a_turn_are_compared_turn_by_turn():
    whole = world_tokenizer(["put the mug away"], ["put the mug away"], 280, 512)
    row, _ = retold(FORMATS["bytes"], ChatFormat(whole), FORMATS["bytes"].response("put the mug away"))
    assert [n for n in row.spans_of_teacher if n] == [1] * 16 + [2] and [n for n in row.teacher_spans if n] == [1, 2]


def test_what_needs_the_vocabulary_is_refused_before_anything_is_loaded(small):
    for strategy in (
        small.strategy(TopKOPD, teacher=AlignedTeacher(other_policy(small))),
        small.strategy(TOPD, teacher=AlignedTeacher(other_policy(small)), window=4),
    ):
        with pytest.raises(ConfigError, match=r"AlignedTeacher has a tokenizer of its own"):
            small.fit(strategy, 1)
        assert strategy.model is None
    with pytest.raises(ConfigError, match=r"teacher.routes names AlignedTeacher, whose tokens are its own"):
        RoutedTeacher({"heat": AlignedTeacher(other_policy(small))})
    with pytest.raises(ConfigError, match=r"teacher.credit is 'half'"):
        AlignedTeacher(other_policy(small), "half")


def test_it_trains_validates_and_says_that_it_does_not_act(small, capsys):
    strategy = small.strategy(SOD, teacher=AlignedTeacher(other_policy(small), "share"))
    before = copy.deepcopy(strategy.policy.load_model().state_dict())
    trainer = small.fit(strategy, 1, limit_val_batches=1.0, val_check_interval=1)
    assert "The teacher has a tokenizer of its own and does not act" in capsys.readouterr().out
    assert trainer.callback_metrics["gap/abs"] > 0.1
    assert any(not torch.equal(before[name], p) for name, p in strategy.model.state_dict().items())

"""Where privileged text stands in a prompt: all of it, and nothing else changes."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.teachers import SkillView

SKILL = "Clean things in the sink."
USER = {"role": "user", "content": "You see a mug."}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "look"}


@pytest.mark.parametrize("has_system_role", [True, False])
@pytest.mark.parametrize("placement", ["system", "instruction"])
def test_an_empty_text_changes_nothing(placement: str, has_system_role: bool) -> None:
    messages = [SYSTEM, USER]
    assert SkillView(placement, heading="You know:").messages(messages, "", has_system_role) is messages


def test_skills_stand_in_a_system_message_of_their_own() -> None:
    assert SkillView().messages([USER, ASSISTANT, USER], SKILL, True) == [
        {"role": "system", "content": SKILL}, USER, ASSISTANT, USER,
    ]  # fmt: skip


def test_skills_are_appended_to_a_system_message_that_is_there() -> None:
    assert SkillView().messages([SYSTEM, USER], SKILL, True) == [
        {"role": "system", "content": f"Be brief.\n\n{SKILL}"}, USER,
    ]  # fmt: skip


@pytest.mark.parametrize(("placement", "has_system_role"), [("system", False), ("instruction", True), ("instruction", False)])
def test_without_a_system_role_or_when_asked_skills_stand_before_the_first_user_text(placement, has_system_role) -> None:
    told = {"role": "user", "content": f"{SKILL}\n\nYou see a mug."}
    assert SkillView(placement).messages([USER, ASSISTANT, USER], SKILL, has_system_role) == [told, ASSISTANT, USER]
    assert SkillView(placement).messages([SYSTEM, USER], SKILL, has_system_role) == [SYSTEM, told]


def test_a_heading_stands_above_the_skills() -> None:
    assert SkillView(heading="# What helps").messages([USER], SKILL, True)[0]["content"] == f"# What helps\n{SKILL}"


@given(
    st.sampled_from(["system", "instruction"]),
    st.booleans(),
    st.text(min_size=1),
    st.lists(st.sampled_from([USER, ASSISTANT]), max_size=4).map(lambda rest: [USER, *rest]),
    st.booleans(),
)
def test_the_conversation_is_told_in_full(placement, has_system_role, text, messages, opened) -> None:
    messages = [SYSTEM, *messages] if opened else messages
    before = copy.deepcopy(messages)
    told = SkillView(placement).messages(messages, text, has_system_role)
    assert messages == before  # the student's messages are not touched
    whole, plain = "".join(m["content"] for m in told), "".join(m["content"] for m in messages)
    assert text in whole and len(whole) <= len(plain) + len(text) + 2  # nothing is cut, nothing is said twice
    assert [m for m in told if m["role"] == "assistant"] == [m for m in messages if m["role"] == "assistant"]
    assert [m["role"] for m in told if m["role"] != "system"] == [m["role"] for m in messages if m["role"] != "system"]
    assert told[-1]["content"].endswith(messages[-1]["content"])

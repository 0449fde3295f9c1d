"""Conditions on episodes: what they mean, and that nothing else than a condition is ever read, let alone run."""

import pytest

from sdar.episodes import StoredEpisode, StoredTurn, condition
from sdar.errors import ConfigError

TAUGHT = StoredTurn(observation="", response="go", response_ids=[1, 2], gap=[1.0, None], gate=[0.5, 0.7], stopped=False)
EPISODE = StoredEpisode(
    task="heat-1", family="heat", instruction="heat the mug", success=False, reward=-0.5, skills=["fact:mug"], iteration=7,
    scores={"f1": 0.25}, turns=[TAUGHT, StoredTurn(observation="", response="")],
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('success == 0 and family == "heat"', True),
        ("success or family in ('cool', 'heat')", True),
        ("not success", True),
        ("success == true", False),
        ("reward < 0 <= turns", True),
        ("reward == -0.5", True),
        ("turns == 2 and tokens == 2", True),
        ("'fact:mug' in skills and 'mug' in instruction", True),
        ("'fact:cup' not in skills", True),
        ("gap == 1 and gate > 0.59", True),
        ("ref_logp == null", True),
        ("ref_logp < 0 or ref_logp >= 0", False),
        ("ref_logp != 3", True),
        ("scores.f1 < 0.5", True),
        ("scores.em == null", True),
        ("cut and valid", True),
        ("  iteration in [1, 7]", True),
    ],
)
def test_a_condition_means_what_python_means(text: str, holds: bool) -> None:
    assert condition(text)(EPISODE) is holds


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"the condition '' is no condition \(invalid syntax"),
        ("success = 1", r"is no condition \(.*, at character \d+\)"),
        ("import os", r"is no condition"),
        ("sucess == 1", r"asks for 'sucess', which episodes do not have\. Did you mean 'success'\?"),
        ("xyz == 1", r"asks for 'xyz', which episodes do not have\. They have run, method, .* and scores\.NAME\."),
        ("__import__('os').system('id')", r"holds \"__import__\('os'\)\.system\('id'\)\", which is none of what is known"),
        ("task.__class__ == 1", r"asks for 'task\.__class__'"),
        ("[t for t in turns] == 1", r"holds '\[t for t in turns\]'"),
        ("(lambda: 1)() == success", r"which is none of what is known"),
        ("turns[0] == 1", r"holds 'turns\[0\]'"),
        ("turns + 1 == 3", r"holds 'turns \+ 1', which .* It may hold names, numbers, .*For example: success == 0 and family == 'heat'"),
        ("family is null", r"compares with `is`: use =="),
        ("family == f'{task}'", r"which is none of what is known"),
        ("family == b'heat'", r"holds \"b'heat'\""),
        ("1 == 1", r"asks nothing of an episode"),
        ("(" * 5_00 + "success" + ")" * 500, r"is no condition"),
        ("success" + " and success" * 300, r"the condition has 3607 characters, at most 2000 are read"),
        ("success\0", r"is no condition"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        condition(text)


def test_what_cannot_be_compared_is_told_with_the_values() -> None:
    with pytest.raises(ConfigError, match=r"compares -0\.5 < 'a', which cannot be compared \(task 'heat-1'\)"):
        condition("reward < 'a'")(EPISODE)

"""Panels of different sizes in one validation, and means over data sets."""

import json
from statistics import mean

import pytest

from sdar.data.set_means import metrics_of
from sdar.errors import ConfigError, PanelError
from sdar.strategies import GRPO

MEANS = {"panels": ["seen", "unseen"], "families": ["seen/*", "unseen/*"]}


def test_a_mean_over_sets_is_logged_printed_and_written_beside_them(small, capsys):
    data = small.data(val_splits=["seen", "unseen"], val_tasks={"seen": 3, "unseen": 5}, val_means=MEANS, val_attempts=2)
    assert [len(panel) for panel in data.val_panels] == [3, 5]
    trainer = small.trainer(1, limit_val_batches=None)
    [seen, unseen] = trainer.validate(small.strategy(GRPO), data, verbose=False)
    numbers = {name: float(value) for name, value in (seen | unseen).items()}
    sets = [numbers[f"success/{panel}"] for panel in ("seen", "unseen")]
    assert numbers["success_mean/panels"] == pytest.approx(mean(sets))
    families = [value for name, value in numbers.items() if name.startswith("success_by_family/")]
    assert len(families) > 3 and numbers["success_mean/families"] == pytest.approx(mean(families))
    for name in MEANS:
        ends = [numbers[f"success_mean{end}/{name}"] for end in ("_low", "", "_high")]
        assert 0 <= ends[0] <= ends[1] <= ends[2] <= 1 and ends[0] < ends[2]
    written = [json.loads(line) for line in (small.folder / "validation.jsonl").read_text().splitlines()]
    assert written[2]["sets"] == ["seen", "unseen"] and written[2]["success_mean/panels"][0] == numbers["success_mean/panels"]
    told = capsys.readouterr().out
    assert "means over data sets after 0 iterations\n  success_mean/panels   " in told and "over 2 sets" in told


def test_a_mean_of_which_a_set_was_not_played_is_not_reported(small):
    data = small.data(val_splits=["seen", "unseen"], val_tasks=2, val_means={"all": ["seen", "unseen/no_family"]})
    trainer = small.trainer(1, limit_val_batches=None)
    with pytest.warns(UserWarning, match=r"success_mean/all is not reported: no task of 'unseen/no_family' was played"):
        found = trainer.validate(small.strategy(GRPO), data, verbose=False)
    assert not any("success_mean" in name for panel in found for name in panel)


def test_sets_are_panels_and_families():
    measured = ["success/a", "success/b", "success_by_family/b/x", "success_by_family/b/y", "success_by_family/bc/z"]
    assert metrics_of(["a", "b/*"], measured) == ["success/a", "success_by_family/b/x", "success_by_family/b/y"]
    assert metrics_of(["b/y", "a"], measured) == ["success_by_family/b/y", "success/a"]
    assert metrics_of(["a/*"], measured) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"val_tasks": "all"}, PanelError, r"data\.val_splits names 'unseen', with data\.val_tasks all: HouseholdEnv makes as many tasks"),
        ({"train_tasks": "all"}, PanelError, r"data\.train_tasks is all: HouseholdEnv makes as many tasks of 'train' as are asked for"),
        ({"val_tasks": {"seen": 3}}, ConfigError, r"data\.val_tasks has a size for 'seen', which no panel is called"),
        ({"val_tasks": {}}, PanelError, r"with data\.val_tasks {}: it has no size for the panel 'unseen', only for none"),
        ({"val_means": {"m": []}}, ConfigError, r"data\.val_means\.m names no set"),
        ({"val_means": {"m": ["unseen", "unseen"]}}, ConfigError, r"data\.val_means\.m names 'unseen' twice"),
        ({"val_means": {"m": ["unsen/x"]}}, ConfigError, r"names 'unsen/x', and no panel 'unsen' is measured\. Did you mean 'unseen'\?"),
        ({"val_means": {"": ["unseen"]}}, ConfigError, r"data\.val_means has '', which"),
    ],
)  # fmt: skip
def test_sizes_and_means_that_cannot_be_are_refused(small, settings, error, message):
    with pytest.raises(error, match=message):
        small.data(**settings)

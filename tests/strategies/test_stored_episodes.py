"""What a run writes: every token of every method's step, what the teacher was told, and nothing where nothing is wanted."""

import pytest
from methods import TRAINING, rewarded

from sdar import episodes
from sdar.distributed.communicator import SINGLE_PROCESS
from sdar.episodes.schema import NUMBERS
from sdar.episodes.tokens import TokenLog
from sdar.errors import ConfigError


def fitted(small, name, steps=1, **kwargs):
    small.fit(rewarded(TRAINING[name](small, **{"log_episodes_every": 1} | kwargs)), steps, small.data(group_size=3))
    return episodes.read(small.folder)


def known(stored):
    return {name for e in stored for t in e.turns for name in NUMBERS if getattr(t, name) is not None}


def test_an_iteration_of_sdar_is_there_with_all_that_was_decided(small):
    stored = fitted(small, "sdar", distill_coef=0.5)
    everything = {
        "student_logp",
        "old_logp",
        "ref_logp",
        "teacher_logp",
        "entropy",
        "teacher_entropy",
        "gap",
        "gate",
        "divergence",
    }
    assert known(stored) == everything | {"behaviour_logp", "kept_logmass", "weight", "advantage", "loss"}
    told = [e for e in stored if e.skills]
    assert told and all(e.skill_text in e.turns[0].teacher_prompt for e in told)
    assert all(e.skill_text not in e.turns[0].prompt and e.turns[1].teacher_prompt is None for e in told)
    for turn in (t for e in stored for t in e.turns):
        assert all(len(getattr(turn, name)) == len(turn.response_ids) for name in known(stored))
        assert "".join(turn.pieces).startswith(turn.response) and (turn.update, turn.turn_weight) == (0, None)
        for gap, gate, weight, old, teacher in zip(
            turn.gap, turn.gate, turn.weight, turn.old_logp, turn.teacher_logp, strict=True
        ):
            assert gap == pytest.approx(teacher - old, abs=1e-5) and weight == pytest.approx(0.5 * gate, rel=1e-5)
    assert {(e.method, e.kind, e.iteration, e.panel, e.command) for e in stored} == {("SDAR", "train", 1, "train", "fit")}
    assert stored[0].objective["gate"] == {"part": "GapGate", "beta": 5.0} and len(stored[0].panel_hash) == 12


@pytest.mark.parametrize(
    ("name", "absent", "there"),
    [
        ("grpo", {"teacher_logp", "gap", "gate", "divergence", "weight"}, {"advantage", "ref_logp", "loss"}),
        ("tip", {"advantage", "ref_logp", "gate"}, {"teacher_logp", "divergence", "weight"}),
        ("bc", {"old_logp", "advantage", "teacher_logp"}, {"student_logp", "loss"}),
    ],
)  # fmt: skip
def test_what_a_method_does_not_have_is_not_there(small, name, absent, there):
    stored = fitted(small, name)
    assert not absent & known(stored) and there <= known(stored)
    if name == "tip":  # half of the tokens have no loss, and so no numbers of the step
        tokens = [
            (loss, logp) for e in stored for t in e.turns if t.loss for loss, logp in zip(t.loss, t.student_logp, strict=True)
        ]
        assert 0.3 < sum(loss is None for loss, _ in tokens) / len(tokens) < 0.7
        assert all((loss is None) == (logp is None) for loss, logp in tokens)


def test_sod_s_turn_weights_are_there(small):
    stored = fitted(small, "sod")
    assert {e.turns[0].turn_weight for e in stored} == {1.0} and all(0 < t.turn_weight <= 1.2 for e in stored for t in e.turns)


def test_where_no_episodes_are_wanted_none_are_written_and_nothing_is_kept(small):
    strategy = rewarded(TRAINING["sdar"](small, log_episodes_every=2))
    taken = []
    take = strategy.token_log.take
    strategy.token_log.take = lambda ranks: taken.append(strategy.iteration) or take(ranks)
    observe = strategy.observe_tokens
    strategy.observe_tokens = lambda batch: (observe(batch), taken.append(len(strategy.token_log._known)))
    small.fit(strategy, 3, small.data(group_size=3))
    assert taken == [2, 0, 2, 1, 0]
    assert sorted(f.name for f in (small.folder / "episodes").iterdir()) == ["train-000001.jsonl.gz", "train-000002.jsonl.gz"]


def test_a_number_that_nobody_could_read_is_refused():
    with pytest.raises(
        ConfigError, match=r"is told surprise, and a stored token has no such number\. It has behaviour_logp, "
    ):
        TokenLog().learned(None, gate=None, surprise=None)


def test_beyond_the_limit_a_run_says_what_it_leaves_out_and_goes_on(small, capsys):
    with pytest.warns(
        UserWarning, match=r"train-000001: its 6 episodes are not written, .* than 0\.001 MB \(model\.log_episodes_mb;"
    ):
        small.fit(TRAINING["grpo"](small, log_episodes_every=1, log_episodes_mb=0.001), 2, small.data(group_size=3))
    assert "left out:    12 episodes in 2 files, for model.log_episodes_mb" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"holds no episodes"):
        episodes.read(small.folder)


def test_losses_of_different_iterations_or_of_none_are_not_added_up(small):
    stored = fitted(small, "grpo", steps=2)
    with pytest.raises(ConfigError, match="of several iterations or runs, and each has a loss of its own"):
        episodes.recomputed_loss(stored)
    for e in stored:
        e.turns = []
    with pytest.raises(ConfigError, match="no optimizer step learned from these episodes, or it is not stored"):
        episodes.recomputed_loss([e for e in stored if e.iteration == 1])


def test_an_iteration_of_which_nothing_was_scored_has_no_tokens() -> None:
    log = TokenLog()
    log.begin(True)
    assert log.take(SINGLE_PROCESS) == {}

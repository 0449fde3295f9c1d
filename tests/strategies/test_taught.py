"""Teachers over iterations, and what their views tell them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from one_step import (
    LAMP,
    ON_ACTIONS,
    Did,
    assert_close,
    double,
    external,
    log_probs,
    one_step,
    playing,
    rewarded,
    rows,
    sampled,
    text_of,
    weights,
)  # fmt: skip
from torch import Tensor

from sdar.credit import GroupAdvantage
from sdar.data.panels import Panel
from sdar.envs import FencedMathProtocol, HouseholdEnv, MathEnv, ThinkActProtocol
from sdar.errors import CheckpointError, ConfigError
from sdar.evaluate.validation import Validation
from sdar.retrievers import FactRetriever, NoRetriever
from sdar.sandbox import LimitsOnlyRunner
from sdar.schedules import LinearSchedule, WindowSchedule
from sdar.strategies import HDPO, OPD, OPSD, RLSD, SDAR, SOD, GRPOWithOPSD, SDSearch, SkillSD
from sdar.teachers import (
    EMATeacher,
    HindsightView,
    HintView,
    InitialTeacher,
    LiveTeacher,
    RoutedTeacher,
    SolutionView,
    StaleTeacher,
)


@pytest.mark.parametrize(
    ("teacher", "plays"),
    [
        (lambda small: InitialTeacher(), [4, 0, 0]),
        (external, [4, 0, 0]),
        (lambda small: RoutedTeacher({"pick_and_place_simple": external(small)}, InitialTeacher()), [4, 0, 0]),
        (lambda small: LiveTeacher(), [4, 4, 4]),
        (lambda small: StaleTeacher(every=1), [4, 4, 4]),
        (lambda small: EMATeacher(), [4, 4, 4]),
    ],
    ids=["initial", "external", "routed", "live", "stale", "ema"],
)
def test_a_teacher_that_never_changes_plays_a_panel_once(small, monkeypatch, teacher, plays):
    strategy = small.strategy(SDAR, retriever=FactRetriever(), teacher=teacher(small))
    counts, told, play, log = [], [], strategy.play_as_teacher, Validation._log
    strategy.play_as_teacher = lambda rollout, requests: (counts.append(len(requests)), play(rollout, requests))[1]
    monkeypatch.setattr(Validation, "_log", lambda *of: (told.append(of[3]), log(*of))[1])
    small.fit(strategy, 2, limit_val_batches=None, val_check_interval=1, num_sanity_val_steps=-1)
    assert counts == plays and len(told) == 3
    if not plays[-1]:
        assert told[0]["teacher/success/unseen"] == told[2]["teacher/success/unseen"]
    assert told[2]["teacher/lift/unseen"].n == 4
    written = sorted(f.name[:24] for f in (small.folder / "episodes").glob("unseen-privileged-*"))
    assert written == [f"unseen-privileged-{n:06d}" for n, played in enumerate(plays) if played]


def test_a_teacher_that_never_changes_plays_again_what_it_is_told_otherwise(small):
    class Hints(FactRetriever):
        def retrieve(self, task, visit=0):
            found = super().retrieve(task, visit)
            return replace(found, text=f"{found.text} again") if strategy.iteration else found

    strategy = small.strategy(SDAR, retriever=Hints(), teacher=InitialTeacher())
    counts, play = [], strategy.play_as_teacher
    strategy.play_as_teacher = lambda rollout, requests: (counts.append(len(requests)), play(rollout, requests))[1]
    small.fit(strategy, 2, limit_val_batches=None, val_check_interval=1, num_sanity_val_steps=-1)
    assert counts == [4, 4, 0]


@pytest.mark.parametrize(
    ("make", "iteration"),
    [
        (lambda small: small.strategy(SDSearch, **ON_ACTIONS), 49),
        (lambda small: small.strategy(RLSD, retriever=FactRetriever()), 60),
        (lambda small: small.strategy(HDPO, distill_coef=LinearSchedule(0.01, 0.0, 5)), 5),
        (lambda small: small.strategy(SOD, teacher=external(small), coef=LinearSchedule(1.0, 0.0, 5), kl_coef=0.01), 5),
    ],
    ids=["loss term", "advantage", "further rollouts", "external"],
)
def test_a_teacher_whose_word_has_no_weight_is_not_asked(small, make, iteration):
    strategy = make(small)
    asked, teacher = [], strategy.teacher.model
    strategy.teacher.model = lambda *args: asked.append(args) or teacher(*args)
    seen = one_step(small, rewarded(strategy), iteration=iteration)
    assert not asked and not seen.batch.has("teacher_logp") and seen.metrics["distill/coef"] == 0
    assert len(seen.episodes) == sum(not e.extra for e in seen.episodes)
    assert any(g.abs().sum() > 0 for g in seen.gradient.values())
    one_step(small, rewarded(make(small)), iteration=0)


def followed(small, teacher, **kwargs) -> tuple[Any, list[Tensor], list[Tensor]]:
    """OPSD for two iterations: the teacher's and the student's weights after each."""
    strategy = small.strategy(OPSD, teacher=teacher)
    task = HouseholdEnv(**LAMP).task(HouseholdEnv(**LAMP).task_ids("train", 1, 0)[0])
    taught, live = [], []
    report = strategy.report

    def watch(episodes):
        taught.append(weights(teacher.model(strategy.model, strategy.initial, task)))
        live.append(weights(strategy.model))
        report(episodes)

    strategy.report = watch
    small.fit(strategy, steps=2, **kwargs)
    return strategy, taught, live


@pytest.mark.parametrize("name", ["live", "initial", "ema", "stale", "external", "routed"])
def test_a_teacher_follows_the_student_as_it_should(small, name):
    fresh = weights(small.policy().load_model())
    other = weights(small.policy(hidden_size=32).load_model())
    teacher = {
        "live": LiveTeacher(),
        "initial": InitialTeacher(),
        "ema": EMATeacher(0.5),
        "stale": StaleTeacher(2),
        "external": external(small),
        "routed": RoutedTeacher({"look_at_obj_in_light": StaleTeacher(2)}, default=external(small)),
    }[name]
    _, taught, live = followed(small, teacher)
    assert not torch.equal(live[0], fresh) and not torch.equal(live[1], live[0])
    first = (fresh + live[0]) / 2
    expected = {
        "live": live,
        "initial": [fresh, fresh],
        "ema": [first, (first + live[1]) / 2],
        "stale": [fresh, live[1]],
        "external": [other, other],
        "routed": [fresh, live[1]],
    }[name]
    torch.testing.assert_close(taught, expected, rtol=0, atol=1e-7 if name == "ema" else 0)


def test_each_familys_teacher_scores_its_own_rows(small):
    teacher = RoutedTeacher({"look_at_obj_in_light": external(small, double)}, default=InitialTeacher())
    strategy = small.strategy(OPD, policy=double(small.policy()), teacher=teacher, view=HintView())
    families = ["look_at_obj_in_light", "pick_and_place_simple"]
    seen = one_step(
        small, strategy, small.data(env=HouseholdEnv(**{**LAMP, "families": families}, horizon=2), tasks_per_step=4)
    )
    asked = set()
    for row in rows(seen.batch):
        family = seen.episodes[int(seen.batch.episode[row.number])].task.family
        network = teacher.routes[family].network if family in teacher.routes else strategy.initial
        its = sampled(log_probs(strategy, network, row.teacher_ids, row.teacher_mask), row)
        told, everything = (
            seen.batch.response_mask[row.number],
            log_probs(strategy, network, row.teacher_ids, row.teacher_mask),
        )
        torch.testing.assert_close(seen.batch.teacher_logp[row.number][told], its.detach())
        entropy = torch.special.entr(everything.exp()).sum(-1)
        torch.testing.assert_close(seen.batch.teacher_entropy[row.number][told], entropy.detach())
        asked.add(family)
    assert asked == set(families)
    mean = seen.batch.teacher_entropy[seen.batch.response_mask].mean()
    assert seen.metrics["teacher/entropy"] == pytest.approx(float(mean))


def test_a_checkpoint_holds_the_moving_average_and_restores_it(small):
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    first, taught, _ = followed(small, EMATeacher(0.5), enable_checkpointing=True, callbacks=[keep])
    path = small.folder / "kept" / "last.ckpt"
    stored = torch.load(path, weights_only=True)["state_dict"]
    copied = first.teacher.copy.state_dict()
    assert all(torch.equal(stored[f"teacher_networks.copy.{n}"], copied[n]) for n in copied)
    second = small.strategy(OPSD, teacher=EMATeacher(0.5))
    small.fit(second, steps=2, ckpt_path=path)  # there is no step left
    assert torch.equal(weights(second.teacher.copy), taught[-1])
    assert not torch.equal(weights(second.teacher.copy), weights(second.model))


def test_a_checkpoint_of_another_teacher_is_refused(small):
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    small.fit(small.strategy(OPSD), steps=1, enable_checkpointing=True, callbacks=[keep])
    message = r"holds no weights for EMATeacher: it was made with another teacher.*Use the teacher of the checkpoint's run"
    with pytest.raises(CheckpointError, match=message):
        small.fit(small.strategy(OPSD, teacher=EMATeacher(0.5)), steps=2, ckpt_path=small.folder / "kept" / "last.ckpt")


# ------------------------------------------------------------------ views and retrievers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "SkillView tells the teacher what a retriever found, and model.retriever is not set"),
        (
            {"view": SolutionView(), "retriever": FactRetriever()},
            "model.retriever is set, but SolutionView tells nothing that was retrieved: the skills would reach nobody",
        ),
    ],
)
def test_a_view_and_a_retriever_that_do_not_belong_together_are_refused(small, settings, message):
    with pytest.raises(ConfigError, match=message):
        one_step(small, small.strategy(RLSD, **settings))


@pytest.mark.parametrize("method", [SDAR, GRPOWithOPSD])
def test_a_method_of_skills_teaches_by_another_view_without_a_retriever(small, method):
    batch = one_step(small, small.strategy(method, retriever=None, view=SolutionView())).batch
    assert (batch.teacher_logp - batch.old_logp)[batch.response_mask].abs().max() > 1e-4
    with pytest.raises(ConfigError, match=r"model\.retriever is not set: the teacher would see nothing more"):
        one_step(small, small.strategy(method, retriever=None))


@pytest.fixture
def problems(small):
    """Data of problems in files, of which those for training have hints."""
    files = {}
    for split, more in {"train": [{"hint": "Add."}] * 2, "unseen": [{"hint": "Add."}, {}]}.items():
        files[split] = str(small.folder / f"{split}.jsonl")
        told = [json.dumps({"problem": f"{split} {n}", "answer": "1"} | row) for n, row in enumerate(more)]
        Path(files[split]).write_text("\n".join(told))
    env = MathEnv(files=files, horizon=1, runner=LimitsOnlyRunner(allow_unsafe=True))
    return small.data(env=env, protocol=FencedMathProtocol(instructions=""), train_tasks=2, val_tasks=2)


def test_a_row_without_a_hint_is_told_before_anything_is_loaded(small, problems):
    strategy = small.strategy(OPSD, view=HintView())
    strategy.policy.load_tokenizer = lambda: pytest.fail("the tokenizer was loaded")
    train, unseen = problems.train_panel, problems.val_panels[0]
    problems.train_panel = Panel("train", unseen.task_ids)
    with pytest.raises(ConfigError, match=r"unseen\.jsonl, row 2 has no hint, and HintView tells one of every task"):
        small.fit(strategy, data=problems)
    problems.train_panel = train
    with pytest.warns(UserWarning, match=r"the teacher does not play panel 'unseen', .*: .*unseen\.jsonl, row 2 has no hint"):
        trainer = small.fit(
            small.strategy(OPSD, view=HintView()), steps=1, data=problems, limit_val_batches=1, val_check_interval=1
        )
    assert trainer.callback_metrics["success/unseen"] == 0 and "teacher/success/unseen" not in trainer.callback_metrics


@pytest.mark.parametrize(("retriever", "times"), [(NoRetriever(), 1), (FactRetriever(), 0)])
def test_a_retriever_that_finds_nothing_is_warned_of_once(small, recwarn, retriever, times):
    small.fit(small.strategy(SkillSD, retriever=retriever), steps=3)
    said = [str(w.message) for w in recwarn if "was told nothing" in str(w.message)]
    assert len(said) == times
    if said:
        assert said[0].startswith("4 of 4 rows of iteration 0 have a teacher that was told nothing")


def test_rows_of_single_turns_learn_what_the_whole_conversation_learns(small):
    """Where the teacher's word has no weight and episodes are counted; where it has, it is told other things of each turn."""
    play = playing([Did("look", reward=1.0), "go to shelf 1"], ["look", "look"])

    def learned(per_turn, coef):
        settings = {"view": HindsightView(per_turn=per_turn), "distill_coef": coef, "advantage": GroupAdvantage("episode")}
        strategy = small.strategy(SDSearch, span="action", policy=double(small.policy()), **settings)
        seen = one_step(small, strategy, small.data(layout="trajectory", protocol=ThinkActProtocol()), play)
        return seen, strategy

    later = WindowSchedule(1.0, start=50)
    (whole, _), (parts, _), (taught, strategy) = learned(False, later), learned(True, later), learned(True, 1.0)
    assert len(whole.batch) == 2 and len(parts.batch) == len(taught.batch) == 4
    assert_close(parts.gradient, whole.gradient)
    told = [text_of(strategy, row.teacher_ids) for row in rows(taught.batch)]
    assert ["This attempt so far: look" in text for text in told] == [False, True, False, True]

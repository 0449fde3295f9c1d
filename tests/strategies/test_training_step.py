"""What every user of a strategy may rely on, whatever the method."""

import copy
import json
import math
import os
import random
import re
import weakref
from pathlib import Path

import pytest
import torch
from chats import sums, written
from lightning.pytorch.callbacks import ModelCheckpoint
from methods import TRAINING, DoublePolicy, rewarded

from sdar import episodes, registry
from sdar.credit import GroupAdvantage
from sdar.data import ChatModule
from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError, NonFiniteLossError, PanelError
from sdar.functional import masked_mean
from sdar.gates import ConstantGate, GapGate
from sdar.retrievers import FactRetriever, NoRetriever, ShuffledRetriever, UCBRetriever
from sdar.samplers import TorchSampler
from sdar.shaping import BeliefRevision
from sdar.strategies import (
    GRPO,
    OPD,
    SDAR,
    SFT,
    BehaviorCloning,
    GatedOPSD,
    GRPOWithOPSD,
    SkillPrompt,
)
from sdar.strategies.behavior_cloning import slipped
from sdar.teachers import AlignedTeacher, InitialTeacher, LiveTeacher

registry.load_parts()

NUMBERS = Path(__file__).with_name("numbers.json")


def score_one_step(small, strategy, data=None):
    """The scored batch and episodes of a first iteration, without an update."""
    seen = {}
    strategy.max_mismatch = None  # no rollout before the one that is looked at

    def stop(update):
        seen.setdefault("batch", update)

    strategy.optimize = stop
    report = strategy.report
    strategy.report = lambda episodes: (seen.update(episodes=episodes), report(episodes))
    trainer = small.trainer(1, limit_train_batches=1)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, data or small.data())
    return seen["batch"], seen["episodes"]


def weights(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def test_every_registered_training_strategy_is_tested_here():
    assert set(TRAINING) | {"skill_prompt", "sft"} == set(registry.parts("strategies"))  # which nobody plays for in training


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_a_strategy_trains_in_both_layouts_to_the_recorded_numbers(small, name, layout):
    """Two iterations in float64: every metric and the weights are those that stand in numbers.json, so that a change of form changes
    nothing. Where a number has to change, ``RECORD_NUMBERS=1 pytest tests/strategies/test_training_step.py -k recorded`` writes it anew.
    The episodes are written, and the loss of each iteration follows from them. Nothing of a pass with gradients stays in memory."""
    small.precision = DoublePolicy
    strategy = rewarded(TRAINING[name](small, policy=DoublePolicy(small.policy()), log_episodes_every=1))
    logged = []
    strategy.log_dict = lambda metrics, **_: logged.append(metrics)
    passes, forward = [], strategy.forward_student
    strategy.forward_student = lambda part: [now := forward(part), passes.append(weakref.ref(now))][0]
    before = weights_of_fresh(small)
    small.fit(strategy, steps=2, data=small.data(layout=layout, group_size=3))
    assert passes
    assert [now for now in passes if now() is not None] == []
    after = weights(strategy)
    assert strategy.iteration == 2
    assert torch.isfinite(after).all()
    assert not torch.equal(before.double(), after)
    assert strategy.sampler._slots is None  # no keys and values lie about during the update
    metrics = {f"{i // 2}/{k}": float(v) for i, found in enumerate(logged) for k, v in found.items() if not k.endswith("_s")}
    found = {k: v for k, v in metrics.items() if not re.search(r"_per_second|^\d/memory/|/(turn|position)/\d", k)}
    found |= {f"weights {n}": float(after @ (torch.arange(len(after)) * n).cos().double()) for n in range(4)}
    recorded = json.loads(NUMBERS.read_text())
    if os.environ.get("RECORD_NUMBERS"):
        recorded[f"{name} {layout}"] = {k: float(f"{v:.9g}") for k, v in found.items()}
        NUMBERS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    expected = recorded[f"{name} {layout}"]
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if not math.isclose(v, expected[k], rel_tol=1e-5, abs_tol=1e-7)} == {}
    check_stored_losses(name, episodes.read(small.folder), [metrics[f"{i}/train/loss"] for i in range(2)])


def check_stored_losses(name: str, stored: list[episodes.StoredEpisode], logged: list[float]) -> None:
    """From numbers of the tokens, coefficients and normalisers that were stored; TOPD's soft targets are not."""
    for iteration, loss in enumerate(logged, 1):
        of_iteration = [e for e in stored if e.iteration == iteration]
        assert episodes.stored_loss(of_iteration) == pytest.approx(loss, abs=1e-5)
        if name != "topd":
            assert episodes.recomputed_loss(of_iteration) == pytest.approx(loss, abs=1e-5)
            continue
        with pytest.raises(ConfigError, match=r"the loss of TOPD has trajectory_coef, which cannot be made again"):
            episodes.recomputed_loss(of_iteration)


def weights_of_fresh(small):
    return torch.cat([p.detach().flatten() for p in small.policy().load_model().parameters()])


@pytest.mark.parametrize("teacher", [LiveTeacher, InitialTeacher])
@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_without_a_retrieval_teacher_and_student_agree_bit_for_bit(small, teacher, layout):
    strategy = small.strategy(SDAR, retriever=NoRetriever(), teacher=teacher())
    batch, _ = score_one_step(small, strategy, small.data(layout=layout))
    assert torch.equal(batch.ids, batch.teacher_ids)
    assert torch.equal(batch.teacher_logp, batch.old_logp)
    assert batch.old_logp[batch.response_mask].abs().sum() > 0


def test_with_a_retrieval_the_teacher_sees_it_and_the_student_does_not(small):
    strategy = small.strategy(SDAR, retriever=FactRetriever())
    batch, episodes = score_one_step(small, strategy)
    fact = episodes[0].retrieval.text
    assert fact and fact in strategy.chat.tokenizer.decode(batch.teacher_ids[list(batch.episode).index(0)])
    assert not any(fact in strategy.chat.tokenizer.decode(row) for row in batch.ids)
    assert not torch.equal(batch.teacher_logp, batch.old_logp)


def test_without_a_retrieval_the_distillation_gradient_is_that_of_half_the_score_function(small):
    """Gap 0, so sigmoid(beta * 0) = 1/2 for every token: the term's gradient is -lambda/2 * mean grad student_logp, exactly."""
    strategy = small.strategy(GatedOPSD, retriever=NoRetriever(), distill_coef=0.7, kl_coef=0.0, entropy_coef=0.0)
    batch, _ = score_one_step(small, strategy)

    def gradient(loss_of):
        strategy.model.zero_grad()
        now = strategy.forward_student(batch)
        masked_mean(loss_of(now), batch.response_mask).backward()
        return torch.cat([p.grad.flatten() for p in strategy.model.parameters()])

    term = gradient(lambda now: strategy.token_loss(batch, now))
    score = gradient(lambda now: now.logp)
    torch.testing.assert_close(term, -0.35 * score, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layout", ["trajectory", "turn"])
@pytest.mark.parametrize("name", TRAINING)
def test_the_gradient_of_a_step_does_not_depend_on_micro_batches(small, name, layout):
    """One run, whose episodes are scored and learned from once for each size; no optimizer step is taken in between."""
    small.precision = DoublePolicy
    strategy = rewarded(TRAINING[name](small, policy=DoublePolicy(small.policy()), max_mismatch=None))
    collect, iterate = strategy.collect, strategy.iterate
    gradients, kept = {}, {}

    def each_size(step):
        episodes = collect(step)
        strategy.collect = lambda step: copy.deepcopy(episodes)
        for tokens in (10**6, 400, 1):
            kept.clear()
            strategy.micro_batch_tokens = tokens
            iterate(step)
            gradients[tokens] = torch.cat([g.flatten() for g in kept.values()])

    strategy.iterate, strategy.finish_iteration = each_size, lambda episodes: None
    strategy._step = lambda optimizer, update: kept.update({n: p.grad.clone() for n, p in strategy.model.named_parameters()})
    strategy.max_grad_norm = 1e9
    trainer = small.trainer(1, limit_train_batches=1)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data(layout=layout, group_size=3))

    whole = gradients[10**6]
    assert whole.abs().max() > 1e-5
    for tokens in (1, 400):
        torch.testing.assert_close(gradients[tokens], whole, rtol=1e-10, atol=1e-10)


def test_a_placebo_of_shuffled_skills_trains_and_its_lift_is_reported(small, capsys):
    strategy = small.strategy(SDAR, retriever=ShuffledRetriever("conf/skills/quickstart"))
    small.fit(strategy, steps=1, limit_val_batches=None, val_check_interval=1)
    assert "teacher/lift/unseen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "played"),
    [
        ({"retriever": NoRetriever()}, 0),
        ({"retriever": FactRetriever()}, 4),
        ({"retriever": NoRetriever(), "teacher": InitialTeacher()}, 4),  # other weights, after some steps
    ],
)
def test_nothing_is_played_again_where_the_teacher_is_the_policy_and_told_nothing(small, capsys, settings, played):
    strategy = small.strategy(SDAR, **settings)
    asked, play = [], strategy.play_as_teacher
    strategy.play_as_teacher = lambda rollout, requests: [asked.extend(requests), play(rollout, requests)][1]
    small.trainer(0, limit_val_batches=None).validate(strategy, small.data(), verbose=False)
    assert len(asked) == played
    assert "teacher/lift/unseen" in capsys.readouterr().out


@pytest.mark.parametrize("name", TRAINING)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(small, name):
    settings = {"updates_per_rollout": 2}
    straight = TRAINING[name](small, **settings)
    keep = ModelCheckpoint(dirpath=small.folder / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    small.fit(straight, steps=4, enable_checkpointing=True, callbacks=[keep])
    torch.manual_seed(12345)  # whatever the process did meanwhile
    second = TRAINING[name](small, **settings)
    small.fit(second, steps=4, ckpt_path=small.folder / "kept" / "step=2.ckpt")
    assert second.iteration == straight.iteration == 2
    assert torch.equal(weights(second), weights(straight))


def test_the_retriever_goes_on_where_it_was(small):
    def strategy():
        return small.strategy(SDAR, retriever=UCBRetriever("conf/skills/quickstart"))

    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    first = strategy()
    small.fit(first, steps=2, enable_checkpointing=True, callbacks=[keep])
    second = strategy()
    small.fit(second, steps=2, ckpt_path=small.folder / "kept" / "last.ckpt")
    assert second.retriever.state_dict() == first.retriever.state_dict() != strategy().retriever.state_dict()


def test_a_panel_that_differs_from_the_checkpoints_is_refused(small):
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    small.fit(TRAINING["grpo"](small), steps=1, enable_checkpointing=True, callbacks=[keep])
    with pytest.raises(PanelError, match=r"panel 'unseen' has hash .*the checkpoint was made with"):
        small.fit(
            TRAINING["grpo"](small), data=small.data(val_tasks=5), steps=2, ckpt_path=small.folder / "kept" / "last.ckpt"
        )


def test_a_loss_that_stays_non_finite_stops_the_run_and_leaves_the_weights_alone(small):
    strategy = TRAINING["grpo"](small, max_skipped_steps=2)
    strategy.token_loss = lambda batch, now: now.logp * math.nan
    with pytest.raises(NonFiniteLossError, match=r"not finite in 3 optimizer steps in a row .*max_skipped_steps is 2"):
        small.fit(strategy, steps=10)
    assert torch.equal(weights(strategy), weights_of_fresh(small))


def test_one_optimizer_step_for_so_many_rows_and_a_short_last_one(small):
    """Every row once; trainer.max_steps ends the run in the middle of a rollout."""
    strategy = TRAINING["grpo"](small, rows_per_update=3)
    sizes, rows, optimize, divided = [], [], strategy.optimize, strategy.updates

    def updates(batch):
        rows.append(len(batch))
        return divided(batch)

    strategy.updates, strategy.optimize = updates, lambda update: sizes.append(len(update)) or optimize(update)
    small.fit(strategy, steps=4, data=small.data(layout="turn"))
    whole, short = divmod(rows[0], 3)
    expected = [3] * whole + [short] * (short > 0)
    assert len(expected) > 1 and sizes == (expected * 4)[:4] and strategy.trainer.global_step == 4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_cloning_learns_the_likelihood_at_temperature_1_whatever_the_sampler_has(small, temperature):
    tempered, plain = (
        TRAINING["bc"](small, sampler=TorchSampler(max_new_tokens=6, temperature=t)) for t in (temperature, 1.0)
    )
    for strategy in (tempered, plain):
        small.fit(strategy, steps=1)
    assert torch.equal(weights(tempered), weights(plain))


def test_one_non_finite_step_changes_nothing_counts_and_training_goes_on(small):
    strategy = TRAINING["bc"](small)
    loss_of, calls = strategy.token_loss, []

    def sometimes(batch, now):
        calls.append(1)
        return loss_of(batch, now) * (math.inf if len(calls) == 1 else 1.0)

    strategy.token_loss = sometimes
    small.fit(strategy, steps=1)
    assert strategy.iteration == strategy.trainer.global_step == 1
    assert torch.equal(weights(strategy), weights_of_fresh(small))
    calls.clear()
    strategy = TRAINING["bc"](small)
    loss_of, strategy.token_loss = strategy.token_loss, sometimes
    small.fit(strategy, steps=2)
    assert strategy.iteration == strategy.trainer.global_step == 2 and torch.isfinite(weights(strategy)).all()
    assert not torch.equal(weights(strategy), weights_of_fresh(small))


def test_flat_groups_can_be_left_out_and_an_iteration_without_signal_changes_nothing(small):
    strategy = TRAINING["grpo"](small, drop_flat_groups=True)  # a random policy never succeeds: every group is flat
    trainer = small.trainer(1, limit_train_batches=2)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data())
    assert trainer.global_step == 0 and strategy.iteration == 2
    assert torch.equal(weights(strategy), weights_of_fresh(small))


@pytest.mark.parametrize("layout", ["trajectory", "turn"])
def test_an_invalid_action_costs_its_penalty_in_the_row_that_holds_it(small, layout):
    seen = []

    class Watch(GroupAdvantage):
        def __call__(self, credit):
            seen.append(credit)
            return super().__call__(credit)

    strategy = TRAINING["grpo"](small, invalid_penalty=0.25, advantage=Watch())
    _, episodes = score_one_step(small, strategy, small.data(layout=layout))
    credit = seen[0]
    for reward, e, row in zip(credit.rewards.tolist(), credit.episodes.tolist(), range(len(credit.rewards)), strict=True):
        turns = credit.turns.turn[credit.turns.row == row].tolist()
        wrong = sum(not episodes[e].turns[t].valid for t in turns)
        assert reward == episodes[e].reward - 0.25 * wrong
    of_turns = [
        0.0 if episodes[e].turns[t].valid else 0.25 for e, t in zip(credit.turns.episode, credit.turns.turn, strict=True)
    ]
    assert credit.turn_penalties.tolist() == of_turns
    assert max(of_turns) == 0.25


def test_the_initial_teacher_keeps_its_weights_while_the_student_learns(small):
    strategy = small.strategy(SDAR, retriever=FactRetriever(), teacher=InitialTeacher())
    small.fit(strategy, steps=2)
    kept = torch.cat([p.flatten() for p in strategy.initial.parameters()])
    assert torch.equal(kept, weights_of_fresh(small))
    assert not torch.equal(kept, weights(strategy))


def test_skill_prompt_validates_with_and_without_skills_and_refuses_to_train(small, capsys):
    strategy = small.strategy(SkillPrompt, retriever=FactRetriever())
    small.trainer(1, limit_val_batches=None).validate(strategy, small.data())
    assert "teacher/success/unseen" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="SkillPrompt does not train"):
        small.fit(small.strategy(SkillPrompt, retriever=FactRetriever()))


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (GRPO, {"kl_coef": -1.0}, "cannot be negative"),
        (GRPO, {"updates_per_rollout": 0}, "updates_per_rollout is 0: it must be at least 1"),
        (GRPO, {"rows_per_update": 0}, "rows_per_update is 0: it must be at least 1"),
        (
            GRPO,
            {"rows_per_update": 256, "updates_per_rollout": 8},
            "rows_per_update is 256 and model.updates_per_rollout is 8: both say into how many optimizer steps",
        ),
        (SDAR, {"retriever": NoRetriever(), "distill_coef": 0.0}, "distill_coef is 0.0: the teacher would have no influence"),
        (BehaviorCloning, {"retriever": NoRetriever(), "informed_share": 2.0}, "informed_share is 2.0"),
        (BehaviorCloning, {"retriever": NoRetriever(), "lost_share": -1.0}, "lost_share is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(small, cls, settings, message):
    with pytest.raises(ConfigError, match=message):
        small.strategy(cls, **settings)


def test_a_world_that_lists_no_actions_offers_no_temptation(small):
    strategy = small.strategy(BehaviorCloning, retriever=NoRetriever(), astray_share=0.25)
    with pytest.raises(ConfigError, match=r"astray_share is 0\.25.*this world lists none\. Set it to 0"):
        strategy.perturbed_action([], random.Random(0))


def test_a_slip_names_a_number_that_is_not_there(small):
    strategy = small.strategy(BehaviorCloning, retriever=NoRetriever(), slip_share=1.0)
    commands = ["look", "go to drawer 1", "go to drawer 2", "go to desk 1", "take pen 3 from desk 1"]
    slips = {strategy.perturbed_action(commands, random.Random(n)) for n in range(100)}
    drawers, desks = (f"go to drawer {n}" for n in (3, 4)), (f"go to desk {n}" for n in (2, 3))
    assert slips == {*drawers, *desks, "take pen 4 from desk 1", "take pen 5 from desk 1"}
    assert slipped("look around", commands, random.Random(0)) == "look around"
    strategy.slip_share = 0.5
    mixed = [strategy.perturbed_action(commands, random.Random(n)) in commands for n in range(200)]
    assert 60 < sum(mixed) < 140


def test_a_lost_demonstration_begins_as_one_who_is_told_nothing_and_is_imitated_after_that(small):
    """Told where things are, the expert takes over in a state to which its student would have come; what is not informed is as before."""
    settings = {"retriever": FactRetriever(), "astray_share": 0.0}
    searches = {e.task.id: actions(e) for e in demonstrations(small, informed_share=0.0, lost_share=1.0, **settings)}
    informed = {e.task.id: actions(e) for e in demonstrations(small, informed_share=1.0, **settings)}
    starts, others = set(), 0
    for episode in demonstrations(small, informed_share=1.0, lost_share=1.0, **settings):
        trainable = [turn.trainable for turn in episode.turns]
        lost = trainable.index(True) if True in trainable else len(trainable)
        assert 1 <= lost <= 12 and all(trainable[lost:]), "the horizon is 24"
        starts.add(lost)
        assert episode.success
        others += actions(episode) != informed[episode.task.id]
    assert len(starts) > 1 and others >= 5
    assert searches == {e.task.id: actions(e) for e in demonstrations(small, informed_share=0.0, **settings)}


def test_a_lost_demonstration_slips_too(small):
    found = demonstrations(
        small, retriever=FactRetriever(), informed_share=1.0, astray_share=0.0, lost_share=1.0, slip_share=1.0
    )
    assert all(turn.valid == turn.trainable for e in found for turn in e.turns), (
        "each of its first turns is refused, none of the others"
    )


def demonstrations(small, **settings):
    env = HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=24)
    strategy, data = small.strategy(BehaviorCloning, **settings), small.data(env=env, tasks_per_step=10, group_size=1)
    shown, finish = [], strategy.finish_iteration
    strategy.finish_iteration = lambda episodes: shown.extend(episodes) or finish(episodes)
    small.fit(strategy, steps=1, data=data)
    return shown


def actions(episode):
    return [turn.action for turn in episode.turns]


def test_the_ungated_baseline_gives_every_token_the_same_trust(small):
    strategy = small.strategy(GRPOWithOPSD, retriever=NoRetriever(), trust=0.25)
    assert isinstance(strategy.gate, ConstantGate) and strategy.gate.value == 0.25


def test_sdars_loss_is_grpos_plus_the_gated_lift(small):
    """One row, two response tokens, by hand: lambda 0.5, gap gate with beta 1."""
    strategy = small.strategy(
        SDAR, retriever=NoRetriever(), gate=GapGate(1.0), distill_coef=0.5, kl_coef=0.0, entropy_coef=0.0
    )
    batch, _ = score_one_step(small, strategy)
    now = strategy.forward_student(batch)
    told = copy.copy(batch)
    told.teacher_logp = batch.old_logp + 1.0  # gap 1: gate sigmoid(1) = 0.7310586, lift 1
    told.advantages = torch.ones_like(batch.old_logp)  # ratio 1: policy loss -1
    loss = strategy.token_loss(told, now)[batch.response_mask]
    torch.testing.assert_close(loss, torch.full_like(loss, -1.0 + 0.5 * 0.7310586))


def documented_metrics():
    """Names in the table of docs/metrics.md; what varies stands in angle brackets."""
    table = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([a-z_]+(?:@<k>)?/[^`]*)`", row)}


def pretend(strategy, change):
    """Change each episode that was played."""
    collect = strategy.collect

    def changed(step):
        episodes = collect(step)
        for e in episodes:
            change(e)
        return episodes

    strategy.collect = changed


def call_tools(e):
    """A tool was called in the first two turns, with an error and then with a result."""
    for turn, ok in zip(e.turns, (False, True), strict=False):
        turn.tool_ok = ok


def test_the_metrics_of_every_strategy_are_those_of_the_table(small):
    """Every logged name stands in docs/metrics.md, and some strategy logs every name of the table without a placeholder."""
    documented = documented_metrics()
    pattern = "|".join(re.sub(r"<[^>]*>", ".+", name) for name in documented)
    runs = {name: make(small) for name, make in TRAINING.items()}
    for name in ("critic_search", "sdar"):
        pretend(runs[name], lambda e: setattr(e, "success", e.attempt % 2 == 1))
    pretend(runs["sod"], call_tools)
    runs["transformed"] = small.strategy(SDAR, retriever=FactRetriever(), transforms=[BeliefRevision()], overlong_buffer=5)
    runs["sft"] = small.strategy(SFT)
    runs["aligned"] = small.strategy(OPD, teacher=AlignedTeacher(small.policy(hidden_size=32)))
    files = [written(small.folder / f"{n}.jsonl", *sums(2, n)) for n in (0, 2)]
    bounded = {"max_episode_tokens": 400}
    logged = set()
    for name, strategy in runs.items():
        data = ChatModule(files[:1], files[1:], tasks_per_step=2) if name == "sft" else small.data(**bounded)
        if name == "sod":
            data.env.has_tools = True
        trainer = small.fit(strategy, steps=1, data=data, limit_val_batches=None, val_check_interval=1)
        found = set(trainer.callback_metrics) - {"step"}  # what loggers number rows by
        assert [m for m in sorted(found) if not re.fullmatch(pattern, m)] == [], name
        if name not in ("bc", "sft", "aligned") and strategy.teacher is not None:
            assert {"gap/mean", "teacher/lift/unseen", "teacher/extra_tokens"} <= found, name
        logged |= found
    package = Path(__file__).parents[2] / "sdar"
    engines = "".join(
        file.read_text() for folder in ("samplers", "serving", "teachers") for file in (package / folder).glob("*.py")
    )
    logged |= set(re.findall(r'"((?:rollout|teacher|time)/\w+)"', engines))
    assert sorted({name for name in documented if "<" not in name} - logged) == []

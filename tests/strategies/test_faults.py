"""What faults of worlds do to a run: what was lost is missing, one bad item ends itself, and a run without steps ends."""

import json
import re
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sdar.envs import HouseholdEnv
from sdar.envs.household_planner import PlanError
from sdar.errors import ConfigError, NonFiniteLossError, NoProgressError
from sdar.evaluate.validation import of_panel, told
from sdar.metrics import Metrics
from sdar.metrics.tasks import averages, paired
from sdar.parts import StepResult
from sdar.retrievers import FactRetriever, UCBRetriever
from sdar.rollout import collate, make_rows
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, HDPO, SDAR, BehaviorCloning
from sdar.teachers import LiveTeacher
from sdar.training.checks import check_first_prompts
from sdar.training.finite import blame
from sdar.types import Episode, Status, Task, Turn


class Outage(HouseholdEnv):
    """Every answer is right; `reset` fails where `down` says so of a task's id and the number of its visit."""

    def __init__(self, down):
        super().__init__(world=5, receptacles=6, distractors=1, horizon=3)
        self.down, self.visits = down, {}

    def __deepcopy__(self, memo):
        copy = Outage(self.down)
        copy.visits = self.visits  # counted for all copies together
        return copy

    def reset(self, task):
        self.visits[task.id] = self.visits.get(task.id, 0) + 1
        if self.down(task.id, self.visits[task.id]):
            raise ConnectionError("the world is down")
        return super().reset(task)

    def step(self, action):
        return StepResult("Right.", 1.0, done=True, success=True)


def attempts(name: str, *outcomes: bool | None) -> list[Episode]:
    """Attempts at a task: won, lost to the other side, or None where the world failed."""
    said = Turn([1], [5], [-0.1], [0.0])
    return [
        Episode(Task(name, "put", "do it"), n, [said], Status.ENV_ERROR if won is None else Status.DONE, won is True)
        for n, won in enumerate(outcomes)
    ]


def test_an_outage_is_no_lost_skill(small, capsys):
    """Every answer is right, and in the second validation half of the tasks cannot be begun."""
    lost = set(small.data().val_panels[0].task_ids[::2])
    env = Outage(lambda task, visit: task in lost and visit > 1)
    trainer = small.fit(small.strategy(GRPO), steps=2, data=small.data(env=env), limit_val_batches=None, val_check_interval=1)
    said = capsys.readouterr().out
    assert re.search(r"^  success +100\.0 → 100\.0 %  \+0\.0 \[.*\]  the 2 of 4 tasks that both played$", said, re.MULTILINE)
    assert "MISSING: faults of the world ended 2 of 4 episodes (2 env_error); the first, of task" in said
    assert "ConnectionError: the world is down" in said
    first, second = [json.loads(line) for line in (small.folder / "validation.jsonl").read_text().splitlines()]
    assert [(v["episodes"], v["lost"], v["success/unseen"][0]) for v in (first, second)] == [(4, 0, 1.0), (4, 2, 1.0)]
    assert trainer.callback_metrics["success/unseen"] == 1.0


def test_a_panel_of_which_nothing_was_played_has_no_number(small, capsys):
    lost = set(small.data().val_panels[0].task_ids)
    env = Outage(lambda task, visit: task in lost)
    trainer = small.fit(small.strategy(GRPO), steps=1, data=small.data(env=env), limit_val_batches=None, val_check_interval=1)
    assert "MISSING: faults of the world ended 4 of 4 episodes" in capsys.readouterr().out
    assert "success/unseen" not in trainer.callback_metrics and trainer.callback_metrics["success/train"] == 1.0


def test_means_of_a_panel_are_over_what_was_played():
    episodes = attempts("a", True, None) + attempts("b", None, None) + attempts("c", True, False)
    assert averages(episodes) == {"a": 1.0, "c": 0.5}
    estimates = {key: told(metric) for key, metric in of_panel("unseen", episodes, 2).items()}
    assert {key: (e.mean, e.n) for key, e in estimates.items()} == {
        "success/unseen": (0.75, 2),
        "pass@2/unseen": (1.0, 1),  # both attempts were played at one task only
        "success_by_family/unseen/put": (0.75, 2),
    }
    assert paired({"a": 1.0, "c": 0.5}, {"b": 0.0, "c": 0.25, "a": 0.5}) == ([1.0, 0.5], [0.5, 0.25])
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    assert of_panel("unseen", attempts("b", None), 1) == {}


def test_the_share_of_a_group_that_succeeded_leaves_out_what_was_lost():
    episodes = attempts("a", True, None, None, False) + attempts("b", None)
    batch = collate(make_rows(episodes, "turn"), episodes, [0, 0, 0, 0, 1])
    assert batch.group_success[:4].tolist() == [0.5] * 4 and batch.group_success[4].isnan()


def test_a_retriever_and_further_requests_hear_of_played_attempts_only(small):
    strategy = small.strategy(SDAR, retriever=UCBRetriever("conf/skills/quickstart"))
    heard = []
    strategy.retriever.observe = lambda task, retrieval, success: heard.append((task.id, success))
    strategy.update_retriever(attempts("a", True, None, None) + attempts("b", None, None) + attempts("c", False, True))
    assert heard == [("a", 1.0), ("c", 0.5)]

    cliffs = small.strategy(HDPO)
    seen = []
    cliffs.attempts = lambda step: attempts("a", None, None) + attempts("b", False, None) + attempts("c", True, None)
    cliffs.privileged_requests = lambda groups, most, extra: seen.extend(g[0].task.id for g in groups) or []
    cliffs.collect(None)
    assert seen == ["b"]  # nobody knows of a, c was won


def test_a_world_that_always_fails_ends_the_run_with_its_own_error(small):
    """At the time of the probe, too, the world's words are told."""
    strategy = small.strategy(GRPO, max_empty_iterations=3)
    with (
        pytest.warns(UserWarning, match=r"could not be compared .*4 of 4 episodes .*ConnectionError: the world is down"),
        pytest.warns(
            UserWarning, match=r"iteration 1 brought no optimizer step: the world failed in every episode \(1 of 1\)"
        ),
        pytest.raises(
            NoProgressError,
            match=r"3 iterations in a row, up to iteration 3, brought no optimizer step \(model.max_empty_iterations is 3\): the world "
            r"failed in every episode \(3 of 3\). Faults of the world ended 4 of 4 episodes \(4 env_error\); the first, of task \S+: "
            r"ConnectionError: the world is down",
        ),
    ):
        small.fit(strategy, steps=10, data=small.data(env=Outage(lambda task, visit: True)))
    assert strategy.trainer.global_step == 0


def test_iterations_that_filters_left_empty_are_bounded_and_a_step_begins_anew(small):
    strategy = small.strategy(GRPO, drop_flat_groups=True, max_empty_iterations=3)
    credit, calls = strategy.credit, []

    def sometimes(batch, episodes):
        calls.append(1)
        if len(calls) == 3:
            strategy.drop_flat_groups = False
        kept = credit(batch, episodes)
        strategy.drop_flat_groups = True
        return kept

    strategy.credit = sometimes
    with pytest.raises(
        NoProgressError, match=r"up to iteration 6, .*credit left nothing to learn from .* \(3 of 3\)\. The weights"
    ):
        small.fit(strategy, steps=2, data=small.data(env=Outage(lambda task, visit: False)))
    assert strategy.trainer.global_step == 1 and strategy.iteration == 6


class Long(Outage):
    """One task begins with a text that fits no context."""

    def __init__(self, down=None):
        super().__init__(down or (lambda task, visit: False))
        self.long = self.task_ids("train", 10, 0)[0]

    def __deepcopy__(self, memo):
        return Long(self.down)

    def reset(self, task):
        return super().reset(task) + " x" * (3000 if task.id == self.long else 0)


def test_a_task_that_fits_no_context_ends_itself_and_is_named(small):
    """What cannot be asked of the policy counts as failed: it is no fault of the world."""
    env = Long()
    data = small.data(env=env, tasks_per_step=5)
    drawn = env.long in [task.id for task in data.step(1, 1).tasks]  # in the last of two iterations
    with pytest.warns(
        UserWarning, match=rf"task {env.long} cannot be played: its first prompt has \d+ tokens .*data.leave_out"
    ):
        trainer = small.fit(small.strategy(GRPO), steps=2, data=data)
    assert trainer.global_step == 2
    assert trainer.callback_metrics["success/train"] == trainer.callback_metrics["success/train"].new_tensor(
        0.8 if drawn else 1.0
    )


class Short(LiveTeacher):
    def __init__(self, tokens):
        self.tokens = tokens

    def context(self, task):
        return self.tokens


def test_where_the_teachers_view_does_not_fit_the_teacher_is_told_nothing(small):
    def batch_of(**kwargs):
        strategy, seen = small.strategy(SDAR, retriever=FactRetriever(), **kwargs), []
        credit, strategy.credit = strategy.credit, lambda batch, episodes: seen.append(batch) or credit(batch, episodes)
        trainer = small.fit(strategy, steps=1)
        return seen[0], trainer.callback_metrics["teacher/overflow_share"]

    roomy, share = batch_of()
    lengths = roomy.teacher_attention_mask.sum(1)
    most = int((lengths.min() + lengths.max()) // 2)
    assert share == 0 and roomy.is_privileged.all() and roomy.attention_mask.sum(1).max() <= most < lengths.max()
    with pytest.warns(
        UserWarning, match=rf"the teacher's view of task .*, but the teacher's context is {most}: .*are left out"
    ):
        tight, share = batch_of(teacher=Short(most))
    assert tight.is_privileged.tolist() == (lengths <= most).tolist()
    assert share == pytest.approx(float((lengths > most).float().mean()))
    for row in (~tight.is_privileged).nonzero()[:, 0].tolist():
        ids = tight.ids[row][tight.attention_mask[row].bool()]
        assert tight.teacher_ids[row][tight.teacher_attention_mask[row].bool()].tolist() == ids.tolist()


class Unwinnable(HouseholdEnv):
    """An expert that sees no way in one of the tasks, after a first action."""

    lost = ""

    def expert(self, facts, rng):
        expert = super().expert(facts, rng)
        act = expert.act

        def stuck():
            if self.task_now == self.lost and self.acted:
                raise PlanError("no receptacle that may hold the papertowelroll 1 in hand")
            self.acted = True
            return act()

        expert.act = stuck
        return expert

    def reset(self, task):
        self.task_now, self.acted = task.id, False
        return super().reset(task)


def test_a_demonstration_that_cannot_be_gone_on_with_ends_itself(small):
    env = Unwinnable(world=5, receptacles=6, distractors=1, horizon=8)
    strategy = small.strategy(BehaviorCloning, retriever=FactRetriever(), astray_share=0.0)
    data, shown = small.data(env=env, tasks_per_step=5), []
    env.lost = data.step(1, 0).tasks[0].id
    conclude, strategy.finish_iteration = (
        strategy.finish_iteration,
        lambda episodes: shown.extend(episodes) or conclude(episodes),
    )
    with pytest.warns(
        UserWarning, match=rf"faults of the world ended 2 of 10 episodes .*of task {env.lost}: PlanError: no receptacle"
    ):
        trainer = small.fit(strategy, steps=1, data=data)
    assert trainer.global_step == 1 and len(shown) == 10
    assert [e.lost for e in shown] == [e.task.id == env.lost for e in shown]


def test_a_loss_that_is_no_number_names_what_went_into_it(small):
    def ending(change):
        strategy = small.strategy(SDAR, retriever=FactRetriever(), max_skipped_steps=0)
        change(strategy)
        with pytest.raises(NonFiniteLossError) as error:
            small.fit(strategy, steps=1)
        return str(error.value)

    def rewards(strategy):
        credit = strategy.credit

        def broken(batch, episodes):
            batch = credit(batch, episodes)
            batch.advantages[0] = torch.nan
            return batch

        strategy.credit = broken

    def loss(strategy):
        token_loss = strategy.token_loss
        strategy.token_loss = lambda batch, now: token_loss(batch, now) * torch.inf

    said = ending(rewards)
    assert re.search(r"What went into the loss was not finite already: advantages \(\d+ of \d+ tokens\)\. Look", said)
    assert "Lower the learning rate" not in said
    assert "All that went into the loss was finite. Lower the learning rate" in ending(loss)


def test_what_was_computed_from_finite_inputs_is_named():
    metrics = Metrics()
    metrics.add("distill/divergence", torch.inf)
    metrics.add("train/loss", torch.nan)
    batch = collate(make_rows(attempts("a", True), "turn"), attempts("a", True), [0])
    batch.teacher_logp = torch.zeros(batch.ids.shape)
    assert "was finite. Of what was computed from it these were not: distill/divergence. Lower" in blame(batch, metrics)
    batch.teacher_logp[0, 0] = torch.nan  # a prompt's token counts nowhere
    assert "teacher_logp" not in blame(batch, metrics)
    batch.teacher_logp[0, 1] = -torch.inf
    assert "not finite already: teacher_logp (1 of 1 tokens)" in blame(batch, metrics)


class Damaged(HouseholdEnv):
    """The files of some tasks cannot be read."""

    def __init__(self, broken=()):
        super().__init__(world=5, receptacles=6, distractors=1, horizon=3)
        self.broken = frozenset(broken)

    def task(self, task_id):
        if task_id in self.broken:
            raise OSError(f"{task_id}.json is damaged")
        return super().task(task_id)


def test_a_task_that_cannot_be_made_ends_nothing_else(small, capsys):
    data = small.data()
    trained, validated = data.step(1, 0).tasks[0].id, data.val_panels[0].task_ids[1]
    strategy = small.strategy(SDAR, retriever=FactRetriever())
    played, attempts_of = [], strategy.attempts
    strategy.attempts = lambda step: played.append([t.id for t in step.tasks]) or attempts_of(step)
    with pytest.warns(
        UserWarning, match=rf"task {trained} cannot be made and is left out: OSError: {trained}.json is damaged"
    ):
        settings = {"limit_val_batches": None, "val_check_interval": 1}
        trainer = small.fit(strategy, steps=1, data=small.data(env=Damaged({trained, validated})), **settings)
    assert played == [[data.step(1, 0).tasks[1].id]] and trainer.callback_metrics["rollout/unreadable_share"] == 0.5
    said = capsys.readouterr().out
    assert f"ended 1 of 4 episodes (1 env_error); the first, of task {validated}: OSError: {validated}.json is damaged" in said


def test_a_task_can_be_left_out_of_a_run_that_goes_on(small):
    data = small.data()
    gone, measured = data.step(1, 2).tasks[0].id, data.val_panels[0].task_ids[1]
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    small.fit(small.strategy(GRPO), steps=2, enable_checkpointing=True, callbacks=[keep])
    less = small.data(leave_out=[gone, measured])
    resumed = small.strategy(GRPO)
    small.fit(resumed, steps=3, data=less, ckpt_path=small.folder / "kept" / "last.ckpt")
    assert resumed.iteration == 3
    for iteration in range(6):  # the others stay where they were, with their visits
        asked = zip(data.step(1, iteration).tasks, data.step(1, iteration).visits, strict=True)
        step = less.step(1, iteration)
        assert [(t.id, v) for t, v in asked if t.id != gone] == [
            (t.id, v) for t, v in zip(step.tasks, step.visits, strict=True)
        ]
    panel = less.val_panels[0]
    assert len(panel) == 3 and panel.whole == data.val_panels[0].hash != panel.hash


def test_what_is_left_out_must_be_there_and_leave_something(small):
    name = small.data().train_panel.task_ids[0]
    with pytest.raises(
        ConfigError, match=rf"data.leave_out names '{name}x', which is in no panel of this run. Did you mean '{name}'"
    ):
        small.data(leave_out=[f"{name}x"])
    with pytest.raises(ConfigError, match="names all 10 tasks of training: nothing is left"):
        small.data(leave_out=list(small.data().train_panel.task_ids))


def test_no_task_is_made_to_see_that_a_short_instruction_fits(small, monkeypatch):
    assert Damaged().longest_instruction is None, "such a class may say anything"
    env = HouseholdEnv(world=3)
    ids = [task_id for split in env.splits for task_id in env.task_ids(split, 60, 0)]
    lengths = [len(env.task(task_id).instruction) for task_id in ids]
    assert max(lengths) <= env.longest_instruction < 2 * max(lengths)
    data, module = small.data(env=env), small.strategy(GRPO, sampler=TorchSampler(max_new_tokens=12))
    monkeypatch.setattr(HouseholdEnv, "game", lambda self, task_id: pytest.fail("it was made"))
    module.sampler.context = 2 * env.longest_instruction + 12
    check_first_prompts(module, data)


def test_instructions_that_fit_no_context_are_found_before_training(small):
    class Wordy(Damaged):
        def task(self, task_id):
            task = super().task(task_id)
            return replace(task, instruction="x " * 600) if task_id == self.wordy else task

    env = Wordy()
    env.wordy = env.task_ids("train", 10, 0)[0]
    words = rf"1 tasks have a first prompt that does not fit: .* has \d+ tokens, there is room for 506 .*data.leave_out: \[{env.wordy}\]"
    with pytest.warns(UserWarning, match=words):
        small.fit(small.strategy(GRPO), steps=1, data=small.data(env=env))

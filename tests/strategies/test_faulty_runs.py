"""Alarms on runs that have their fault: tiny fits, each with something really wrong, asked with the default thresholds."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from sdar.alarms import Alarms
from sdar.filters import HasSuccessfulSibling
from sdar.gates import EntropyGate
from sdar.parts import Environment, Policy, StepResult
from sdar.policy_losses import PPO
from sdar.registry import load_parts, parts
from sdar.retrievers import FactRetriever, KeywordRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, OPD, SDAR, SOD
from sdar.teachers import ExternalTeacher, InitialTeacher, SiblingView
from sdar.types import Task

load_parts()
SKILL = "take the mug to the fridge and put the egg in the drawer"
BESIDE = {"length_explosion", "invalid_actions", "flat_groups", "entropy_collapse"}
"""What a policy that begins without any training is or becomes, whatever else is wrong: it never ends, and learns one answer."""


class Counted(Environment):
    """Pays, turn by turn, for the text that it is told; an episode of two kinds of tasks, which look alike."""

    def __init__(self, pays, horizon=1):
        self.pays, self.horizon = pays, horizon

    def task_ids(self, split, count, seed):
        return [f"{split}-{i}" for i in range(count)]

    def task(self, task_id):
        return Task(task_id, "say", "put a mug away")

    def reset(self, task):
        self.kind, self.turn, self.won = int(task.id.split("-")[1]) % 3 == 0, 0, True
        return "You see a mug."

    def step(self, action):
        reward, right = self.pays(action, self.kind)
        self.turn, self.won = self.turn + 1, self.won and right
        done = self.turn == self.horizon
        return StepResult("You see a mug.", reward, done=done, success=done and self.won)


class Changed(Policy):
    """A policy whose network is not what it should be."""

    name = "a changed policy"

    def __init__(self, policy, change):
        self.policy, self.change = policy, change

    def load_tokenizer(self):
        return self.policy.load_tokenizer()

    def load_model(self):
        return self.change(self.policy.load_model())

    def context(self):
        return self.policy.context()


class Deaf(TorchSampler):
    """An engine that keeps the weights that it began with."""

    def __init__(self, policy, **kwargs):
        super().__init__(**kwargs)
        self.network = policy.load_model()

    def sample(self, model, prompts, draws):
        return super().sample(self.network, prompts, draws)


def odd(action):
    return len(action) % 2 == 1


def words(small, pays, horizon=1, **kwargs):
    return small.data(env=Counted(pays, horizon), **{"tasks_per_step": 4, "group_size": 4, "train_tasks": 30} | kwargs)


def says(tokens):
    return TorchSampler(max_new_tokens=tokens)


def rate(lr):
    return partial(torch.optim.AdamW, lr=lr)


# ------------------------------------------------------------------ the runs: what is wrong, and the strategy, the data and the steps


def never_seen_the_world(small):
    """A policy without any training, a teacher that is one too, and is only asked about tasks that some attempt solved."""
    strategy = small.strategy(SDAR, retriever=FactRetriever(), sequence_filter=HasSuccessfulSibling(), sampler=says(3))
    return strategy, small.data(), {"steps": 20, "limit_val_batches": None, "val_check_interval": 20}


def reward_for_the_opposite(small):
    """The reward pays for what is no success."""
    data = words(small, lambda action, kind: (float(not odd(action)), odd(action)))
    return small.strategy(GRPO, sampler=says(1), optimizer=rate(0.1)), data, {"steps": 25}


def teacher_that_learned_the_opposite(small):
    learned, data, _ = reward_for_the_opposite(small)
    small.fit(learned, 8, data)
    teacher = ExternalTeacher(Changed(small.policy(), lambda model: copy.deepcopy(learned.model)))
    strategy = small.strategy(OPD, teacher=teacher, sampler=says(1), optimizer=rate(1e-4))
    return strategy, words(small, lambda action, kind: (0.0, odd(action)), tasks_per_step=16), {"steps": 10}


def reward_for_saying_little(small):
    data = words(small, lambda action, kind: (-float(len(action)), True), 2)
    return small.strategy(GRPO, sampler=says(24), optimizer=rate(0.1)), data, {"steps": 20}


def absurd_learning_rate(small):
    data = words(small, lambda action, kind: (float(odd(action)), odd(action)), 3)
    return small.strategy(GRPO, sampler=says(3), optimizer=rate(1.0)), data, {"steps": 20}


def tasks_that_look_alike(small):
    """Two of three want what the third does not: the policy settles on the answer of the most."""
    data = words(
        small, lambda action, kind: (float(odd(action) != kind), odd(action) != kind), val_tasks=9, val_attempts=4
    )  # fmt: skip
    strategy = small.strategy(GRPO, sampler=says(3), optimizer=rate(0.1))
    return strategy, data, {"steps": 30, "limit_val_batches": None, "val_check_interval": 30, "num_sanity_val_steps": -1}


def bounds_out_of_reach(small):
    data = words(small, lambda action, kind: (float(odd(action)), odd(action)), tasks_per_step=2, group_size=2)
    settings = {"policy_loss": PPO(clip_low=0.99, clip_high=100.0), "updates_per_rollout": 2}
    return small.strategy(GRPO, sampler=says(2), optimizer=rate(0.03), **settings), data, {"steps": 100}


def engine_that_takes_no_weights(small):
    policy = small.policy()
    strategy = small.strategy(GRPO, policy=policy, sampler=Deaf(policy, max_new_tokens=3), optimizer=rate(0.1))
    return strategy, words(small, lambda action, kind: (float(odd(action)), odd(action))), {"steps": 8}


def gate_that_is_too_steep(small):
    return (
        small.strategy(SDAR, retriever=FactRetriever(), gate=EntropyGate(beta=1e4), sampler=says(3)),
        small.data(),
        {"steps": 5},
    )


def teacher_off(small, power):
    """Its states are wrong, the more so the later (or the earlier) in its row."""

    def off(model):
        wrong = 500 * torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        model.model.norm.register_forward_hook(
            lambda _, given, out: out + wrong * ((torch.arange(out.shape[1]) + 1) / 100)[:, None] ** power
        )
        return model

    teacher = ExternalTeacher(Changed(small.policy(), off))
    return small.strategy(SOD, teacher=teacher, optimizer=rate(1e-9), packed=False), small.data(), {"steps": 10}


def teacher_without_some_words(small):
    """Its head was never trained for the last ids; the micro-batches have a row each."""

    def lacks(model):
        head = model.get_output_embeddings()
        model.lm_head = nn.Linear(head.in_features, head.out_features)
        model.config.tie_word_embeddings = False
        with torch.no_grad():
            model.lm_head.weight.copy_(head.weight)
            model.lm_head.bias.zero_()[-8:] = -40
        return model

    strategy = small.strategy(
        OPD, teacher=ExternalTeacher(Changed(small.policy(), lacks)), sampler=says(24), micro_batch_tokens=1, optimizer=rate(1e-3)
    )  # fmt: skip
    return strategy, words(small, lambda action, kind: (0.0, False)), {"steps": 5}


def siblings_that_never_succeed(small):
    """The teacher would be told of a success, and there is none."""
    strategy = small.strategy(OPD, teacher=InitialTeacher(), view=SiblingView(), sampler=says(3))
    return strategy, small.data(), {"steps": 5}


def skill_learned_by_heart(small):
    policy = small.policy()
    ids = torch.tensor(policy.load_tokenizer().encode(f"{SKILL} ", add_special_tokens=False))

    def recites(model):
        optimizer, seed = torch.optim.AdamW(model.parameters(), lr=2e-2), torch.Generator().manual_seed(0)
        for _ in range(80):
            before = torch.randint(0, model.config.vocab_size, (8, 20), generator=seed)
            row = torch.cat([before, ids.expand(8, -1)], 1)
            logits = model(input_ids=row).logits[:, before.shape[1] - 1 : -1]
            nn.functional.cross_entropy(logits.flatten(0, 1), row[:, before.shape[1] :].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    (small.folder / "facts.md").write_text(f"## mug\n\n{SKILL}\n")
    (small.folder / "mapping.yaml").write_text("mug: {file: 'facts.md#mug', keywords: [mug]}\n")
    strategy = small.strategy(
        SDAR,
        policy=Changed(policy, recites),
        retriever=KeywordRetriever(str(small.folder)),
        sampler=says(len(ids)),
        optimizer=rate(1e-4),
    )
    return strategy, words(small, lambda action, kind: (0.0, False)), {"steps": 5}


RUNS = [
    (never_seen_the_world, {"length_explosion", "invalid_actions", "flat_groups", "teacher_silent", "teacher_no_better"}),
    (reward_for_the_opposite, {"success_collapse", "entropy_collapse"}),
    (teacher_that_learned_the_opposite, {"teacher_prefers_failure"}),
    (reward_for_saying_little, {"length_collapse"}),
    (absurd_learning_rate, {"repeated_actions"}),
    (tasks_that_look_alike, {"narrowing"}),
    (bounds_out_of_reach, {"clip_never_reached"}),
    (engine_that_takes_no_weights, {"mismatch"}),
    (gate_that_is_too_steep, {"gate_saturated"}),
    (partial(teacher_off, power=4), {"gap_grows"}),
    (partial(teacher_off, power=-4), {"weights_capped"}),
    (teacher_without_some_words, {"one_token"}),
    (siblings_that_never_succeed, {"teacher_empty"}),
    (skill_learned_by_heart, {"skills_copied", "one_token"}),  # the policy is sure of all tokens but a few
]


def alarmed(small, run):
    """Names of the alarms that a run told."""
    strategy, data, settings = run(small)
    callback, found = Alarms(), set()
    look = callback.watch.look

    def told(*measured):
        for name, finding in look(*measured):
            found.add(name)
            yield name, finding

    callback.watch.look = told
    small.fit(strategy, settings.pop("steps"), data, callbacks=[callback], **settings)
    return found


@pytest.mark.parametrize("run, faults", RUNS, ids=lambda value: getattr(value, "__name__", None))
def test_a_run_with_a_fault_is_told_of_it_and_of_no_other(small, run, faults):
    names = alarmed(small, run)
    assert faults <= names <= faults | BESIDE


def test_every_alarm_has_a_run_that_it_is_for():
    assert set(parts("alarms")) == set().union(*(faults for _, faults in RUNS))

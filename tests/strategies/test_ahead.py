"""Rollouts that are played while the iteration before them updates: which weights, which tasks, and nobody in between."""

import threading
import time

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from near_servers import Servers

from sdar.corrections import TruncatedCorrection
from sdar.errors import ConfigError, EngineFault
from sdar.parts import EpisodeController
from sdar.retrievers import FactRetriever, NoRetriever, UCBRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, HDPO, SDAR, TOPD, BehaviorCloning
from sdar.teachers import ExternalTeacher


def run(small, ahead=1, cls=GRPO, pause=0.0, **kwargs):
    sampler = Servers(small.policy(), pause)
    return small.strategy(cls, **{"sampler": sampler, "rollouts_ahead": ahead, "max_mismatch": None} | kwargs)


def fit(small, strategy, steps=4, **kwargs):
    """Episodes and staleness of each iteration."""
    seen, collect = [], strategy.collect

    def watched(step):
        episodes = collect(step)
        seen.append((episodes, strategy.metrics["rollout/staleness"].total.item()))
        return episodes

    strategy.collect = watched
    small.fit(strategy, steps=steps, **kwargs)
    return seen


def ids(seen):
    return [[(e.task.id, e.attempt, [t.response_ids for t in e.turns]) for e in episodes] for episodes, _ in seen]


def weights(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def rollouts(strategy):
    """Version of the weights, thread and attempts of each rollout."""
    return [entry[1:4] for entry in strategy.sampler.diary if entry[0] == "sample" and entry[4] == 0]


def test_each_rollout_but_the_first_has_the_weights_from_before_the_last_update(small):
    plain, strategy = run(small, 0), run(small)
    assert [stale for _, stale in fit(small, plain)] == [0, 0, 0, 0]
    assert [stale for _, stale in fit(small, strategy)] == [0, 1, 1, 1]
    versions, threads, attempts = zip(*rollouts(strategy), strict=True)
    assert versions == ("0@0.0", "0@0.0", "0@1.1", "0@2.2")  # policy @ optimizer steps . iterations
    assert threads == ("MainThread", *["sdar-rollout-ahead"] * 3)
    assert [v for v, _, _ in rollouts(plain)] == ["0@0.0", "0@1.1", "0@2.2", "0@3.3"]
    assert attempts == tuple(a for _, _, a in rollouts(plain))  # the same tasks in the same order
    assert len(rollouts(strategy)) == 4  # nothing is begun that nobody will learn from


def test_with_weights_that_do_not_change_nothing_depends_on_when_a_rollout_is_played(small):
    frozen = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    assert ids(fit(small, run(small, 0, **frozen))) == ids(fit(small, run(small, **frozen)))


def test_the_old_weights_are_what_is_corrected(small):
    """Sampled one update ago: the density of the sampler is another one, and every token says by how much."""
    metrics = []
    for correction in ({}, {"correction": TruncatedCorrection()}):
        strategy = run(small, optimizer=lambda p: torch.optim.SGD(p, lr=20.0), kl_coef=0.0, entropy_coef=0.5, **correction)
        trainer = small.fit(strategy, steps=3)
        metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})
    plain, corrected = metrics
    assert plain["rollout/mismatch"] > 1e-3 and plain["rollout/importance"] == 1.0
    assert corrected["rollout/mismatch"] > 1e-3 and corrected["rollout/importance"] != 1.0
    assert plain["rollout/staleness"] == corrected["rollout/staleness"] == 1.0


def test_it_runs_while_the_iteration_updates(small):
    strategy = run(small, pause=0.05)
    at, sample, optimize = [], strategy.sampler.sample, strategy.optimize

    def sampling(*args):
        begun = time.perf_counter()
        out = sample(*args)
        at.append((begun, time.perf_counter()))
        return out

    def updating(update):
        during.append(time.perf_counter())
        optimize(update)
        time.sleep(0.05)
        during.append(time.perf_counter())

    during = []
    strategy.sampler.sample, strategy.optimize = sampling, updating
    small.fit(strategy, steps=2)
    assert any(begun < during[1] and during[0] < ended for begun, ended in at)


@pytest.mark.parametrize("cls", [TOPD, HDPO, SDAR])
def test_nobody_samples_or_pushes_weights_while_a_rollout_is_on_its_way(small, cls):
    """Validation, extra episodes and a teacher's continuations wait: `Servers` fails where they do not."""
    kwargs = {
        TOPD: lambda: {"teacher": ExternalTeacher(small.policy()), "window": 4},
        HDPO: dict,
        SDAR: lambda: {"retriever": FactRetriever()},
    }
    strategy = run(small, cls=cls, pause=0.02, **kwargs[cls]())
    seen = fit(small, strategy, steps=3, limit_val_batches=None, val_check_interval=1)
    assert len(seen) >= 3 and seen[-1][1] == 1
    assert "MainThread" in [thread for _, thread, _ in rollouts(strategy)][1:]


def test_the_next_requests_are_made_before_the_retriever_hears_of_this_iteration(small):
    order = []

    class Noted(UCBRetriever):
        def retrieve(self, task, visit=0):
            order.append("retrieve")
            return super().retrieve(task, visit)

        def observe(self, *args):
            order.append("observe")
            super().observe(*args)

    asked = []

    class Counting(EpisodeController):
        def __call__(self, request, iteration, env):
            asked.append(iteration)
            return request

    strategy = run(small, cls=SDAR, retriever=Noted(skills="conf/skills/quickstart"))
    strategy.controller = Counting()
    small.fit(strategy, steps=2)
    assert order == ["retrieve"] * 4 + ["observe"] * 4  # two tasks an iteration
    assert asked == [0] * 4 + [1] * 4


def test_what_fails_ahead_ends_the_run_with_its_own_error(small):
    strategy = run(small)
    sample = strategy.sampler.sample

    def fail(*args):
        if threading.current_thread() is not threading.main_thread():
            raise EngineFault("none of 1 policy servers could sample")
        return sample(*args)

    strategy.sampler.sample = fail
    with pytest.raises(EngineFault, match="none of 1 policy servers could sample"):
        small.fit(strategy, steps=3)
    assert strategy.iteration == 1


def test_a_resumed_run_plays_anew_what_was_on_its_way(small):
    """With the checkpoint's weights; every run that goes on from it does the same."""
    keep = ModelCheckpoint(small.folder, save_last=True, save_top_k=0, every_n_train_steps=2)
    small.fit(run(small), steps=2, enable_checkpointing=True, callbacks=[keep])
    ends = []
    for _ in range(2):
        strategy = run(small)
        seen = fit(small, strategy, steps=4, ckpt_path=keep.last_model_path)
        assert [stale for _, stale in seen] == [0, 1]
        assert [v for v, _, _ in rollouts(strategy)] == ["0@2.2", "0@2.2"]
        ends.append((ids(seen), weights(strategy)))
    (first, here), (second, there) = ends
    assert first == second and torch.equal(here, there)


def test_a_run_that_ends_early_waits_for_what_is_on_its_way(small):
    strategy = run(small, pause=0.1, max_env_steps=1)
    small.fit(strategy, steps=10)
    assert strategy.iteration == 1
    assert not [t for t in threading.enumerate() if t.name == "sdar-rollout-ahead"]


def test_off_is_as_if_there_were_nothing(small):
    """Whoever samples: the same weights, bit for bit, and no other thread."""
    served, own = run(small, 0), small.strategy(GRPO)
    for strategy in (served, own):
        small.fit(strategy, steps=3)
    assert torch.equal(weights(served), weights(own))
    assert {thread for _, thread, _ in rollouts(served)} == {"MainThread"}


# ------------------------------------------------------------------ refused


def test_a_sampler_that_shares_the_network_is_refused(small):
    with pytest.raises(
        ConfigError,
        match=r"model\.rollouts_ahead is 1, but TorchSampler samples in the process that trains: nothing could be done at the same "
        r"time.*Use ServerSampler and `sdar serve-policy`, or set it to 0",
    ):
        small.fit(run(small, sampler=TorchSampler(max_new_tokens=6)))


def test_a_strategy_without_rollouts_is_refused(small):
    with pytest.raises(
        ConfigError, match=r"model\.rollouts_ahead is about episodes that the sampler plays, and BehaviorCloning"
    ):
        small.fit(run(small, cls=BehaviorCloning, retriever=NoRetriever()))


@pytest.mark.parametrize("ahead", [-1, 2])
def test_samples_are_never_older_than_one_iteration(small, ahead):
    with pytest.raises(ConfigError, match=rf"model\.rollouts_ahead is {ahead}: a rollout may be one iteration ahead"):
        run(small, ahead)

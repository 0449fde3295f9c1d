"""A sampler that samples otherwise than is trained: found out before the first step, and corrected where it is wanted."""

import random

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sdar.corrections import MaskedCorrection, TruncatedCorrection
from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError
from sdar.parts import Policy
from sdar.retrievers import FactRetriever, NoRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO, OPD, SDAR, BehaviorCloning
from sdar.teachers import ExternalTeacher


class Sharp(Policy):
    """A policy that is sure of what it says, as trained ones are."""

    name = "a sharp policy"

    def __init__(self, policy, seed=0):
        self.policy, self.seed = policy, seed

    def load_tokenizer(self):
        return self.policy.load_tokenizer()

    def load_model(self):
        model = self.policy.load_model()
        generator = torch.Generator().manual_seed(self.seed)
        weight = model.get_output_embeddings().weight
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        return model

    def context(self):
        return self.policy.context()


class Hot(TorchSampler):
    """Samples at temperature 2, and says 1."""

    def sample(self, model, prompts, draws):
        told, self.temperature = self.temperature, 2.0
        try:
            return super().sample(model, prompts, draws)
        finally:
            self.temperature = told


class Engine(TorchSampler):
    """An engine that has the weights of `source`; it takes others over, unless it is deaf."""

    own_engine = True

    def __init__(self, source, deaf, **kwargs):
        super().__init__(**kwargs)
        self.network, self.deaf, self.loads = source.load_model(), deaf, 0

    def load(self, version, weights):
        weights = {name: tensor.clone() for name, tensor in weights}
        self.loads += 1
        if not self.deaf:
            self.network.load_state_dict(weights)

    def sample(self, model, prompts, draws):
        return super().sample(self.network, prompts, draws)


def weights(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def scored(small, strategy):
    """The scored batch of a first iteration, without an update."""
    seen = []
    strategy.optimize = seen.append
    trainer = small.trainer(1, limit_train_batches=1)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data())
    return seen[0]


def run(small, cls=SDAR, **kwargs):
    settings = {"policy": Sharp(small.policy()), "sampler": TorchSampler(max_new_tokens=6)}
    settings |= {"retriever": FactRetriever()} if cls is SDAR else {}
    return small.strategy(cls, **settings | kwargs)


def never(strategy):
    """Fails when a training step begins."""

    def step(*_):
        raise AssertionError("a training step was taken")

    strategy.training_step = step
    return strategy


REFUSED = (
    r"{} does not sample from the density that is trained: .* differ by [\d.]+ nats on average, [\d.]+ at most, over (\d+) tokens "
    r"\(estimated KL.*model\.max_mismatch is auto, (?:0\.001 in float32|0\.1 in bfloat16)\. .*"
    r"other weights.*another temperature.*lower precision.*"
    r"Start the engine with the directory.*compute in float32.*model\.correction.*raise model\.max_mismatch; null does not look"
)


def test_a_sampler_of_another_temperature_is_refused_before_the_first_step(small):
    strategy = never(run(small, sampler=Hot(max_new_tokens=6)))
    with pytest.raises(ConfigError, match=REFUSED.format("Hot")) as refused:
        small.fit(strategy)
    assert int(refused.value.args[0].split(" over ")[1].split()[0]) > 20


def test_an_engine_with_stale_weights_is_refused(small):
    deaf = Engine(Sharp(small.policy(), seed=1), deaf=True, max_new_tokens=6)
    with pytest.raises(ConfigError, match=REFUSED.format("Engine")):
        small.fit(never(run(small, sampler=deaf)))


def test_a_true_engine_and_the_own_network_pass(small, caplog):
    engine = Engine(Sharp(small.policy(), seed=1), deaf=False, max_new_tokens=6)
    for sampler in (engine, TorchSampler(max_new_tokens=6), TorchSampler(max_new_tokens=6, top_p=0.5, top_k=40)):
        strategy = run(small, sampler=sampler, max_mismatch=1e-4)
        with caplog.at_level("INFO"):
            small.fit(strategy, steps=1)
        assert strategy.iteration == 1
        assert "sampler and trainer agree: their log-probabilities differ by" in caplog.text
        caplog.clear()


def test_null_does_not_look(small):
    strategy = run(small, sampler=Hot(max_new_tokens=6), max_mismatch=None)
    trainer = small.fit(strategy, steps=1)
    assert strategy.iteration == 1 and trainer.callback_metrics["rollout/mismatch"] > 0.1


def test_a_density_that_is_no_number_is_refused(small):
    class Broken(TorchSampler):
        def sample(self, *args):
            out = super().sample(*args)
            for completion in out:
                completion.behaviour_logp = [float("nan")] * len(completion.ids)
            return out

    with pytest.raises(ConfigError, match="differ by nan nats on average"):
        small.fit(never(run(small, sampler=Broken(max_new_tokens=6))))


def test_a_resumed_run_is_looked_at_too(small):
    keep = ModelCheckpoint(small.folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    small.fit(run(small), steps=1, enable_checkpointing=True, callbacks=[keep])
    with pytest.raises(ConfigError, match="Hot does not sample from the density that is trained"):
        small.fit(never(run(small, sampler=Hot(max_new_tokens=6))), steps=2, ckpt_path=keep.last_model_path)


def test_looking_changes_nothing(small):
    """Weights, global generators and what the engine was given: as if nobody had looked."""
    found = []
    for most in (None, 1e-4):
        torch.manual_seed(3)
        random.seed(3)
        strategy = run(small, max_mismatch=most)
        trainer = small.fit(strategy, steps=2)
        metrics = {
            k: float(v)
            for k, v in trainer.callback_metrics.items()
            if not k.startswith(("time/", "memory/")) and "per_second" not in k
        }
        found.append((weights(strategy), metrics, torch.get_rng_state(), random.getstate(), strategy.env_steps))
    (before, *rest), (after, *others) = found
    assert torch.equal(before, after) and torch.equal(rest.pop(1), others.pop(1)) and rest == others


def test_looking_gives_an_engine_the_weights_of_the_first_rollout_and_samples_short_responses(small):
    asked = []

    class Counting(TorchSampler):
        def sample(self, model, prompts, draws):
            asked.append((len(prompts), self.max_new_tokens, model.training))
            return super().sample(model, prompts, draws)

    strategy = run(small, sampler=Counting(max_new_tokens=100), val_sampler=TorchSampler(max_new_tokens=6))
    with pytest.raises(AssertionError, match="a training step was taken"):
        small.fit(never(strategy), data=small.data(tasks_per_step=6, group_size=4))
    assert asked[0][:2] == (24, 32) and len(asked) <= 2
    assert strategy.sampler.max_new_tokens == 100


def test_a_world_that_always_fails_is_no_mismatch(small, monkeypatch):
    def fail(self, task):
        raise RuntimeError("the roof fell in")

    monkeypatch.setattr(HouseholdEnv, "reset", fail)
    told = pytest.warns(UserWarning, match="could not be compared with the trainer before training: the first tasks gave no")
    with told, pytest.raises(AssertionError, match="a training step was taken"):
        small.fit(never(run(small)))


# ------------------------------------------------------------------ correction


def test_the_weight_multiplies_everything_that_a_token_loses(small):
    strategy = run(small, sampler=Hot(max_new_tokens=6), max_mismatch=None, correction=TruncatedCorrection(1.5))
    batch = scored(small, strategy)
    mask = batch.response_mask
    ours = strategy.scorer.score(strategy.model, batch.ids, batch.attention_mask, mask, 10**6)
    ratio = (ours.logp + ours.allowed_logmass - batch.behaviour_logp - batch.kept_logmass).exp()
    torch.testing.assert_close(batch.importance[mask], ratio[mask].clamp(max=1.5), rtol=1e-4, atol=1e-5)
    assert 0 < (batch.importance[mask] == 1.5).float().mean() < 1
    now = strategy.forward_student(batch)
    losses, tokens = strategy.token_loss(batch, now).detach(), strategy.normalizer(batch)
    expected = (losses * batch.importance)[mask].sum() / tokens
    torch.testing.assert_close(strategy.loss(batch, tokens).detach(), expected)


def test_masked_tokens_have_no_gradient_in_policy_loss_distillation_and_penalties(small):
    strategy = run(small, correction=MaskedCorrection(), kl_coef=0.1, entropy_coef=0.1)
    batch = scored(small, strategy)
    batch.importance = torch.zeros_like(batch.importance)
    strategy.model.zero_grad()
    strategy.loss(batch, strategy.normalizer(batch)).backward()
    assert all(p.grad is None or not p.grad.any() for p in strategy.model.parameters())


@pytest.mark.parametrize("cls", [GRPO, SDAR])
def test_the_default_is_what_there_was_without_corrections(small, cls):
    """Bit for bit."""
    found = []
    for with_weights in (True, False):
        strategy = run(small, cls)
        if not with_weights:
            strategy.correct = lambda batch, mass: None
        small.fit(strategy, steps=2)
        found.append(weights(strategy))
    assert torch.equal(*found)


def test_a_true_sampler_leaves_hardly_anything_to_correct(small):
    for correction in (TruncatedCorrection(), MaskedCorrection()):
        importance = scored(small, run(small, correction=correction)).importance
        torch.testing.assert_close(importance, torch.ones_like(importance), rtol=0, atol=1e-4)


def test_where_nobody_sampled_a_correction_is_refused(small):
    strategy = small.strategy(BehaviorCloning, retriever=NoRetriever(), correction=TruncatedCorrection())
    with pytest.raises(
        ConfigError, match=r"model\.correction is about episodes that the sampler plays, and BehaviorCloning makes"
    ):
        small.fit(strategy)


def test_a_threshold_below_zero_explains_itself(small):
    with pytest.raises(ConfigError, match=r"model\.max_mismatch is -0\.1: it must be at least 0"):
        run(small, max_mismatch=-0.1)


def test_an_external_teacher_is_not_looked_at(small):
    """Its rows are scored, not sampled: it may be another model."""
    strategy = small.strategy(OPD, teacher=ExternalTeacher(small.policy(hidden_size=32)), max_mismatch=1e-4)
    small.fit(strategy, steps=1)
    assert strategy.iteration == 1

"""Parts that learn: what they learned is in the checkpoint, and a run that goes on is the run that was not stopped."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sdar.errors import CheckpointError
from sdar.parts import Gate, TurnWeight
from sdar.retrievers import FactRetriever
from sdar.strategies import SDAR


class RunningGate(Gate):
    """Opens for gaps above a running median; a tensor, a number and a list, as a state may hold."""

    def __init__(self):
        self.threshold, self.seen, self.iterations = torch.zeros(()), 0, []

    def observe(self, tokens, metrics):
        gaps = tokens.gap[tokens.response_mask.bool()]
        self.threshold = 0.9 * self.threshold + 0.1 * gaps.median()
        self.seen += len(gaps)
        self.iterations.append(tokens.iteration)
        metrics.add("gate/threshold", float(self.threshold))

    def __call__(self, tokens):
        return torch.sigmoid(tokens.gap - self.threshold)

    def state_dict(self):
        return {"threshold": self.threshold, "seen": self.seen, "iterations": self.iterations}

    def load_state_dict(self, state):
        self.threshold, self.seen, self.iterations = state["threshold"], state["seen"], list(state["iterations"])


class Fading(TurnWeight):
    """Every call weighs less."""

    def __init__(self):
        self.weight = 1.0

    def __call__(self, tokens, turns, metrics):
        self.weight *= 0.9
        return torch.full((len(turns),), self.weight)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


def strategy(small, gate=RunningGate, turn_weight=Fading):
    parts = {"gate": gate and gate(), "turn_weight": turn_weight and turn_weight()}
    return small.strategy(SDAR, retriever=FactRetriever(), updates_per_rollout=2, **parts)


def weights(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


@pytest.fixture
def kept(small):
    """A run of two iterations, stopped, and its checkpoint."""
    keep = ModelCheckpoint(dirpath=small.folder / "kept", every_n_train_steps=1, save_top_k=0, save_last=True)
    first = strategy(small)
    small.fit(first, steps=4, enable_checkpointing=True, callbacks=[keep])
    return first, small.folder / "kept" / "last.ckpt"


def test_a_gate_and_a_turn_weight_go_on_where_they_were_bit_for_bit(small, kept):
    straight = strategy(small)
    trainer = small.fit(straight, steps=8)
    stopped, path = kept
    assert set(torch.load(path, weights_only=True)["sdar"]["parts"]) == {"gate", "turn_weight"}
    resumed = strategy(small)
    small.fit(resumed, steps=8, ckpt_path=path)
    assert resumed.gate.state_dict() == straight.gate.state_dict() != stopped.gate.state_dict()
    assert straight.gate.iterations == [0, 1, 2, 3]  # once an iteration, whatever the updates and micro-batches
    assert resumed.turn_weight.weight == straight.turn_weight.weight == pytest.approx(0.9**4)
    assert torch.equal(weights(resumed), weights(straight)) and not torch.equal(weights(resumed), weights(stopped))
    assert trainer.callback_metrics["gate/threshold"] == pytest.approx(float(straight.gate.threshold))


def test_what_was_learned_is_not_lost_silently(small, kept):
    _, path = kept
    with pytest.raises(
        CheckpointError, match=r"holds the state of model.gate, and this run has no such part: what was learned"
    ):
        small.fit(strategy(small, gate=None), steps=8, ckpt_path=path)

    class Other(RunningGate):
        def load_state_dict(self, state):
            self.width = state["width"]

    with pytest.raises(CheckpointError, match=r"Other cannot take the state that was kept of it \(KeyError: 'width'\)"):
        small.fit(strategy(small, gate=Other), steps=8, ckpt_path=path)

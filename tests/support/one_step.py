"""An iteration whose optimizer step is not taken, episodes and scores by hand, and naive computations on full logits."""

import copy
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from float64 import float64
from played import LAYOUTS, gathered, spread
from torch import Tensor, nn

from sdar.envs import ThinkActProtocol
from sdar.parts import Completion
from sdar.policies import world_tokenizer
from sdar.rollout.chat import ChatFormat
from sdar.samplers import TorchSampler
from sdar.teachers import ExternalTeacher, HindsightView, SolutionView
from sdar.types import Batch, Episode, Task, Turn

ON_ACTIONS = {"span": "action", "view": HindsightView()}  # of SDSearch, in a world without search queries
LAMP = {"families": ["look_at_obj_in_light"], "world": 5, "receptacles": 6, "distractors": 1}
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
HEADING = SolutionView.own_heading
HALF = math.sqrt(0.5) / (1 + 1e-6 * math.sqrt(2))  # GRPO's advantage of rewards 1 and 0: 0.5 / (sqrt(0.5) + 1e-6)


# ------------------------------------------------------------------ runs of one iteration


def one_step(small, strategy, data=None, play=None, iteration=0) -> SimpleNamespace:
    """An iteration whose optimizer step is not taken: what was scored, what was weighed, the gradient and the metrics.

    `play` maps (strategy, tasks) to the episodes that are learned from; by default the policy plays.
    """
    seen = SimpleNamespace(batch=None, gradient=None)
    strategy.iteration, strategy.max_grad_norm = iteration, 1e9
    strategy.max_mismatch = None  # no rollout before the one that is looked at
    collect, weigh = strategy.collect, strategy.weigh

    def collected(step):
        seen.episodes = collect(step) if play is None else play(strategy, step.tasks)
        return seen.episodes

    def weighed(batch, episodes):
        seen.scored = copy.copy(batch)  # `weigh` may put other tensors in their place
        seen.batch = weigh(batch, episodes)
        return seen.batch

    strategy.collect, strategy.weigh = collected, weighed
    strategy._step = lambda optimizer, update: strategy.tell_scores() or vars(seen).update(gradient=gradients(strategy))
    trainer = small.trainer(1, limit_train_batches=1)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, data or small.data())
    seen.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return seen


def gradients(strategy) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in strategy.model.named_parameters()}


def gradient_of(strategy, loss: Tensor) -> dict[str, Tensor]:
    strategy.model.zero_grad()
    loss.backward()
    return gradients(strategy)


def assert_close(gradient: dict[str, Tensor], naive: dict[str, Tensor], within: float = 1e-6) -> None:
    """Equal but for rounding (weights of tokens, and Qwen's normalisation, are in float32), and not because there is nothing."""
    one, other = (torch.cat([g[name].flatten() for name in naive]) for g in (gradient, naive))
    assert gradient.keys() == naive.keys() and other.norm() > 1e-5
    assert (one - other).norm() < within * other.norm()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def double(policy):
    """The policy with weights in float64, in which sums in another order agree."""
    load = policy.load_model
    policy.load_model = lambda: float64(load())
    return policy


def external(small, precision=lambda policy: policy) -> ExternalTeacher:
    """A larger random model with the student's tokenizer."""
    return ExternalTeacher(precision(small.policy(hidden_size=32)))


def rewarded(strategy):
    """A random policy is never rewarded: pretend that every other attempt was."""
    collect = strategy.collect

    def pretend(step):
        episodes = collect(step)
        for e in episodes:
            e.success, e.reward = e.attempt % 2 == 1, float(e.attempt % 2)
        return episodes

    strategy.collect = pretend
    return strategy


def drifted(strategy):
    """The student has left the weights that it began with, so that it can be told whose weights were asked."""
    collect = strategy.collect

    def drift(step):
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in strategy.model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=noise).to(p)
        return collect(step)

    strategy.collect = drift
    return strategy


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# ------------------------------------------------------------------ episodes and scores by hand


class Did(NamedTuple):
    """A turn: what was said, what the world had said before, what came of it."""

    said: str
    seen: str = "A room."
    reward: float = 0.0
    trainable: bool = True


def acted(strategy, task: Task, attempt: int, *dids: Did | str) -> Episode:
    """An episode in which these things were done, told as a rollout tells it; any reward is a success."""
    retrieval = {} if strategy.retriever is None else {"retrieval": strategy.retriever.retrieve(task)}
    done, context = Episode(task, attempt, final_observation="The end.", **retrieval), []
    for did in (Did(d) if isinstance(d, str) else d for d in dids):
        prompt = strategy.rollout.prompt(done, context, did.seen, ())
        ids = strategy.chat.response(did.said)
        nobody = [0.0] * len(ids)
        done.turns.append(
            Turn(
                strategy.rollout.told_since(context, prompt), ids, nobody, nobody, text=did.said, observation=did.seen,
                action=strategy.rollout.protocol.parse(did.said, ())[0], reward=did.reward, trainable=did.trainable,
            )
        )  # fmt: skip
        context = prompt + ids
        done.reward += did.reward
    done.success = done.reward > 0
    return done


def playing(*attempts: list[Did | str]) -> Callable[[Any, list[Task]], list[Episode]]:
    """Always these attempts, at the world's first task."""

    def play(strategy, tasks):
        task = strategy.env.task(strategy.env.task_ids("train", 1, 0)[0])
        return [acted(strategy, task, number, *dids) for number, dids in enumerate(attempts)]

    return play


def with_gaps(strategy, gaps: list[list[list[float]]], logp: float = -1.5, entropy: float = 1.0):
    """Scores by hand: ``gaps[episode][turn]`` holds the gap of each response token, again from the first if they are fewer."""

    def score(batch: Batch, episodes: list[Episode]) -> None:
        tokens = [[t * 20 for t in e] for e in gaps]
        batch.old_logp = torch.full(batch.ids.shape, logp).where(batch.response_mask, 0.0)
        batch.old_entropy = torch.full_like(batch.old_logp, entropy)
        batch.ref_logp = batch.old_logp
        batch.teacher_logp = batch.old_logp + spread(batch, tokens).float()

    strategy.score = score
    return strategy


def near(nested: Any) -> Any:
    return [[pytest.approx(t, abs=1e-5) for t in e] for e in nested]


class Actor(TorchSampler):
    """Says what a script says to (prompt as text, draw); keeps whose weights were asked what."""

    def __init__(self, script: Callable[[str, Any], str]):
        super().__init__(max_new_tokens=16)
        self.script, self.asked = script, []

    def bind(self, tokenizer, stop_ids, context) -> None:
        super().bind(tokenizer, stop_ids, context)
        self.chat = ChatFormat(tokenizer)

    def sample(self, model, prompts, draws) -> list[Completion]:
        out = []
        for prompt, draw in zip(prompts, draws, strict=True):
            text = self.chat.tokenizer.decode(prompt)
            self.asked.append((model, text))
            ids = self.chat.response(self.script(text, draw))
            out.append(Completion(ids, [0.0] * len(ids), [0.0] * len(ids), stopped=True))
        return out


# ------------------------------------------------------------------ naive computations on full logits


def rows(batch: Batch) -> Iterator[SimpleNamespace]:
    """Each row without its padding."""
    for b in range(len(batch)):
        time, teacher_time = int(batch.attention_mask[b].sum()), int(batch.teacher_attention_mask[b].sum())
        yield SimpleNamespace(
            number=b,
            ids=batch.ids[b, :time],
            mask=batch.loss_mask[b, :time],
            teacher_ids=batch.teacher_ids[b, :teacher_time],
            teacher_mask=batch.teacher_response_mask[b, :teacher_time],
        )


def log_probs(strategy, network: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """``[tokens, vocab]`` at the response tokens of a row, from the model's own logits; -inf where a turn may not go."""
    logits = network(input_ids=ids[None]).logits[0, :-1, : strategy.scorer.vocab_size] / strategy.scorer.temperature
    logits = logits.index_fill(1, torch.tensor(strategy.scorer.forbidden_ids), -torch.inf)
    return logits[mask[1:]].log_softmax(-1)


def allowed(logp: Tensor) -> Tensor:
    """Only the ids that a turn may hold."""
    return logp[:, logp[0].isfinite()]


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def jsd(student: Tensor, teacher: Tensor) -> Tensor:
    mixture = ((student.exp() + teacher.exp()) / 2).log()
    return (kl(student, mixture) + kl(teacher, mixture)) / 2


def on_support(logp: Tensor, ids: Tensor, bucket: bool) -> Tensor:
    """Few ids of each place, renormalised, or with one more category for all others."""
    top = logp.gather(1, ids)
    return torch.cat([top, (1 - top.exp().sum(1, keepdim=True)).log()], 1) if bucket else top.log_softmax(1)


def text_of(strategy, ids: Tensor) -> str:
    return strategy.chat.tokenizer.decode(ids)


def sampled(logp: Tensor, row: SimpleNamespace) -> Tensor:
    return logp.gather(1, row.ids[row.mask][:, None])[:, 0]


def thinking(small, **kwargs):
    """A policy whose vocabulary has "<" and "think"."""
    policy = small.policy(context=1024, **kwargs)
    policy._tokenizer = world_tokenizer(["<think>go</think>look"], [], 300, 1024)
    return policy


def shown(strategy, batch: Batch, keep: Tensor) -> list[str]:
    """The response tokens of each row, a dot for each that is left out."""
    decode = strategy.chat.tokenizer.decode
    every = zip(batch.ids.tolist(), batch.response_mask.tolist(), keep.tolist(), strict=True)
    return ["".join(decode([i]) if k else "." for i, m, k in zip(*row, strict=True) if m) for row in every]


MARKS = {"mask_first": ["<", "think"]}


def gaps_on_full_logits(strategy, batch: Batch) -> Tensor:
    """teacher_logp - old_logp of all response tokens, row by row."""
    gaps = []
    for row in rows(batch):
        teacher = log_probs(strategy, strategy.teacher.network, row.teacher_ids, row.teacher_mask)
        gaps.append(sampled(teacher, row) - sampled(log_probs(strategy, strategy.model, row.ids, row.mask), row))
    return torch.cat(gaps).detach()


SAID = "<think>Where is it?</think><action>{}</action>"


def thinking_data(small, **kwargs):
    return small.data(protocol=ThinkActProtocol(list_admissible=False), **kwargs)


GAPS = [[[0.2, -0.2], [0.4, -0.4], [-0.1, 0.1]], [[-0.3], [0.6]]]  # d_k: 0.2, 0.4, 0.1; 0.3, 0.6


def turn_by_turn(batch: Batch, of_token: Callable[[int, int, float], float]) -> list[list[list[float]]]:
    """GAPS, as often as there are tokens, through `of_token` (episode, turn, gap)."""
    return [
        [
            [of_token(e, t, GAPS[e][t][i % len(GAPS[e][t])]) for i in range(len(tokens))]
            for t, tokens in enumerate(turns)
        ]
        for e, turns in enumerate(gathered(batch, batch.advantages))
    ]  # fmt: skip

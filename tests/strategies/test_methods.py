"""What makes each method itself: its numbers by hand, its gradient against a naive computation on full logits."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from played import LAYOUTS, batch_of, episode, gathered, spread, turn
from torch import Tensor, nn

from sdar import scoring
from sdar.credit import GiGPOAdvantage, GroupAdvantage
from sdar.curricula import BackToFront, FrontToBack
from sdar.divergences import K1PolicyGradient, TopKReverseKL
from sdar.envs import HouseholdEnv, ThinkActProtocol
from sdar.errors import CheckpointError, ConfigError
from sdar.parts import AdvantageTransform, Completion, Judge
from sdar.policies import world_tokenizer
from sdar.retrievers import FactRetriever, NoRetriever
from sdar.rollout.chat import ChatFormat
from sdar.samplers import TorchSampler
from sdar.schedules import LinearSchedule
from sdar.strategies import (
    GRPO,
    HDPO,
    OPD,
    OPSD,
    RLSD,
    SDPO,
    SOD,
    TCOD,
    TIP,
    TOPD,
    CriticSearch,
    GiGPO,
    SDSearch,
    SkillSD,
    TopKOPD,
)
from sdar.teachers import (
    EMATeacher,
    ExternalTeacher,
    HindsightView,
    HintView,
    InitialTeacher,
    LiveTeacher,
    RoutedTeacher,
    SkillView,
    SolutionView,
    StaleTeacher,
)
from sdar.types import Batch, Episode, Payload, Task, Turn

ON_ACTIONS = {"span": "action", "view": HindsightView()}  # of SDSearch, in a world without search queries
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
    strategy._step = lambda optimizer, update: vars(seen).update(gradient=gradients(strategy))
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
    policy.load_model = lambda: load().double()
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


# ------------------------------------------------------------------ OPSD


@by_layout
def test_opsd_is_the_jsd_on_full_logits_behind_student_and_teacher_prompts(small, layout):
    strategy = drifted(
        small.strategy(OPSD, policy=double(small.policy()), sampler=TorchSampler(max_new_tokens=6, temperature=1.1))
    )
    seen = one_step(small, strategy, small.data(layout=layout))
    values = []
    for row in rows(seen.batch):
        assert HEADING in text_of(strategy, row.teacher_ids) and HEADING not in text_of(strategy, row.ids)
        student = allowed(log_probs(strategy, strategy.model, row.ids, row.mask))
        teacher = allowed(log_probs(strategy, strategy.initial, row.teacher_ids, row.teacher_mask)).detach()
        values.append(jsd(student, teacher))
    mean = torch.cat(values).mean()
    assert len(torch.cat(values)) == seen.scored.response_mask.sum()
    assert_close(seen.gradient, gradient_of(strategy, mean))
    assert seen.metrics["distill/divergence"] == pytest.approx(mean.item(), rel=1e-5)


# ------------------------------------------------------------------ TopKOPD


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


@pytest.mark.parametrize(
    ("settings", "layout", "kept"),
    [
        (MARKS, "trajectory", ["..>think</think>look.go<think><|end|>", "look.go.go>.<|end|>"]),
        (MARKS, "turn", ["..>think</think>look.", "go..>.", "look.", "go.go>.."]),
        ({"mask_first": ["nowhere"]}, "turn", ["<think>think</think>look.", "go<think>.", "look.", "go<go>think."]),
        (
            {},
            "trajectory",
            ["<think>think</think>look<|end|>go<think><|end|>", "look<|end|>go<go>think<|end|>"],
        ),
    ],
)
def test_top_k_opd_leaves_out_the_first_of_each_control_token_of_a_row_and_nothing_else(small, settings, layout, kept):
    teacher = ExternalTeacher(thinking(small, hidden_size=32))
    strategy = small.strategy(TopKOPD, policy=thinking(small), teacher=teacher, **settings)
    play = playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"])
    batch = one_step(small, strategy, small.data(layout=layout), play).batch
    assert shown(strategy, batch, batch.distill_weights > 0) == kept
    assert set(batch.distill_weights.flatten().tolist()) == {0.0, 1.0}


def test_top_k_opd_is_the_reverse_kl_on_the_teachers_likeliest_tokens_renormalised(small):
    teacher = ExternalTeacher(double(thinking(small, hidden_size=32)))
    strategy = small.strategy(TopKOPD, policy=double(thinking(small)), teacher=teacher, **MARKS)
    seen = one_step(small, strategy, play=playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"]))
    values = []
    for row in rows(seen.batch):
        student, teacher = (log_probs(strategy, n, row.ids, row.mask) for n in (strategy.model, strategy.teacher.network))
        top = teacher.topk(16).indices
        chosen = seen.batch.distill_weights[row.number][seen.batch.response_mask[row.number]] > 0
        values.append(kl(on_support(student, top, False), on_support(teacher, top, False))[chosen])
    assert len(torch.cat(values)) < seen.batch.response_mask.sum()
    assert_close(seen.gradient, gradient_of(strategy, torch.cat(values).mean()))


def test_top_k_opd_counts_what_its_support_covers(small):
    divergence = TopKReverseKL(k=40)
    strategy = small.strategy(TopKOPD, policy=double(small.policy()), teacher=external(small, double), divergence=divergence)
    seen = one_step(small, strategy)
    inside, mass = [], []
    for row in rows(seen.batch):
        top = log_probs(strategy, strategy.teacher.network, row.ids, row.mask).topk(40)
        inside += [int(i) in ids for i, ids in zip(row.ids[row.mask], top.indices.tolist(), strict=True)]
        mass += top.values.exp().sum(1).tolist()
    assert 0 < sum(inside) < len(inside)
    assert seen.metrics["support/covers_sampled"] == pytest.approx(sum(inside) / len(inside))
    assert seen.metrics["support/teacher_mass"] == pytest.approx(sum(mass) / len(mass), rel=1e-5)


# ------------------------------------------------------------------ OPD


def gaps_on_full_logits(strategy, batch: Batch) -> Tensor:
    """teacher_logp - old_logp of all response tokens, row by row."""
    gaps = []
    for row in rows(batch):
        teacher = log_probs(strategy, strategy.teacher.network, row.teacher_ids, row.teacher_mask)
        gaps.append(sampled(teacher, row) - sampled(log_probs(strategy, strategy.model, row.ids, row.mask), row))
    return torch.cat(gaps).detach()


@by_layout
def test_opd_is_rewarded_by_the_gap_alone(small, layout):
    """Whatever the world gave; and the gradient is that of the mean of -coef gap logp."""
    data = small.data(layout=layout)
    settings = {"policy": double(small.policy()), "teacher": external(small, double), "coef": 0.5}
    plain = one_step(small, small.strategy(OPD, **settings), data)
    strategy = rewarded(small.strategy(OPD, **settings))
    seen = one_step(small, strategy, data)
    assert seen.metrics["reward/mean"] == 0.5 and plain.metrics["reward/mean"] == 0
    assert torch.equal(seen.batch.advantages, plain.batch.advantages)
    gaps = gaps_on_full_logits(strategy, seen.batch)
    advantages = seen.batch.advantages[seen.batch.response_mask]
    torch.testing.assert_close(advantages, 0.5 * gaps.to(advantages))
    logp = torch.cat([sampled(log_probs(strategy, strategy.model, r.ids, r.mask), r) for r in rows(seen.batch)])
    assert_close(seen.gradient, gradient_of(strategy, -(0.5 * gaps * logp).mean()))


def test_opd_clips_the_gap(small):
    strategy = small.strategy(OPD, teacher=external(small), gap_clip=2.0, coef=0.5)
    batch = one_step(small, with_gaps(strategy, [[[0.5, -3.0, 7.0, -2.0]]]), play=playing(["go to shelf 1"])).batch
    assert gathered(batch, batch.advantages) == near([[[0.25, -1.0, 1.0, -1.0]]])


def test_opd_with_group_advantages_adds_them(small):
    strategy = with_gaps(small.strategy(OPD, teacher=external(small), advantage=GroupAdvantage()), [[[0.5, -0.25]]] * 2)
    batch = one_step(small, strategy, play=playing([Did("go to shelf 1", reward=1.0)], ["go to shelf 1"])).batch
    by_hand = [[[a + 0.5, a - 0.25, a + 0.5, a - 0.25]] for a in (HALF, -HALF)]
    assert gathered(batch, batch.advantages) == near(by_hand)


# ------------------------------------------------------------------ SOD

TWO_ATTEMPTS = playing(
    ["go to shelf 1", "open drawer 1", Did("close drawer 1", reward=1.0)], ["go to drawer 1", "open drawer 2"]
)
GAPS = [[[0.2, -0.2], [0.4, -0.4], [-0.1, 0.1]], [[-0.3], [0.6]]]  # d_k: 0.2, 0.4, 0.1; 0.3, 0.6
TURN_WEIGHTS = [[1.0, 0.5, 1.2], [1.0, 0.5]]  # 0.2 / 0.1 is more than 1 + delta


def turn_by_turn(batch: Batch, of_token: Callable[[int, int, float], float]) -> list[list[list[float]]]:
    """GAPS, as often as there are tokens, through `of_token` (episode, turn, gap)."""
    return [
        [
            [of_token(e, t, GAPS[e][t][i % len(GAPS[e][t])]) for i in range(len(tokens))]
            for t, tokens in enumerate(turns)
        ]
        for e, turns in enumerate(gathered(batch, batch.advantages))
    ]  # fmt: skip


@by_layout
@pytest.mark.parametrize("coef", [1.0, 0.5])
def test_sod_adds_the_gap_weighted_by_how_far_a_turn_is_from_the_teacher(small, layout, coef):
    settings = {"teacher": external(small), "coef": coef, "advantage": GroupAdvantage("episode")}  # alike in both layouts
    strategy = with_gaps(small.strategy(SOD, **settings), GAPS)
    seen = one_step(small, strategy, small.data(layout=layout), TWO_ATTEMPTS)
    expected = turn_by_turn(seen.batch, lambda e, t, gap: (HALF, -HALF)[e] + coef * TURN_WEIGHTS[e][t] * gap)
    assert gathered(seen.batch, seen.batch.advantages) == near(expected)
    assert seen.metrics["turn/weight"] == pytest.approx(4.2 / 5)
    assert seen.metrics["turn/weight_capped_share"] == pytest.approx(1 / 5)


def test_sod_without_turn_weights_is_opd_with_group_advantages(small):
    sod = with_gaps(small.strategy(SOD, teacher=external(small), turn_weight=None), GAPS)
    batch = one_step(small, sod, play=TWO_ATTEMPTS).batch
    assert gathered(batch, batch.advantages) == near(turn_by_turn(batch, lambda e, t, gap: (HALF, -HALF)[e] + gap))
    opd = with_gaps(small.strategy(OPD, teacher=external(small), advantage=GroupAdvantage()), GAPS)
    assert torch.equal(one_step(small, opd, play=TWO_ATTEMPTS).batch.advantages, batch.advantages)


# ------------------------------------------------------------------ the KL to the initial policy


@pytest.mark.parametrize(
    ("clamp", "losses", "slopes", "share"),
    [
        (10.0, [8.6824940, 10.0, 10.0], [-11.1824940, 0.0, 0.0], 2 / 3),
        (None, [8.6824940, 16.0855369, 2971.957987], [-11.1824940, -19.0855369, -2979.957987], None),
    ],
)
def test_a_token_far_below_the_initial_policy_has_no_gradient_unless_wished(small, clamp, losses, slopes, share):
    strategy = small.strategy(GRPO, kl_coef=0.5, kl_clamp=clamp, entropy_coef=0.0)
    batch = batch_of([episode(turn(3))], "trajectory")
    batch.ref_logp = batch.old_logp = batch.advantages = torch.zeros(batch.ids.shape)
    gaps = torch.tensor([[0.0, 0.0, 2.5, 3.0, 8.0]])
    now = SimpleNamespace(logp=(-gaps).requires_grad_(), entropy=torch.zeros(batch.ids.shape))
    loss = strategy.token_loss(batch, now)[batch.response_mask]
    [slope] = torch.autograd.grad(loss.sum(), now.logp)
    torch.testing.assert_close(loss.detach(), 0.5 * torch.tensor(losses))
    torch.testing.assert_close(slope[batch.response_mask], 0.5 * torch.tensor(slopes))
    assert strategy.metrics.compute().get("kl/reference_clamped_share") == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize("clamp", [0.0, -1.0])
def test_a_clamp_of_nothing_explains_itself(small, clamp):
    with pytest.raises(ConfigError, match=r"model\.kl_clamp is .*Use e\.g\. 10 \(published\), or null for no bound"):
        small.strategy(GRPO, kl_clamp=clamp)


# ------------------------------------------------------------------ RLSD

EVIDENCE = [[[0.1, 1.0, -1.0, 0.0]], [[0.1, 1.0, -1.0, 0.0]]]
ONE_WON = playing([Did("go to shelf 1", reward=1.0)], ["go to shelf 1"])


@pytest.mark.parametrize(
    ("iteration", "won", "lost"),
    [  # lambda 0.5: factors 1 + lambda (clip(exp(sign(A) gap), 0.8, 1.2) - 1)
        (0, [1.0525855, 1.1, 0.9, 1.0], [0.9524187, 0.9, 1.1, 1.0]),
        (30, [1.0262927, 1.05, 0.95, 1.0], [0.9762094, 0.95, 1.05, 1.0]),
        (60, [1.0] * 4, [1.0] * 4),
    ],
)
def test_rlsd_scales_grpos_advantage_by_the_clipped_evidence_of_each_token(small, iteration, won, lost):
    strategy = with_gaps(small.strategy(RLSD, retriever=FactRetriever()), EVIDENCE)
    batch = one_step(small, strategy, play=ONE_WON, iteration=iteration).batch
    assert gathered(batch, batch.advantages) == near([[[HALF * f for f in won]], [[-HALF * f for f in lost]]])


def told_its_span(tag, asked):
    class Told(AdvantageTransform):
        gradient_estimand = "-E[A grad student_logp]"
        span = tag

        def __call__(self, advantages, tokens, turns, iteration, metrics):
            asked.append(tokens.in_span)
            return advantages

    return Told()


def test_rlsd_may_scale_bad_attempts_alone_or_tokens_of_a_span_alone(small):
    strategy = with_gaps(small.strategy(RLSD, retriever=FactRetriever(), negative_only=True), EVIDENCE)
    batch = one_step(small, strategy, play=ONE_WON).batch
    lost = [-HALF * f for f in (0.9524187, 0.9, 1.1, 1.0)]
    assert gathered(batch, batch.advantages) == near([[[HALF] * 4], [lost]])
    strategy = small.strategy(RLSD, policy=small.policy(context=2048), retriever=FactRetriever(), evidence_span="think")
    play = playing([Did(SAID.format("look"), reward=1.0)], [SAID.format("look")])
    seen = one_step(small, with_gaps(strategy, [[[1.0] * 9], [[1.0] * 9]]), thinking_data(small), play)
    size = seen.batch.advantages.abs() / HALF
    thought = seen.batch.response_mask & (seen.batch.spans == 1)
    assert strategy.rollout.protocol.tags[0] == "think" and 0 < thought.sum() < seen.batch.response_mask.sum()
    torch.testing.assert_close((size != 1) & seen.batch.response_mask & ((size - 1).abs() > 1e-3), thought)
    asked = []
    strategy.transforms = [told_its_span("think", asked), told_its_span(None, asked)]
    seen = one_step(small, with_gaps(strategy, [[[1.0] * 9], [[1.0] * 9]]), thinking_data(small), play)
    assert torch.equal(asked[0], thought) and torch.equal(asked[1], seen.batch.response_mask)
    with pytest.raises(ConfigError, match=r"the span is 'query', but responses of CompactProtocol hold action"):
        one_step(small, small.strategy(RLSD, retriever=FactRetriever(), evidence_span="query"))


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


def test_opd_may_leave_the_gap_of_control_tokens_out(small):
    """The first of each in a row gets no gap: its loss on-policy is 0, and a clip bounds the others."""
    teacher = ExternalTeacher(thinking(small, hidden_size=32))
    strategy = small.strategy(OPD, policy=thinking(small), teacher=teacher, gap_clip=0.1, **MARKS)
    play = playing(["<think>think</think>look", "go<think>"], ["look", "go<go>think"])
    batch = one_step(small, strategy, play=play).batch
    assert shown(strategy, batch, batch.advantages != 0) == ["..>think</think>look.go<think><|end|>", "look.go.go>.<|end|>"]
    plain = one_step(small, small.strategy(OPD, policy=thinking(small), teacher=teacher), play=play).batch
    kept = batch.advantages != 0
    torch.testing.assert_close(batch.advantages[kept], plain.advantages.clamp(-0.1, 0.1)[kept])
    assert (plain.advantages.abs() > 0.1).any()


@by_layout
def test_rlsd_never_turns_an_advantage_and_ends_as_grpo(small, layout):
    data = small.data(layout=layout)

    def advantages(cls, iteration, **kwargs):
        seen = one_step(small, rewarded(small.strategy(cls, **kwargs)), data, iteration=iteration)
        return seen.batch.advantages[seen.batch.response_mask], seen.gradient

    told = {"retriever": FactRetriever()}
    plain, _ = advantages(GRPO, 0)
    ratio = advantages(RLSD, 0, **told)[0] / plain
    assert 0.9 - 1e-6 <= ratio.min() < 1 < ratio.max() <= 1.1 + 1e-6
    (after, gradient), (plain, naive) = advantages(RLSD, 60, **told), advantages(GRPO, 60)
    assert torch.equal(after, plain) and plain.abs().min() > 0
    assert_equal(gradient, naive)


# ------------------------------------------------------------------ SkillSD


@by_layout
def test_skill_sd_applies_its_warm_down(small, layout):
    data, play = small.data(layout=layout), playing([Did("go to shelf 1", reward=1.0), "look"], ["open drawer 1", "look"])

    def gradient(cls, iteration, **kwargs):
        strategy = small.strategy(cls, policy=double(small.policy()), **kwargs)
        return one_step(small, strategy, data, play, iteration).gradient

    told = {"retriever": FactRetriever(), "distill_coef": LinearSchedule(0.4, 0.0, 4)}
    full, half, none, plain = *(gradient(SkillSD, i, **told) for i in (0, 2, 4)), gradient(GRPO, 0)
    assert_equal(none, plain)
    assert_close({n: 2 * (half[n] - plain[n]) for n in plain}, {n: full[n] - plain[n] for n in plain}, 1e-3)


def test_skill_sds_divergence_is_the_importance_weighted_k3(small):
    """Student twice as likely as before the update, teacher three times as likely as the student: rho = 2, gap = ln 3."""
    strategy = small.strategy(SkillSD, retriever=FactRetriever(), distill_coef=0.5, kl_coef=0.0, entropy_coef=0.0)
    batch = one_step(small, strategy, play=playing(["look"])).batch  # a group of one without a reward: no advantage
    now = strategy.student(batch)
    logp = now.logp.detach().requires_grad_()
    batch.old_logp, batch.teacher_logp = logp.detach() - math.log(2), logp.detach() + math.log(3)
    loss = strategy.token_loss(batch, replace(now, logp=logp))
    loss = loss[batch.response_mask]
    torch.testing.assert_close(loss, torch.full_like(loss, 0.5 * 2 * (2 - math.log(3))))
    loss.sum().backward()  # of rho k3: rho k3 + rho (1 - exp(gap)) = -rho gap, the reverse KL's
    slope = logp.grad[batch.response_mask]
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5 * -2 * math.log(3)))


# ------------------------------------------------------------------ TCOD

LAMP = {"families": ["look_at_obj_in_light"], "world": 5, "receptacles": 6, "distractors": 1}


def test_tcod_plays_one_more_turn_from_the_front_now_and_then_and_validates_without(small):
    strategy = small.strategy(TCOD, teacher=external(small), controller=FrontToBack(every=2))
    played = []
    report = strategy.report
    strategy.report = lambda episodes: (played.append({len(e.turns) for e in episodes}), report(episodes))[1]
    data = small.data(env=HouseholdEnv(**LAMP, horizon=4))
    small.fit(strategy, 5, data, limit_val_batches=None, val_check_interval=5)
    assert played == [{1}, {1}, {2}, {2}, {3}]
    lines = (small.folder / "episodes" / "unseen-policy-000005.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["turns"]) for line in lines} == {4}


@by_layout
@pytest.mark.parametrize(("iteration", "left"), [(1, 1), (2, 2), (100, None)])
def test_tcod_replays_a_demonstration_up_to_the_students_turns_and_learns_nothing_from_it(small, layout, iteration, left):
    env = HouseholdEnv(**LAMP, horizon=6)
    strategy = small.strategy(TCOD, teacher=external(small), controller=BackToFront(every=2))
    seen = one_step(small, strategy, small.data(env=env, layout=layout, tasks_per_step=1), iteration=iteration)
    for number, e in enumerate(seen.episodes):
        demonstration = env.demonstration(e.task)
        replayed = 0 if left is None else len(demonstration) - left
        assert [t.action for t in e.turns if not t.trainable] == demonstration[:replayed]
        assert [t.trainable for t in e.turns] == [False] * replayed + [True] * (6 - replayed)
        of_it = (seen.batch.episode == number)[:, None] & seen.batch.response_mask
        assert set(seen.batch.turn_ids[of_it].tolist()) == set(range(replayed, 6))
        assert of_it.sum() == sum(len(t.response_ids) for t in e.turns if t.trainable)
        assert seen.batch.advantages[of_it].abs().min() > 0


# ------------------------------------------------------------------ TIP


def test_tip_learns_from_the_drawn_tokens_only(small):
    strategy = small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), keep=0.3)
    seen = one_step(small, strategy)
    assert seen.batch.loss_mask.sum() == math.floor(0.3 * int(seen.scored.response_mask.sum()))
    values = [
        kl(*(allowed(log_probs(strategy, n, row.ids, row.mask)) for n in (strategy.model, strategy.teacher.network)))
        for row in rows(seen.batch)
    ]
    assert_close(seen.gradient, gradient_of(strategy, torch.cat(values).mean()))


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"alpha": 2.0, "gamma": 0.5}, lambda doubt, dispute: doubt**2 * dispute**0.5),
        ({"importance": "soft_or"}, lambda doubt, dispute: 1 - (1 - doubt) * (1 - dispute)),
    ],
    ids=["doubt times dispute", "doubt or dispute"],
)
def test_tips_importance_is_of_doubt_and_disagreement_on_full_logits(small, settings, formula):
    strategy = small.strategy(TIP, policy=double(small.policy()), teacher=external(small, double), **settings)
    seen = one_step(small, strategy)
    importance = []
    for row in rows(seen.scored):
        student, teacher = (
            allowed(log_probs(strategy, n, row.ids, row.mask)) for n in (strategy.model, strategy.teacher.network)
        )
        doubt = -(student.exp() * student).sum(1) / math.log(strategy.scorer.vocab_size)
        importance.append(formula(doubt, jsd(student, teacher) / math.log(2)))
    assert seen.metrics["tip/importance"] == pytest.approx(float(torch.cat(importance).mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="importance is soft_or, which has no exponents"):
        small.strategy(TIP, teacher=external(small), importance="soft_or", gamma=0.0)


def test_tip_draws_what_is_important_first(small):
    """Entropies by hand: half of the tokens are certain, and those are left out."""
    strategy = small.strategy(TIP, teacher=external(small), divergence=K1PolicyGradient(), gamma=0.0, keep=0.5)
    with_gaps(strategy, [[[0.5], [0.5]]])
    score = strategy.score

    def doubtful(batch, episodes):
        score(batch, episodes)
        batch.old_entropy = (torch.arange(batch.ids.shape[1]) % 2).float().expand_as(batch.ids) * batch.response_mask

    strategy.score = doubtful
    batch = one_step(small, strategy, play=playing(["go to shelf 1", "open drawer 1"])).batch
    assert (batch.loss_mask & (batch.old_entropy == 0)).sum() == 0 and batch.loss_mask.sum() == 4


def test_the_vocabulary_head_sees_only_tips_tokens_in_the_update(small, monkeypatch):
    counted: dict[str, set[int]] = {"scoring": set(), "update": set()}
    phase = ["before"]

    def counting(head):
        def count(hidden, *args, **kwargs):
            counted.setdefault(phase[-1], set()).add(len(hidden))
            return head(hidden, *args, **kwargs)

        return count

    for head in (scoring.chunked_token_stats, scoring.vocabulary_log_probs):
        monkeypatch.setattr(scoring, head.__name__, counting(head))
    strategy = small.strategy(TIP, teacher=external(small), keep=0.4)
    score, optimize = strategy.score, strategy.optimize
    strategy.score = lambda *args: (phase.append("scoring"), score(*args))
    strategy.optimize = lambda update: (phase.append("update"), optimize(update))
    seen = one_step(small, strategy)
    every, kept = int(seen.scored.response_mask.sum()), int(seen.batch.loss_mask.sum())
    assert kept == math.floor(0.4 * every)
    assert counted["scoring"] == {every} and counted["update"] == {kept}


def test_tips_draw_belongs_to_seed_and_iteration(small):
    play = playing(["go to shelf 1", "open drawer 1", "close drawer 1"], ["look", "go to drawer 2"])

    def kept(iteration, seed=1):
        strategy = small.strategy(TIP, teacher=external(small), gamma=0.0)
        strategy.seed = seed
        batch = one_step(small, strategy, play=play, iteration=iteration).batch
        return {(int(batch.episode[row]), time) for row, time in batch.loss_mask.nonzero().tolist()}

    drawn = kept(3)
    assert kept(3) == drawn and kept(4) != drawn and kept(3, seed=2) != drawn


@pytest.mark.parametrize(
    ("gamma", "divergence", "payload"),
    [
        (0.0, K1PolicyGradient(), Payload.SAMPLED),
        (0.0, TopKReverseKL(8), Payload.TOP_K),
        (1.0, K1PolicyGradient(), Payload.FULL),
    ],
)
def test_tip_asks_for_as_much_of_the_teacher_as_it_needs(small, gamma, divergence, payload):
    strategy = small.strategy(TIP, teacher=external(small), divergence=divergence, gamma=gamma)
    batch = one_step(small, strategy).scored
    assert strategy.payload == payload
    assert batch.has("teacher_hidden") == (payload == Payload.FULL)
    assert batch.has("teacher_top_ids") == (payload == Payload.TOP_K)


# ------------------------------------------------------------------ TOPD


def test_topds_student_windows_stop_at_the_end_of_the_turn(small):
    """Two turns in a row, each of two prompt tokens and what is said: places 2 to 4 and 7 to 8."""
    batch = batch_of([episode(turn(3), turn(2))], "trajectory")
    strategy = small.strategy(TOPD, teacher=external(small), window=3)
    ids, mask = strategy.student_windows(batch, torch.tensor([0, 0, 0, 0]), torch.tensor([2, 3, 4, 7]))
    assert [i[m].tolist() for i, m in zip(ids, mask, strict=True)] == [[3, 4, 5], [4, 5], [5], [3, 4]]
    assert mask.shape == (4, 3)


def test_topds_soft_targets_are_what_the_plan_sends_and_the_later_place_owns_the_overlap(small):
    batch = batch_of([episode(turn(4)), episode(turn(4))], "trajectory")
    batch.old_logp = torch.zeros(batch.ids.shape)
    strategy = small.strategy(TOPD, teacher=external(small), window=3)
    plan = torch.tensor(
        [
            [[0.30, 0.03, 0.0], [0.0, 0.20, 0.13], [0.11, 0.11, 0.11]],  # from place 2: places 2, 3, 4
            [[0.25, 0.25, 0.0], [0.0, 0.10, 0.40], [0.0, 0.0, 0.0]],  # from place 4: places 4, 5; its turn ends there
        ]
    )
    its = torch.tensor([[10, 11, 12], [20, 21, 22]])
    mine_mask = torch.tensor([[True, True, True], [True, True, False]])
    strategy.soft_targets(batch, torch.tensor([0, 0]), torch.tensor([2, 4]), mine_mask, its, plan)
    targets = [
        {int(i): round(float(p), 4) for i, p in zip(ids, logp.exp(), strict=True) if p > 0}
        for ids, logp in zip(batch.soft_target_ids[0], batch.soft_target_logp[0], strict=True)
    ]
    assert targets == [{}, {}, {10: 0.9091, 11: 0.0909}, {11: 0.6061, 12: 0.3939}, {20: 0.5, 21: 0.5}, {21: 0.2, 22: 0.8}]
    assert not batch.soft_target_logp[1].isfinite().any()


def windows_by_hand(strategy, same: int) -> dict[str, Tensor]:
    """The teacher would say what the student said at the first `same` candidates, and one far token elsewhere."""
    seen = {}

    def teacher_windows(batch, episodes, places_rows, places):
        ids, mask = strategy.student_windows(batch, places_rows, places)
        far = strategy.chat.tokenizer.get_vocab()["<0x00>"]
        seen.update(rows=places_rows, places=places, mask=mask)
        return torch.where(torch.arange(len(ids))[:, None] < same, ids, far), mask

    strategy.teacher_windows = teacher_windows
    return seen


@pytest.mark.parametrize(
    ("share", "same", "suppressed", "covered"),
    [
        (0.4, 1, [1], [4, 5, 6, 7]),
        (0.0, 1, [], [1, 2, 4, 5, 6, 7]),
        (0.7, 3, [1, 4], [6, 7]),  # equal distances: the share is kept
        (1.0, 1, [1, 4, 6], []),
    ],
)
def test_topd_suppresses_surface_mismatches_and_gives_forks_soft_targets(small, share, same, suppressed, covered):
    strategy = small.strategy(TOPD, teacher=external(small), window=2, candidates=3, loss_share=1.0, surface_share=share)
    seen = windows_by_hand(strategy, same)
    # the largest losses: places 1, 4 and 6 of the response; at 8 the teacher endorses the token, which is none
    gaps = [-0.1, -3.0, -0.2, -0.1, -2.0, -0.2, -1.0, -0.1, 5.0, 0.0]
    batch = one_step(small, with_gaps(strategy, [[gaps]]), play=playing(["go to 1 1 1 1 1 1 1 1"])).batch
    first = int(batch.response_mask[0].nonzero()[0])
    assert (seen["places"] - first).tolist() == [1, 4, 6] and seen["rows"].tolist() == [0, 0, 0]
    told = batch.soft_target_logp.isfinite().any(-1)
    assert (told[0].nonzero()[:, 0] - first).tolist() == covered
    mass = batch.soft_target_logp.exp().sum(-1)[told]
    torch.testing.assert_close(mass, torch.ones_like(mass))
    [[kept]] = gathered(batch, batch.distill_weights)
    assert kept == [0.0 if place in suppressed else 1.0 for place in range(10)]


def test_topd_has_no_candidate_whose_window_would_not_fit_the_context(small):
    """A row of 73 tokens in a context of 80: the tokens of the last turn have the largest gaps, and no room for 20 more."""
    teacher = ExternalTeacher(small.policy(hidden_size=32, context=80))
    settings = {"window": 20, "candidates": 8, "loss_share": 1.0, "surface_share": 0.0}
    strategy = small.strategy(TOPD, policy=small.policy(context=80), teacher=teacher, **settings)
    with_gaps(strategy, [[[-1.0], [-0.1], [-0.1], [-2.0]]])
    batch = one_step(small, strategy, play=playing(["go to shelf 1"] * 4)).batch
    told = batch.soft_target_logp.isfinite().any(-1)
    assert batch.ids.shape == (1, 73) and set(batch.turn_ids[told].tolist()) == {0} and told.sum() == 4


@by_layout
@pytest.mark.parametrize("coef", [0.0, 0.7])
def test_topds_loss_is_k1_on_what_is_not_suppressed_and_the_cross_entropy_of_the_soft_targets(small, layout, coef):
    strategy = small.strategy(
        TOPD, policy=double(small.policy()), teacher=external(small, double), window=4, trajectory_coef=coef, candidates=2
    )
    seen = one_step(small, strategy, small.data(layout=layout))
    batch, gaps = seen.batch, gaps_on_full_logits(strategy, seen.batch)
    k1, entropy = [], []
    for row in rows(batch):
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        k1.append(sampled(student, row))
        targets = zip(batch.soft_target_ids[row.number], batch.soft_target_logp[row.number].exp(), strict=True)
        told = [pair for pair, m in zip(targets, batch.response_mask[row.number], strict=True) if m]
        for logp, (ids, share) in zip(student, told, strict=True):
            entropy += [-p * logp[i] for i, p in zip(ids, share, strict=True) if p > 0]
    kept = batch.distill_weights[batch.response_mask] > 0
    assert 0 < (~kept).sum() < seen.metrics["transport/covered_share"] * len(kept) and len(entropy) > 1
    loss = -(gaps * torch.cat(k1))[kept].mean() + coef * torch.stack(entropy).sum() / len(kept)
    assert_close(seen.gradient, gradient_of(strategy, loss))
    assert ("transport/cross_entropy" in seen.metrics) == (coef > 0)


@by_layout
def test_topds_teacher_goes_on_from_its_own_view_of_the_row(small, layout):
    asked, windows = [], {}

    class Recording(TorchSampler):
        def sample(self, model, prompts, draws):
            asked.append((model, self.max_new_tokens, [list(p) for p in prompts]))
            return super().sample(model, prompts, draws)

    strategy = small.strategy(
        TOPD, teacher=external(small), view=SolutionView(), window=5, sampler=Recording(max_new_tokens=6)
    )
    ask = strategy.teacher_windows

    def spy(batch, episodes, rows, places):
        out = ask(batch, episodes, rows, places)
        windows.update(batch=batch, rows=rows.tolist(), places=places.tolist(), mask=out[1])
        return out

    strategy.teacher_windows = spy
    seen = one_step(small, strategy, small.data(layout=layout))
    model, length, prefixes = asked[-1]
    assert model is strategy.teacher.network and length == 5 and len(asked) > 1
    expected = []
    for row, place in zip(windows["rows"], windows["places"], strict=True):
        e = seen.episodes[int(seen.batch.episode[row])]
        first = int(seen.batch.turn_ids[row, 0])
        messages = e.turn_messages[first] if layout == "turn" else e.first_messages
        told = strategy.view.prompt(strategy.chat, messages, strategy.env.solution(e.task))
        assert len(told) > len(e.turns[first].prompt_ids)
        expected.append(told + seen.batch.ids[row, len(e.turns[first].prompt_ids) : place].tolist())
    assert prefixes == expected and windows["mask"].any(1).all()


# ------------------------------------------------------------------ HDPO


def lamp_player(*winners: tuple[int, int]) -> Actor:
    """Plays the demonstration in these attempts (task, attempt), and in attempt 0 where the solution is told; else looks on."""
    env = HouseholdEnv(**LAMP, horizon=5)
    tasks: list[str] = []

    def script(prompt, draw):
        if draw.task not in tasks:
            tasks.append(draw.task)
        told = HEADING in prompt or " is usually in the " in prompt
        won = draw.attempt == 0 if told else (tasks.index(draw.task), draw.attempt) in winners
        return env.demonstration(env.task(draw.task))[draw.turn] if won else "look"

    return Actor(script)


def lamp_data(small, **kwargs):
    return small.data(env=HouseholdEnv(**LAMP, horizon=5), **kwargs)


@by_layout
def test_hdpo_plays_only_tasks_that_every_attempt_failed_once_more_with_the_solution(small, layout):
    sampler = lamp_player((0, 1))
    strategy = small.strategy(HDPO, sampler=sampler, teacher=InitialTeacher())
    seen = one_step(small, strategy, lamp_data(small, layout=layout))
    attempts, extra = seen.episodes[:4], seen.episodes[4:]
    assert [e.success for e in attempts] == [False, True, False, False] and not any(e.extra for e in attempts)
    assert [(e.task, e.attempt, e.success, e.extra) for e in extra] == [
        (attempts[2].task, 0, True, True),
        (attempts[2].task, 1, False, True),
    ]
    told = [(model, HEADING in text) for model, text in sampler.asked]
    assert {model is strategy.initial for model, solution in told if solution} == {True}
    assert {model is strategy.model for model, solution in told if not solution} == {True}
    solution = strategy.env.solution(extra[0].task)
    assert all(solution in text for _, text in sampler.asked if HEADING in text)
    assert seen.metrics["success/train"] == 0.25 and seen.metrics["reward/mean"] == 2.5
    assert seen.metrics["hdpo/cliff_share"] == 0.5
    assert strategy.env_steps == sum(len(e.turns) for e in seen.episodes)

    batch = seen.batch
    of_extra = [row for row in rows(batch) if batch.extra[row.number]]
    assert len(of_extra) == (1 if layout == "trajectory" else len(extra[0].turns))  # the one that failed again carries no loss
    for row in of_extra:
        assert HEADING not in text_of(strategy, row.ids)
        assert HEADING in text_of(strategy, row.teacher_ids) and solution in text_of(strategy, row.teacher_ids)
        assert row.ids[row.mask].tolist() == row.teacher_ids[row.teacher_mask].tolist()
    assert batch.advantages[batch.extra].abs().sum() == 0
    won = torch.tensor([seen.episodes[e].extra and seen.episodes[e].success for e in batch.episode.tolist()])
    assert torch.equal(batch.distill_weights > 0, batch.response_mask & won[:, None]) and won.any()


@by_layout
def test_hdpos_gradient_is_grpos_on_the_attempts_and_the_jsd_on_what_was_verified(small, layout):
    data = lamp_data(small, layout=layout)

    def step(cls, **kwargs):
        strategy = drifted(small.strategy(cls, policy=double(small.policy()), sampler=lamp_player((0, 1)), **kwargs))
        return strategy, one_step(small, strategy, data)

    _, plain = step(GRPO)
    strategy, seen = step(HDPO, teacher=InitialTeacher(), distill_coef=0.3)
    values = []
    for row in rows(seen.batch):
        if not (seen.batch.distill_weights[row.number] > 0).any():
            continue
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        teacher = log_probs(strategy, strategy.initial, row.teacher_ids, row.teacher_mask).detach()
        top = teacher.topk(64).indices
        values.append(jsd(on_support(student, top, True), on_support(teacher, top, True)))
    distilled = gradient_of(strategy, 0.3 * torch.cat(values).mean())
    assert_close({n: seen.gradient[n] - plain.gradient[n] for n in distilled}, distilled)


def test_hdpo_plays_nothing_more_where_every_group_has_a_success(small):
    sampler = lamp_player((0, 1), (1, 0))
    seen = one_step(small, small.strategy(HDPO, sampler=sampler), lamp_data(small))
    assert len(seen.episodes) == 4 and not any(HEADING in text for _, text in sampler.asked)
    assert seen.metrics["hdpo/cliff_share"] == 0 and seen.batch.distill_weights.sum() == 0


def test_hdpo_plays_at_most_so_many_privileged_attempts_and_the_retriever_learns_from_none(small):
    class Watched(FactRetriever):
        def observe(self, task, retrieval, success):
            watched.append((task, success))

    watched = []
    strategy = small.strategy(
        HDPO, sampler=lamp_player(), retriever=Watched(), view=SkillView(), privileged_attempts=1, distill_coef=0.1
    )
    seen = one_step(small, strategy, lamp_data(small))
    assert [e.success for e in seen.episodes] == [False] * 4 + [True] * 2
    assert watched == [(seen.episodes[0].task, 0.0), (seen.episodes[2].task, 0.0)]
    assert all(e.retrieval.text for e in seen.episodes)


# ------------------------------------------------------------------ SDPO

WON, LOST = [Did("go to shelf 1", reward=1.0)], ["open drawer 1", "close drawer 1"]


@by_layout
def test_sdpo_drops_what_there_is_nothing_to_tell_about(small, layout):
    """The only success of a group has no sibling to learn from and no failure to be told."""
    strategy = small.strategy(SDPO)
    batch = one_step(small, strategy, small.data(layout=layout), playing(WON, LOST, LOST)).batch
    assert set(batch.episode.tolist()) == {1, 2} and batch.is_privileged.all()
    assert all("A successful attempt at the task:\ngo to shelf 1" in text_of(strategy, r.teacher_ids) for r in rows(batch))
    assert torch.equal(batch.distill_weights > 0, batch.response_mask)
    alone = small.strategy(SDPO)
    batch = one_step(small, alone, small.data(layout=layout), playing(LOST)).batch
    failure = "> open drawer 1\n    A room.\n> close drawer 1\n    The end."
    assert all(failure in text_of(alone, r.teacher_ids) for r in rows(batch))


def test_an_iteration_with_nothing_to_tell_changes_no_weights(small):
    strategy = small.strategy(SDPO)
    strategy.collect = lambda step: playing(WON)(strategy, step.tasks)
    trainer = small.trainer(1, limit_train_batches=2)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(strategy, small.data())
    fresh = weights(small.policy().load_model())
    assert strategy.iteration == 2 and trainer.global_step == 0
    assert torch.equal(weights(strategy.model), fresh) and torch.equal(weights(strategy.teacher.copy), fresh)


def test_sdpos_loss_is_the_jsd_on_the_students_likeliest_tokens_and_a_bucket(small):
    strategy = drifted(small.strategy(SDPO, policy=double(small.policy())))
    collect = strategy.collect
    strategy.collect = lambda step: (collect(step), playing(WON, LOST)(strategy, step.tasks))[1]
    seen = one_step(small, strategy)
    [row] = rows(seen.batch)
    student = log_probs(strategy, strategy.model, row.ids, row.mask)
    fresh = double(small.policy()).load_model()  # what the teacher was before the iteration moved it
    teacher = log_probs(strategy, fresh, row.teacher_ids, row.teacher_mask).detach()
    top = student.detach().topk(100).indices
    assert_close(
        seen.gradient, gradient_of(strategy, jsd(on_support(student, top, True), on_support(teacher, top, True)).mean())
    )


@pytest.mark.parametrize("per", ["iteration", "step"])
def test_sdpos_teacher_is_the_moving_average_of_the_student(small, per):
    """By default it moves once an iteration, after all updates."""
    settings, rate, moves = ({}, 0.05, 2) if per == "iteration" else ({"teacher": EMATeacher(0.25)}, 0.25, 4)
    strategy = small.strategy(SDPO, updates_per_rollout=2, **settings)
    live, move = [], getattr(strategy.teacher, f"after_{per}")
    setattr(strategy.teacher, f"after_{per}", lambda student, *args: (live.append(weights(student)), move(student, *args)))
    small.fit(strategy, steps=4)
    average = weights(small.policy().load_model())
    assert len(live) == moves and not torch.equal(live[0], live[1])
    for student in live:
        average = (1 - rate) * average + rate * student
    torch.testing.assert_close(weights(strategy.teacher.copy), average)


@pytest.mark.parametrize(("cap", "ratios"), [(2.0, [0.5, 1.5, 2.0]), (None, [0.5, 1.5, 3.0])])
def test_sdpo_caps_the_importance_ratio(small, cap, ratios):
    strategy = small.strategy(SDPO, ratio_cap=cap)
    batch = one_step(small, strategy, play=playing(LOST)).batch
    now = strategy.student(batch)
    plain = strategy.token_loss(batch, now)[batch.response_mask]
    for ratio, expected in zip((0.5, 1.5, 3.0), ratios, strict=True):
        batch.old_logp = now.logp.detach() - math.log(ratio)
        loss = strategy.token_loss(batch, now)[batch.response_mask]
        torch.testing.assert_close(loss, expected * plain)


# ------------------------------------------------------------------ SDSearch

SAID = "<think>Where is it?</think><action>{}</action>"


def thinking_data(small, **kwargs):
    return small.data(protocol=ThinkActProtocol(list_admissible=False), **kwargs)


@by_layout
def test_sd_search_distils_inside_the_span_only(small, layout):
    actions = [["go to shelf 1", "open drawer 1"], ["look"]]
    strategy = small.strategy(SDSearch, policy=small.policy(context=2048), **ON_ACTIONS, distill_coef=1.0)
    play = playing(*([SAID.format(a) for a in attempt] for attempt in actions))
    batch = one_step(small, strategy, thinking_data(small, layout=layout), play).batch
    expected = [[framed(strategy, a) for a in attempt] for attempt in actions]
    expected = [turn for attempt in expected for turn in attempt] if layout == "turn" else list(map("".join, expected))
    assert shown(strategy, batch, batch.distill_weights > 0) == expected


def framed(strategy, action: str) -> str:
    """A response as `shown` shows it when only the action counts: the three parts share no token."""
    before, after = SAID.split("{}")
    parts = [strategy.chat.encode_text(text) for text in (before, action, after)]
    assert [*parts[0], *parts[1], *parts[2]] == list(strategy.chat.encode_text(SAID.format(action)))
    return "." * len(parts[0]) + action + "." * (len(parts[2]) + 1)


def test_sd_searchs_gradient_is_grpos_and_the_jsd_on_the_teachers_likeliest_tokens(small):
    play = playing([SAID.format("go to shelf 1"), Did(SAID.format("look"), reward=1.0)], [SAID.format("open drawer 1")])

    def step(cls, **kwargs):
        strategy = small.strategy(cls, policy=double(small.policy(context=2048)), **kwargs)
        return strategy, one_step(small, strategy, thinking_data(small), play)

    _, plain = step(GRPO)
    strategy, seen = step(SDSearch, **ON_ACTIONS, distill_coef=0.5)
    values = []
    for row in rows(seen.batch):
        student = log_probs(strategy, strategy.model, row.ids, row.mask)
        teacher = log_probs(strategy, strategy.model, row.teacher_ids, row.teacher_mask).detach()
        top = teacher.topk(50).indices
        chosen = seen.batch.distill_weights[row.number][seen.batch.response_mask[row.number]] > 0
        values.append(jsd(on_support(student, top, False), on_support(teacher, top, False))[chosen])
    assert len(torch.cat(values)) < seen.batch.response_mask.sum() / 4
    distilled = gradient_of(strategy, 0.5 * torch.cat(values).mean())
    assert_close({n: seen.gradient[n] - plain.gradient[n] for n in distilled}, distilled, 1e-3)


def test_sd_search_is_grpo_bit_for_bit_before_its_window(small):
    before = one_step(small, rewarded(small.strategy(SDSearch, **ON_ACTIONS)), iteration=49)
    plain = one_step(small, rewarded(small.strategy(GRPO)), iteration=49)
    assert plain.batch.advantages.abs().sum() > 0 and before.metrics["distill/coef"] == 0
    assert_equal(before.gradient, plain.gradient)
    within = one_step(small, rewarded(small.strategy(SDSearch, **ON_ACTIONS)), iteration=50)
    plain = one_step(small, rewarded(small.strategy(GRPO)), iteration=50)
    assert within.metrics["distill/coef"] == pytest.approx(0.001)
    assert any(not torch.equal(within.gradient[n], plain.gradient[n]) for n in plain.gradient)


def test_a_span_that_no_response_has_is_refused(small):
    message = "the span is 'search', but responses of CompactProtocol hold action: no token would be chosen"
    with pytest.raises(ConfigError, match=message):
        one_step(small, small.strategy(SDSearch))


@by_layout
def test_sd_searchs_teacher_knows_what_the_others_asked_and_never_what_it_will_ask_itself(small, layout):
    actions = [["go to shelf 1", "open drawer 1", "look"], ["go to bed 1", Did("use desklamp 1", reward=1.0)]]
    strategy = small.strategy(SDSearch, **ON_ACTIONS, distill_coef=1.0)
    seen = one_step(small, strategy, small.data(layout=layout), playing(*actions))
    outcomes = ["Incorrect: go to shelf 1; open drawer 1; look", "Correct: go to bed 1; use desklamp 1"]
    own = [[None, "go to shelf 1", "go to shelf 1; open drawer 1"], [None, "go to bed 1"]]
    expected = {}
    for e in (0, 1):
        for t in range(len(own[e])) if layout == "turn" else [0]:
            lines = list(outcomes)
            lines[e] = own[e][t] and f"This attempt so far: {own[e][t]}"
            expected[e, t] = "\n".join(line for line in lines if line)
    found = {}
    for row in rows(seen.batch):
        e, t = int(seen.batch.episode[row.number]), int(seen.batch.turn_ids[row.number, 0])
        prompt = text_of(strategy, row.teacher_ids[: int(row.teacher_mask.nonzero()[0])])
        system = prompt.removeprefix("<|system|>").partition("<|end|>")[0]
        found[e, t] = system.removeprefix("Attempts at this task and their outcomes:\n")
        asked = [d if isinstance(d, str) else d.said for d in actions[e][t:]]
        assert not any(a in prompt for a in asked), "the present and the future"
    assert found == expected


# ------------------------------------------------------------------ CriticSearch


class Labels(Judge):
    """Labels by hand; keeps what it was told."""

    def __init__(self, *labels: list[float | None]):
        self.labels, self.told = list(labels), []

    def __call__(self, episodes, solutions):
        self.told += [(e.attempt, e.task.id, s) for e, s in zip(episodes, solutions, strict=True)]
        return self.labels


JUDGED = playing(["go to shelf 1", Did("look", reward=1.0)], ["open drawer 1", "close drawer 1"])
LABELS = ([1.0, -1.0], [None, 1.0])
# three labels with mean 1/3 and deviation sqrt(4/3)
GOOD, BAD = (2 / 3) / math.sqrt(4 / 3), -(4 / 3) / math.sqrt(4 / 3)


@by_layout
@pytest.mark.parametrize(
    ("settings", "kept", "coef"),
    [({}, 1.0, 0.25), ({"turn_coef": 0.5}, 1.0, 0.5), ({"mix": "convex"}, 0.75, 0.25)],
)
def test_critic_search_adds_the_group_normalised_labels_turn_by_turn(small, layout, settings, kept, coef):
    judge = Labels(*LABELS)
    strategy = small.strategy(
        CriticSearch, judge=judge, advantage=GroupAdvantage("episode"), **settings
    )  # alike in both layouts
    seen = one_step(small, strategy, small.data(layout=layout), JUDGED)
    by_hand = [[kept * HALF + coef * GOOD, kept * HALF + coef * BAD], [-kept * HALF, -kept * HALF + coef * GOOD]]
    found = gathered(seen.batch, seen.batch.advantages)
    assert found == near([[[a] * len(t) for a, t in zip(*e, strict=True)] for e in zip(by_hand, found, strict=True)])
    assert seen.metrics["judge/unlabelled_share"] == 0.25
    assert seen.metrics["judge/label"] == pytest.approx(1 / 3)
    task = seen.episodes[0].task
    assert judge.told == [(number, task.id, strategy.env.solution(task)) for number in (0, 1)]


def test_a_label_that_is_alone_in_its_group_says_nothing(small):
    seen = one_step(small, small.strategy(CriticSearch, judge=Labels([None, None], [None, 1.0])), play=JUDGED)
    assert gathered(seen.batch, seen.batch.advantages) == near(turn_by_turn(seen.batch, lambda e, t, gap: (HALF, -HALF)[e]))


def test_critic_search_asks_no_judge_whose_word_does_not_count(small):
    judge = Labels(*LABELS)
    seen = one_step(small, small.strategy(CriticSearch, judge=judge, turn_coef=0.0), play=JUDGED)
    assert judge.told == [] and "judge/label" not in seen.metrics
    assert_equal(seen.gradient, one_step(small, small.strategy(GRPO), play=JUDGED).gradient)


def test_without_any_verdict_critic_search_is_grpo(small):
    seen = one_step(small, small.strategy(CriticSearch, judge=Labels([None, None], [None, None])), play=JUDGED)
    plain = one_step(small, small.strategy(GRPO), play=JUDGED)
    assert seen.metrics["judge/unlabelled_share"] == 1
    assert_equal(seen.gradient, plain.gradient)


def test_labels_are_compared_within_a_group_only(small):
    def play(strategy, tasks):
        return [acted(strategy, task, number, "look") for task in tasks for number in (0, 1)]

    judge = Labels([1.0], [1.0], [-1.0], [1.0])
    batch = one_step(small, small.strategy(CriticSearch, judge=judge, turn_coef=1.0), play=play).batch
    assert [e[0][0] for e in gathered(batch, batch.advantages)] == pytest.approx([0.0, 0.0, -HALF, HALF], abs=1e-5)


def test_a_judge_that_cannot_be_asked_stops_before_training(small):
    class Broken(Labels):
        def check(self):
            raise ConfigError("the judge does not answer")

    strategy = small.strategy(CriticSearch, judge=Broken())
    with pytest.raises(ConfigError, match="the judge does not answer"):
        one_step(small, strategy, play=lambda *_: pytest.fail("an episode was played"))
    assert strategy.model is None


def test_a_blank_gold_answer_is_refused(small):
    strategy = small.strategy(CriticSearch, judge=Labels(*LABELS), view=SkillView(), retriever=NoRetriever())
    with pytest.raises(ConfigError, match=r"SkillView has no gold answer for 2 of 2 tasks, such as household-.*would guess"):
        one_step(small, strategy, play=JUDGED)
    assert strategy.judge.told == []


# ------------------------------------------------------------------ GiGPO


@by_layout
def test_gigpo_compares_what_two_attempts_did_at_the_observation_where_they_met(small, layout):
    """Returns 0.95^2, 0.95, 1 against 0: met at the door and in the hall, apart in the end."""
    play = playing(
        [Did("look", "The door."), Did("look", "The hall."), Did("look", "The attic.", reward=1.0)],
        [Did("open drawer 1", "The door."), Did("look", "The hall."), Did("look", "The den.")],
    )
    strategy = small.strategy(GiGPO, advantage=GiGPOAdvantage(normalize_std=False))
    seen = one_step(small, strategy, small.data(layout=layout), play)
    won = [0.5 + 0.5 * 0.95**2, 0.5 + 0.5 * 0.95, 0.5]
    found = [[t[0] for t in e] for e in gathered(seen.batch, seen.batch.advantages)]
    assert found == [pytest.approx(won), pytest.approx([-a for a in won])]
    assert seen.metrics["advantage/shared_anchor_share"] == pytest.approx(4 / 6)


# ------------------------------------------------------------------ teachers


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
        torch.testing.assert_close(seen.batch.teacher_logp[row.number][seen.batch.response_mask[row.number]], its.detach())
        asked.add(family)
    assert asked == set(families)


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


@pytest.mark.parametrize(("retriever", "times"), [(NoRetriever(), 1), (FactRetriever(), 0)])
def test_a_retriever_that_finds_nothing_is_warned_of_once(small, recwarn, retriever, times):
    small.fit(small.strategy(SkillSD, retriever=retriever), steps=3)
    said = [str(w.message) for w in recwarn if "was told nothing" in str(w.message)]
    assert len(said) == times
    if said:
        assert said[0].startswith("4 of 4 rows of iteration 0 have a teacher that was told nothing")

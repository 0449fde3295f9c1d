"""Before the first training step: does the sampler draw from the density that the trainer trains?

A few short episodes of the training panel's tasks are played with the run's sampler and scored by the trainer. Nothing of the run is
changed: every random number of a rollout is named by seed, task, attempt, turn and position, and global generators are put back.
"""

import copy
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from sdar.errors import ConfigError
from sdar.registry import part_name
from sdar.rollout import Request, collate, make_rows
from sdar.rollout.groups import describe_lost
from sdar.scoring import densities
from sdar.training.playing import Playing

EPISODES, TURNS, TOKENS = 32, 2, 32
"""Episodes that are played, turns of each, most tokens of a response."""
BOUNDS = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest mean difference, in nats, of two ways to compute in a number format. Seen in pretrained models: 0.04 in bfloat16, 1e-5 in
float32."""
FINE = 1e-3
"""The same for wider formats."""
WANTED_MASS = 0.95
"""Least probability that the policy gives, on average, to the tokens that are not forbidden."""


def probe(module: Playing, most: float | Literal["auto"]) -> None:
    """Compare sampler and trainer on a few hundred tokens. Every rank must call it, with the networks where they are trained.

    Args:
        most: Largest mean absolute difference of the two log-probabilities of a sampled token, in nats; auto: what is ordinary in the
            format that is computed in.

    Raises:
        ConfigError: they are further apart.
    """
    narrow = number_format(module)
    bound = BOUNDS.get(narrow, FINE) if most == "auto" else most
    told = f"{most:g}" if most != "auto" else f"auto, {bound:g} in {str(narrow).removeprefix('torch.')}"
    logp, sampled_logp, lost = both_densities(module)
    if not len(logp):
        reason = f"faults of the world ended {lost}" if lost else "the sampler tells none"
        rank_zero_warn(
            "the sampler could not be compared with the trainer before training: the first tasks gave no response token with a "
            f"density ({reason}). Look at rollout/mismatch in the first iterations."
        )
        return
    off = (logp - sampled_logp).abs()
    mean, divergence = float(off.mean()), float((sampled_logp - logp).mean())
    seen = f"{mean:.3g} nats on average, {float(off.max()):.3g} at most, over {len(off)} tokens"
    if mean <= bound:
        rank_zero_info(f"sampler and trainer agree: their log-probabilities differ by {seen} (model.max_mismatch: {told}).")
        return
    sampler = part_name(module.sampler)
    raise ConfigError(
        f"{sampler} does not sample from the density that is trained: log-probabilities of the tokens that it drew differ by {seen} "
        f"(estimated KL(sampler || trainer): {divergence:.3g}); model.max_mismatch is {told}. Every ratio and every gradient would be "
        "about another policy. Likely reasons: the engine has other weights or another model; it samples with another temperature, "
        "vocabulary or forbidden ids than it tells; it computes in a much lower precision (8 or 4 bits); the model's head or attention "
        "is computed otherwise there. Start the engine with the directory of the policy that is trained and with the training's dtype, "
        "and compare with `--model.sampler TorchSampler`; if that differs, too, compute in float32 (trainer.precision 32-true, policy's "
        "dtype float32). If it is wanted, set model.correction to TruncatedCorrection or MaskedCorrection and raise model.max_mismatch; "
        "null does not look."
    )


def number_format(module: Playing) -> torch.dtype:
    """The narrowest that sampler or trainer compute in; of an engine elsewhere that does not say it, bfloat16."""
    weights = {p.dtype for p in module.model.parameters() if p.is_floating_point()}
    with module.trainer.precision_plugin.train_step_context():
        if torch.is_autocast_enabled(module.device.type):
            weights.add(torch.get_autocast_dtype(module.device.type))
    if module.sampler.own_engine:
        weights.add(getattr(torch, str(getattr(module.sampler, "dtype", "auto")), torch.bfloat16))
    return max(weights, key=lambda dtype: torch.finfo(dtype).eps)


@torch.no_grad()
def both_densities(module: Playing) -> tuple[Tensor, Tensor, str]:
    """What the trainer and what the sampler gave the tokens that the sampler drew ``[tokens]``, in nats, on every rank; and
    which episodes faults of the world ended."""
    trainer = module.trainer
    step = module.tasks.step(module.seed, module.iteration)
    requests = [
        Request(task, visit * part.attempts + g, max_turns=TURNS)
        for g in range(max(part.attempts for part in step.parts))
        for part in step.parts
        for task, visit in zip(part.tasks, part.visits, strict=True)
        if g < part.attempts
    ][:EPISODES]
    sampler = copy.copy(module.sampler)
    sampler.max_new_tokens = min(TOKENS, sampler.max_new_tokens)
    rollout = module.tasks.rollout(module.chat, sampler, module.view, module.seed)
    devices = [module.device.index] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.train_step_context():
        with module.synced(module.sampler, module.model) as actor:
            episodes = module.ranks.map_over_ranks(
                lambda mine: rollout(actor, mine), requests, "the comparison of the sampler"
            )
        rows = [r for r in make_rows(episodes) if any(r.response_mask)]
        if not rows:
            return torch.zeros(0), torch.zeros(0), describe_lost(episodes)
        batch = collate(rows, episodes, list(range(len(episodes))))
        inputs = (batch.ids, batch.attention_mask, batch.response_mask)
        scored = module.scorer.score(
            module.model, *inputs, module.micro_batch_tokens, sharding=module.sharding, ranks=module.ranks
        )
    batch.old_logp = scored.logp
    _look_at_forbidden(module, scored.allowed_logmass[batch.response_mask.bool()])
    sampled, logp, sampled_logp = densities(batch, scored.allowed_logmass)
    return logp[sampled], sampled_logp[sampled], describe_lost(episodes)


def _look_at_forbidden(module: Playing, allowed_logmass: Tensor) -> None:
    """Warn where the policy would often say what its sampler forbids: a model whose own format is made of special tokens."""
    kept = float(allowed_logmass.exp().mean()) if len(allowed_logmass) else 1.0
    if kept >= WANTED_MASS:
        return
    names = module.chat.tokenizer.convert_ids_to_tokens(list(module.sampler.forbidden_ids))
    rank_zero_warn(
        f"the policy gives {1 - kept:.0%} of its probability to tokens that sampler.forbid takes from it ({', '.join(names[:8])}"
        f"{', ...' if len(names) > 8 else ''}): special tokens may be part of how this model speaks (channels, thoughts, calls of tools). "
        "Name in sampler.forbid only those that it shall not say; [] forbids none."
    )

"""What an iteration or a validation leaves behind: metrics by name (docs/metrics.md lists them), and lines about it."""

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import stdev
from typing import Any, cast

import torch
from torch import Tensor

import sdar
from sdar.episodes.files import left_out
from sdar.functional import concentration, effective_share
from sdar.metrics import Metrics
from sdar.metrics.places import Places
from sdar.rollout.groups import by_group, finished
from sdar.scoring import StudentOutput, densities
from sdar.training.host import Host
from sdar.turns import Turns
from sdar.types import Batch, Episode, Status, TokenView, Turn


def episodes(
    metrics: Metrics, all_episodes: Sequence[Episode], retrieves: bool, bounded: bool = False, tools: Collection[str] = ()
) -> None:
    """Success, reward, lengths, validity, statuses and retrievals; all but the last two of what was played to an end.

    Args:
        bounded: The tokens of an episode have a bound.
        tools: The worlds (`Task.world`) whose actions may call a tool.
    """
    played = finished(all_episodes)
    for status in Status:
        if status != Status.DONE and (bounded or status != Status.TOKEN_LIMIT):
            metrics.values(f"rollout/{status}_share", [e.status == status for e in all_episodes])
    metrics.add("rollout/tokens_per_second", sum(e.response_tokens for e in all_episodes), 0)
    _responses(metrics, [t for e in played for t in e.turns if t.trainable])
    metrics.values("reward/group_std", [stdev(e.reward for e in group) for group in by_group(played) if len(group) > 1])
    called = [sum(t.tool_ok is not None for t in e.turns) for e in played if e.task.world in tools]
    if called:
        metrics.values("rollout/tool_calls", called)
    _outcomes(metrics, played)
    for world in dict.fromkeys(e.task.world for e in played):
        _of_world(metrics, [e for e in played if e.task.world == world], f"{world}/" if world else "")
        if world:
            _outcomes(metrics, [e for e in played if e.task.world == world], world)
    if retrieves:
        groups = by_group(all_episodes)
        skills = Counter(skill for group in groups for skill in group[0].retrieval.skill_ids)
        metrics.values("retrieval/empty_share", [not group[0].retrieval.text for group in groups])
        metrics.values("retrieval/skills_per_task", [len(group[0].retrieval.skill_ids) for group in groups])
        metrics.add("retrieval/distinct_skills", len(skills))
        metrics.add("retrieval/most_used_share", max(skills.values(), default=0), len(groups))
        told = [e for e in played if e.retrieval.text]
        metrics.values("retrieval/copied_share", [copies(t.text, e) for e in told for t in e.turns if t.trainable])


def _outcomes(metrics: Metrics, played: Sequence[Episode], world: str = "") -> None:
    """How episodes went: all of them, or those of one of several worlds."""
    behind = f"/{world}" if world else ""
    metrics.values(f"success{behind}/train", [e.success for e in played])
    metrics.values(f"reward/mean{behind}", [e.reward for e in played])
    metrics.values(f"rollout/episode_length{behind}", [len(e.turns) for e in played])
    metrics.values(f"rollout/response_tokens{behind}", [e.response_tokens for e in played])
    metrics.values(f"rollout/valid_action_rate{behind}", [t.valid for e in played for t in e.turns])
    metrics.values(f"rollout/well_formed_rate{behind}", [t.well_formed for e in played for t in e.turns])
    pairs = [pair for e in played for pair in pairwise(e.turns)]
    metrics.values(f"rollout/repeated_action_share{behind}", [now.action == before.action != "" for before, now in pairs])


COPIED_WORDS = 8
"""A response that has so many words in a row in common with the skills of its task copies them."""


def copies(response: str, episode: Episode) -> bool:
    """Whether a response says a passage of the skills of its task that nothing else had said to the policy."""
    said = _passages(response) & _passages(episode.retrieval.text)
    if not said:
        return False
    known = (episode.task.instruction, *(turn.observation for turn in episode.turns))
    return bool(said.difference(*map(_passages, known)))


@lru_cache(maxsize=1024)
def _passages(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of `COPIED_WORDS` words."""
    words = text.lower().split()
    return frozenset(tuple(words[n : n + COPIED_WORDS]) for n in range(len(words) - COPIED_WORDS + 1))


def _of_world(metrics: Metrics, played: Sequence[Episode], prefix: str) -> None:
    """What the words of a world name: its families and scores."""
    for family in dict.fromkeys(e.task.family for e in played):
        of_family = [e for e in played if e.task.family == family]
        metrics.values(f"success_by_family/{prefix}train/{family}", [e.success for e in of_family])
        metrics.values(f"reward_by_family/{prefix}{family}", [e.reward for e in of_family])
    for name in dict.fromkeys(name for e in played for name in e.scores):
        metrics.values(f"scores/{name}/{prefix}train", [e.scores[name] for e in played if name in e.scores])


def _responses(metrics: Metrics, sampled: Sequence[Turn]) -> None:
    """Lengths of responses, and how many the limit of new tokens cut."""
    lengths = [len(turn.response_ids) for turn in sampled]
    if lengths:
        metrics.add("rollout/response_length", sum(lengths), len(lengths))
        metrics.add("rollout/response_length_min", min(lengths))
        metrics.add("rollout/response_length_max", max(lengths))
        metrics.add("rollout/cut_share", sum(not turn.stopped for turn in sampled), len(sampled))


def sampling_mismatch(metrics: Metrics, batch: Batch, allowed_logmass: Tensor) -> None:
    """How far the trainer's density is from the one that was sampled from, in nats; the kept mass accounts for truncation."""
    sampled, logp, sampled_logp = densities(batch, allowed_logmass)
    if sampled.any():
        off = (logp - sampled_logp).abs()
        metrics.add_tokens("rollout/mismatch", off, sampled)
        metrics.add("rollout/mismatch_p99", percentile(off[sampled], 99))
        metrics.add("rollout/mismatch_max", float(off[sampled].max()))
        metrics.add_tokens("rollout/kept_mass", batch.kept_logmass.exp(), sampled)


def signal(metrics: Metrics, batch: Batch, tokens: TokenView, all_episodes: Sequence[Episode]) -> None:
    """On how few tokens the gap lies, the teacher's entropy where it told one, and where in episodes and responses both are large."""
    sizes = tokens.gap[batch.response_mask].abs()
    if bool(sizes.any()):  # without a gap there is no share of it
        metrics.add("gap/top1_share", concentration(sizes, 0.01))
        metrics.add("gap/top10_share", concentration(sizes, 0.1))
        metrics.add("gap/effective_share", effective_share(sizes))
    places = Places(batch)
    places.add(metrics, "gap", tokens.gap)
    places.add(metrics, "gap/abs", tokens.gap.abs())
    places.add(metrics, "entropy", tokens.entropy)
    attempt = batch.response_mask & ~batch.extra[:, None]
    for outcome, of in (("success", batch.success > 0), ("failure", batch.success <= 0)):
        metrics.add_tokens(f"gap/{outcome}", tokens.gap, attempt & of[:, None])
        places.add(metrics, f"gap/{outcome}", tokens.gap, attempt & of[:, None])
    by_turn = {"turn/divergence": tokens.gap.abs()}
    if batch.has("teacher_entropy"):
        places.add(metrics, "teacher/entropy", batch.teacher_entropy)
        metrics.add_tokens("teacher/entropy", batch.teacher_entropy, batch.response_mask)
        by_turn["teacher/entropy"] = batch.teacher_entropy
    turns = Turns(batch)
    taken = list(zip(turns.episode.tolist(), turns.turn.tolist(), strict=True))
    if all(t.tool_ok is None for e in {e for e, _ in taken} for t in all_episodes[e].turns):
        return
    before = [after(all_episodes[e].turns[:turn]) for e, turn in taken]
    for name, values in by_turn.items():
        means = turns.mean(values).tolist()
        for what in ("error", "result", "text"):
            metrics.values(f"{name}/after_{what}", [mean for mean, was in zip(means, before, strict=True) if was == what])


def after(turns: Sequence[Turn]) -> str:
    """What the turn behind these ones answers: a tool's ``error`` or its ``result``; ``text`` where no tool was called so far."""
    if turns and turns[-1].tool_ok is not None:
        return "result" if turns[-1].tool_ok else "error"
    return "text" if all(t.tool_ok is None for t in turns) else ""


def special_share(metrics: Metrics, part: Batch, now: StudentOutput, loss: Tensor, special: Tensor) -> None:
    """Which part of a micro-batch's loss, in absolute values, and of its gradient falls on control tokens of the template, and which
    part of the gradient on the one token that has most of it.

    The gradient is that of the states which predict the tokens: the sum of its norms, when it is known in the backward pass.

    Args:
        loss: ``[batch, time]``, per token.
        special: The ids.
    """
    on = torch.isin(part.ids, special) & part.loss_mask
    size = loss.detach().abs()
    metrics.add("loss/special_share", size.where(on, 0).sum(), size.where(part.loss_mask, 0).sum())
    if now.hidden.requires_grad:
        places = now.predicts.flatten().nonzero_static(size=len(now.hidden))[:, 0]
        predicts_special = on[:, 1:].take(places)  # [tokens]

        # holds nothing of the graph, which holds it: a circle through autograd is never freed
        def known(gradient: Tensor) -> None:
            norms = gradient.detach().float().norm(dim=-1)  # [tokens]
            metrics.add("grad/special_share", norms.where(predicts_special, 0).sum(), norms.sum())
            metrics.add("grad/top_token_share", norms.amax() if len(norms) else 0.0, norms.sum())

        now.hidden.register_hook(known)


def token_shares(metrics: Metrics, batch: Batch, worlds: Iterable[str]) -> None:
    """Which share of the tokens that are learned from each world has; nothing in a run with one."""
    for number, world in enumerate(worlds if batch.has("world") else ()):
        metrics.add(f"train/token_share/{world}", batch.loss_mask[batch.world == number].sum(), batch.loss_mask.sum())


def percentile(values: Tensor, percent: int) -> float:
    """The smallest of the values ``[n]`` that at least `percent` of a hundred do not exceed."""
    return float(values.kthvalue(-(-len(values) * percent // 100)).values)


def run_folder(trainer: Any) -> Path | None:
    """Where a run leaves what is not a log or a checkpoint; None where it shall leave nothing."""
    return None if getattr(trainer, "fast_dev_run", False) else Path(trainer.default_root_dir)


def write_retrievals(trainer: Any, iteration: int, all_episodes: Sequence[Episode]) -> None:
    """Add a line to ``retrievals.jsonl``: how many groups of attempts an iteration had, and how many of them got each skill, the most
    used first. A bank may have thousands of skills: too many for a metric each."""
    if (folder := run_folder(trainer)) is None:
        return
    found = by_group(all_episodes)
    skills = Counter(skill for group in found for skill in group[0].retrieval.skill_ids)
    line = {"iteration": iteration, "groups": len(found), "skills": dict(skills.most_common())}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "retrievals.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_validation(module: Host, numbers: dict[str, Any]) -> None:
    """Add a line to ``validation.jsonl``: which run measured, when, and what came out."""
    trainer = module.trainer
    if (folder := run_folder(trainer)) is None:
        return
    record = {
        "run": folder.name,
        "command": cast(Any, trainer.state.fn).value,
        "method": type(module).__name__,
        "seed": module.seed,
        "version": sdar.__version__,
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "iteration": module.iteration,
        "env_steps": module.env_steps,
        **module.tasks.conditions,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "validation.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(record | numbers) + "\n")


def places(trainer: Any, stage: str, export: str | None = None) -> list[str]:
    """Where a run left its logs, its checkpoint, its episodes and the exported policy, and how to look at a training."""
    if (folder := run_folder(trainer)) is None:
        return []
    kept = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
    files = {"metrics": "metrics.csv", "episodes": "episodes", "validations": "validation.jsonl", "alarms": "alarms.jsonl"}
    there = {what: folder / name for what, name in files.items() if (folder / name).exists()}
    found = [("run", str(folder)), *(("checkpoint", path) for path in kept if path)]
    found += [(what, str(where)) for what, where in there.items()]
    if missing := left_out(folder):
        found.append(("left out", f"{sum(missing.values())} episodes in {len(missing)} files, for model.log_episodes_mb"))
    if export is not None and stage == "fit":
        found.append(("policy", export))
    if "metrics" in there and stage == "fit":
        found.append(("look at it", f"sdar report {shlex.quote(str(folder))}"))
    return [f"{what + ':':<12} {where}" for what, where in found]

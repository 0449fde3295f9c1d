"""What an iteration or a validation leaves behind: metrics by name (docs/metrics.md lists them) and episodes as JSON lines."""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import sdar
from sdar.errors import ConfigError
from sdar.lora import plain_weights
from sdar.parts import Policy
from sdar.rollout.chat import ChatFormat
from sdar.tally import Tally
from sdar.types import Batch, Episode, Status, Turn

if TYPE_CHECKING:
    from sdar.module import AgentModule


def groups(all_episodes: Iterable[Episode]) -> list[list[Episode]]:
    """Attempts at one task with one retrieval, which stand one after the other."""
    return [list(group) for _, group in groupby(all_episodes, key=lambda e: (e.task.id, e.retrieval.skill_ids))]


def played(all_episodes: Iterable[Episode]) -> list[Episode]:
    """Those that no fault of the world ended: the others are missing, not failed."""
    return [e for e in all_episodes if not e.lost]


def losses(all_episodes: Sequence[Episode]) -> str:
    """How many episodes faults of the world ended, of how many, with the first one's task and error; empty where none did."""
    lost = [e for e in all_episodes if e.lost]
    if not lost:
        return ""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(Counter(str(e.status) for e in lost).items()))
    first = f"task {lost[0].task.id}: {str(lost[0].error).removesuffix('.')}"
    return f"{len(lost)} of {len(all_episodes)} episodes ({counts}); the first, of {first}"


def group_numbers(all_episodes: Sequence[Episode]) -> list[int]:
    """The group of each episode; an extra one belongs to that of the attempt which it repeats, else to the last of its task."""
    attempts = [e for e in all_episodes if not e.extra]
    numbers = [number for number, group in enumerate(groups(attempts)) for _ in group]
    of_attempt = {(e.task.id, e.attempt): number for e, number in zip(attempts, numbers, strict=True)}
    of_task = {e.task.id: number for e, number in zip(attempts, numbers, strict=True)}
    in_order = iter(numbers)
    return [of_attempt.get((e.task.id, e.attempt), of_task[e.task.id]) if e.extra else next(in_order) for e in all_episodes]


def episodes(tally: Tally, all_episodes: Sequence[Episode], retrieves: bool) -> None:
    """Success, reward, lengths, validity, statuses and retrievals; all but the last two of what was played to an end."""
    for e in all_episodes:
        for status in Status:
            if status != Status.DONE:
                tally.add(f"rollout/{status}_share", e.status == status)
        tally.add("rollout/tokens_per_second", e.response_tokens, 0)
    _responses(tally, [t for e in played(all_episodes) for t in e.turns if t.imitated])
    for group in groups(played(all_episodes)):
        if len(group) > 1:
            tally.add("reward/group_std", stdev(e.reward for e in group))
    for e in played(all_episodes):
        tally.add("success/train", e.success)
        tally.add(f"success_by_family/train/{e.task.family}", e.success)
        tally.add("reward/mean", e.reward)
        tally.add(f"reward_by_family/{e.task.family}", e.reward)
        tally.add("rollout/episode_length", len(e.turns))
        tally.add("rollout/response_tokens", e.response_tokens)
        tally.add("rollout/valid_action_rate", sum(t.valid for t in e.turns), len(e.turns))
        tally.add("rollout/well_formed_rate", sum(t.well_formed for t in e.turns), len(e.turns))
        for name, score in e.scores.items():
            tally.add(f"scores/{name}/train", score)
    if retrieves:
        skills: Counter[str] = Counter()
        tasks = groups(all_episodes)
        for group in tasks:
            tally.add("retrieval/empty_share", not group[0].retrieval.text)
            tally.add("retrieval/skills_per_task", len(group[0].retrieval.skill_ids))
            skills.update(group[0].retrieval.skill_ids)
        tally.add("retrieval/distinct_skills", len(skills))
        tally.add("retrieval/most_used_share", max(skills.values(), default=0), len(tasks))


def _responses(tally: Tally, sampled: Sequence[Turn]) -> None:
    """Lengths of responses, and how many the limit of new tokens cut."""
    lengths = [len(turn.response_ids) for turn in sampled]
    if lengths:
        tally.add("rollout/response_length", sum(lengths), len(lengths))
        tally.add("rollout/response_length_min", min(lengths))
        tally.add("rollout/response_length_max", max(lengths))
        tally.add("rollout/cut_share", sum(not turn.stopped for turn in sampled), len(sampled))


def sampling_mismatch(tally: Tally, batch: Batch, allowed_logmass: Tensor) -> None:
    """How far the trainer's density is from the one that was sampled from, in nats; the kept mass accounts for truncation."""
    sampled, logp, sampled_logp = densities(batch, allowed_logmass)
    if sampled.any():
        off = (logp - sampled_logp).abs()
        tally.tokens("rollout/mismatch", off, sampled)
        tally.add("rollout/mismatch_p99", percentile(off[sampled], 99))
        tally.add("rollout/mismatch_max", float(off[sampled].max()))
        tally.tokens("rollout/kept_mass", batch.kept_logmass.exp(), sampled)


def densities(batch: Batch, allowed_logmass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of scored rows the policy's sampler drew, and what trainer and sampler gave them: log-probabilities of the
    tempered softmax over the whole vocabulary, before forbidden ids, top-k and top-p. All ``[batch, time]``.

    Args:
        allowed_logmass: Log of the mass that the trainer gives to the ids that are not forbidden.
    """
    told = (batch.behaviour_logp != 0) | (batch.kept_logmass != 0)  # both are 0 where a replay or a demonstration speaks
    sampled = batch.response_mask.bool() & told & ~batch.extra[:, None]  # extra ones were sampled from a teacher
    return sampled, batch.old_logp + allowed_logmass, batch.behaviour_logp + batch.kept_logmass


def percentile(values: Tensor, percent: int) -> float:
    """The smallest of the values ``[n]`` that at least `percent` of a hundred do not exceed."""
    return float(values.kthvalue(-(-len(values) * percent // 100)).values)


def run_folder(trainer: Any) -> Path | None:
    """Where a run leaves what is not a log or a checkpoint; None where it shall leave nothing."""
    return None if getattr(trainer, "fast_dev_run", False) else Path(trainer.default_root_dir)


def write_episodes(trainer: Any, name: str, all_episodes: Sequence[Episode], more: bool = False) -> Path | None:
    """``episodes/<name>.jsonl``: one line an episode, with texts for people and ids for programs.

    Args:
        more: Add to the file instead of writing it anew.
    """
    if (folder := run_folder(trainer)) is None:
        return None
    path = folder / "episodes" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(
        "a" if more else "w", encoding="utf-8", errors="backslashreplace"
    ) as out:  # half a surrogate pair: its escape
        for e in all_episodes:
            out.write(json.dumps(record(e), ensure_ascii=False) + "\n")
    return path


def write_retrievals(trainer: Any, iteration: int, all_episodes: Sequence[Episode]) -> None:
    """Add a line to ``retrievals.jsonl``: how many groups of attempts an iteration had, and how many of them got each skill, the most
    used first. A bank may have thousands of skills: too many for a metric each."""
    if (folder := run_folder(trainer)) is None:
        return
    found = groups(all_episodes)
    skills = Counter(skill for group in found for skill in group[0].retrieval.skill_ids)
    line = {"iteration": iteration, "groups": len(found), "skills": dict(skills.most_common())}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "retrievals.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_validation(module: "AgentModule", numbers: dict[str, Any]) -> None:
    """Add a line to ``validation.jsonl``: which run measured, when, and what came out."""
    trainer = module.trainer
    if (folder := run_folder(trainer)) is None:
        return
    told = {
        "run": folder.name,
        "command": trainer.state.fn.value,
        "method": type(module).__name__,
        "seed": module.seed,
        "version": sdar.__version__,
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "iteration": module.iteration,
        "env_steps": module.env_steps,
        **module.env.conditions,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "validation.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(told | numbers) + "\n")


def check_export(key: str, folder: str) -> None:
    """Raise ConfigError where a policy cannot be written to a folder, or something would be written over.

    Args:
        key: The setting that names it.
    """
    if os.path.isdir(folder) and os.listdir(folder):
        raise ConfigError(f"{key} {folder} is a directory with something in it: nothing is written over. Give another.")
    above = Path(folder).absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"{key} {folder}: {above} is a file, and the policy is a directory. Give another.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{key} {folder}: {above} is not to be written by this user. Give another.")


def write_policy(
    policy: Policy, network: PreTrainedModel, weights: Iterable[tuple[str, Tensor]], folder: str | None, dtype: str
) -> None:
    """A directory that transformers reads: weights, configuration, tokenizer with its chat template; adapters are merged.

    Whoever generates with it stops where training stopped: both configurations name every token that ends a turn.

    Args:
        weights: (name in the network's state dict, whole tensor), taken one after the other, also where nothing is written.
        folder: None: another rank writes.
    """
    plain = {}
    for name, tensor in plain_weights(network, weights):
        if folder is not None:
            plain[name] = tensor.detach().to("cpu", getattr(torch, dtype), copy=True)
    if folder is None:
        return
    with torch.device("meta"):
        model = type(network)(copy.deepcopy(network.config))
    model.load_state_dict(plain, assign=True)
    model.tie_weights()
    tokenizer = policy.load_tokenizer()
    stops = list(ChatFormat(tokenizer, policy.chat_options, policy.name).stop_ids)
    model.generation_config = copy.deepcopy(network.generation_config)
    for config in (model.config, model.generation_config):
        config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def places(trainer: Any, export: str | None = None) -> list[str]:
    """Where a run left its logs and episodes, its checkpoint and the exported policy."""
    if (folder := run_folder(trainer)) is None:
        return []
    found = [("run", str(folder))]
    kept = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
    found += [("checkpoint", path) for path in kept if path]
    found += [(what, str(folder / name)) for what, name in (("episodes", "episodes"), ("validations", "validation.jsonl"))]
    found = [(what, where) for what, where in found if what in ("run", "checkpoint") or Path(where).exists()]
    if export is not None:
        found.append(("policy", export))
    return [f"{what + ':':<12} {where}" for what, where in found]


def record(e: Episode) -> dict[str, Any]:
    """An episode as plain data."""
    return {
        "task": e.task.id,
        "family": e.task.family,
        "instruction": e.task.instruction,
        "attempt": e.attempt,
        "privileged": e.privileged,
        "skills": list(e.retrieval.skill_ids),
        "status": str(e.status),
        "error": e.error,
        "success": e.success,
        "reward": e.reward,
        "turns": [
            {
                "observation": t.observation,
                "response": t.text,
                "action": t.action,
                "valid": t.valid,
                "well_formed": t.well_formed,
                "stopped": t.stopped,
                "reward": t.reward,
                "response_ids": t.response_ids,
                "behaviour_logp": [round(x, 5) for x in t.behaviour_logp],
            }
            for t in e.turns
        ],
        "final_observation": e.final_observation,
        "scores": e.scores,
    }

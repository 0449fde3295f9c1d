"""What a student and a teacher think of episodes that are there already, found as a training step finds it."""

from functools import partial
from typing import Any

import torch

from sdar.data.conversations import Conversation
from sdar.episodes.tokens import Kept
from sdar.errors import ConfigError
from sdar.training import bars
from sdar.training.stored import Restorer, StoredBatch
from sdar.types import Episode

Module = Any
"""An `AgentModule`, set up: its life cycle calls this file, which can therefore not import it."""

OF_STEPS = ("loss", "update", "normalizer", "importance")
"""What only an optimizer step has."""


def check_taught(module: Module) -> None:
    """
    Raises:
        ConfigError: nobody would be compared with the student.
    """
    if module.teacher is None:
        raise ConfigError(
            f"{type(module).__name__} has no teacher: there is no gap to score. Give a method with one, e.g. -c conf/method/sdar.yaml or "
            "--model OPD --model.teacher ExternalTeacher ..., behind the run's own config.yaml."
        )


def rescore(module: Module, batch: StoredBatch, number: int) -> None:
    """Score stored episodes of one iteration or measurement with the weights that are loaded, and write those that are wanted."""
    stored = batch.stored
    trained = not isinstance(stored[0], Conversation) and stored[0].kind == "train"
    if trained:
        module.iteration = (stored[0].iteration or 1) - 1  # type: ignore[union-attr]
    if not module.hears_teacher():
        raise ConfigError(
            f"{type(module).__name__} gives its teacher no weight in iteration {module.iteration + 1}, and so it would read nothing. Score "
            "other iterations, or set model.distill_coef to a number."
        )
    restore = Restorer(module, batch.retrieve)
    episodes = [restore(e) for e in stored]
    kept = token_numbers(module, episodes, trained)
    if module.trainer.is_global_zero:
        wanted = [place for place, e in enumerate(stored) if batch.wants(e)]
        module.episode_writer.rescored(number, [(place, stored[place], episodes[place]) for place in wanted], kept)
        gaps = [g for key, known in kept.items() if key[0] in {*wanted} for g in known.get("gap", ()) if g is not None]
        mean = f"gap {sum(gaps) / len(gaps):+.4f} nats over {len(gaps)} tokens" if gaps else "no token was scored"
        bars.say(module.trainer, f"{batch.panel.name}: {len(wanted)} episodes, {mean}")
        bars.scored(module.trainer, batch.panel.name, number + 1)


@torch.no_grad()
def token_numbers(module: Module, episodes: list[Episode], trained: bool) -> Kept:
    """What `training_step` keeps of the tokens of these episodes, without a rollout and without an optimizer step. All ranks together.

    Args:
        trained: They are all episodes of one training iteration: rewards give credit, and the loss is computed. Otherwise advantages are
            0 and not told, as there may be no reward.
    """
    log = module.token_log
    log.begin(True)
    if batch := module.rows(episodes):
        batch.advantages = torch.zeros(batch.ids.shape)
        module.score(batch, episodes)
        log.scored(batch)
        log.weighed(batch, credited=False)
        weighed = module.credit(batch, episodes) if trained else batch
        weighed = module.weigh(weighed, episodes) if weighed else None
        if weighed:
            if trained:
                module.observe_tokens(weighed)
            else:
                log.weighed(weighed, credited=False)
            for update in module.updates(weighed):
                tokens = module.normalizer(update)
                log.begin_update(tokens)
                for _, part in module.local_micro_batches(update):
                    module.sharding.run_as_forward(partial(module.loss, part, tokens))
    module.scoring_pass = module.late_scores = None
    kept = log.take(module.ranks)
    for known in kept.values():
        for name in () if trained else OF_STEPS:
            known.pop(name, None)
        if "old_logp" in known:
            known.setdefault("student_logp", known["old_logp"])
    return kept

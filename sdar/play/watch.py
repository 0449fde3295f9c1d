"""A policy plays one task while a person watches: each turn as it is taken, its tokens by what the teacher thinks of them."""

from typing import Any, cast

from sdar.cli.failure import say
from sdar.data import Pieces, Played, TaskBatch, TaskSource
from sdar.data.panels import Panel
from sdar.episodes.told import block, end, head, outcome
from sdar.errors import ConfigError
from sdar.module import AgentModule
from sdar.play.screen import has_colours, legend, turn_told
from sdar.training.rescoring import token_numbers
from sdar.types import Episode, Task


def watch(trainer: Any, module: AgentModule, data: TaskSource, panel: Panel, task: Task, ckpt_path: str | None) -> None:
    """Play the task with the weights of a checkpoint, or the first ones.

    Raises:
        ConfigError: the run would have several processes.
    """
    if trainer.world_size > 1:
        raise ConfigError(
            f"one episode is watched in one process, and these settings ask for {trainer.world_size}. Give --trainer.devices 1 "
            "--trainer.num_nodes 1."
        )
    trainer.fast_dev_run = True  # nothing is left on disk
    run = cast(Any, module)
    cast(Any, data).predict_dataloader = lambda: [Pieces([TaskBatch(panel, [task], [0], 1)])]
    run.predict_step = lambda batch, *_: _play(module, batch)
    trainer.predict(module, datamodule=data, ckpt_path=ckpt_path, return_predictions=False)


def _play(module: AgentModule, batch: TaskBatch) -> Played:
    colours, taught = has_colours(), module.hears_teacher()
    [request] = module.requests(batch, module.student_sees_skills, training=False)
    rollout = module.validation.rollout.of(request.task)

    def show(episode: Episode) -> None:
        kept = token_numbers(module, [episode], trained=False) if taught and not episode.lost else {}
        number = len(episode.turns) - 1
        say(turn_told(module.episode_writer.told(episode, kept).turns[number], number, "gap", colours))

    task = request.task
    who = f"{type(module).__name__}'s policy {module.policy.name}"
    teacher = legend("gap", colours) if taught else "There is no teacher here: tokens have no gap."
    say(f"{who} plays {task.id} ({task.family})\n{teacher}\ninstruction:\n{block(task.instruction)}")
    rollout.after_turn = show
    [episode] = module.play(module.validation.rollout, module.model, [request])
    e = module.episode_writer.told(episode)
    say("\n".join([*end(e), f"outcome: {outcome(e)}"]) if e.turns else "\n".join([*head(e), *end(e)]))
    return Played([episode])

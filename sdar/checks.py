"""Settings that do not go together are refused before anything is loaded."""

from typing import TYPE_CHECKING

from sdar.corrections import NoCorrection
from sdar.data import TaskModule
from sdar.errors import ConfigError
from sdar.registry import part_name

if TYPE_CHECKING:
    from sdar.module import AgentModule


def check_settings(module: "AgentModule", data: TaskModule) -> None:
    """Look at a strategy and its tasks.

    Raises:
        ConfigError: an option could have no effect, or a teacher would be told nothing.
        SkillBankError: the skills are of another world.
    """
    _check_sampling(module)
    if module.retriever is not None and not module.view.uses_retrieval():
        raise ConfigError(
            f"model.retriever is set, but {part_name(module.view)} tells nothing that was retrieved: the skills would reach nobody. "
            "Use SkillView, or leave the retriever out."
        )
    if module.retriever is None and module.teacher is not None and module.view.uses_retrieval():
        raise ConfigError(
            f"{part_name(module.view)} tells the teacher what a retriever found, and model.retriever is not set: the teacher would "
            "see nothing more than the student. Give a retriever, or another view."
        )
    if module.retriever is not None and module.retriever.bank is not None:
        module.retriever.bank.check_world(data.env.task(task_id) for task_id in data.train_panel.task_ids[:256])


def _check_sampling(module: "AgentModule") -> None:
    """Raise ConfigError where an option about sampling could have no effect."""
    if module.rollouts_ahead and not module.sampler.works_alone:
        raise ConfigError(
            f"model.rollouts_ahead is {module.rollouts_ahead}, but {part_name(module.sampler)} samples in the process that trains: "
            "nothing could be done at the same time, and samples would only be older. Use ServerSampler and `sdar serve-policy`, or "
            "set it to 0."
        )
    if module.plays_attempts:
        return
    if module.rollouts_ahead or not isinstance(module.correction, NoCorrection):
        option = "rollouts_ahead" if module.rollouts_ahead else "correction"
        raise ConfigError(
            f"model.{option} is about episodes that the sampler plays, and {type(module).__name__} makes its episodes in another way: "
            "it would have no effect. Leave it out."
        )

"""A retriever for each world of a run that has several: a bank is written for one."""

from collections.abc import Mapping
from typing import Any

from sdar.errors import ConfigError, SkillBankError
from sdar.parts import Environment, Retriever
from sdar.registry import did_you_mean, register
from sdar.skills import SkillBank
from sdar.types import Retrieval, Task


@register("routed")
class RoutedRetriever(Retriever):
    """Several retrievers, one for each world.

    Args:
        routes: World -> retriever, by the names of ``data.envs``. For a world in which nobody shall be told anything: NoRetriever.
    """

    def __init__(self, routes: dict[str, Retriever]):
        if not routes:
            raise ConfigError("retriever.routes is empty: name each world of the run and its retriever.")
        self.routes = dict(routes)

    def bind_worlds(self, envs: Mapping[str, Environment]) -> None:
        if wrong := sorted(self.routes.keys() ^ envs.keys()):
            said = "names no retriever for the world" if wrong[0] in envs else "names"
            raise ConfigError(
                f"model.retriever.routes {said} {wrong[0]!r}; this run's worlds are {', '.join(filter(None, envs)) or 'unnamed'}."
                f"{did_you_mean(wrong[0], envs)} Name each of them once, NoRetriever where nothing is told."
            )
        for name, env in envs.items():
            self.routes[name].bind_worlds({name: env})

    def bank_of(self, world: str) -> SkillBank | None:
        return self.routes[world].bank_of(world)

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        return self.routes[task.world].retrieve(task, visit)

    def scores(self, task: Task) -> dict[str, float]:
        return self.routes[task.world].scores(task)

    def observe(self, task: Task, retrieval: Retrieval, success: float) -> None:
        self.routes[task.world].observe(task, retrieval, success)

    def state_dict(self) -> dict[str, Any]:
        return {world: state for world, retriever in self.routes.items() if (state := retriever.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if strange := sorted(state.keys() - self.routes.keys()):
            raise SkillBankError(
                f"the saved statistics are about {', '.join(strange)}, for which retriever.routes names nothing: what was learned would be "
                "lost. Resume with the worlds of that run, or start a new run."
            )
        for world, of in state.items():
            self.routes[world].load_state_dict(of)

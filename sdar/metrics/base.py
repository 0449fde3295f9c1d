"""Metrics of your own: one class, named in YAML below ``model.metrics``."""

import re
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric

from sdar.errors import ConfigError
from sdar.registry import part_kind
from sdar.types import Episode, TokenView


@part_kind("metrics")
class RunMetric(Metric):
    """A number about a run: a torchmetrics ``Metric``, whose `add_state` declares what it gathers and whose `compute` gives a scalar; NaN
    is left out.

    It is logged under its class's name in snake case (``ToolCalls``: ``tool_calls``). Every rank sees everything, so that its states
    must not be added up over ranks.
    """

    full_state_update = False
    cumulative: ClassVar[bool] = False
    """True: it goes on over the whole run, and checkpoints keep its states. False: it starts anew with every iteration."""

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)

    @property
    def name(self) -> str:
        """What it is logged as."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__.removeprefix("LazyInstance_")).lower()


def own_metrics(metrics: Sequence[RunMetric] | None) -> list[RunMetric]:
    """The metrics of ``model.metrics``.

    Raises:
        ConfigError: two of them would be logged under one name.
    """
    names = [metric.name for metric in metrics or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"model.metrics has {names.count(twice[0])} metrics called {twice[0]!r}: one would hide the other. Leave one out, or give its "
            "class another `name`."
        )
    return list(metrics or ())


class EpisodeMetric(RunMetric):
    """A number about attempts: ``<name>/train`` of every iteration, ``<name>/<panel>`` of every validation (of a copy of its own)."""

    def update(self, episodes: Sequence[Episode]) -> None:
        """The attempts that no fault of the world ended, those at one task one after the other. At least one."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        raise NotImplementedError


class TokenMetric(RunMetric):
    """A number about the response tokens of an iteration, before its update, logged under its name."""

    def update(self, tokens: TokenView) -> None:
        """All rows that the iteration learns from: advantages are final, ``tokens.gap`` is there if there is a teacher."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        raise NotImplementedError

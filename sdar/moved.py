"""Modules that have moved: the old paths still work, in plugins, in saved settings and in pickles."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "sdar.bars": "sdar.training.bars",
    "sdar.chat": "sdar.rollout.chat",
    "sdar.checkpoints": "sdar.training.checkpoints",
    "sdar.distributed.ranks": "sdar.distributed.communicator",
    "sdar.panels": "sdar.data.panels",
    "sdar.parser": "sdar.cli.parser",
    "sdar.plan_report": "sdar.plan.report",
    "sdar.plan_settings": "sdar.plan.settings",
    "sdar.rehearsal": "sdar.plan.dry_run",
    "sdar.reporting": "sdar.training.reporting",
    "sdar.run_logs": "sdar.training.run_logs",
    "sdar.spans": "sdar.rollout.spans",
    "sdar.tally": "sdar.metrics.means",
    "sdar.trainer": "sdar.cli.trainer",
}
"""Old path -> new path. What moved into a package of the same name (``sdar.plan``) stands in that package's face."""


class Moved(MetaPathFinder, Loader):
    """Finds a module under its old path: the same object, imported once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


sys.meta_path.append(Moved())

"""Which settings of a run are no defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

from sdar import registry
from sdar.cli.roots import TASKS, TRAINER_DEFAULTS
from sdar.cli.signatures import defaults

GROUPS = {
    "trainer": "sdar.cli.trainer.AgentTrainer",
    "checkpoint": "sdar.training.checkpoints.RunCheckpoint",
    "alarms": "sdar.alarms.watch.Alarms",
}
"""Keys whose class nobody names."""
MISSING = object()


def changed(settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, value and default of every setting of a configuration that differs; a part that differs is told with all that was given to
    it. A class that is not there any more has no defaults."""
    registry.load_parts()
    found: list[tuple[str, Any, Any]] = []
    for key, value in settings.items():
        if key in GROUPS and isinstance(value, Mapping):
            usual = defaults(registry.locate(GROUPS[key])) | (TRAINER_DEFAULTS if key == "trainer" else {})
            found += _arguments(key, value, usual)
        elif isinstance(value, Mapping) and "class_path" in value:
            found += _part(key, value, {"class_path": TASKS} if key == "data" else MISSING)
        elif value is not None:
            found.append((key, value, None))
    return found


def _arguments(key: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, value in given.items():
        place, default = f"{key}.{name}", _plain(usual.get(name))
        if isinstance(value, Mapping) and "class_path" in value:
            yield from _part(place, value, default)
        elif _plain(value) != default and not _means_nothing(value, default):
            yield place, value, default


def _part(key: str, part: Mapping[str, Any], default: Any) -> Iterator[tuple[str, Any, Any]]:
    """A part: its class, unless it is the default's, and those of its arguments that differ."""
    path, given = str(part["class_path"]), part.get("init_args") or {}
    usual = default if isinstance(default, Mapping) else {}
    if _short(str(usual.get("class_path", ""))) != _short(path):
        yield (
            key,
            _short(path),
            _short(str(usual["class_path"])) if usual.get("class_path") else (None if default is MISSING else default),
        )
        usual = {}
    known = registry.locate(path) or registry.names().get(_short(path))
    of_class = defaults(known) if isinstance(known, type) else {}
    yield from _arguments(key, given, {**of_class, **(usual.get("init_args") or {})})


def _plain(value: Any) -> Any:
    """As a configuration would hold it."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(of) for key, of in value.items()}
    return [_plain(of) for of in value] if isinstance(value, list | tuple) else value


def _means_nothing(value: Any, default: Any) -> bool:
    return value in (None, {}, []) and default in (None, {}, [])


def _short(path: str) -> str:
    return path.rpartition(".")[2]

"""Every error that a user can cause or meet: the fact with its numbers, the reason, what to do.

Each class also inherits the standard error it specialises, so that code which knows nothing of sdar can catch it. All are
picklable (one message argument), because they cross process borders.
"""


class SdarError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(SdarError, ValueError):
    """A setting that cannot work, or that would silently have no effect."""


class PartError(SdarError, TypeError):
    """A part returned, or was given, something else than its base class promises."""


class UnknownPartError(ConfigError):
    """A name that no registered part carries."""


class DuplicatePartError(ConfigError):
    """Two different classes registered under one name."""


class PolicyError(SdarError, ValueError):
    """A model, tokenizer or chat template that cannot be used as a policy."""


class ContextOverflowError(SdarError, ValueError):
    """A context that does not fit the model; nothing is ever cut silently."""


class SkillBankError(SdarError, ValueError):
    """An unreadable or inconsistent skill bank."""


class FetchError(SdarError, OSError):
    """Data or a model that could not be brought to this machine, or is another than was meant."""


class PanelError(SdarError, ValueError):
    """An empty, damaged or different panel of tasks."""


class CheckpointError(SdarError, ValueError):
    """A checkpoint that does not belong to the run that would go on from it."""


class EnvironmentFault(SdarError, RuntimeError):
    """An environment raised, hung or died; the episode ends with a status."""


class EngineFault(SdarError, RuntimeError):
    """A sampling engine, or all servers of one, failed for longer than the sampler waits."""


class NonFiniteLossError(SdarError, ArithmeticError):
    """Too many optimizer steps in a row had a loss or gradient that is not a number."""


class NoProgressError(SdarError, RuntimeError):
    """Too many iterations in a row ended without an optimizer step."""


class StoppedError(SdarError):
    """The run was asked to stop, and did, with a checkpoint: no failure."""


class RankError(SdarError, RuntimeError):
    """Another process of the run failed, is gone, or did not come in time."""


def first_line(error: BaseException, most: int = 200) -> str:
    """Its first line that is not empty, or its class where it says nothing: for a message that quotes it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip()[:most]


def check_least(owner: str, least: float, unit: str = "", /, **values: float | None) -> None:
    """Refuse settings of `owner` below a bound; None is a setting that was left out.

    Raises:
        ConfigError: the first that is smaller, or no number.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{_key(owner, name)} is {value}: it must be at least {least}{unit and f' {unit}'}.")


def check_positive(owner: str, unit: str = "", /, **values: float | None) -> None:
    """Refuse settings that are not above 0, as `check_least` does."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{_key(owner, name)} is {value}: it must be more than 0{unit and f' {unit}'}.")


def check_share(owner: str, what: str = "a probability", /, **values: float | None) -> None:
    """Refuse settings outside of [0, 1], as `check_least` does; `what` says of what they are a share."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{_key(owner, name)} is {value}: it is {what} in [0, 1].")


def _key(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name

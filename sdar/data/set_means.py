"""Names of data sets in means over them (``data.val_means``): a panel, a family of a panel, or each family of it."""

from collections.abc import Mapping, Sequence

from sdar.errors import ConfigError
from sdar.reading import read_name
from sdar.registry import did_you_mean

EACH = "/*"
"""Behind a panel's name: each of its families is a set."""


def check_means(means: Mapping[str, Sequence[str]], panels: Sequence[str]) -> None:
    """Raise ConfigError where a mean has no sets, or one of a panel that is not measured."""
    for name, sets in means.items():
        read_name(name, f"data.val_means has {name!r}, which", ConfigError)
        if not sets:
            raise ConfigError(
                f"data.val_means.{name} names no set: there is nothing to take the mean of. Name panels, or leave it out."
            )
        if twice := [one for one in sets if list(sets).count(one) > 1]:
            raise ConfigError(f"data.val_means.{name} names {twice[0]!r} twice: a set counts once. Remove one.")
        for one in sets:
            panel = one.partition("/")[0]
            if not any(one == known or one.startswith(f"{known}/") for known in panels):
                raise ConfigError(
                    f"data.val_means.{name} names {one!r}, and no panel {panel!r} is measured.{did_you_mean(panel, panels)} Panels: "
                    f"{', '.join(panels)}."
                )


def metrics_of(sets: Sequence[str], measured: Sequence[str]) -> list[str]:
    """The names of the metrics that a mean is taken of.

    Args:
        sets: As in ``data.val_means``.
        measured: Names of the metrics that there are.
    """
    names = []
    for one in sets:
        if one.endswith(EACH):
            names += [name for name in measured if name.startswith(f"success_by_family/{one.removesuffix(EACH)}/")]
        else:
            panel = f"success/{one}"
            names.append(panel if panel in measured or "/" not in one else f"success_by_family/{one}")
    return names

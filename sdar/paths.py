"""Where a file named in a setting lies: as written, else among the settings that were installed, else among fetched data."""

import os
from pathlib import Path


def installed_settings() -> Path:
    """The folder that is `conf/` in a checkout and `sdar/conf` in an installation."""
    import sdar.conf

    return Path(sdar.conf.__file__).parent


def resolve(path: str | Path) -> Path:
    """`path` as written if it exists there, else below the installed settings (``conf/x`` or ``x``), else below the folder of fetched
    data (``gsm8k/train.jsonl``), else as written.

    ``~`` is the home directory.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("conf",) else path.parts
    places = installed_settings().joinpath(*parts), data_folder() / path
    return next((place for place in places if place.exists()), path)


def cache_folder() -> Path:
    """``$SDAR_CACHE``, else ``sdar`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("SDAR_CACHE"):
        return Path(os.environ["SDAR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdar"


def data_folder() -> Path:
    """Where `sdar fetch` puts data and models: ``$SDAR_DATA``, else ``data`` below `cache_folder`."""
    return Path(os.environ["SDAR_DATA"]).expanduser() if os.environ.get("SDAR_DATA") else cache_folder() / "data"


def how_to_fetch(path: str | Path) -> str:
    """What an error about a missing file adds where its name is that of a data set: the command that fetches it; else nothing."""
    from sdar.fetching.catalogue import catalogue

    name = Path(path).parts[0] if Path(path).parts else ""
    return f" `sdar fetch {name}` puts it into {data_folder()}, where it is found by this name." if name in catalogue() else ""

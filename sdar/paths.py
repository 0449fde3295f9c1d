"""Where a file named in a setting lies: as written, else among the settings that were installed with the package."""

from pathlib import Path


def installed_settings() -> Path:
    """The folder that is `conf/` in a checkout and `sdar/conf` in an installation."""
    import sdar.conf

    return Path(sdar.conf.__file__).parent


def resolve(path: str | Path) -> Path:
    """`path` as written if it exists there, else below the installed settings (``conf/x`` or ``x``), else as written.

    ``~`` is the home directory.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("conf",) else path.parts
    packaged = installed_settings().joinpath(*parts)
    return packaged if packaged.exists() else path

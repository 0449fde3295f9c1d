"""What `sdar fetch` knows: ``conf/data_sets.yaml``, read and checked."""

from functools import cache
from typing import Annotated

import msgspec

from sdar.errors import ConfigError
from sdar.paths import installed_settings
from sdar.reading import convert, read_yaml
from sdar.registry import did_you_mean


class DataFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a data set."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\w][\w.-]*(/[\w][\w.-]*)*$")]
    """Where it lies below the data set's folder."""
    url: Annotated[str, msgspec.Meta(pattern=r"^https://")]
    """The original's own address, of one version where there are several."""
    bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    unpack: str = ""
    """For an archive: the folder of it that is kept. The archive itself is not."""
    only: str = ""
    """For an archive: the name of the files that are kept of that folder; empty: all."""


class DataSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set or model."""

    about: str
    licence: str
    home: str
    use: str
    """What a command line says to use it."""
    files: Annotated[list[DataFile], msgspec.Meta(min_length=1)]
    note: str = ""

    @property
    def bytes(self) -> int | None:
        """Of all files; None where one of them does not say."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size)


@cache
def catalogue() -> dict[str, DataSet]:
    """Name -> data set, in the file's order."""
    file = installed_settings() / "data_sets.yaml"
    return convert(read_yaml(file), dict[str, DataSet], str(file))


def find_data_set(name: str) -> DataSet:
    """
    Raises:
        ConfigError: there is none of this name.
    """
    known = catalogue()
    if name not in known:
        raise ConfigError(f"there is no data set {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return known[name]

"""Weights as files: written by the trainer beside each other and renamed into place, read by an engine that checks them first.

A folder holds one version at a time. It is the memory of the fleet: an engine that was restarted is told to read it. Shared memory
(``/dev/shm``) does for one machine, a network drive for several.
"""

import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sdar.errors import EngineFault, PolicyError
from sdar.serving.engine import Abandoned
from sdar.serving.protocol import LoadRequest, WeightsFile

FILE_BYTES = 2**30
"""A file is closed when it has grown to this: what is held in memory while writing."""


class FileTransport:
    """Weights in a folder of the run's own, below one that trainer and servers can all read.

    Args:
        root: That one; by default shared memory.
    """

    def __init__(self, root: str | None):
        shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
        self.root = shared / f"sdar-{os.getuid()}" if root is None else Path(root).expanduser().absolute()
        self._folder: Path | None = None

    def stage(self, run: str, version: str, weights: Iterable[tuple[str, Tensor]]) -> LoadRequest:
        """Write them; the message tells a server where.

        Raises:
            EngineFault: there is no room.
        """
        if self._folder is None:
            remove_orphans(self.root)
            self._folder = self.root / run
            weakref.finalize(self, shutil.rmtree, self._folder, True)
        try:
            return write_weights(self._folder, f"{run}.{version}", weights)
        except OSError as failure:
            remedy = "Free some space there, or give sampler.weights_folder another place."
            if isinstance(failure, PermissionError):
                remedy = "This user has no permission to write there: give sampler.weights_folder a place of this user's own."
            raise EngineFault(
                f"the weights of {version} could not be written to {self._folder}: {failure}. {remedy}"
            ) from None

    def commit(self, version: str) -> None:
        """All servers that answer have them: earlier ones are of no more use."""
        if self._folder is not None:
            forget_others(self._folder, version)

    def close(self) -> None:
        """Nothing is left."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def remove_orphans(root: Path) -> None:
    """Remove the weights of runs on this machine whose process is gone: they were killed."""
    for folder in root.glob(f"{socket.gethostname()}.*.*") if root.is_dir() else ():
        pid = folder.name.removeprefix(f"{socket.gethostname()}.").partition(".")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_weights(
    folder: Path, version: str, weights: Iterable[tuple[str, Tensor]], file_bytes: int = FILE_BYTES
) -> LoadRequest:
    """Write all `weights` to ``folder/<version>`` and return the message that tells an engine to read them.

    A tensor that shares its memory with an earlier one (tied embeddings) is written once and named in the message.
    """
    place = folder / _folder_name(version)
    part = folder / f"{place.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names: list[str] = []
    tied: dict[str, str] = {}
    held: dict[str, Tensor] = {}

    def close() -> None:
        names.append(f"{len(names):05d}.safetensors")
        save_file(held, part / names[-1])
        held.clear()

    for name, copied in host_copies(weights, tied):
        held[name] = copied
        if sum(t.nbytes for t in held.values()) >= file_bytes:
            close()
    if held:
        close()
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(digest, (part / name for name in names)))
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    return LoadRequest(version, tuple(WeightsFile(str(place / n), d) for n, d in zip(names, digests, strict=True)), tied)


def host_copies(weights: Iterable[tuple[str, Tensor]], tied: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Copies of those that share no memory with an earlier one. The others are noted in `tied`: name -> name of the earlier one."""
    seen: dict[int, tuple[str, weakref.ref[Tensor]]] = {}
    for name, tensor in weights:
        earlier, reference = seen.get(tensor.data_ptr(), ("", None))
        # What is gone, or lies elsewhere by now, left its memory to another tensor.
        before = reference() if reference is not None else None
        if before is not None and _same_memory(before, tensor):
            tied[name] = earlier
            continue
        seen[tensor.data_ptr()] = (name, weakref.ref(tensor))
        yield name, tensor.detach().to("cpu", copy=True).contiguous()


def with_twins(version: str, weights: Iterable[tuple[str, Tensor]], tied: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The other way round: those in `tied` follow the ones whose memory they share.

    Raises:
        EngineFault: one of those is missing.
    """
    twins: dict[str, list[str]] = {}
    for name, original in tied.items():
        twins.setdefault(original, []).append(name)
    for name, tensor in weights:
        yield from ((n, tensor) for n in (name, *twins.pop(name, [])))
    if twins:
        raise EngineFault(f"the weights of {version} lack {', '.join(sorted(twins))}, which others are tied to.")


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr() != 0
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def read_weights(
    request: LoadRequest, wanted: Callable[[], bool] = lambda: True, parameters: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of the files, tied ones too, after all files were compared with their digests.

    Args:
        wanted: Whether somebody still waits for them.
        parameters: How many numbers the reader's own weights are.

    Raises:
        EngineFault: a file is not there, or is another one than was written.
        PolicyError: they are too large for the reader's model.
        Abandoned: nobody waits any more.
    """
    paths = [Path(f.path) for f in request.files]
    size = 0
    for path in paths:
        try:
            found = path.stat()
        except (OSError, ValueError):  # among them a name that is too long, and one with a NUL
            found = None
        if found is not None and stat.S_ISREG(found.st_mode):
            size += found.st_size
        else:
            raise EngineFault(
                f"the weights of {request.version} are not at {path}: the folder is not shared with this machine, or a newer version "
                "replaced them. Give the sampler a weights_folder that trainer and servers can both read."
            )
    check_size(request.version, size, parameters)
    with ThreadPoolExecutor(4) as pool:
        for file, seen in zip(request.files, pool.map(lambda path: digest(path, wanted), paths), strict=True):
            if seen != file.sha256:
                raise EngineFault(
                    f"{file.path} has another digest than the message says: it is not what the trainer wrote as {request.version}. It is "
                    "pushed again at the next attempt."
                )
    yield from with_twins(request.version, _tensors(request.version, paths), request.tied)


def _tensors(version: str, paths: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise EngineFault(f"the weights of {version} cannot be read from {path}: {error}.") from error


def forget_others(folder: Path, version: str) -> None:
    """Remove every version but one."""
    keep = _folder_name(version)
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != keep:
            shutil.rmtree(other, ignore_errors=True)


def _folder_name(version: str) -> str:
    return re.sub(r"[^\w.@-]", "_", version)


def digest(path: Path, wanted: Callable[[], bool] = lambda: True) -> str:
    """SHA-256 of a file, as hexadecimal.

    Raises:
        Abandoned: nobody waits for it any more.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**24):
            if not wanted():
                raise Abandoned("nobody waits for the weights any more")
            found.update(chunk)
    return found.hexdigest()


def check_size(version: str, size: int, parameters: int | None) -> None:
    """Refuse weights that no type of number makes so large.

    Args:
        size: Of the weights, in bytes.
        parameters: How many numbers the engine's are; None: unknown.

    Raises:
        PolicyError: they cannot be those of its model.
    """
    if parameters is not None and size > 8 * parameters + 2**24:
        raise PolicyError(
            f"the weights of {version} are {size} bytes, and the engine's model has {parameters} numbers: it was started with another "
            "model than the one that is trained. Give both the same directory."
        )


def begun(pairs: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same, of which the first one has been read: what is wrong before it is raised here, where nothing was changed yet."""
    first = next(pairs, None)
    return iter(()) if first is None else chain([first], pairs)


def complete(version: str, weights: Iterable[tuple[str, Tensor]], network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state dict of `network` (which may lie on the meta device) exactly once, tied ones too.

    Names that are tied in the network may be given or left out: some engines sample from old values where they are left out.

    Raises:
        PolicyError: a name is missing or unknown, or has another shape: the engine was started with another model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    groups: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    twins = {name: group for group in groups.values() if len(group) > 1 for name in group}
    model, given, spare = type(network).__name__, set(), {}
    for name, tensor in weights:
        if shapes.get(name) != tuple(tensor.shape):
            here = f"shape {shapes[name]}" if name in shapes else "no such tensor"
            raise PolicyError(
                f"the weights of {version} have {name} of shape {tuple(tensor.shape)}, the engine's {model} has {here}: it was started "
                "with another model than the one that is trained. Give both the same directory."
            )
        if name in given:
            raise PolicyError(f"the weights of {version} have {name} twice: which of them counts cannot be told.")
        given.add(name)
        if name in twins:
            spare[name] = tensor
        yield name, tensor
    missing = sorted(set(shapes) - given)
    for name in missing:
        twin = next((t for t in twins.get(name, ()) if t in spare), None)
        if twin is None:
            raise PolicyError(
                f"the weights of {version} lack {name} and {len(missing) - 1} more of the {len(shapes)} tensors of the engine's {model}: "
                "it would go on with old values there. Send the whole state dict of the model that the engine was started with."
            )
        yield name, spare[twin]

"""Runs code in a bubblewrap fork server: libraries loaded once, namespaces of its own for every run."""

import base64
import contextlib
import importlib.util
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from sdar.errors import ConfigError, EnvironmentFault
from sdar.registry import register
from sdar.sandbox import seccomp
from sdar.sandbox.base import CodeRunner, Limits, Program, Result, judge
from sdar.versions import install

HERE = Path(__file__).parent
SITE = "/site"
GRACE_S = 10.0
"""Seconds beyond a run's wall limit after which the server itself is given up."""
START_S, STOP_S = 60.0, 2.0
PATIENCE_S = 0.2
"""Seconds that a run waits for a server that is busy, before another one is started."""


@register("bubblewrap")
class BubblewrapRunner(CodeRunner):
    """A server process inside bubblewrap forks for every run.

    The server sees /usr and the Python installation (read-only), the packages named here, and nothing else of this machine: no
    network, no /etc, no home, no environment. Each run gets user, pid, mount, ipc, net and uts namespaces of its own, an empty
    /tmp, no capabilities, resource limits and a list of allowed system calls; when it ends, or must be ended, the kernel kills
    everything in its pid namespace. A server has one run at a time; copies of a runner in one process share its servers.

    Args:
        limits: What one run may use.
        packages: Installed packages that the code may import beside the standard library.
        preload: Modules that a server imports once.
        servers: Most servers of a process, and so most runs at once; one takes about 50 MB with sympy and numpy. A further run
            waits for the end of another.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        packages: Sequence[str] = ("sympy", "mpmath", "numpy"),
        preload: Sequence[str] = ("sympy", "numpy"),
        servers: int = 64,
    ):
        if servers < 1:
            raise ConfigError(f"runner.servers is {servers}: nothing could run. Give 1 or more.")
        self.limits = limits
        self.packages = tuple(packages)
        self.preload = tuple(preload)
        if unknown := [m for m in self.preload if m.partition(".")[0] not in {*self.packages, *sys.stdlib_module_names}]:
            raise ConfigError(
                f"runner.preload names {unknown[0]!r}, which is neither in the standard library nor among runner.packages "
                f"({', '.join(self.packages)}): the sandbox could not import it. Add its package to runner.packages."
            )
        self.servers = servers
        self._servers = _Servers(self.packages, self.preload, servers)

    @property
    def layers(self) -> tuple[str, ...]:
        return ("bubblewrap", "namespaces per run", "seccomp", "rlimits", "no capabilities")

    def close(self) -> None:
        self._servers.close()

    def _execute(self, program: Program, limits: Limits) -> Result:
        stdin = program.stdin.encode("utf-8", "surrogatepass")
        request = {"cells": program.cells, "show": program.show, "limits": asdict(limits), "stdin": len(stdin)}
        with self._servers.one() as server:
            answer = server.ask(request, limits.wall_s + GRACE_S, stdin)
        if "refused" in answer:
            raise EnvironmentFault(
                f"the sandbox could not be closed around a run ({answer['refused']}), so the code was not started: this machine "
                "allows the server's namespaces but not those of a run. Use AutoRunner or LandlockRunner."
            )
        outputs = [base64.b64decode(text) for text in answer["outputs"]]
        return judge(answer["verdict"], answer["code"], outputs, limits, answer["cpu_s"], answer["memory_bytes"])

    def __deepcopy__(self, memo: dict) -> "BubblewrapRunner":
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)  # settings are immutable, the servers are shared
        return twin

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_servers"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._servers = _Servers(self.packages, self.preload, self.servers)


class _Servers:
    """Those that are idle, and how many are busy. Another one is started when none has been free for a moment."""

    def __init__(self, packages: tuple[str, ...], preload: tuple[str, ...], most: int):
        self.packages, self.preload, self.most = packages, preload, most
        self.idle: list[_Server] = []
        self.busy = 0
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator["_Server"]:
        with self.changed:
            if self.busy:
                self.changed.wait_for(lambda: self.idle, PATIENCE_S)
            self.changed.wait_for(lambda: self.idle or self.busy < self.most)
            home = self.idle
            server = home.pop() if home else _Server(self.packages, self.preload)
            self.busy += 1
        try:
            yield server
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify()
                if home is self.idle:
                    home.append(server)
                else:  # they were closed in the meantime
                    server.stop()

    def close(self) -> None:
        """End the idle ones now, and those that are busy when their run is over."""
        with self.changed:
            closed, self.idle = self.idle, []
        for server in closed:
            server.stop()


class _Server:
    """The server process: started at the first request, and again when it has died or this process is a fork."""

    def __init__(self, packages: tuple[str, ...], preload: tuple[str, ...]):
        self.packages, self.preload = packages, preload
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self._end: weakref.finalize | None = None

    def ask(self, request: dict, patience_s: float, more: bytes = b"") -> dict:
        """The answer to a frame, and what follows it."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.start()
        try:
            self.send(request, more)
            return self.receive(patience_s)
        except BaseException as error:  # what would come later belongs to nobody
            self.stop()
            if not isinstance(error, OSError | EOFError | ValueError):
                raise
            raise EnvironmentFault(
                f"the sandbox server did not answer ({type(error).__name__}: {error}): it was killed, or this machine is out "
                "of memory. The next run starts another."
            ) from error

    def start(self) -> None:
        self.stop()
        lines = command(self.packages)
        setting = {
            "site": SITE,
            "modules": self.preload,
            "filters": [base64.b64encode(seccomp.program(pid)).decode() for pid in (1, None)],
        }
        with tempfile.TemporaryFile() as errors:
            # no --die-with-parent: it would fire when the thread that started the server ends; the server ends with its pipe
            self.process = subprocess.Popen(
                lines, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env={}, cwd="/"
            )
            self.owner = os.getpid()
            self._end = weakref.finalize(self, _stop, self.process, self.owner)
            try:
                self.send(setting)
                self.receive(START_S)
            except (OSError, EOFError, ValueError) as error:
                self.stop()
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip().splitlines()
                raise EnvironmentFault(
                    f"the bubblewrap server did not start: {said[-1] if said else error}. If this machine forbids user "
                    "namespaces, use LandlockRunner or a SandboxFusion service."
                ) from error

    def stop(self) -> None:
        if self._end is not None:
            self._end()
        self.process = None

    def send(self, message: dict, more: bytes = b"") -> None:
        data = memoryview(frame(message) + more)
        pipe = cast(Any, self.process).stdin
        while data:
            data = data[pipe.write(data) :]

    def receive(self, patience_s: float) -> dict:
        deadline = time.monotonic() + patience_s
        length = struct.unpack("!I", self.exactly(4, deadline))[0]
        return json.loads(self.exactly(length, deadline))

    def exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        poll = select.poll()
        pipe = cast(Any, self.process).stdout
        poll.register(pipe, select.POLLIN)
        while len(data) < count:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise EOFError("no answer in time")
            more = pipe.read(min(count - len(data), 1 << 20))
            if not more:
                raise EOFError("its pipe is closed")
            data += more
        return bytes(data)


def frame(message: dict) -> bytes:
    """A message as the processes in the sandbox read it."""
    text = json.dumps(message).encode("utf-8", "surrogatepass")
    return struct.pack("!I", len(text)) + text


def _stop(process: subprocess.Popen, owner: int) -> None:
    """Closes the pipes, at which the server ends itself and its run; a fork of its owner only lets go."""
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):
            pipe.close()
    if owner == os.getpid():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()


def command(packages: Sequence[str]) -> list[str]:
    """bubblewrap's arguments: everything that the server may see.

    Raises:
        ConfigError: bubblewrap or a package is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise ConfigError(
            "bubblewrap is not installed (no `bwrap` on the path): BubblewrapRunner isolates with it. Install it (apt install "
            "bubblewrap), or use LandlockRunner."
        )
    lines = [bwrap, "--unshare-all", "--unshare-user", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    lines += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            lines += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            lines += ["--ro-bind", f"/{name}", f"/{name}"]
    python = os.path.realpath(sys.executable)
    base = os.path.realpath(sys.base_prefix)
    if not base.startswith("/usr"):
        lines += ["--ro-bind", base, base]
    for package in packages:
        for path in package_paths(package):
            lines += ["--ro-bind", str(path), f"{SITE}/{path.name}"]
    for name in ("fork_server.py", "cells.py", "confine.py", "pump.py"):
        lines += ["--ro-bind", str(HERE / name), f"/sdar/{name}"]
    lines += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
    ]
    for name, value in environment().items():
        lines += ["--setenv", name, value]
    return [*lines, python, "-s", "-S", "-B", "/sdar/fork_server.py"]


def environment() -> dict[str, str]:
    """All of the environment that untrusted code has: one thread for libraries, the same hashes in every server."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    return {**threads, "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


def package_paths(package: str) -> list[Path]:
    """A package's folder or file, and the libraries that its wheel keeps beside it.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"runner.packages names {package!r}, which is not installed here: the sandbox shows packages of this Python. "
            f"Install it ({install('math')} brings sympy and numpy), or take it out."
        )
    path = Path(spec.origin)
    if spec.submodule_search_locations:
        path = path.parent
    libraries = path.parent / f"{package}.libs"
    return [path, libraries] if libraries.is_dir() else [path]

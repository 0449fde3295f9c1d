"""Runs code behind Landlock and seccomp without root and without namespaces, by the `sandlock` package."""

import base64
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sdar.errors import ConfigError, EnvironmentFault
from sdar.registry import register
from sdar.sandbox import seccomp
from sdar.sandbox.base import CodeRunner, Limits, Program, Result, judge
from sdar.sandbox.bubblewrap import HERE, environment, frame, package_paths
from sdar.sandbox.confine import THREADS
from sdar.sandbox.pump import pump
from sdar.versions import install

READY = b"+"
"""What `exec_child.py` writes first."""
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")


@register("landlock")
class LandlockRunner(CodeRunner):
    """A fresh interpreter for every run, confined by Landlock and seccomp.

    The run reads /usr, the Python installation and the packages named here, and nothing else; it writes nowhere (no file at all:
    `limits.file_bytes` is the size of none); it has no socket, no other process, no environment, no capabilities. It starts
    Python and imports anew, so a run with sympy takes about half a second.

    Args:
        limits: What one run may use; `processes` has to be 1, as without a pid namespace nothing would surely end the others.
        packages: Installed packages that the code may import beside the standard library.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        packages: Sequence[str] = ("sympy", "mpmath", "numpy"),
    ):
        if limits.processes != 1:
            raise ConfigError(
                f"limits.processes is {limits.processes}: without namespaces a process could leave the run and outlive it, so "
                "LandlockRunner allows 1. Use BubblewrapRunner for more."
            )
        self.limits = limits
        self.packages = tuple(packages)

    @property
    def layers(self) -> tuple[str, ...]:
        return ("Landlock", "seccomp", "rlimits", "no capabilities")

    def _execute(self, program: Program, limits: Limits) -> Result:
        try:
            import sandlock
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"the sandlock package cannot be used ({error}): LandlockRunner isolates with it. Install it "
                f"({install('math')}), or use BubblewrapRunner or a SandboxFusion service."
            ) from error
        if sandlock.landlock_abi_version() < sandlock.min_landlock_abi():
            raise ConfigError(
                f"this kernel has Landlock ABI {sandlock.landlock_abi_version()} and sandlock needs {sandlock.min_landlock_abi()} "
                "(Linux 6.12): code could not be confined. Use BubblewrapRunner or a SandboxFusion service."
            )
        folder = stage(self.packages)
        python = os.path.realpath(sys.executable)
        libraries = [str(path) for package in self.packages for path in package_paths(package)]
        box = sandlock.Sandbox(
            fs_readable=[p for p in (*SYSTEM, os.path.realpath(sys.base_prefix), folder, *libraries) if os.path.exists(p)],
            fs_writable=["/dev/null"],
            clean_env=True,
            env=environment(),
            max_processes=1,
            no_coredump=True,
            cwd="/",
        )
        pipe = sandlock.StdioMode.PIPED
        try:
            process = box.popen([python, "-s", "-S", "-B", f"{folder}/exec_child.py"], stdin=pipe, stdout=pipe, stderr=pipe)
        except (RuntimeError, OSError, sandlock.SandlockError) as error:
            raise EnvironmentFault(
                f"sandlock could not start a process ({error}): this machine or container forbids Landlock or seccomp "
                "notification. Use BubblewrapRunner or a SandboxFusion service."
            ) from error
        with process:
            request = request_for(program, limits, seccomp.program(process.pid))
            outputs, verdict, cpu_s = exchange(process, request, limits)
            ended = process.wait()
        if ended.reason == sandlock.ExitReason.EXITED:
            code = ended.exit_code
        else:  # of an end by SIGKILL, sandlock names no signal
            code = -ended.signal if ended.reason == sandlock.ExitReason.SIGNALED else -signal.SIGKILL
        return judge(verdict, code, outputs, limits, cpu_s)


def request_for(program: Program, limits: Limits, filter_program: bytes) -> bytes:
    """What `exec_child.py` reads, and then the code."""
    told = {"cells": program.cells, "show": program.show, "limits": asdict(limits)}
    return frame({**told, "filter": base64.b64encode(filter_program).decode()}) + program.stdin.encode(
        "utf-8", "surrogatepass"
    )


def exchange(process, request: bytes, limits: Limits) -> tuple[list[bytes], str, float]:
    """Give a process its request, listen to it within the limits and kill it: outputs and verdict (see `pump`), CPU seconds.

    Raises:
        EnvironmentFault: it ended before the code was started.
    """
    writer = threading.Thread(target=_write, args=(process.stdin, request))  # it may be longer than a pipe holds
    deadline = time.monotonic() + limits.wall_s
    pidfd = os.pidfd_open(process.pid)
    try:
        writer.start()
        streams = (process.stdout.fileno(), process.stderr.fileno())
        (stdout, stderr), verdict = pump(
            pidfd, streams, limits.output_bytes + len(READY), deadline, lambda: crowd(process.pid)
        )
    finally:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # it has ended, or must; only then does the writer surely end
        os.close(pidfd)
        writer.join()
    used = stat(process.pid)  # it has ended and nobody has waited for it yet
    cpu_s = (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK") if used else 0.0
    if not stdout.startswith(READY) and not verdict:
        said = stderr.decode("utf-8", "replace").strip().splitlines()
        raise EnvironmentFault(
            f"the sandbox could not be closed around a run ({said[-1] if said else 'the process ended'}), so the code was not "
            "started: see the layers that this machine offers with AutoRunner."
        )
    return [stdout[len(READY) :], stderr[: limits.output_bytes + 1]], verdict, cpu_s


def crowd(pid: int) -> str:
    """'threads' when a process has too many; the kernel's own limit does not hold for root."""
    fields = stat(pid)
    return "threads" if fields and int(fields[17]) > THREADS else ""


def stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat behind the name; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _write(pipe, data: bytes) -> None:
    with contextlib.suppress(OSError), pipe:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]


_folders: dict[tuple[int, tuple[str, ...]], tempfile.TemporaryDirectory] = {}


def stage(packages: tuple[str, ...]) -> str:
    """A folder with what a fresh interpreter imports: our scripts and links to the packages. One a process, removed at its end."""
    key = (os.getpid(), packages)
    if key not in _folders:
        folder = tempfile.TemporaryDirectory(prefix="sdar-run-")
        for name in ("exec_child.py", "cells.py", "confine.py"):
            (Path(folder.name) / name).write_bytes((HERE / name).read_bytes())
        for package in packages:
            for path in package_paths(package):
                (Path(folder.name) / path.name).symlink_to(path)
        _folders[key] = folder
    return _folders[key].name

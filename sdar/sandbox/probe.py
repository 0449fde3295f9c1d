"""What a runner would let an attack do: a few attacks that hurt nobody, tried before the first run."""

import os
import secrets
import socket
import tempfile
from typing import Any, Protocol


class Runner(Protocol):
    """What is asked of a `CodeRunner`."""

    local: bool

    def run(self, code: str) -> Any: ...


PROBE = """
import fcntl, os, resource, socket
done = []
def attempt(name, attack):
    try:
        attack()
        done.append(name + " {secret}")
    except OSError:
        pass
for path in {paths!r}:
    try:
        done.append(open(path, "rb").read().decode("latin-1"))
    except OSError:
        pass
attempt("network", lambda: socket.create_connection(("127.0.0.1", {port}), 2).close())
if {pid}:
    attempt("signals", lambda: os.kill({pid}, 0))
    attempt("limits", lambda: resource.prlimit({pid}, resource.RLIMIT_CORE))
    attempt("processors", lambda: os.sched_setaffinity({pid}, os.sched_getaffinity({pid})))
    attempt("owners of descriptors", lambda: fcntl.fcntl(1, fcntl.F_SETOWN, {pid}))
    library = os.open(os.__file__, os.O_RDONLY)
    attempt("locks of files", lambda: fcntl.flock(library, fcntl.LOCK_EX | fcntl.LOCK_NB))
    attempt("leases of files", lambda: fcntl.fcntl(library, fcntl.F_SETLEASE, fcntl.F_RDLCK))
done += os.environ.values()
print(done)
"""


def weakness(runner: Runner) -> str:
    """What a runner lets an attack do; empty for a good one."""
    secret = secrets.token_hex(16)
    os.environ["SDAR_SANDBOX_PROBE"] = secret
    try:
        with tempfile.NamedTemporaryFile("w") as file, socket.create_server(("127.0.0.1", 0)) as server:
            file.write(secret)
            file.flush()
            paths = [file.name, f"/proc/{os.getpid()}/environ", "/proc/self/environ"]
            port = server.getsockname()[1]
            pid = os.getpid() if runner.local else 0  # elsewhere, this number is somebody else
            attack = runner.run(PROBE.format(paths=paths, port=port, pid=pid, secret=secret))
    finally:
        del os.environ["SDAR_SANDBOX_PROBE"]
    if secret in attack.stdout:
        return (
            "it does not isolate: a probe read this process's files or environment, reached its network, or named it or a shared "
            "file in a system call (signals, limits, processors, locks)"
        )
    return "" if attack.stdout.startswith("[") else f"the probe did not run ({attack.status}: {attack.stderr.strip()[-200:]})"

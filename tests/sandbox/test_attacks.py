"""Attacks, each with the layer that has to stop it; after each the runner answers an honest cell.

An attack that succeeds prints ESCAPED or a secret. What stops it differs between runners where it says so: bubblewrap takes things
out of sight (namespaces), Landlock forbids them. None does lasting harm to a machine that fails to stop it.
"""

import base64
import os
import platform
import re
import secrets
import shutil
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sdar.sandbox.base import Program

SECRET, NAME = secrets.token_hex(16), secrets.token_hex(4)
LIBC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    ctypes.set_errno(0)
    result = function(*arguments)
    print("ESCAPED" if result >= 0 else os.strerror(ctypes.get_errno()))
"""

# layer -> what the result says, by runner: a pattern over "status layer output"
LAYERS = {
    "seccomp": dict(bubblewrap="Operation not permitted", landlock="Operation not permitted"),
    "mount namespace / Landlock": dict(bubblewrap="No such file or directory", landlock="Permission denied"),
    "read-only mounts / Landlock": dict(bubblewrap="Read-only file system|Permission denied", landlock="Permission denied"),
    "empty environment": dict(bubblewrap="^ok", landlock="^ok"),
    "own descriptors only": dict(bubblewrap="Bad file descriptor", landlock="Bad file descriptor"),
    "wall limit": dict(bubblewrap="^timeout wall", landlock="^timeout wall"),
    "cpu limit": dict(bubblewrap="^timeout cpu", landlock="^timeout cpu"),
    "memory limit": dict(bubblewrap="^memory memory", landlock="^memory memory"),
    "memory limit (ENOMEM)": dict(
        bubblewrap="Cannot allocate memory|MemoryError", landlock="Cannot allocate memory|MemoryError"
    ),
    "output limit": dict(bubblewrap="^output output", landlock="^output output"),
    "file limits": dict(bubblewrap="File too large|No space left", landlock="Permission denied"),
    "inode limit": dict(bubblewrap="No space left", landlock="Permission denied"),
    "open file limit": dict(bubblewrap="Too many open files", landlock="Too many open files"),
    "thread limit": dict(
        bubblewrap="^killed threads|can't start new thread", landlock="^killed threads|can't start new thread"
    ),
    "hard rlimits": dict(bubblewrap="not allowed to raise maximum limit", landlock="not allowed to raise maximum limit"),
    "own process only": dict(bubblewrap="^(killed signal|error|ok)", landlock="^(killed signal|error|ok)"),
    "memory or wall limit": dict(bubblewrap="^(killed signal|memory|timeout)", landlock="^(killed signal|memory|timeout)"),
    "interpreter": dict(
        bubblewrap="^(error|syntax) .*Error",
        landlock="^(error|syntax) .*Error",
    ),
    "interpreter and output limit": dict(bubblewrap="^output .*", landlock="^output .*"),
}

ATTACKS = {
    # network
    "tcp": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('ESCAPED')", "seccomp"),
    "udp": (
        "import socket\nsocket.socket(2, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))\nprint('ESCAPED')",
        "seccomp",
    ),
    "raw socket": ("import socket\nsocket.socket(2, socket.SOCK_RAW, 1)\nprint('ESCAPED')", "seccomp"),
    "unix socket": ("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0sdar-{name}')\nprint('ESCAPED')", "seccomp"),
    "netlink": ("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint('ESCAPED')", "seccomp"),
    "vsock": ("import socket\nsocket.socket(40, socket.SOCK_STREAM).connect((2, 1))\nprint('ESCAPED')", "seccomp"),
    "http": (
        "import urllib.request\nprint('ESCAPED', urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=2))",
        "seccomp",
    ),
    "listen": ("import socket\nsocket.create_server(('0.0.0.0', 0))\nprint('ESCAPED')", "seccomp"),
    "libc socket": (LIBC + "call(libc.socket, 2, 1, 0)", "seccomp"),
    "libc socketpair": (LIBC + "call(libc.socketpair, 1, 1, 0, (ctypes.c_int * 2)())", "seccomp"),
    # files of the trainer
    "secret in tmp": ("print(open({tmp!r}).read())", "mount namespace / Landlock"),
    "secret in home": ("print(open({home!r}).read())", "mount namespace / Landlock"),
    "secret in the repository": ("print(open({repo!r}).read())", "mount namespace / Landlock"),
    "symlink to a secret": (
        "import os\nos.symlink({tmp!r}, '/tmp/link')\nprint(open('/tmp/link').read())",
        "mount namespace / Landlock",
    ),
    "dots to a secret": ("print(open('/usr/lib/../..' + {tmp!r}).read())", "mount namespace / Landlock"),
    "passwd": ("print(open('/etc/passwd').read(), 'ESCAPED')", "mount namespace / Landlock"),
    "shadow": ("print(open('/etc/shadow').read(), 'ESCAPED')", "mount namespace / Landlock"),
    "environment of pid 1": ("print(open('/proc/1/environ').read(), 'ESCAPED')", "mount namespace / Landlock"),
    "environment of the trainer": ("print(open('/proc/{pid}/environ').read(), 'ESCAPED')", "mount namespace / Landlock"),
    "files of the trainer": ("import os\nprint(os.listdir('/proc/{pid}/cwd'), 'ESCAPED')", "mount namespace / Landlock"),
    "memory of itself": ("open('/proc/self/mem', 'r+b')\nprint('ESCAPED')", "mount namespace / Landlock"),
    "root of pid 1": ("print(open('/proc/1/root' + {tmp!r}).read())", "mount namespace / Landlock"),
    "its own environment": ("import os\nprint(dict(os.environ))", "empty environment"),
    "environment in memory": (
        "import ctypes\nend = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
        "n = 0\nwhile end[n]:\n    print(end[n])\n    n += 1",
        "empty environment",
    ),
    "kernel settings": (
        "open('/proc/sys/kernel/core_pattern', 'w').write('x')\nprint('ESCAPED')",
        "mount namespace / Landlock",
    ),
    "sysfs": ("import os\nprint(os.listdir('/sys'), 'ESCAPED')", "mount namespace / Landlock"),
    # writing
    "write outside": ("open('/usr/escaped-{name}', 'w')\nprint('ESCAPED')", "read-only mounts / Landlock"),
    "write at the root": ("open('/escaped', 'w')\nprint('ESCAPED')", "read-only mounts / Landlock"),
    "write to shared memory": ("open('/dev/shm/escaped', 'w')\nprint('ESCAPED')", "read-only mounts / Landlock"),
    "write to its libraries": ("import sympy\nopen(sympy.__file__, 'a')\nprint('ESCAPED')", "read-only mounts / Landlock"),
    "add to its libraries": (
        "import os\nos.mkdir(os.path.dirname(os.__file__) + '/escaped')\nprint('ESCAPED')",
        "read-only mounts / Landlock",
    ),
    "chmod": ("import os\nos.chmod('/usr/bin/env', 0o755)\nprint('ESCAPED')", "chmod"),
    "chown": ("import os\nos.chown('/usr/bin/env', 0, 0)\nprint('ESCAPED')", "seccomp"),
    "mknod": (LIBC + "call(libc.mknod, b'/tmp/disk', 0o60666, 8 << 8)", "seccomp"),
    "one big file": ("f = open('/tmp/f', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20))\nprint('ESCAPED')", "file limits"),
    "a full disk": (
        "for i in range(64): open(f'/tmp/f{i}', 'wb').write(bytes(1 << 19))\nprint('ESCAPED')",
        "file limits",
    ),
    "many files": ("for i in range(100000): open(f'/tmp/f{i}', 'w').close()\nprint('ESCAPED')", "inode limit"),
    "memory files": (LIBC + "call(libc.memfd_create, b'x', 0)", "seccomp"),
    # processes
    "fork": ("import os\nos.fork()\nprint('ESCAPED')", "seccomp"),
    "fork bomb": ("import os\nwhile True: os.fork()", "seccomp"),
    "libc fork": (LIBC + "call(libc.fork)", "seccomp"),
    "vfork": (LIBC + "call(libc.vfork)", "seccomp"),
    "shell": ("import subprocess\nprint('ESCAPED', subprocess.run(['sh', '-c', 'id']))", "seccomp"),
    "system": ("import os\nprint('ESCAPED' if os.system('true') == 0 else 'Operation not permitted')", "seccomp"),
    "exec": ("import os\nos.execv('/usr/bin/env', ['env'])", "seccomp"),
    "libc exec": (LIBC + "call(libc.execve, b'/usr/bin/env', None, None)", "seccomp"),
    "multiprocessing": ("import multiprocessing as m\nm.Process(target=print).start()\nprint('ESCAPED')", "seccomp|read-only"),
    "threads without end": (
        "import threading, time\nthreading.stack_size(65536)\nalive = []\n"
        "for _ in range(20000):\n    t = threading.Thread(target=time.sleep, args=(60,), daemon=True)\n    t.start()\nprint('ESCAPED')",
        "thread limit",
    ),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)\nprint('ESCAPED')", "seccomp"),
    "kill the trainer": (
        "import os\nos.kill({pid}, 9)\nprint('ESCAPED')",
        "seccomp",
    ),
    # calls that are on the list, with arguments that name somebody else
    "limits of the trainer": ("import resource\nresource.prlimit({pid}, resource.RLIMIT_CORE)\nprint('ESCAPED')", "seccomp"),
    "limits of the parent": (
        "import os, resource\nresource.prlimit(os.getppid() or 9, resource.RLIMIT_CORE)\nprint('ESCAPED')",
        "seccomp",
    ),
    "limits behind 64 bits": (LIBC + "call(libc.syscall, 302, ctypes.c_long(1 << 32), 4, 0, 0)", "seccomp"),
    "processors of the trainer": (
        "import os\nos.sched_setaffinity({pid}, {0})\nprint('ESCAPED')".replace("{0}", "[0]"),
        "seccomp",
    ),
    "priority of the trainer": ("import os\nos.getpriority(os.PRIO_PROCESS, {pid})\nprint('ESCAPED')", "seccomp"),
    "clock of the trainer": ("import time\ntime.clock_gettime(~{pid} << 3 | 2)\nprint('ESCAPED')", "seccomp"),
    "shared cores": (LIBC + "call(libc.prctl, 62, 2, {pid}, 1, 0)", "seccomp"),
    "tracer": (LIBC + "call(libc.prctl, 0x59616D61, {pid}, 0, 0, 0)", "seccomp"),
    "lock a library": ("import fcntl, os\nfcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX)\nprint('ESCAPED')", "seccomp"),
    "lock a part of a library": (
        "import fcntl, os\nfcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH)\nprint('ESCAPED')",
        "seccomp",
    ),
    **{
        f"fcntl {name}": (f"import fcntl, os\nfcntl.fcntl(os.open(os.__file__, 0), {command})\nprint('ESCAPED')", "seccomp")
        for name, command in {
            "lease": "fcntl.F_SETLEASE, fcntl.F_RDLCK",
            "lease to write": "fcntl.F_SETLEASE, fcntl.F_WRLCK",
            "owner": "fcntl.F_SETOWN, {pid}",
            "owner by structure": "15, bytes(8)",
            "signal": "fcntl.F_SETSIG, 9",
            "notification": "fcntl.F_NOTIFY, 1",
            "lock of a description": "37, bytes(32)",
            "size of a pipe": "1031, 1 << 20",
        }.items()
    },
    **{
        f"ioctl {name}": (
            f"import fcntl, os\nfcntl.ioctl(os.open(os.__file__, 0), {command}, bytes(8))\nprint('ESCAPED')",
            "seccomp",
        )
        for name, command in {"attributes": "0x40086602", "owner": "0x8901", "typing": "0x5412", "signals": "0x5452"}.items()
    },
    "kill pid 1": ("import os\nos.kill(1, 0) if os.getpid() > 1 else os.kill(2, 0)\nprint('ESCAPED')", "seccomp"),
    "kill a thread": (LIBC + "call(libc.syscall, 200, {pid}, 0)", "seccomp"),
    "signal everybody": ("import os, signal\nos.kill(-1, signal.SIGCONT)\nprint('ESCAPED')", "seccomp"),
    "signal the group": ("import os, signal\nos.kill(0, signal.SIGCONT)\nprint('ESCAPED')", "seccomp"),
    "kill the group of the parent": ("import os\nos.killpg(os.getpgid(os.getppid() or 1), 0)", "own process only"),
    # resources
    "endless loop": ("while True: pass", "wall limit"),
    "endless loop in C": ("import itertools\nsum(itertools.repeat(0))", "wall limit"),
    "backtracking": ("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "wall limit"),
    "sleep": ("import time\ntime.sleep(3600)", "wall limit"),
    "deaf sleep": (
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True:\n    try: time.sleep(99)\n    except BaseException: pass",
        "wall limit",
    ),
    "waiting for input": ("print(repr(input()))", "EOFError"),
    "huge power": ("x = 9 ** (9 ** 9)", "wall limit"),
    "cpu time": ("while True: pass", "cpu limit"),
    "big list": ("x = [0] * 10**10", "memory limit"),
    "big bytes, piece by piece": ("x = []\nwhile True: x.append(bytes(1 << 20))", "memory limit"),
    "big mmap": ("import mmap\nmmap.mmap(-1, 1 << 40)\nprint('ESCAPED')", "memory limit (ENOMEM)"),
    "big numpy array": ("import numpy\nnumpy.ones(1 << 36)\nprint('ESCAPED')", "memory limit (ENOMEM)"),
    "big format": ("'{:>99999999999}'.format(1)\nprint('ESCAPED')", "memory limit"),
    "endless output": ("while True: print('x' * 1000)", "output limit"),
    "endless errors": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output limit"),
    "one long line": ("print('x' * 10**7)", "output limit"),
    "descriptors": ("import os\nkept = [os.dup(1) for _ in range(1000)]\nprint('ESCAPED')", "open file limit"),
    "deep recursion": ("def f(): f()\nf()", "interpreter"),
    "deep recursion in C": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "memory or wall limit"),
    "deeply nested code": ("(" * 100_000 + ")" * 100_000, "interpreter and output limit"),
    "null bytes": ("x = 1\0", "interpreter"),
    "null pointer": ("import ctypes\nctypes.string_at(0)", "own process only"),
    "abort": ("import os\nos.abort()", "own process only"),
    "raise limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('ESCAPED')",
        "hard rlimits",
    ),
    # the way back
    "write to every descriptor": (
        "import os\nfor fd in range(3, 1024): os.write(fd, b'ESCAPED')",
        "own descriptors only",
    ),
    "write to its input": ("import os\nos.write(0, b'x')\nprint('ESCAPED')", "own descriptors only"),
    "grow its input": ("import os\nos.ftruncate(0, 1 << 40)\nprint('ESCAPED')", "no file"),
    "more input than there is": (
        "import os\nwhile os.read(0, 1 << 16): pass\nprint(repr(os.read(0, 9)), {'first': open(0, closefd=False).read()})",
        "its own input",
    ),
    "close every descriptor": ("import os\nos.closerange(0, 1024)", "own process only"),
    "fake answer": ('import os\nos.write(1, bytes(3) + b"\\x10" + b\'{"verdict": ""}\')', "own process only"),
    "leave at once": ("import os\nos._exit(0)", "own process only"),
    "exit handlers": ("import atexit, time\natexit.register(time.sleep, 3600)", "own process only"),
    "poisoned pickle": (
        "class P:\n    def __reduce__(self): import os; return os.system, ('touch {marker}',)\n"
        "import pickle, sys\nsys.stdout.buffer.write(pickle.dumps(P()))",
        "own process only",
    ),
    "replaced streams": ("import sys\nsys.stdout = sys.stderr = sys.__stdout__ = None", "own process only"),
    "surrogates": ("print('\\ud800')", "own process only"),
    # kernel
    "ptrace": (LIBC + "call(libc.ptrace, 16, {pid}, 0, 0)", "seccomp"),
    "trace me": (LIBC + "call(libc.ptrace, 0, 0, 0, 0)", "seccomp"),
    "other memory": (LIBC + "call(libc.process_vm_readv, {pid}, 0, 0, 0, 0, 0)", "seccomp"),
    "unshare": (LIBC + "call(libc.unshare, 0x10000000)", "seccomp"),
    "setns": (LIBC + "call(libc.setns, 0, 0)", "seccomp"),
    "mount": (LIBC + "call(libc.mount, b'tmpfs', b'/tmp', b'tmpfs', 0, None)", "seccomp"),
    "umount": (LIBC + "call(libc.umount2, b'/proc', 2)", "seccomp"),
    "chroot": (LIBC + "call(libc.chroot, b'/tmp')", "seccomp"),
    "setuid": (LIBC + "call(libc.setuid, 0)", "seccomp"),
    "setgroups": (LIBC + "call(libc.setgroups, 0, None)", "seccomp"),
    "host name": (LIBC + "call(libc.sethostname, b'x', 1)", "seccomp"),
    "clock": (LIBC + "call(libc.clock_settime, 0, (ctypes.c_long * 2)(-1, 0))", "seccomp"),
    "reboot": (LIBC + "call(libc.reboot, 0)", "seccomp"),
    "personality": (LIBC + "call(libc.personality, 0xffffffff)", "seccomp"),
    "shared memory": (LIBC + "call(libc.shmget, 0, 4096, 0o1600)", "seccomp"),
    "message queue": (LIBC + "call(libc.msgget, 0, 0o1600)", "seccomp"),
    "inotify": (LIBC + "call(libc.inotify_init)", "seccomp"),
    "keyctl": (LIBC + "call(libc.syscall, 250, 0, -3, 0)", "seccomp"),
    "add_key": (LIBC + "call(libc.syscall, 248, b'user', b'x', b'x', 1, -3)", "seccomp"),
    "bpf": (LIBC + "call(libc.syscall, 321, 0, 0, 0)", "seccomp"),
    "perf": (LIBC + "call(libc.syscall, 298, 0, 0, -1, -1, 0)", "seccomp"),
    "io_uring": (LIBC + "call(libc.syscall, 425, 1, ctypes.create_string_buffer(200))", "seccomp"),
    "userfaultfd": (LIBC + "call(libc.syscall, 323, 0)", "seccomp"),
    "pidfd_open": (LIBC + "call(libc.syscall, 434, 1, 0)", "seccomp"),
    "kexec": (LIBC + "call(libc.syscall, 246, 0, 0, 0, 0)", "seccomp"),
    "modules": (LIBC + "call(libc.syscall, 175, 0, 0, b'')", "seccomp"),
}
SPECIAL = {
    "chmod": dict(
        bubblewrap="Read-only file system|Operation not permitted", landlock="Operation not permitted|Permission denied"
    ),
    "seccomp|read-only": dict(
        bubblewrap="Operation not permitted|Permission denied|Read-only", landlock="denied|not permitted"
    ),
    "EOFError": dict(bubblewrap="^error .*EOFError", landlock="^error .*EOFError"),
    "no file": dict(bubblewrap="Invalid argument", landlock="Invalid argument"),
    "its own input": dict(bubblewrap="^ok  b'' {'first': ''}", landlock="^ok  b'' {'first': ''}"),
}
QUICK = {"wall limit": {"wall_s": 0.6}, "memory or wall limit": {"wall_s": 2.0}, "cpu limit": {"cpu_s": 1, "wall_s": 10.0}}
GIVEN = "6 * 7\n" * 40_000
"""Standard input of every attack but those that wait for some: more than a pipe holds, and most never read it."""
SAMPLE = {
    "tcp",
    "fork",
    "exec",
    "ptrace",
    "chown",
    "limits of the trainer",
    "lock a library",
    "fcntl lease",
    "signal the group",
}
"""Of the attacks that the filter stops, which is one and the same: those that CI also runs on the slower runner."""


def pairs():
    for name in ("bubblewrap", "landlock"):
        for attack, (_, layer) in ATTACKS.items():
            again = name == "landlock" and layer == "seccomp" and attack not in SAMPLE and shutil.which("bwrap")
            yield pytest.param(name, attack, marks=pytest.mark.slow if again else ())


@pytest.fixture(scope="module")
def bait(tmp_path_factory):
    """Secrets where an attack would look, a server that it would reach, and a marker that it would leave."""
    places = {
        "tmp": tmp_path_factory.mktemp("bait") / "secret",
        "home": Path.home() / f".sdar-bait-{NAME}",
        "repo": Path(__file__).parent / f".bait-{NAME}",
    }
    for place in places.values():
        place.write_text(SECRET)
    os.environ["SDAR_BAIT"] = SECRET
    marker = tmp_path_factory.mktemp("bait") / "marker"
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = []

        def listen():
            while True:
                try:
                    reached.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield {
            **{name: str(place) for name, place in places.items()},
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "name": NAME,
            "marker": marker,
            "reached": reached,
        }
    del os.environ["SDAR_BAIT"]
    for place in places.values():
        place.unlink()


def test_there_are_attacks_enough():
    assert len(ATTACKS) >= 40


def test_some_runner_isolates_here(usable):
    if sys.platform != "linux":
        pytest.skip("no runner isolates outside Linux")
    assert any(not isinstance(found, str) for found in usable.values()), usable


EARLIER = """
import ctypes, gc, sys
backwards = [bytes.fromhex(text) for text in {backwards!r}]  # this program must not find itself
frame, seen = sys._getframe(), []
while frame is not None:
    seen.append(repr(frame.f_locals))
    frame = frame.f_back
seen += [thing for thing in gc.get_objects() if isinstance(thing, str)] + [repr(t) for t in gc.get_objects() if isinstance(t, dict)]
held = "".join(seen).encode("utf-8", "replace")
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
held += ctypes.string_at(libc.sbrk(0) - (1 << 20), 1 << 20)  # what was freed, too
print("ESCAPED" if any(needle in held[::-1] for needle in backwards) else "nothing")
"""


def test_nothing_of_an_earlier_run_is_left_in_memory(runner):
    said = f"{SECRET * 100}"
    for _ in range(3):
        runner.run(f"print({said!r} + 'x' * 3000)", stdin=said)
    encoded = base64.b64encode(said.encode())  # as answers travel
    backwards = [text[i : i + 20][::-1].hex() for text, i in ((said.encode(), 0), (encoded, 24))]
    result = runner.run(EARLIER.format(backwards=backwards))
    assert (result.stdout, result.stderr) == ("nothing\n", "")


@pytest.mark.parametrize(("runner", "attack"), list(pairs()), indirect=["runner"])
def test_an_attack_is_contained(attack, runner, name, bait):
    code, layer = ATTACKS[attack]
    if "libc.syscall" in code and platform.machine() != "x86_64":
        pytest.skip("system call numbers of x86_64")
    for key in ("tmp", "home", "repo"):
        code = code.replace(f"{{{key}!r}}", repr(bait[key]))
    for key in ("port", "pid", "name", "marker"):
        code = code.replace(f"{{{key}}}", str(bait[key]))
    limits = replace(runner.limits, **QUICK.get(layer, {}))
    if layer == "wall limit" and name == "landlock":
        limits = replace(limits, wall_s=1.5)  # Python starts within it
    result = runner.execute(Program((code,), stdin="" if layer == "EOFError" else GIVEN), limits)
    told = f"{result.status} {result.layer} {result.stdout} {result.stderr}"
    assert re.search({**LAYERS, **SPECIAL}[layer][name], told, re.DOTALL), told[:600]
    assert "ESCAPED" not in result.stdout and SECRET not in told, told[:600]
    assert not bait["reached"] and not bait["marker"].exists()
    if name == "bubblewrap" or layer != "seccomp":
        assert runner.run("6 * 7").stdout == "42\n"

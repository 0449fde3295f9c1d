"""The process inside bubblewrap that has the libraries loaded and forks for each run. Started by `bubblewrap.py` as a script.

Frames of JSON come in on descriptor 0 and go out on descriptor 1: 4 bytes of length, big-endian, then the text. First comes the
setting (packages, modules, seccomp filter), answered by the address space of a loaded interpreter; then runs, one at a time, each
followed by as many bytes of standard input as its frame says.

The server has one thread, as it forks, and it reads no run: a fork of it, the warden, takes one run's frame, forks the process that
runs the code, listens to it and answers. So nothing of another run, neither its program nor what it printed, is in the memory that the
code inherits. The warden never reads anything from a run but two pipes of bounded text and an exit status; the process that runs the
code holds no other descriptor.
"""

import base64
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time

from cells import run_cells
from confine import (
    THREADS,
    Refused,
    address_space,
    check,
    drop_privileges,
    install_filter,
    libc,
    limit_resources,
)
from pump import pump

NAMESPACES = 0x10000000 | 0x20000000 | 0x08000000 | 0x40000000 | 0x04000000  # user, pid, ipc, net, uts
NEW_MOUNTS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
SEED = 0
READY = b"+"
READY_PIPE = 3
"""Descriptor in the process that runs the code."""


def serve():
    setting = read_frame()
    sys.path.insert(0, setting["site"])
    for module in setting["modules"]:
        importlib.import_module(module)
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random").seed(SEED)  # every fork begins with this state
    filters = [base64.b64decode(text) for text in setting["filters"]]
    base = address_space()
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every page of the libraries
    write_frame({"base": base})
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while True:
        poll.poll()
        warden = os.fork()
        if warden == 0:
            guard(filters, base)
        if os.waitpid(warden, 0)[1]:  # the trainer is gone, or the warden was killed
            os._exit(1)


def guard(filters, base):
    """The warden: takes one request and answers it. Never returns."""
    status = 1
    try:
        request = read_frame()
        stdin = read_exactly(request["stdin"])
        try:
            answer = run(request, stdin, filters[request["limits"]["processes"] > 1], base + len(stdin))
        except (OSError, Refused) as error:
            answer = {"refused": str(error)}
        write_frame(answer)
        status = 0
    finally:
        os._exit(status)


def run(request, stdin, program, base):
    """Isolate, fork, listen, kill, reap."""
    limits = request["limits"]
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(NAMESPACES), "new namespaces")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as mapping:
            mapping.write(text)
    out, child_out = os.pipe()
    err, child_err = os.pipe()
    ready, child_ready = os.pipe()
    child_in, into = os.pipe()
    inner = os.fork()
    if inner == 0:
        enter(request, program, base, (child_in, child_out, child_err, child_ready))
    for descriptor in (child_in, child_out, child_err, child_ready):
        os.close(descriptor)
    said = os.read(ready, 4096)
    if said != READY:  # written before the code has the process, so nobody can claim it
        raise Refused(said.decode("utf-8", "replace") or "the process ended before it was isolated")
    deadline = time.monotonic() + limits["wall_s"]
    outputs, verdict = pump(
        os.pidfd_open(inner), (out, err), limits["output_bytes"], deadline, lambda: watch(limits, base), (into, stdin)
    )
    os.kill(inner, signal.SIGKILL)  # the first process of its namespace: the kernel kills the others with it
    _, status, usage = os.wait4(inner, 0)
    return {
        "outputs": [base64.b64encode(data).decode() for data in outputs],
        "verdict": verdict,
        "code": os.waitstatus_to_exitcode(status),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "memory_bytes": usage.ru_maxrss << 10,
    }


def enter(request, program, base, pipes):
    """The process that runs the code. Never returns."""
    status = 1
    try:
        for number, descriptor in enumerate(pipes):
            os.dup2(descriptor, number)
        os.closerange(READY_PIPE + 1, 256)
        try:
            isolate(request["limits"], program, base)
            os.write(READY_PIPE, READY)
            os.close(READY_PIPE)
        except (OSError, Refused, ValueError) as error:
            os.write(READY_PIPE, str(error).encode())
            os._exit(1)
        status = run_cells(request["cells"], request["show"])
    finally:
        os._exit(status)


def isolate(limits, program, base):
    """First process of the new namespaces: fresh files, no way back, limits."""
    os.setsid()
    check(libc.unshare(NEW_MOUNTS), "a new mount namespace")
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    size = limits["file_bytes"]
    check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", flags, f"size={size},nr_inodes=1024,mode=1777".encode()), "mount /tmp")
    check(libc.mount(b"tmpfs", b"/proc", b"tmpfs", flags | MS_RDONLY, b"size=4k,mode=555"), "mask /proc")
    os.chdir("/tmp")
    random.seed(SEED)  # this module draws a new seed after each fork
    limit_resources(limits, base)
    drop_privileges()
    install_filter(program)


def watch(limits, base):
    """What the processes of the run use too much of together: 'memory', 'processes', 'threads' or ''; 'owner' when whoever
    started us has closed our pipe, or is gone."""
    poll = select.poll()
    poll.register(0, 0)
    if poll.poll(0):
        return "owner"
    processes = threads = memory = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getppid(), os.getpid()):
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
            except OSError:
                continue
            processes += 1
            threads += int(fields[17])
            memory += int(fields[21]) * resource.getpagesize()
    if processes > limits["processes"]:
        return "processes"
    if threads > limits["processes"] + THREADS:
        return "threads"
    return "memory" if memory > limits["memory_bytes"] + base * processes else ""


def read_frame():
    length = struct.unpack("!I", read_exactly(4))[0]
    return json.loads(read_exactly(length))


def read_exactly(count):
    data = bytearray()
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            os._exit(1)  # the trainer is gone
        data += more
    return bytes(data)


def write_frame(answer):
    text = json.dumps(answer).encode()
    data = struct.pack("!I", len(text)) + text
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    serve()

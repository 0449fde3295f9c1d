"""What the compiled filter answers for every system call, read off the filter itself: the kernel need not be asked.

The numbers are x86-64's, from the kernel's own table (arch/x86/entry/syscalls/syscall_64.tbl), so that a new libseccomp that
compiles another program fails here before it guards anything.
"""

import errno
import platform
import struct

import pytest

from sdar.sandbox import seccomp

pytest.importorskip("pyseccomp")
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of calls are x86-64's")

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x00000000
FORBIDDEN = ERRNO | errno.EPERM
NUMBERS = range(600)
ALWAYS = {
    *range(0, 9), *range(9, 16), 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 32, 33, 34, 35, 36, 37, 38, 39, 40,
    60, 61, 63, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 95, 96, 97, 98, 99, 100,
    102, 104, 107, 108, 110, 111, 115, 118, 120, 127, 128, 130, 131, 137, 138, 146, 147, 158, 160, 186, 201, 202, 213,
    217, 218, 219, 223, 224, 225, 226, 231, 232, 233, 247, 257, 258, 262, 263, 264, 265, 266, 267, 269, 270, 271, 273, 281, 284, 285,
    290, 291, 292, 293, 295, 296, 309, 316, 318, 324, 326, 327, 328, 332, 334, 436, 437, 439, 449,
}  # fmt: skip
"""Calls that are allowed whatever their arguments."""


def answer(program: bytes, call: int, arguments=(0,) * 6, architecture: int = X86_64) -> int:
    """Run classic BPF over ``struct seccomp_data``: loads of words, jumps, `and`, and returns are all that a filter has."""
    data = struct.pack(
        "<iIQ6Q", call - (1 << 32) if call >> 31 else call, architecture, 0, *(a % (1 << 64) for a in arguments)
    )
    code, at, accumulator = list(struct.iter_unpack("<HBBI", program)), 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
                at += if_true if holds[operation] else if_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"an instruction that filters do not have: {operation:#x}")


def allowed(program: bytes, call: int, *arguments: int) -> bool:
    found = answer(program, call, (*arguments, *(0,) * (6 - len(arguments))))
    assert found in (ALLOW, FORBIDDEN, ERRNO | errno.ENOSYS)
    return found == ALLOW


@pytest.fixture(scope="module", params=[4711, None], ids=["one process", "a namespace of its own"])
def program(request):
    return seccomp.program(request.param)


def test_calls_that_name_nobody_are_allowed_whatever_they_are_told(program):
    # no argument here is one that a call with conditions would take
    odd = (0xDEADBEEF12345678,) * 6
    namespaced = {57, 58, 62, 234} if program == seccomp.program(None) else set()
    assert {n for n in NUMBERS if answer(program, n, odd) == ALLOW} == ALWAYS | namespaced


def test_everything_else_is_refused(program):
    """ptrace, socket, execve, mount, bpf, io_uring_setup, process_vm_readv, setuid, unshare, chmod, keyctl, userfaultfd, pidfd_open, ..."""
    for call in (101, 41, 59, 165, 321, 425, 310, 105, 272, 90, 250, 323, 434, 322, 175, 246, 298, 155, 161, 53, 42, 49):
        assert answer(program, call) == FORBIDDEN, call
    assert answer(program, 435) == ERRNO | errno.ENOSYS  # clone3: the C library falls back to clone


def test_another_architecture_and_the_other_numbering_are_refused(program):
    for call in NUMBERS:
        for architecture in (I386, AARCH64):
            assert answer(program, call, architecture=architecture) != ALLOW
        assert answer(program, call | 0x40000000) != ALLOW  # x32


@pytest.mark.parametrize(
    ("call", "place", "right", "wrong"),
    [(302, 0, 0, 1), (204, 0, 0, 1), (121, 0, 0, 1), (228, 0, 11, 12), (222, 0, 1, -6), (72, 1, 3, 6), (16, 1, 0x5413, 0x5412),
     (157, 0, 15, 22)],
    ids=["prlimit64", "sched_getaffinity", "getpgid", "clock_gettime", "timer_create", "fcntl", "ioctl", "prctl"],
)  # fmt: skip
def test_other_calls_concern_the_caller_alone(program, call, place, right, wrong):
    def told(value):
        return [value if i == place else 7 for i in range(6)]

    assert allowed(program, call, *told(right))
    assert not allowed(program, call, *told(wrong))
    assert not allowed(program, call, *told(right + (1 << 32)))  # 64 bits are compared


def test_one_process_signals_itself_and_makes_threads():
    one, many = seccomp.program(4711), seccomp.program(None)
    assert allowed(one, 62, 4711, 9) and not allowed(one, 62, 4712, 9) and not allowed(one, 62, -1, 9)
    assert allowed(one, 56, seccomp.CLONE_THREAD) and not allowed(one, 56, 17)
    assert not any(allowed(one, call) for call in (57, 58))
    assert allowed(many, 62, 1, 9) and allowed(many, 56, 17) and allowed(many, 57)
    for bit in (0x80, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert not allowed(many, 56, 17 | bit), hex(bit)

"""The system calls that untrusted code may make: a list of what Python with numpy needs; everything else is EPERM.

Not on it, though harmless in other places: chmod and utime, which Landlock does not know and which need no more than the same user.
"""

import errno
import tempfile
from functools import lru_cache

from sdar.errors import ConfigError

ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range
    open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl flock ioctl fsync fdatasync
    stat fstat lstat newfstatat statx access faccessat faccessat2 statfs fstatfs readlink readlinkat getdents getdents64 getcwd
    chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat truncate ftruncate
    fallocate fadvise64 readahead umask
    mmap munmap mprotect mremap brk madvise msync mincore membarrier
    select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd eventfd2
    futex futex_waitv set_robust_list get_robust_list set_tid_address rseq sched_yield sched_getaffinity sched_setaffinity
    sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getpriority getcpu
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getitimer setitimer alarm timer_create timer_settime
    timer_gettime timer_delete timer_getoverrun
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause kill tkill tgkill
    exit exit_group wait4 waitid getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp
    getsid getrusage getrlimit setrlimit prlimit64 arch_prctl prctl uname sysinfo getrandom restart_syscall
"""

CLONE_THREAD = 0x00010000
NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag


@lru_cache(maxsize=4)
def program(processes: bool) -> bytes:
    """The filter as classic BPF. Without `processes` only threads can be made.

    Raises:
        ConfigError: pyseccomp or libseccomp is missing.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"system calls cannot be filtered ({error}): the sandbox would lack a layer. Install pyseccomp and the library "
            'libseccomp (pip install "sdar[math]"; apt install libseccomp2).'
        ) from error
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in [*ALLOWED.split(), *(("fork", "vfork") if processes else ())]:
        _allow(rules, pyseccomp, name)
    if processes:
        _allow(rules, pyseccomp, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, NEW_NAMESPACES, 0))
    else:
        _allow(rules, pyseccomp, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, CLONE_THREAD))
    # its flags lie in memory, where no filter can read them; the C library falls back to clone
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _allow(rules, pyseccomp, name: str, *conditions) -> None:
    # below 0: there is no such call on this architecture, or this libseccomp does not know it, and it stays forbidden
    if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:
        rules.add_rule(pyseccomp.ALLOW, name, *conditions)

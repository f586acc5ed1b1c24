"""What Linux and macOS do differently, and which systems are refused: the one module that asks which system this is.

Each function is the system's own way to one thing, or does nothing where the system has none; docs/guides/platforms.md
lists what is lost then. Imports nothing else of Freehold and next to nothing of Python, since every child process
begins with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

SYSTEM = sys.platform
IS_MAC = SYSTEM == "darwin"
# Bytes of a Unix socket's path, its final zero left out: sun_path has 104 bytes on macOS and 108 on Linux.
SOCKET_PATH_BYTES = 103 if IS_MAC else 107
# macOS takes RLIMIT_AS and enforces nothing, so a parent watches its children's memory there (sandbox.children).
LIMITS_MEMORY = not IS_MAC
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36  # <linux/prctl.h>
_SHARED_MEMORY = "/dev/shm/"  # where Linux shows POSIX shared memory as files; macOS shows it nowhere
_OPEN_MAX = 10_240  # <sys/syslimits.h> of macOS

_WINDOWS = """Freehold does not run on Windows itself, only inside WSL, the Linux that Windows brings along
hint: run wsl --install in PowerShell, then install Freehold inside it; Windows reaches its server at localhost"""


def check_system(system: str = SYSTEM) -> None:
    """Raise ImportError, with the way out, for a system that Freehold does not run on."""
    if system in ("win32", "cygwin", "msys"):
        raise ImportError(_WINDOWS)


def allowed_processors() -> set[int]:
    """Return the logical processors this process may run on; macOS restricts none."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def processors(listed: str) -> set[int]:
    """Return the processors of a list as Linux writes it: "0-15,32-47"; none of an empty one. Raises ValueError."""
    found: set[int] = set()
    for part in listed.strip().split(",") if listed.strip() else ():
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def run_on(place: set[int]) -> None:
    """Let this process, and those it starts, run on these processors alone; on any where none is named, or on macOS."""
    if sys.platform == "linux" and place:
        with suppress(OSError):  # they went offline, or its control group has others by now
            os.sched_setaffinity(0, place)


def ends_with_parent() -> bool:
    """Ask the kernel to kill this process when the thread that started it ends; False where no kernel does that."""
    if sys.platform != "linux":
        return False
    import ctypes
    import signal

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return True


def adopts_orphans() -> bool:
    """Become the parent of every descendant whose own parent ends; False where no kernel offers that."""
    if sys.platform != "linux":
        return False
    import ctypes

    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def shared_memory() -> dict[str, int]:
    """Return path -> inode number of all local POSIX shared memory; nothing where it is not shown as files."""
    with suppress(OSError), os.scandir(_SHARED_MEMORY) as entries:
        return {entry.path: entry.inode() for entry in entries}
    return {}


def shared_memory_of(pid: int) -> frozenset[int]:
    """Return the numbers of the POSIX shared memory that a process maps; none where it may not be read.

    By number, as the C library makes a semaphore under another name, and a map keeps the name that it was made with.
    """
    with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        return frozenset(int(line.split(maxsplit=5)[4]) for line in maps if _SHARED_MEMORY in line)
    return frozenset()


def memory_kills() -> int:
    """Return how many processes this system has ended for lack of memory since it started; 0 where it does not say."""
    with suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as counters:
        return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)
    return 0


def forget_cached(fd: int, at: int, length: int) -> None:
    """Drop part of a file from the page cache, so that the next read comes from disk.

    On macOS later reads bypass the cache, but what it holds already is served from it.
    """
    if sys.platform == "linux":
        os.posix_fadvise(fd, at, length, os.POSIX_FADV_DONTNEED)
    elif sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)


def has_screen() -> bool:
    """Return whether this process can show a window, such as a browser's; False in a login by ssh."""
    if sys.platform == "darwin":
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def run_thread_below(nice: int) -> None:
    """Lower the priority of the calling thread, and of those it starts, where threads have their own: on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):  # 0 is the calling thread there, and the process elsewhere
            os.setpriority(os.PRIO_PROCESS, 0, min(os.getpriority(os.PRIO_PROCESS, 0) + nice, 19))


def prefer_killed(score: int) -> None:
    """Let the kernel end this process before others when memory runs out; macOS decides by itself."""
    if SYSTEM == "linux":
        with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))


def peak_bytes() -> int:
    """Return the most bytes of memory this program had; 0 where the system does not say.

    Not by getrusage where the kernel has better: a process that was started by a large one keeps that one's peak as its
    own through exec.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if IS_MAC else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit(name: str, value: int | None) -> None:
    """Set a soft resource limit ("RLIMIT_CPU"), within the hard one; None lifts it. Unknown ones are left out."""
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        soft = hard if value is None or resource.RLIM_INFINITY != hard < value else value
        resource.setrlimit(kind, (soft, hard))


def open_files(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted`, within the hard one, and return what it is then.

    A Mac's terminal begins with 256, says that there is no hard limit, and may refuse more than OPEN_MAX.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    for most in (wanted, min(wanted, _OPEN_MAX)):
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if most <= soft:
            return soft
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return soft


# Linux's numbers of system calls by machine: (x86-64, AArch64); None: it has none there.
_ALLOWED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
# Beside those, for a process that may write in folders: no call that makes links, or changes modes, owners and times of
# a path, which Landlock does not judge.
_WRITING_CALLS: dict[str, tuple[int | None, int | None]] = {
    "pwrite64": (18, 68), "dup2": (33, None), "dup3": (292, 24), "sendfile": (40, 71), "fsync": (74, 82),
    "fdatasync": (75, 83), "ftruncate": (77, 46), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "umask": (95, 166), "copy_file_range": (326, 285),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020080  # <linux/sched.h>: a thread; any new namespace
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, <linux/audit.h>
_OPEN, _OPENAT, _CLONE3 = (2, None), (257, 56), (435, 435)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Calls that are allowed for some commands only, their second argument. With fcntl's others the kernel sends any signal
# to any process of the user (F_SETOWN, F_SETSIG, O_ASYNC); ioctl's type into a terminal or change a file's attributes.
_COMMANDS: dict[tuple[int, int], tuple[int, ...]] = {
    (72, 25): (0, 1, 2, 3, 1030),  # fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    (16, 29): (
        0x5401,
        0x5413,
        0x541B,
        0x5450,
        0x5451,
    ),  # ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
}
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on all machines
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1  # <linux/landlock.h>: a flag, a kind of rule
_LANDLOCK_ALL = (
    1 << 13
) - 1  # every right over files of Landlock's first version: no rule gives most of them
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
# Rights over files by Landlock's version, newest first: moving between folders, truncating, ioctl on devices.
_LANDLOCK_RIGHTS = ((5, 16), (3, 15), (2, 14), (1, 13))
_LANDLOCK_EXECUTE, _LANDLOCK_DEVICES = 1, 1 << 6 | 1 << 11  # the latter: making character and block devices
_LANDLOCK_SCOPED, _LANDLOCK_SCOPES = 6, 3  # the version that has them; abstract sockets and signals
# Writing, removing and making plain files and folders: neither devices, sockets, pipes nor symbolic links.
_LANDLOCK_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
_CAPABILITIES, _CAP_DAC_READ_SEARCH = (
    0x20080522,
    1 << 2,
)  # <linux/capability.h>: its version, reading any file
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # <linux/prctl.h>, <linux/seccomp.h>
_ALLOW, _FAIL, _KILL = (
    0x7FFF0000,
    0x00050000,
    0x80000000,
)  # of a call: pass, fail with an errno, end the process
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # <linux/bpf_common.h>
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def can_confine() -> bool:
    """Return whether `confine` knows this system: Linux with Landlock (5.13), which a kernel may be built without."""
    if SYSTEM != "linux" or os.uname().machine not in _ARCHITECTURES:
        return False
    import ctypes

    version = ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    return version >= 1


def fork() -> int:
    """Copy this process, which has one thread; return the number of the copy, 0 in it. For Linux, as `confine` is."""
    return os.fork()


def confine(readable: Iterable[str], writable: Iterable[str] = ()) -> bool:
    """Leave this process, for good, the system calls of a computation that reads files; False where that fails.

    It can start neither processes nor threads. `readable`: the files and folders whose contents it may still read;
    those that are missing are left out. Of other paths it can tell whether they exist, and their size and owner.
    `writable`: folders in which it may also make, change and remove plain files and folders; with one, it may start
    threads, as numerical libraries do.
    """
    folders = tuple(writable)
    if not can_confine():
        return False
    import ctypes

    column, architecture = _ARCHITECTURES[os.uname().machine]
    program = _filter(column, architecture, writes=bool(folders))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or not _read_only(libc, readable, folders):
        return False
    drop_capabilities(_CAP_DAC_READ_SEARCH)
    return filter_calls(program)


def filter_calls(program: Sequence[tuple[int, int, int, int]]) -> bool:
    """Have the kernel judge each system call of this process by a program, for good; False where it refuses."""
    import ctypes
    import struct

    code = b"".join(struct.pack("HBBI", *each) for each in program)
    kept = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0


def _read_only(libc: Any, readable: Iterable[str], writable: Sequence[str]) -> bool:
    """Take every right over files but that of reading `readable`, by Landlock; False where the kernel refuses.

    In `writable` it may write as well.

    A process in such a domain cannot look into others through /proc either.
    """
    import ctypes
    import stat
    import struct

    attributes = ctypes.c_uint64(_LANDLOCK_ALL)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    try:
        for path, writes in [
            *((path, 0) for path in readable),
            *((path, _LANDLOCK_WRITE) for path in writable),
        ]:
            try:
                fd = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)  # Linux alone has both
            except OSError:
                continue
            folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            rights = _LANDLOCK_READ_FILE | ((_LANDLOCK_READ_DIR | writes) if folder else 0)
            rule = struct.pack("=Qi", rights, fd)
            done = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
            os.close(fd)
            if done != 0:
                return False
        return libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def restrict_files(*, readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Leave this process and its children files to read and run in `readable`, and to write in `writable`, for good.

    By Landlock, with every right that this kernel's version knows; where it can, signals and abstract sockets reach
    these processes alone. False where the kernel refuses.
    """
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    bits = next(count for least, count in _LANDLOCK_RIGHTS if version >= least)
    handled = (1 << bits) - 1
    attributes = struct.pack("=QQQ", handled, 0, _LANDLOCK_SCOPES if version >= _LANDLOCK_SCOPED else 0)
    size = 24 if version >= _LANDLOCK_SCOPED else 8
    ruleset = libc.syscall(
        _LANDLOCK_CREATE_RULESET, ctypes.create_string_buffer(attributes), ctypes.c_size_t(size), 0
    )
    if ruleset < 0:
        return False
    reads, writes = _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR, handled & ~_LANDLOCK_DEVICES
    for path, rights in [*((path, reads) for path in readable), *((path, writes) for path in writable)]:
        fd = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, fd)
        done = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(fd)
        if done != 0:
            os.close(ruleset)
            return False
    done = libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return done == 0


def shared_memory_folder() -> str:
    """Return where Linux shows POSIX shared memory."""
    return _SHARED_MEMORY.rstrip("/")


def hide_memory() -> None:
    """Let no other process of the user read this one's memory, environment and descriptors; on Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_capabilities(kept: int = 0) -> None:
    """Give up root's rights but those of `kept`; reading any file remains within Landlock's rules."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    if libc.capget(header, sets) == 0:
        kept &= sets[1]
        libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept))


def _filter(column: int, architecture: int, *, writes: bool) -> list[tuple[int, int, int, int]]:
    """Return the filter as (code, jump if true, jump if false, value). `writes`: files may be opened to write."""
    fail, allow = (_RETURN, 0, 0, _FAIL | _EPERM), (_RETURN, 0, 0, _ALLOW)
    rules = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    rules += [(_LOAD, 0, 0, _NUMBER), (_JUMP_LEAST, 0, 1, 0x40000000), fail]  # x32's numbers
    for numbers, argument in () if writes else ((_OPEN, 1), (_OPENAT, 2)):
        if (number := numbers[column]) is not None:
            rules += [(_JUMP_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
            rules += [(_JUMP_SET, 0, 1, _WRITES), fail, allow]
    for numbers, commands in _COMMANDS.items():
        rules += [(_JUMP_EQUAL, 0, 2 + 2 * len(commands), numbers[column]), (_LOAD, 0, 0, _ARGUMENTS + 8)]
        for command in commands:
            rules += [(_JUMP_EQUAL, 0, 1, command), allow]
        rules.append(fail)
    rules += [
        (_JUMP_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _FAIL | _ENOSYS),
    ]  # glibc tries clone then
    if writes:
        rules += [(_JUMP_EQUAL, 0, 5, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENTS)]
        rules += [(_JUMP_SET, 0, 2, _CLONE_THREAD), (_JUMP_SET, 1, 0, _CLONE_NEW), allow, fail]
    allowed = [*_ALLOWED_CALLS.values(), *((*_WRITING_CALLS.values(), _OPEN, _OPENAT) if writes else ())]
    for numbers in allowed:
        if (number := numbers[column]) is not None:
            rules += [(_JUMP_EQUAL, 0, 1, number), allow]
    return [*rules, fail]

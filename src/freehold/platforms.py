"""What Linux and macOS do differently, and which systems are refused: the one module that asks which system this is.

Each function is the system's own way to one thing, or does nothing where the system has none; docs/guides/platforms.md
lists what is lost then. Imports nothing else of Freehold and next to nothing of Python, since every child process
begins with it.
Path: machine, sandbox, models/packing/paging, server/serve, worker/process, cli/serving -> platforms
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

SYSTEM = sys.platform
IS_MAC = SYSTEM == "darwin"
# Bytes of a Unix socket's path, its final zero left out: sun_path has 104 bytes on macOS and 108 on Linux.
SOCKET_PATH_BYTES = 103 if IS_MAC else 107
# macOS takes RLIMIT_AS and enforces nothing, so a parent watches its children's memory there (sandbox.watching).
LIMITS_MEMORY = not IS_MAC
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
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


def ends_with_parent() -> bool:
    """Ask the kernel to kill this process when the thread that started it ends; False where no kernel does that."""
    if sys.platform != "linux":
        return False
    import ctypes
    import signal

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return True


def forget_cached(fd: int, at: int, length: int) -> None:
    """Drop part of a file from the page cache, so that the next read comes from disk.

    On macOS later reads bypass the cache, but what it holds already is served from it.
    """
    if sys.platform == "linux":
        os.posix_fadvise(fd, at, length, os.POSIX_FADV_DONTNEED)
    elif sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)


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

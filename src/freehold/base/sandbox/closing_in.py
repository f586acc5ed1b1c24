"""Closes a process in before it runs code of a stranger: descriptors, environment, limits, files and system calls.

What is left to it: the pipes it is given, the files it may read, memory and processor time up to a limit. It starts no
process and no thread, connects nowhere, writes nothing but to its pipes, and in folders where a caller names some.
Knows the kernel's limits through platforms; knows no code and no job.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress

from freehold.base import platforms

MOST_OPEN = 64  # descriptors
LARGEST = 256 << 20  # bytes of a file, in a folder where it may write
DEVICES = ("/dev/null", "/dev/urandom")
# Where shared libraries and time zones lie.
_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"),
    *("/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
)
_NOT_FILES = {"proc", "sys", "dev", "run"}  # of the root: processes, devices and sockets
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def runtime_files() -> list[str]:
    """Return the folders and devices that Python itself reads: its library, installed packages, shared libraries."""
    paths = sysconfig.get_paths()
    library = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*library, os.path.join(sys.base_prefix, "lib"), *_SYSTEM, *DEVICES]


def all_files() -> list[str]:
    """Return the folders of every file, but not processes, devices, and sockets."""
    with os.scandir("/") as entries:
        return [*(entry.path for entry in entries if entry.name not in _NOT_FILES), *DEVICES]


def close_in(
    pipes: Iterable[int], *, seconds: int, memory: int, readable: Iterable[str], writable: Sequence[str] = ()
) -> bool:
    """Leave this process `pipes`, `seconds` of processor, `memory` bytes and the files of `readable`, for good.

    In the folders of `writable` it may also make, change and remove files of at most LARGEST bytes.
    False where the kernel cannot confine it; the caller must end it then.
    """
    import resource

    kept = set(pipes)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))
    os.environ.clear()
    os.environ.update(_ONE_THREAD)  # numerical libraries would start threads, which fails here
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, LARGEST if writable else 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, max(MOST_OPEN, *kept) + 1),
    ):
        resource.setrlimit(kind, (most, most))
    return platforms.confine(readable, writable)

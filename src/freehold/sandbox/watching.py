"""Ends a child process that takes too much memory, on systems whose kernel does not.

Linux fails an allocation beyond RLIMIT_AS, which the child answers by itself. macOS does not enforce that limit, so the
parent looks at the child's resident memory every 20 ms: a machine with room for a few hundred megabytes more stays
usable, which is what the limit is for. Knows processes; knows no job.
Path: rendering, trial_compile -> watched -> Watch
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from freehold.platforms import LIMITS_MEMORY

_LOOK_S = 0.02


class Watch:
    """Whether the child was killed for its memory."""

    def __init__(self) -> None:
        self.exceeded = False
        self._over = threading.Event()

    def run(self, child: subprocess.Popen[bytes], most: int) -> None:
        """Look until `stop`, or until the child has ended or holds more than `most` bytes."""
        import psutil

        try:
            seen = psutil.Process(child.pid)
            while not self._over.wait(_LOOK_S):
                if seen.memory_info().rss > most:
                    self.exceeded = True
                    child.kill()
                    return
        except psutil.Error:  # it has ended
            return

    def stop(self) -> None:
        """End the looking."""
        self._over.set()


@contextmanager
def watched(child: subprocess.Popen[bytes], most: int, by_kernel: bool = LIMITS_MEMORY) -> Iterator[Watch]:
    """Kill `child` if it holds more than `most` bytes meanwhile; does nothing where the kernel sees to it."""
    watch = Watch()
    if by_kernel:
        yield watch
        return
    thread = threading.Thread(target=watch.run, args=(child, most), name="freehold-memory", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()

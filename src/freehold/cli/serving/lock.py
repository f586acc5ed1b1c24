"""The lock that makes one server a home's only one, and the process id of its holder.

Knows two files beside the socket; knows no request. Path: serve -> lock_of; stop, launch, keys -> holder, ended
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from freehold import private
from freehold.config import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock


def lock_of(settings: Settings) -> BaseFileLock:
    """Return the lock that this home's server holds for as long as it lives."""
    from filelock import FileLock

    folder = settings.socket.parent
    private.folder(folder, settings.home)
    return FileLock(private.file(folder / "server.lock"), thread_local=False)


def pid_file(settings: Settings) -> Path:
    """Return where the holder of the lock writes its pid."""
    return settings.socket.with_name("server.pid")


def holder(settings: Settings) -> int:
    """Return the pid of this home's server, whether it accepts connections or not; 0 if there is none."""
    from filelock import Timeout

    if not pid_file(settings).exists():
        return 0
    try:
        with lock_of(settings).acquire(timeout=0):
            return 0
    except Timeout:
        with suppress(FileNotFoundError):  # it stopped meanwhile
            return int(pid_file(settings).read_text(encoding="utf-8") or 0)
        return 0


def ended(settings: Settings) -> None:
    """Wait until this home's server is gone."""
    with lock_of(settings).acquire(poll_interval=0.05):
        pass

"""Whether an engine may still be used: it is open, and this is the process that loaded its model.

Knows a model's name and a process id; knows no sequence and no lock.
Path: Engine.generate, Engine.step and Encoder.embed -> Lifetime.check
"""

from __future__ import annotations

import os

from freehold.errors import EngineClosed


class Lifetime:
    """Open from construction until `close`, in one process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.pid = os.getpid()
        self._closed = False

    @property
    def is_fork(self) -> bool:
        """Whether this process is a fork of the one that loaded the model."""
        return self.pid != os.getpid()

    def close(self) -> None:
        """Let every later check fail."""
        self._closed = True

    def check(self) -> None:
        """Raise EngineClosed after `close` and in a fork."""
        if self.is_fork:
            raise EngineClosed(
                f"{self._name} was loaded in process {self.pid}; this is a fork of it",
                "load the model in this process, or start it with the spawn method",
            )
        if self._closed:
            raise EngineClosed(f"{self._name} is closed", "load it again")

"""Wraps errors of a step as StepFailed or DamagedPack.

Knows errors and packed weights; knows no sequence and no step.
"""

from __future__ import annotations

import os

from freehold.base.errors import DamagedPack, EngineClosed, FreeholdError, StepFailed
from freehold.run.models.load import LoadedModel


def named(error: Exception, what: str) -> FreeholdError:
    """Return `error` if it is a FreeholdError, else a StepFailed whose message begins with `what`."""
    if isinstance(error, FreeholdError):
        return error
    failure = StepFailed(f"{what}: {type(error).__name__}: {error}", "this is a bug; please report it")
    failure.__cause__ = error
    return failure


def traced(error: FreeholdError, model: LoadedModel) -> FreeholdError:
    """Return DamagedPack if damaged packed weights explain values that are not finite, else `error`."""
    try:
        if model.pack is not None:
            model.pack.suspect()
    except DamagedPack as damage:
        return damage
    return error


# --- whether an engine may still be used: it is open, and this is the process that loaded its model -


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

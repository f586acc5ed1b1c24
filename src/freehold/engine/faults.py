"""Wraps errors of a step as StepFailed or DamagedPack.

Knows errors and packed weights; knows no sequence and no step.
Path: Engine.step, Emitter.emit and Encoder.embed -> named, traced
"""

from __future__ import annotations

from freehold.errors import DamagedPack, FreeholdError, StepFailed
from freehold.models.load import LoadedModel


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

"""What an engine did since it was made: sums that only grow; and its errors, as StepFailed or DamagedPack.

Knows sequences, tokens, errors and packed weights; knows no block, no model, no clock but the one of its last step.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from freehold.base.errors import DamagedPack, EngineClosed, FreeholdError, StepFailed
from freehold.base.serving import STEP_SIZES, EngineStats
from freehold.run.engine.sequence import Sequence
from freehold.run.models.load import LoadedModel


@dataclass(slots=True)
class Counts:
    """The fields of EngineStats that this engine's steps add to."""

    steps: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    batched_tokens: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    progress_at: float = 0.0
    step_sizes: list[int] = field(default_factory=lambda: [0] * (len(STEP_SIZES) + 1))
    accepted_at: list[int] = field(default_factory=list)

    def stepped(self, tokens: int, prefilled: Iterable[Sequence]) -> None:
        """Count a step of this many tokens; `prefilled`: sequences whose prompts it completed."""
        self.steps += 1
        self.batched_tokens += tokens
        self.step_sizes[bisect_left(STEP_SIZES, tokens)] += 1
        for seq in prefilled:  # not before: a preempted sequence is looked up again, and no sum may shrink
            self.cached_tokens += seq.num_cached_tokens
            self.computed_tokens += len(seq.request.prompt) - seq.num_cached_tokens
        self.progress_at = time.monotonic()

    def stats(self, **state: Any) -> EngineStats:
        """Return the sums beside what the engine says of its present state."""
        sums = {f.name: getattr(self, f.name) for f in fields(self)}
        sums |= {"step_sizes": tuple(self.step_sizes), "accepted_at": tuple(self.accepted_at)}
        return EngineStats(**sums, **state)

    def verified(self, drafted: int, accepted: int) -> None:
        """Count a draft of `drafted` tokens, of which the first `accepted` were chosen."""
        self.drafts += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self.accepted_at += [0] * (accepted - len(self.accepted_at))
        for i in range(accepted):
            self.accepted_at[i] += 1


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

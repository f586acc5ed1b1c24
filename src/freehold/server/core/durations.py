"""Reads keep_alive, which Ollama brought into use and every surface here takes.

Knows seconds; knows no model. Path: a route's handler -> seconds -> ModelHandle.start
"""

from __future__ import annotations

import math
import re

from freehold.server.core.problems import Refused

_FOR_EVER = 100 * 365 * 86400.0  # seconds; what is longer ends on no date that can be written
MAX_DURATION = 256  # characters: eight numbers with their units, and blanks
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?)((?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h)){1,8})")
_PIECE = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")


def seconds(value: float | str | None) -> float | None:
    """Read keep_alive: seconds, or a duration as Go writes it ("1h30m"); a negative one means for ever."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > MAX_DURATION:
            raise _bad_duration(value)
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            try:
                value = float(value)
            except ValueError:
                raise _bad_duration(value) from None
        else:
            value = math.fsum(float(n) * _UNITS[u] for n, u in _PIECE.findall(match[2])) * (
                -1 if match[1] else 1
            )
    if math.isnan(value):
        raise _bad_duration("nan")
    return math.inf if value > _FOR_EVER else value


def _bad_duration(value: str) -> Refused:
    return Refused(
        400, f"keep_alive is {value[:60]!r}; expected seconds or a duration such as '10m'", param="keep_alive"
    )

"""What the fields of several protocols have in common: bounds, priorities, and warnings about fields that are unknown.

Knows types and numbers of the wire; knows no protocol's own fields and no route.
Path: a protocol's structs -> these types; a handler -> unknown -> warnings
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from freehold.config import nearest
from freehold.types import Priority

FORCED = 1 << 30  # more tokens than any context holds
MAX_SEED = (1 << 63) - 1
LEAST_MASS = 1e-6  # the top_p that stands for 0: the most probable token alone
ESTIMATED = "the number of tokens is estimated from characters: nothing here counts those of this model"
MAX_WARNINGS = 20  # about the fields of one request
_SHOWN = 60  # characters of a field's name in a warning

Count = Annotated[int, Meta(ge=0, le=FORCED)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Share = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]
Rank = Annotated[
    Priority | Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None,
    Meta(description="`batch` runs on capacity that interactive requests leave; a number above 0 is batch."),
]


def priority(value: Priority | int | None) -> Priority:
    """Return the priority; of vLLM's numbers a lower one goes first, and 0 is the default."""
    if isinstance(value, int):
        return "batch" if value > 0 else "interactive"
    return value or "interactive"


def unknown(name: str, known: Iterable[str], near: str = "") -> str:
    """Return the warning about a field that the request's struct lacks; `near`: the known field it stands for."""
    near = near or nearest(name[:_SHOWN], list(known)) or ""
    return f"unknown field {name[:_SHOWN]!r} was ignored" + (f"; did you mean {near}?" if near else "")


def ignored(name: str, place: str) -> str:
    """Return the warning about a field further in: of `place`."""
    return f"field {name[:_SHOWN]!r} of {place} was ignored"


def finite(logprob: float) -> float:
    """Return a number JSON can hold: a token forbidden by a bias has minus infinity, which vLLM writes as -9999."""
    return logprob if math.isfinite(logprob) else -9999.0

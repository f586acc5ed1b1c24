"""JSON of long lists, written so that other threads run meanwhile: an encoder's call holds the interpreter to its end.

Two million numbers in one call kept the loop waiting for 0.2 s. Knows values; knows no route.
Path: a handler -> HttpCall.apart -> long_list -> an answer's field
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

SCORES = 128  # tokens whose log-probabilities, with 20 alternatives each, one call writes
PIECE = 4096  # plain values that one call writes, in less than a millisecond


def long_list(values: Sequence[object], piece: int = PIECE) -> msgspec.Raw:
    """Return a list as JSON, written `piece` values at a time; what is encoded later copies it."""
    parts = (msgspec.json.encode(values[at : at + piece])[1:-1] for at in range(0, len(values), piece))
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def in_pieces(value: Any) -> Any:
    """Return a JSON value whose lists of more than SCORES are written already, piece by piece."""
    if isinstance(value, dict):
        return {name: in_pieces(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    return long_list(value, SCORES) if len(value) > SCORES else [in_pieces(each) for each in value]

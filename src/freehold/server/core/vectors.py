"""Embeddings in requests and answers of every protocol: how many texts, vectors as numbers, texts that were cut.

Knows counts and float32; knows no field and no route. Path: an embedding route -> check_count, as_numbers, cut_warnings
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from freehold.server.core.problems import Refused
from freehold.serving import MAX_TEXTS, Vectors

MAX_DIMENSIONS = 1 << 16
NUMBER = 21  # bytes of a float32 as JSON, with its comma


def check_count(name: str, texts: Sequence[object]) -> None:
    """Raise Refused for no text, and for more than a request may hold."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise Refused(400, f"{name} has {len(texts):,} texts; expected 1 to {MAX_TEXTS:,}", param=name)


def cut_warnings(vectors: Vectors) -> list[str]:
    """Return a warning that names the texts that were cut, by their numbers; none where all were whole."""
    if not vectors.cut:
        return []
    shown = ", ".join(map(str, vectors.cut[:20])) + (", ..." if len(vectors.cut) > 20 else "")
    return [f"{len(vectors.cut)} texts were cut to the context, as asked: {shown}"]


def as_numbers(vectors: Vectors) -> list[msgspec.Raw]:
    """Return each vector as JSON numbers: one call for all of them would hold the interpreter for long."""
    rows = struct.iter_unpack(f"<{vectors.width}f", vectors.data)
    return [msgspec.Raw(msgspec.json.encode(row)) for row in rows]


def json_size(vectors: Vectors) -> int:
    """Return about how many bytes the vectors take as JSON."""
    return NUMBER * (len(vectors.data) // 4)

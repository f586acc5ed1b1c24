"""What all wires share of embeddings: rows of numbers become unit vectors, a sum of tokens is shared out by length.

Knows no wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from freehold.base.serving import EmbedJob, Vectors
from freehold.route.providers.faults import check_counts, invalid

Rows = Sequence[Sequence[float] | npt.NDArray[np.float32]]


def unit_vectors(rows: Rows, tokens: int, job: EmbedJob) -> Vectors:
    """Return one vector a text, at unit length. Raises UpstreamFault for rows that do not fit the texts."""
    if len(rows) != len(job.texts):
        raise invalid(f"{len(rows)} embeddings for {len(job.texts)} texts")
    width = len(rows[0])
    if not width or any(len(row) != width for row in rows):
        raise invalid("embeddings of several widths")
    table = np.array(rows, dtype=np.float64)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise invalid("an embedding that is zero or not finite")
    return Vectors((table / lengths).astype("<f4").tobytes(), width, shared(tokens, job.texts))


def shared(total: int, texts: Sequence[str | tuple[int, ...]]) -> tuple[int, ...]:
    """Share the tokens of all texts out by their lengths; the parts sum to the total."""
    check_counts(total)
    bounds = [0]
    for text in texts:
        bounds.append(bounds[-1] + len(text) + 1)
    cuts = [total * bound // bounds[-1] for bound in bounds]
    return tuple(after - before for before, after in pairwise(cuts))

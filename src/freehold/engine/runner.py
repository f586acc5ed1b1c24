"""Turns a step's work into arrays, and runs the model's plan over them in one native call.

Knows positions, block tables and which rows want logits; knows no request and no sampling.
Path: Engine.step -> ModelRunner.run -> native Plan.run
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.engine.scheduler import Work
from freehold.models.loader import LoadedModel

F32 = NDArray[np.float32]


class ModelRunner:
    """A traced plan and the cache it writes."""

    def __init__(
        self, model: LoadedModel, blocks: int, step_rows: int, threads: native.Threads, kv_type: str = "f16"
    ) -> None:
        self._cache = native.KvCache(model.kv_layers, blocks, kv_type)
        self._plan = model.build(self._cache, step_rows, threads)

    def run(self, batch: list[Work]) -> list[F32]:
        """Compute a step; return for each work its logits, float32 [wanted rows, V]."""
        counts = [work.rows for work in batch]
        tokens = np.array([t for work in batch for t in work.tokens], np.int32)
        positions = np.array([p for w in batch for p in range(w.first, w.first + w.rows)], np.int32)
        seqs = np.array([i for i, count in enumerate(counts) for _ in range(count)], np.int32)
        starts = accumulate(counts, initial=0)
        wanted = [[start + r for r in work.logit_rows] for start, work in zip(starts, batch, strict=False)]
        rows = np.array([r for rows in wanted for r in rows], np.int32)
        logits = self._plan.run(tokens, positions, seqs, _tables(batch), rows)
        ends = list(accumulate(map(len, wanted)))
        return [logits[end - len(rows) : end] for end, rows in zip(ends, wanted, strict=True)]


def _tables(batch: list[Work]) -> NDArray[np.int32]:
    """Pad the block tables to one width; a padding entry is never read, as no position leads there."""
    tables = np.zeros((len(batch), max(len(w.seq.table) for w in batch)), np.int32)
    for row, work in zip(tables, batch, strict=True):
        row[: len(work.seq.table)] = work.seq.table
    return tables

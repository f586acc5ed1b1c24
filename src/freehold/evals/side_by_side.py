"""Two models beside each other on the same text, through our engine: rows of logits, paired token by token.

Knows files, engines and windows of token ids; knows no statistics (divergence.py) and no weights. Both models share
one pool of threads and compute one after the other, some rows at a time, so that memory holds few rows of logits.
Path: adapt/quantize/quantising.py -> diverge -> LogitSource.rows -> engine.scoring.logit_chunks -> DivergenceCounter
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from freehold import _native as native
from freehold.engine import Engine, scoring
from freehold.errors import UsageError
from freehold.evals.divergence import DivergenceCounter, TextDivergence
from freehold.formats import open_model_file
from freehold.local.opening import text_side
from freehold.models.load import LoadedModel, load_model
from freehold.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
WINDOW = 512  # tokens of a block of text, BOS too
ROWS = 64  # logit rows at a time: 39 MB of a vocabulary of 152,000

OnBlock = Callable[[int, int, DivergenceCounter], None]  # blocks done, blocks in all, the counts


@dataclass(frozen=True, slots=True)
class LogitSource:
    """A model that gives rows of logits. Its cache keeps float32: it adds no rounding of its own."""

    engine: Engine

    @classmethod
    @contextmanager
    def open(cls, model: Path | LoadedModel, threads: native.Threads) -> Iterator[LogitSource]:
        """Load a model file, or take a loaded model, with room for one window. Raises CapacityExceeded."""
        loaded = model if isinstance(model, LoadedModel) else load_model(model, threads=threads)
        if loaded.family.encoder:
            raise UsageError(f"{loaded.name} makes embeddings and has no next-token distribution")
        engine = Engine(loaded, context=WINDOW, max_num_batched_tokens=ROWS, kv_type="f32", speculate=False)
        try:
            yield cls(engine)
        finally:
            engine.close()

    def rows(self, ids: Sequence[int]) -> Iterator[F32]:
        """Yield the logits after each of `ids`, in pieces float32 [rows, V]."""
        yield from scoring.logit_chunks(self.engine, ids)


def tokenizer_of(path: Path) -> Tokenizer:
    """Return a model file's tokenizer."""
    with open_model_file(path) as opened:
        return text_side(opened, path)[0]


def windows(tokenizer: Tokenizer, text: str, limit: int = 0) -> list[list[int]]:
    """Cut a text's tokens into windows, each with the model's own beginning; `limit`: most tokens, 0 for all.

    A last window of less than half the size is left out, unless it is the only one. Raises UsageError for no text.
    """
    ids = tokenizer.encode(text, special=False, bos=False)
    ids = ids[:limit] if limit else ids
    bos = tokenizer.encode("", special=False)
    step = WINDOW - len(bos)
    cut = [bos + ids[i : i + step] for i in range(0, len(ids), step)]
    cut = [each for i, each in enumerate(cut) if i == 0 or len(each) >= WINDOW // 2]
    if not cut or len(cut[0]) < 2:
        raise UsageError("the text has fewer than two tokens", "give a longer one")
    return cut


def diverge(
    reference: LogitSource,
    other: LogitSource,
    blocks: Sequence[Sequence[int]],
    *,
    until: float = 0.0,
    on_block: OnBlock | None = None,
) -> TextDivergence:
    """Compare two models on blocks of token ids.

    `until`: stop once the mean's interval is at most this share of the mean to each side; 0: read all blocks.
    """
    counter = DivergenceCounter()
    for done, ids in enumerate(blocks, 1):
        for rows, beside, targets in _paired(reference, other, ids):
            counter.add(rows, beside, targets)
        counter.close_block()
        if on_block is not None:
            on_block(done, len(blocks), counter)
        if until and done < len(blocks) and counter.narrow(until):
            return counter.result(stopped_early=True)
    return counter.result()


def _paired(
    reference: LogitSource, other: LogitSource, ids: Sequence[int]
) -> Iterator[tuple[F32, F32, npt.NDArray[np.int64]]]:
    """Yield pieces of both models' rows that stand for the same tokens, and the tokens that follow."""
    targets = np.array(ids[1:], np.int64)
    beside = other.rows(ids)
    held: F32 | None = None
    at = 0
    for rows in reference.rows(ids):
        while len(rows) and at < len(targets):
            held = next(beside) if held is None or not len(held) else held
            count = min(len(rows), len(held), len(targets) - at)
            yield rows[:count], held[:count], targets[at : at + count]
            rows, held, at = rows[count:], held[count:], at + count
    for _ in beside:  # the row after the last token, so that the engine is done with the text
        pass

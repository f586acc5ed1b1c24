"""Texts in, vectors out: what LLM.embed does, for encoders and for decoders alike.

Knows texts, their limits and token ids; the engine knows the rest. A text is cut only where the caller asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadPrompt, ContextOverflow, UsageError
from freehold.base.serving import MAX_TEXTS, EmbedJob
from freehold.base.stopping import check_stopped
from freehold.base.types import Embeddings
from freehold.run.engine import Encoder, Engine
from freehold.run.engine.scoring import Pooling, checked_pooling, embed
from freehold.run.local.jobs import most_chars
from freehold.run.models.lora import Adapter
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]
Text = str | Sequence[int]


class Embedder:
    """Makes vectors with one model."""

    def __init__(self, engine: Engine | Encoder, tokenizer: Tokenizer, name: str, pooling: Pooling) -> None:
        """`pooling`: used where a request names none."""
        self._engine, self._tokenizer, self._name = engine, tokenizer, name
        self._pooling: Pooling = pooling

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._engine.model.cfg.hidden

    def embed(self, job: EmbedJob, adapter: Adapter | None = None) -> Embeddings:
        """Return the vectors of a job's texts. Raises UsageError, BadPrompt, ContextOverflow naming the text."""
        if not 1 <= len(job.texts) <= MAX_TEXTS:
            raise UsageError(f"there are {len(job.texts):,} texts; expected 1 to {MAX_TEXTS:,}")
        if job.dimensions is not None and not 1 <= job.dimensions <= self.width:
            raise UsageError(f"dimensions is {job.dimensions}; {self._name} makes vectors of {self.width}")
        pooling = self._pooling if job.pooling is None else checked_pooling(job.pooling)
        encoded = [self._ids(f"text {i}", text, job.truncate) for i, text in enumerate(job.texts, job.first)]
        ids = [each for each, _ in encoded]
        if isinstance(self._engine, Encoder):
            vectors = self._engine.embed(ids, pooling, job.priority, job.client or job.tenant)
        else:
            vectors = embed(
                self._engine,
                ids,
                pooling,
                priority=job.priority,
                tenant=job.tenant,
                client=job.client,
                adapter=adapter,
            )
        cut = tuple(i for i, (_, shortened) in enumerate(encoded) if shortened)
        return Embeddings(_first(vectors, job.dimensions), tuple(map(len, ids)), cut)

    def _ids(self, name: str, text: Text, truncate: bool) -> tuple[list[int], bool]:
        """Return a text's ids, and whether it was cut."""
        check_stopped()
        room = self._engine.context
        most = most_chars(len(text), room, self._tokenizer.longest)
        far = isinstance(text, str) and len(text) > most
        if far and not truncate:
            raise self._too_long(
                f"{name} has {len(text):,} characters, more than the {most:,} in the {room:,} tokens that"
            )
        ids = self._tokenizer.encode(text[:most]) if isinstance(text, str) else self._checked(name, text)
        if not ids:
            raise BadPrompt(f"{name} is empty", "leave it out")
        if len(ids) <= room:
            return ids, far
        if not truncate:
            raise self._too_long(f"{name} has {len(ids):,} tokens; of those")
        return self._cut(ids, room, isinstance(text, str)), True

    def _too_long(self, what: str) -> ContextOverflow:
        return ContextOverflow(
            f"{what} {self._name} takes {self._engine.context:,}",
            "split it, or ask for it to be cut (truncate)",
        )

    def _cut(self, ids: list[int], room: int, framed: bool) -> list[int]:
        """Keep the beginning, and the tokens that the tokenizer itself appended."""
        end = self._tokenizer.suffix_ids if framed else ()
        return ids[:room] if len(end) >= room else [*ids[: room - len(end)], *end]

    def _checked(self, name: str, ids: Sequence[int]) -> list[int]:
        size = self._tokenizer.vocab_size
        wrong = next((id for id in ids if not 0 <= id < size), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} of {name} is outside the vocabulary of {size:,}")
        return list(ids)


def _first(vectors: F32, dimensions: int | None) -> F32:
    """Keep the first `dimensions` numbers of each vector, at unit length again; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimensions].astype(np.float64)
    lengths = np.sqrt(np.square(kept).sum(axis=1, keepdims=True))
    return (kept / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)

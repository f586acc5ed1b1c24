"""When each word of a transcript was said: where the decoder's alignment heads look while it writes the word.

    w = softmax(q k / sqrt(d)) over the content's frames;  w = (w - mean) / deviation over tokens;
    a median of seven in time;  the mean of the heads;  then the cheapest path through -w by dynamic time warping

The text is replayed once, in a cache of its own: queries of those heads leave one plan, keys of sound another. Knows a
decoder's network and its vocabulary; knows no file.
Source: openai/whisper 20250625, for the order of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.types import KvType, Word
from freehold.run.models.families.whisper import HeardAttention
from freehold.run.models.load import LoadedModel
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

MEDIAN = 7  # frames
FRAME_S = 0.02


class Aligner:
    """Replays texts over windows; one call at a time."""

    def __init__(self, model: LoadedModel, heads: Sequence[tuple[int, int]], kv_type: KvType = "f16") -> None:
        """`heads`: layer and number of each head that aligns. `kv_type`: as of the engine that writes the texts."""
        self._model, self._heads = model, tuple(heads)
        cfg = model.cfg
        rows = cfg.heard + cfg.texts
        self._cache = model.new_cache(-(-rows // native.BLOCK_TOKENS) + 1, kv_type)
        self._sound = self._traced(cfg.heard, self._keys)
        self._text = self._traced(cfg.texts, self._queries)

    def _traced(self, rows: int, compose: Any) -> native.Plan:
        plan = native.Plan(self._model.threads, self._cache, rows)
        compose(plan)
        plan.finish()
        return plan

    def _keys(self, ops: native.Plan) -> None:
        """Compose what is kept of rows of sound, and give the keys of heads that align."""
        cfg, weights = self._model.cfg, self._model.weights
        x = ops.embed(weights.ends["embed"])
        parts: list[int] = []
        for i, w in enumerate(weights.layers):
            k, v = ops.linear(x, (w["cross_k"], w["cross_v"]), (None, w["cross_v_bias"]))
            parts += [
                ops.part(k, head * cfg.head_dim, cfg.head_dim) for layer, head in self._heads if layer == i
            ]
            ops.rope_store(i, k, k, v, None)
        ops.hidden(parts[0], parts[1:])

    def _queries(self, ops: native.Plan) -> None:
        """Compose the decoder, and give the queries of heads that align."""
        model, cfg = self._model, self._model.cfg
        x = model.network.ends.begin(ops, model.weights.ends)
        parts: list[int] = []
        for i, (layer, w) in enumerate(zip(model.network.layers, model.weights.layers, strict=True)):
            for part in layer.parts:
                if isinstance(part, HeardAttention) and part.across:
                    q = part.asks(ops, x, w)
                    parts += [ops.part(q, h * cfg.head_dim, cfg.head_dim) for at, h in self._heads if at == i]
                    part.hears(ops, i, q, x, w)
                else:
                    part.forward(ops, i, x, w)
        ops.hidden(parts[0], parts[1:])

    def weights(self, features: F32, ids: Sequence[int], frames: int) -> F32:
        """Return how much each token looks at the first `frames` rows of sound: float32 [heads, tokens, frames]."""
        cfg = self._model.cfg
        keys = self._run(self._sound, [0] * cfg.heard, 0, features)
        queries = self._run(self._text, ids, cfg.heard, None)
        width, count = cfg.head_dim, len(self._heads)
        k = keys.reshape(cfg.heard, count, width)[:frames].transpose(1, 2, 0)
        q = queries.reshape(len(ids), count, width).transpose(1, 0, 2)
        scores = q @ k * np.float32(width**-0.5)
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores)
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)

    def _run(self, plan: native.Plan, ids: Sequence[int], first: int, features: F32 | None) -> F32:
        count = len(ids)
        every = np.arange(count, dtype=np.int32)
        hidden = np.empty((count, plan.hidden_width), np.float32)
        table = np.arange(self._cache.blocks, dtype=np.int32)[None, :]
        none = np.zeros(0, np.int32)
        shown: dict[str, Any] = {} if features is None else {"features": features, "feature_rows": every}
        plan.run(
            np.array(ids, np.int32),
            every + np.int32(first),
            np.zeros(count, np.int32),
            table,
            none,
            hidden_rows=every,
            hidden=hidden,
            **shown,
        )
        return hidden


def aligned(weights: F32) -> tuple[I32, I32]:
    """Return a path through the weights of heads, [heads, tokens, frames]: its tokens and frames, int32 [n] each."""
    deviation = weights.std(axis=1, keepdims=True)
    standard = (weights - weights.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return warped(-medians(standard).mean(axis=0, dtype=np.float64))


def medians(values: F32) -> F32:
    """Return the median of MEDIAN neighbours along the last axis, mirrored at its ends."""
    pad = MEDIAN // 2
    if values.shape[-1] <= pad:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(pad, pad)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=-1), axis=-1).astype(
        np.float32
    )


def warped(cost: NDArray[np.float64]) -> tuple[I32, I32]:
    """Return the cheapest monotonous path from the first to the last cell of [n, m], by its rows and columns.

    Cells of one diagonal depend on the two before alone, so each diagonal is one step of NumPy.
    """
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    came = np.zeros((n + 1, m + 1), np.int8)
    for d in range(2, n + m + 1):
        i = np.arange(max(1, d - m), min(n, d - 1) + 1)
        j = d - i
        before = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        best = np.where(
            (before[0] < before[1]) & (before[0] < before[2]), 0, np.where(before[1] < before[2], 1, 2)
        )
        total[i, j] = cost[i - 1, j - 1] + before[best, np.arange(len(i))]
        came[i, j] = best
    came[0, :], came[:, 0] = 2, 1
    rows, columns = [], []
    i, j = n, m
    while i or j:
        rows.append(i - 1)
        columns.append(j - 1)
        step = came[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return np.array(rows[::-1], np.int32), np.array(columns[::-1], np.int32)


# --- words of a text, with their times ---------------------------------------------------------------


def token_seconds(weights: F32) -> list[float]:
    """Return when each token began, seconds of the chunk; `weights`: [heads, tokens, frames]."""
    rows, columns = aligned(weights)
    return (columns[np.flatnonzero(np.diff(rows, prepend=-1))] * FRAME_S).tolist()


def timed_words(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    starts: Sequence[float],
    spoken: Callable[[float, float], tuple[float, float]],
) -> tuple[Word, ...]:
    """Return the words of a text; `starts`: when each of its tokens began, and the one after them.

    `spoken(begin, end)` leads from a word's times in the chunk to those in the recording.
    """
    return tuple(
        Word(text, *spoken(starts[first], starts[last])) for text, first, last in words_of(tokenizer, ids)
    )


def words_of(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Yield each word with its first token and the one after its last: what a space or a whole character begins.

    Signs of punctuation alone belong to the word before them, which ends before they do: a full stop lasts as long as
    the pause after it.
    """
    begin, end, text = 0, 0, ""
    for i, id in enumerate(ids):
        piece = tokenizer.decode(ids[begin : i + 1])
        if piece.endswith("\ufffd"):  # a character that continues in the next token
            continue
        new = tokenizer.decode([id])
        if text and new.startswith(" ") and any(c.isalnum() for c in new):
            yield text.strip(), begin, end or i
            begin, end, text = i, 0, ""
        longer = tokenizer.decode(ids[begin : i + 1])
        if any(c.isalnum() for c in longer[len(text) :]):
            end = i + 1
        text = longer
    if text.strip():
        yield text.strip(), begin, end or len(ids)

"""Turns a step's chunks into arrays and runs the model's plan over them in one native call.

Knows positions, block tables and which rows return logits or only a token; knows no text and no end of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.run.engine.cache.blocks import BlockManager
from freehold.run.engine.sampler import is_plain
from freehold.run.engine.sequence import ScheduledChunk, joined_rows, same_places
from freehold.run.models.load import LoadedModel

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class HiddenReader(Protocol):
    """Reads what the output matrix reads of some rows, as steps compute them: a head that drafts."""

    def wanted(self, chunk: ScheduledChunk) -> range:
        """Return which rows of a chunk it reads."""
        ...

    def keep(self, chunk: ScheduledChunk, places: range, rows: F32) -> None:
        """Take those rows, float32 [places, width]."""
        ...


class ModelRunner:
    """A traced plan and the cache it writes, whose blocks a BlockManager hands out."""

    def __init__(
        self,
        model: LoadedModel,
        blocks: BlockManager,
        max_num_batched_tokens: int,
        threads: native.Threads,
        kv_type: str = "f16",
    ) -> None:
        self._blocks = blocks
        places = blocks.places
        self.cache = model.new_cache(
            places["full"], kv_type, places.get("window", 0), places.get("recurrent", 0)
        )
        self._plan = model.build(self.cache, max_num_batched_tokens, threads)
        # Of a family whose texts stand after rows that are computed otherwise: see Family.prefix.
        self._prefix = model.build_prefix(self.cache, max_num_batched_tokens, threads)
        self._tokens = model.tokens
        self._check = model.check
        self.reader: HiddenReader | None = None  # set by the engine

    def touch(self, slots: int) -> None:
        """Write the first slots' memory once, before a step that is measured does it: a page takes microseconds."""
        state = np.zeros(self.cache.bytes_per_slot, np.uint8)
        for slot in range(min(slots, self.cache.slots)):
            self.cache.write_state(slot, state)

    def run(self, batch: list[ScheduledChunk], choose: bool = True) -> list[F32 | I64]:
        """Make the copies due and compute a step; return each chunk's logits, float32 [logit rows, V].

        With `choose`, a chunk whose sampling is plain gets the tokens the plan chose instead, int64 [logit rows]:
        see sampler.choose. Raises DamagedPack when the weights are not what was packed.
        """
        copies = self._blocks.take_copies()
        self.cache.copy(copies["full"], copies.get("window", ()))
        apart = [chunk for chunk in batch if _is_apart(chunk)]
        if not apart:
            return self._computed(batch, choose)
        self._keep(apart)
        texts = [chunk for chunk in batch if not _is_apart(chunk)]
        results = iter(self._computed(texts, choose) if texts else [])
        none = np.zeros((0, 0), np.float32)
        return [none if _is_apart(chunk) else next(results) for chunk in batch]

    def _keep(self, batch: list[ScheduledChunk]) -> None:
        """Compute what the cache keeps of rows that stand before texts."""
        assert self._prefix is not None, "only such a family's requests have rows apart"
        tables = self._blocks.tables([chunk.seq for chunk in batch], _tables(batch))
        positions, seqs = _rows_of(batch)
        words = np.array([t for chunk in batch for t in _words(chunk)], np.int32)
        none = np.zeros(0, np.int32)
        self._prefix.run(words, positions, seqs, tables["full"], none, **_picture_args(batch))
        self._check()

    def _computed(self, batch: list[ScheduledChunk], choose: bool) -> list[F32 | I64]:
        """Compute a step of rows of text; see `run`."""
        counts = [chunk.num_tokens for chunk in batch]
        pictures = _picture_args(batch)
        tokens = np.array([t for chunk in batch for t in _words(chunk)], np.int32)
        positions, seqs = _rows_of(batch)
        plain = [choose and is_plain(chunk.seq.request) and _is_free(chunk) for chunk in batch]
        rows, choices, hidden_rows = [], [], []
        for start, chunk, chosen in zip(accumulate(counts, initial=0), batch, plain, strict=False):
            requested = [start + r for r in chunk.logit_rows]
            if chosen:
                choices += [_choice(chunk, r, int(positions[r])) for r in requested]
            elif chunk.seq.request.hidden:
                hidden_rows += requested
            else:
                rows += requested
        read = [(c, self.reader.wanted(c)) for c in batch] if self.reader is not None else []
        requested_rows = len(hidden_rows)
        hidden_rows += [
            start + r
            for start, (_, places) in zip(accumulate(counts, initial=0), read, strict=False)
            for r in places
        ]
        hidden = self._hidden_args(hidden_rows)
        tables = self._blocks.tables([chunk.seq for chunk in batch], _tables(batch))
        logits, tokens_chosen = self._plan.run(
            tokens,
            positions,
            seqs,
            tables["full"],
            np.array(rows, np.int32),
            choices,
            self._tokens,
            **_adapters(batch, counts),
            **hidden,
            window_tables=tables.get("window"),
            pieces=tables.get("recurrent"),
            **pictures,
        )
        self._check()
        states = hidden.get("hidden")
        if self.reader is not None and states is not None:
            at = requested_rows
            for chunk, places in read:
                if places:
                    self.reader.keep(chunk, places, states[at : at + len(places)])
                    at += len(places)
        return _split(batch, plain, logits, tokens_chosen, states)

    def _hidden_args(self, rows: list[int]) -> _HiddenArgs:
        """Return the arguments that request last hidden states of `rows`; none where no row is requested."""
        if not rows:
            return {}
        return {
            "hidden_rows": np.array(rows, np.int32),
            "hidden": np.empty((len(rows), self._plan.hidden_width), np.float32),
        }


class _HiddenArgs(TypedDict, total=False):
    hidden_rows: NDArray[np.int32]
    hidden: F32


class _AdapterArgs(TypedDict, total=False):
    adapters: list[native.Adapter]
    row_adapters: NDArray[np.int32]


class _PictureArgs(TypedDict, total=False):
    features: F32
    feature_rows: NDArray[np.int32]
    places: NDArray[np.int32]
    ends: NDArray[np.int32]


def _is_apart(chunk: ScheduledChunk) -> bool:
    """Tell whether a chunk's rows are computed apart: a step cuts such rows from what follows them."""
    pictures = chunk.seq.request.pictures
    if pictures is None or chunk.first >= pictures.apart:
        return False
    assert chunk.first + chunk.num_tokens <= pictures.apart, "a chunk never mixes both kinds of rows"
    return True


def _rows_of(batch: list[ScheduledChunk]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return each row's position, and the number of its sequence in the step."""
    positions = [np.arange(c.first, c.first + c.num_tokens, dtype=np.int32) for c in batch]
    counts = [len(each) for each in positions]
    return np.concatenate(positions), np.repeat(np.arange(len(batch), dtype=np.int32), counts)


def _words(chunk: ScheduledChunk) -> Iterable[int]:
    """Return a chunk's ids, with the model's placeholder for rows of pictures."""
    pictures = chunk.seq.request.pictures
    return chunk.tokens if pictures is None else pictures.marked(chunk.tokens)


def _picture_args(batch: list[ScheduledChunk]) -> _PictureArgs:
    """Return the features that the step reads, and places where a sequence has them; none without pictures."""
    shown = [chunk.seq.request.pictures for chunk in batch]
    if not any(shown):
        return {}
    args: _PictureArgs = {}
    features, rows = joined_rows(shown, [(chunk.first, chunk.num_tokens) for chunk in batch])
    if features is not None:
        args |= {"features": features, "feature_rows": rows}
    positions = [np.arange(chunk.first, chunk.first + chunk.num_tokens, dtype=np.int32) for chunk in batch]
    if any(each is not None and each.places is not None for each in shown):
        places = [
            same_places(own) if each is None else each.places_at(int(own[0]), len(own))
            for each, own in zip(shown, positions, strict=True)
        ]
        args["places"] = np.concatenate(places)
    if any(each is not None and each.spans for each in shown):
        ends = [
            own + np.int32(1) if each is None else each.ends_at(int(own[0]), len(own))
            for each, own in zip(shown, positions, strict=True)
        ]
        args["ends"] = np.concatenate(ends)
    return args


def _is_free(chunk: ScheduledChunk) -> bool:
    """Tell whether every token may come next; a draft may write what a constraint begins with, so it needs masks."""
    matcher = chunk.seq.matcher
    return matcher is None or (matcher.is_free and len(chunk.logit_rows) == 1)


def _adapters(batch: list[ScheduledChunk], counts: list[int]) -> _AdapterArgs:
    """Return the adapters in use, and which of them each row has (-1: none); no argument where no row has one."""
    adapters = [chunk.seq.request.adapter for chunk in batch]
    used = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
    if not used:
        return {}
    numbers = [-1 if adapter is None else used.index(adapter) for adapter in adapters]
    rows = np.repeat(np.array(numbers, np.int32), counts)
    return {"adapters": [adapter.native for adapter in used], "row_adapters": rows}


def _choice(chunk: ScheduledChunk, row: int, position: int) -> tuple[int, float, int, int]:
    request = chunk.seq.request
    return row, request.sampling.temperature, request.seed, position + 1


def _split(
    batch: list[ScheduledChunk], plain: list[bool], logits: F32, chosen: I64, hidden: F32 | None
) -> list[F32 | I64]:
    """Give each chunk its rows, which are in the batch's order in all arrays."""
    out: list[F32 | I64] = []
    for chunk, is_chosen in zip(batch, plain, strict=True):
        count = len(chunk.logit_rows)
        if is_chosen:
            mine, chosen = chosen[:count], chosen[count:]
        elif hidden is not None and chunk.seq.request.hidden:
            mine, hidden = hidden[:count], hidden[count:]
        else:
            mine, logits = logits[:count], logits[count:]
        out.append(mine)
    return out


def _tables(batch: list[ScheduledChunk]) -> NDArray[np.int32]:
    """Pad the block tables to one width; no position refers to a padding entry."""
    tables = np.zeros((len(batch), max(len(c.seq.block_table) for c in batch)), np.int32)
    for row, chunk in zip(tables, batch, strict=True):
        row[: len(chunk.seq.block_table)] = chunk.seq.block_table
    return tables

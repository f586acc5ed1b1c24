"""Turns what a step computed for a sequence into its next tokens, or passes it to the request's sink.

Knows logits, drafts, grammars and where an answer ends; knows no schedule, no block and no lock.
"""

from __future__ import annotations

import time
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import FreeholdError, NonFiniteLogits
from freehold.run.engine.constrain.grammar import NotReady
from freehold.run.engine.counts import Counts
from freehold.run.engine.faults import named, traced
from freehold.run.engine.sampler import choose, non_finite
from freehold.run.engine.schedule.shares import GRAMMAR_S
from freehold.run.engine.sequence import ScheduledChunk, Sequence, TokenOut
from freehold.run.models.load import LoadedModel

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Emitter:
    """Advances sequences by the rows that steps computed for them."""

    def __init__(self, model: LoadedModel, counts: Counts) -> None:
        self._model, self._counts = model, counts

    def emit(self, chunk: ScheduledChunk, rows: F32 | I64, seconds: float) -> int:
        """Take in a sequence's rows of a step of `seconds`; return how many tokens of its draft were accepted.

        Whatever fails is raised as a FreeholdError, which ends this sequence alone. Raises NotReady where the grammar's
        next mask is still being computed, and no token was chosen.
        """
        seq, known = chunk.seq, len(chunk.seq.tokens)
        if seq.generated > seq.resumed:
            seq.decode_s += seconds
        else:
            seq.prefill_s += seconds
        try:
            if seq.request.sink is not None:
                self._deliver(chunk, cast(F32, rows))  # the plan chooses no token for a sink
            elif chunk.last:
                self._verify(seq, rows, chunk.draft)
        except NotReady:
            raise
        except Exception as e:
            error = self._explained(seq, named(e, "choosing the next token failed"))
            raise error  # noqa: B904
        finally:
            accepted = max(len(seq.tokens) - known - 1, 0)
            self._counts.generated_tokens += len(seq.tokens) - known
            if chunk.draft:
                self._counts.verified(len(chunk.draft), accepted)
        return accepted

    def _explained(self, seq: Sequence, error: FreeholdError) -> FreeholdError:
        """Return the cause of NaN or infinity: the packed copy, the adapter, or else the model's own weights."""
        if not isinstance(error, NonFiniteLogits):
            return error
        cause = traced(error, self._model)
        if cause is not error or seq.request.adapter is None:
            return cause
        return NonFiniteLogits(
            f"{self._model.name} with the adapter {seq.request.adapter.name!r} computed NaN or infinity "
            f"for the token at position {len(seq.tokens)}",
            "the adapter is damaged, or was made for another model: ask without it",
        )

    def _deliver(self, chunk: ScheduledChunk, rows: F32) -> None:
        """Pass on the rows that the sink has not received yet."""
        if not (np.isfinite(rows.min()) and np.isfinite(rows.max())):  # NaN is both; no array of its own
            raise non_finite(chunk.first)
        seq = chunk.seq
        assert seq.request.sink is not None
        fresh = rows[max(seq.delivered - chunk.first, 0) :]
        if len(fresh):
            seq.request.sink(fresh)
        seq.delivered = max(seq.delivered, chunk.first + chunk.count)
        if chunk.last:
            seq.reason = "length"

    def _verify(self, seq: Sequence, rows: F32 | I64, draft: tuple[int, ...]) -> None:
        """Choose token by token as plain decoding does, as long as each equals the draft token computed next."""
        for number, (row, token) in enumerate(zip(rows, (*draft, None), strict=True)):
            try:
                self._append(seq, row)
            except NotReady:
                if not number:
                    raise
                return
            if seq.reason is not None or seq.tokens[-1] != token:
                return
            if seq.matcher is not None and seq.matcher.untaken_s > GRAMMAR_S:  # the next step has the others
                return

    def _append(self, seq: Sequence, row: F32 | np.int64) -> None:
        """Choose the next token of a sequence and make it pending."""
        request, matcher = seq.request, seq.matcher
        out = choose(
            row,
            seq.tokens,
            request.sampling,
            request.seed,
            self._model.tokens,
            request.logprobs,
            matcher.mask_of(row) if matcher else None,
        )
        if out.id in request.stop_ids:
            seq.reason = "stop"
        elif seq.generated + 1 == request.max_tokens:
            seq.reason = "length"
        elif matcher:
            matcher.advance(out.id)
        seq.tokens.append(out.id)
        if not seq.pending:
            seq.pending_since = time.monotonic()
        seq.pending.append(TokenOut(out.id, out.logprob, out.top, seq.reason))

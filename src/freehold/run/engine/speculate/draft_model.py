"""Drafts with a smaller model of the same vocabulary, which computes ahead on a cache of its own.

Knows a runner, blocks, a shadow of each sequence and what its own steps cost; decides no length. It samples with the
sequence's own seed and parameters: the same noise leads both models to the same token wherever their
logits nearly agree, so drafts are accepted at any temperature. A state cannot be taken back as keys can, so a model of
recurrent layers drafts in a scout, a fork of the shadow, and the shadow computes what was accepted of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from time import perf_counter
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.machine import available_bytes, show_bytes
from freehold.base.types import KvType
from freehold.run.engine.cache.blocks import BlockManager, common_prefix
from freehold.run.engine.cache.capacity import REQUEST_SHARE, CacheBytes, bytes_per_block
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.runner import ModelRunner
from freehold.run.engine.sampler import choose, log_sum_exp
from freehold.run.engine.schedule.budget import EXTRA_TOKEN, PREFILL_TOKENS, StepCost
from freehold.run.engine.sequence import ScheduledChunk, Sequence
from freehold.run.engine.speculate.draft import MODEL_PRIOR, AcceptanceRates
from freehold.run.models.load import LoadedModel

F32 = NDArray[np.float32]

WARM = 4  # steps of a few tokens after which their cost counts as known
MAX_JOINED = 4  # missing tokens that the first draft token's step computes along; more take steps before it
MAX_AHEAD = 16  # tokens drafted at once: a rate of 0.95 each leaves 0.44 of the last
RECENT = MAX_AHEAD + MAX_JOINED  # tokens of a shadow that may not be the sequence's


def drafting_seconds(cost: StepCost, tokens: int, estimate: float) -> float:
    """Return what computing this many tokens takes; `estimate`: seconds of one, until WARM were measured."""
    known = sum(cost.count(size) for size in range(1, MAX_JOINED + 1))
    token_s = cost.seconds(1) if known >= WARM else estimate
    steps, rest = divmod(tokens, PREFILL_TOKENS)
    return sum(
        count * min(cost.seconds(size) or token_s * (1 + EXTRA_TOKEN * (size - 1)), token_s * size)
        for count, size in ((steps, PREFILL_TOKENS), (1, rest))
        if count and size
    )


class DraftModel:
    """A small model beside `target`; the caller has checked that their vocabularies are the same."""

    def __init__(
        self,
        model: LoadedModel,
        target: LoadedModel,
        context: int,
        blocks: int,
        threads: native.Threads,
        kv_type: KvType = "f16",
    ) -> None:
        """Reserve `blocks` blocks of cache for sequences up to `context` tokens.

        Raises UsageError for other tokens than the target's, CapacityExceeded.
        """
        if model.tokens != target.tokens or model.vocab < target.tokens:
            raise UsageError(
                f"{model.name} has {model.tokens:,} tokens and {target.name} {target.tokens:,}; a draft model "
                "needs the same ones",
                "choose a smaller model of the same family",
            )
        sizes = CacheBytes.of(model, kv_type)
        slots = sizes.places(blocks).get(Recurrent.name, 0)
        need = blocks * bytes_per_block(model, kv_type) + slots * sizes.state
        have = int(available_bytes() * REQUEST_SHARE)
        if need > have:
            raise CapacityExceeded(
                f"{model.name} needs {show_bytes(need)} to draft; {show_bytes(have)} are free for it",
                "load with a smaller --context, or without --draft",
            )
        self.model = model
        self._context = min(context, model.context)
        self._blocks = BlockManager(blocks, [Recurrent(slots)] if slots else [])
        self._stateful = slots > 0
        self._runner = ModelRunner(model, self._blocks, PREFILL_TOKENS, threads, kv_type)
        self._shadows: dict[Sequence, Sequence] = {}
        self._scouts: dict[Sequence, Sequence | None] = {}  # None: there was no room for one
        self._cost = StepCost()
        self._share = model.bytes_per_token / target.bytes_per_token
        self.rates = AcceptanceRates(MODEL_PRIOR)
        self.spent = 0.0  # seconds, as such steps usually take them, since the caller last set it to 0

    def seconds(self, tokens: int, target_step: float) -> float:
        """Return what computing this many tokens takes; `target_step` is what one of the target takes.

        Estimated by bytes until enough was measured: the first steps fetch the weights from the disk.
        """
        return drafting_seconds(self._cost, tokens, self._share * target_step)

    def missing(self, seq: Sequence) -> int:
        """Return how many tokens of `seq` must be computed before one can be drafted."""
        shadow = self._shadows.get(seq)
        return len(seq.tokens) - (shadow.num_computed_tokens if shadow else 0)

    def follow(self, seq: Sequence, ahead: int) -> int:
        """Compute what is missing of `seq` but its newest tokens; return how many tokens may be drafted then.

        At most `ahead`; 0 where the draft's own context or its cache ends.
        """
        known = seq in self._shadows
        if not known and max(seq.tokens) >= self.model.vocab:  # an id of padding that only the target has
            return 0
        shadow = self._synced(seq)
        ahead = min(ahead, self._context - len(seq.tokens))
        room = len(seq.tokens) + (0 if self._stateful else ahead)
        if shadow is None or ahead < 1 or not self._blocks.grow(shadow, room):
            return 0
        spent = self.spent
        while len(shadow.tokens) - shadow.num_computed_tokens > MAX_JOINED:
            count = min(len(shadow.tokens) - 1 - shadow.num_computed_tokens, PREFILL_TOKENS)
            self._run([ScheduledChunk(shadow, shadow.num_computed_tokens, count)])
            self._blocks.publish(shadow, shadow.num_computed_tokens + count)
        if not known:  # a prompt is computed once, whether drafts are accepted or not
            self.spent = spent
        return ahead

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft one more token of each sequence; return it with the probability the draft model gives it."""
        heads = {seq: self._scouts.get(seq, self._shadows[seq]) for seq in seqs}
        going = {seq: head for seq, head in heads.items() if head is not None}
        rows = self._run(
            [
                ScheduledChunk(s, s.num_computed_tokens, len(s.tokens) - s.num_computed_tokens)
                for s in going.values()
            ]
        )
        drafted = {
            seq: (seq.tokens[-1], 0.0) for seq in seqs
        }  # without a scout: no token that will be accepted
        for (seq, head), logits in zip(going.items(), rows, strict=True):
            request, row = head.request, logits[0]
            token = choose(row, head.tokens, request.sampling, request.seed, self.model.tokens, None).id
            drafted[seq] = token, math.exp(float(row[token]) - log_sum_exp(row, len(head.tokens)))
            self._append(seq, head, token)
        return list(drafted.values())

    def _append(self, seq: Sequence, head: Sequence, token: int) -> None:
        """Let the next draft token follow `token`, in a scout where states cannot be taken back."""
        if not self._stateful:
            head.num_computed_tokens = len(head.tokens)
            head.tokens.append(token)
            return
        self._blocks.publish(head, len(head.tokens))
        scout: Sequence | None = head
        if head is self._shadows[seq]:
            self._scouts[seq] = scout = self._scout(head)
        if scout is not None:
            scout.tokens.append(token)
            if not self._blocks.grow(scout, len(scout.tokens)):
                self._blocks.release(scout)
                self._scouts[seq] = None

    def _scout(self, shadow: Sequence) -> Sequence | None:
        """Fork a shadow after all of its tokens; None where a state or a block is missing for it."""
        scout = Sequence(shadow.request, [*shadow.tokens, 0])
        if not self._blocks.reserve(scout):
            return None
        self._blocks.fork(shadow, scout)
        scout.tokens.pop()
        if scout.num_computed_tokens == len(scout.tokens):
            return scout
        self._blocks.release(scout)
        return None

    def forget(self, seq: Sequence) -> None:
        """Drop the shadow of a sequence that ended; its blocks stay cached for one that begins alike."""
        self._recall(seq)
        shadow = self._shadows.pop(seq, None)
        if shadow is not None:
            self._blocks.retire(shadow)

    def _recall(self, seq: Sequence) -> None:
        """Give back what a scout holds."""
        scout = self._scouts.pop(seq, None)
        if scout is not None:
            self._blocks.release(scout)

    def _run(self, batch: list[ScheduledChunk]) -> list[F32]:
        if not batch:
            return []
        started = perf_counter()
        for chunk in batch:
            self._blocks.prepare(chunk.seq, chunk.first, chunk.count)
        logits = cast(list[F32], self._runner.run(batch, choose=False))
        tokens = sum(chunk.num_tokens for chunk in batch)
        self._cost.add(tokens, perf_counter() - started)
        self.spent += self._cost.seconds(tokens)
        return logits

    def _synced(self, seq: Sequence) -> Sequence | None:
        """Return the shadow of `seq` with exactly its tokens, rejected drafts removed; None without a state for one."""
        self._recall(seq)
        shadow = self._shadows.get(seq)
        if shadow is None:
            request = replace(seq.request, adapter=None)  # it was trained for the target
            shadow = Sequence(request, list(seq.tokens))
            if not self._blocks.reserve(shadow):
                return None
            self._shadows[seq] = shadow
            self._blocks.adopt(shadow)
            return shadow
        kept = shadow.num_computed_tokens - RECENT if shadow.num_computed_tokens > RECENT else 0
        kept += common_prefix(shadow.tokens[kept : shadow.num_computed_tokens], seq.tokens[kept:])
        shadow.tokens[kept:] = seq.tokens[kept:]
        self._blocks.publish(shadow, min(kept, len(seq.tokens) - 1))
        return shadow

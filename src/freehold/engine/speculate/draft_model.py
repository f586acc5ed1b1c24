"""Drafts with a smaller model of the same vocabulary, which computes ahead on a cache of its own.

Knows a runner, blocks, a shadow of each sequence and what its own steps cost; decides no length. It samples with the
sequence's own seed and parameters: the same noise leads both models to the same token wherever their
logits nearly agree, so drafts are accepted at any temperature.
Path: Speculation -> DraftModel.advance -> ModelRunner.run -> choose -> token and confidence
"""

from __future__ import annotations

import math
from dataclasses import replace
from time import perf_counter
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.engine.cache.blocks import BlockManager, common_prefix
from freehold.engine.cache.capacity import REQUEST_SHARE, bytes_per_block
from freehold.engine.runner import ModelRunner
from freehold.engine.sampler import choose, log_sum_exp
from freehold.engine.schedule.budget import PREFILL_TOKENS
from freehold.engine.schedule.chunk import ScheduledChunk
from freehold.engine.schedule.cost import EXTRA_TOKEN, StepCost
from freehold.engine.sequence import Sequence
from freehold.errors import CapacityExceeded, UsageError
from freehold.machine import available_bytes, show_bytes
from freehold.models.load import LoadedModel
from freehold.types import KvType

F32 = NDArray[np.float32]

WARM = 4  # steps of one token after which their cost counts as known
MAX_JOINED = 4  # missing tokens that the first draft token's step computes along; more take steps before it
MAX_AHEAD = 16  # tokens drafted at once: a rate of 0.95 each leaves 0.44 of the last
RECENT = MAX_AHEAD + MAX_JOINED  # tokens of a shadow that may not be the sequence's


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
        need, have = blocks * bytes_per_block(model, kv_type), int(available_bytes() * REQUEST_SHARE)
        if need > have:
            raise CapacityExceeded(
                f"{model.name} needs {show_bytes(need)} to draft; {show_bytes(have)} are free for it",
                "load with a smaller --context, or without --draft",
            )
        self.model = model
        self._context = min(context, model.context)
        self._blocks = BlockManager(blocks)
        self._runner = ModelRunner(model, self._blocks, PREFILL_TOKENS, threads, kv_type)
        self._shadows: dict[Sequence, Sequence] = {}
        self._cost = StepCost()
        self._share = model.bytes_per_token / target.bytes_per_token
        self.spent = 0.0  # seconds, as such steps usually take them, since the caller last set it to 0

    def seconds(self, tokens: int, target_step: float) -> float:
        """Return what computing this many tokens takes; `target_step` is what one of the target takes.

        Estimated by bytes until enough was measured: the first steps fetch the weights from the disk.
        """
        token_s = self._share * target_step
        if self._cost.count(1) >= WARM:
            token_s = self._cost.seconds(1)
        steps, rest = divmod(tokens, PREFILL_TOKENS)
        return sum(
            count * min(self._cost.seconds(size) or token_s * (1 + EXTRA_TOKEN * (size - 1)), token_s * size)
            for count, size in ((steps, PREFILL_TOKENS), (1, rest))
            if count and size
        )

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
        if ahead < 1 or not self._blocks.grow(shadow, len(seq.tokens) + ahead):
            return 0
        spent = self.spent
        while len(shadow.tokens) - shadow.num_computed_tokens > MAX_JOINED:
            count = min(len(shadow.tokens) - 1 - shadow.num_computed_tokens, PREFILL_TOKENS)
            self._run([ScheduledChunk(shadow, shadow.num_computed_tokens, count)])
            shadow.num_computed_tokens += count
        if not known:  # a prompt is computed once, whether drafts are accepted or not
            self.spent = spent
        return ahead

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft one more token of each sequence; return it with the probability the draft model gives it."""
        shadows = [self._shadows[seq] for seq in seqs]
        rows = self._run(
            [ScheduledChunk(s, s.num_computed_tokens, len(s.tokens) - s.num_computed_tokens) for s in shadows]
        )
        drafted = []
        for shadow, logits in zip(shadows, rows, strict=True):
            request, row = shadow.request, logits[0]
            token = choose(row, shadow.tokens, request.sampling, request.seed, self.model.tokens, None).id
            chance = math.exp(float(row[token]) - log_sum_exp(row, len(shadow.tokens)))
            shadow.num_computed_tokens = len(shadow.tokens)
            shadow.tokens.append(token)
            drafted.append((token, chance))
        return drafted

    def forget(self, seq: Sequence) -> None:
        """Drop the shadow of a sequence that ended; its blocks stay cached for one that begins alike."""
        shadow = self._shadows.pop(seq, None)
        if shadow is not None:
            self._blocks.retire(shadow)

    def _run(self, batch: list[ScheduledChunk]) -> list[F32]:
        started = perf_counter()
        logits = cast(list[F32], self._runner.run(batch, choose=False))
        tokens = sum(chunk.num_tokens for chunk in batch)
        self._cost.add(tokens, perf_counter() - started)
        self.spent += self._cost.seconds(tokens)
        return logits

    def _synced(self, seq: Sequence) -> Sequence:
        """Return the shadow of `seq` with exactly its tokens; rejected draft tokens are removed."""
        shadow = self._shadows.get(seq)
        if shadow is None:
            request = replace(seq.request, adapter=None)  # it was trained for the target
            shadow = self._shadows[seq] = Sequence(request, list(seq.tokens))
            self._blocks.adopt(shadow)
            return shadow
        kept = shadow.num_computed_tokens - RECENT if shadow.num_computed_tokens > RECENT else 0
        kept += common_prefix(shadow.tokens[kept : shadow.num_computed_tokens], seq.tokens[kept:])
        shadow.num_computed_tokens = min(kept, len(seq.tokens) - 1)
        shadow.tokens[kept:] = seq.tokens[kept:]
        return shadow

"""Lets a sequence wait for another that is computing the same prefix, instead of computing it beside it.

Knows tokens, blocks in memory and who is in prefill; knows no budget and no clock.
Path: Scheduler.schedule -> SharedPrefixes.provider -> BlockManager.match
"""

from __future__ import annotations

from freehold._native import BLOCK_TOKENS
from freehold.engine.cache.blocks import BlockManager, common_prefix
from freehold.engine.schedule.live import LiveSequences
from freehold.engine.sequence import Sequence


class SharedPrefixes:
    """Finds who computes a prefix; the provider's prefill then takes on the urgency of those that wait for it."""

    def __init__(self, live: LiveSequences, blocks: BlockManager) -> None:
        self._live, self._blocks = live, blocks

    def provider(self, seq: Sequence) -> Sequence | None:
        """Return a sequence that computes more of what `seq` begins with than the cache holds, if there is one."""
        known = seq.prefix_provider
        if known is not None and known.num_computed_tokens < seq.shared_until and self._provides(known, seq):
            return known
        seq.prefix_provider = None
        if seq.parent is not None and self._provides(seq.parent, seq):
            seq.prefix_provider, seq.shared_until = seq.parent, len(seq.parent.request.prompt)
        if seq.prefix_provider is None:
            self._find(seq)
        provider = seq.prefix_provider
        if provider is not None:
            awaited = provider.awaited_until
            waits = awaited > provider.num_computed_tokens
            provider.awaited_until = min(awaited, seq.shared_until) if waits else seq.shared_until
        return provider

    def _find(self, seq: Sequence) -> None:
        """Choose the live sequence that shares most whole blocks with `seq`, beyond those in the cache."""
        seq.shared_until = self._blocks.match(seq)
        for other in self._live:
            if self._provides(other, seq) and other.tokens[:BLOCK_TOKENS] == seq.tokens[:BLOCK_TOKENS]:
                same = min(common_prefix(other.tokens, seq.tokens), len(seq.tokens) - 1)
                same -= same % BLOCK_TOKENS
                if same > max(seq.shared_until, other.num_computed_tokens):
                    seq.prefix_provider, seq.shared_until = other, same

    def _provides(self, other: Sequence, seq: Sequence) -> bool:
        """Tell whether `other` is in prefill and `seq` may share its blocks."""
        return (
            other is not seq
            and bool(other.block_table)
            and len(other.tokens) - other.num_computed_tokens > 1
            and other in self._live
            and other.ready
            and other.request.sink is None
            and other.request.salt == seq.request.salt
            and self._live.is_background(other) <= self._live.is_background(seq)
        )

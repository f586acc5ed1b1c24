"""How much memory a cache takes, and how long a context this machine has room for.

Knows what layers keep, its bytes and the available memory; knows no sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from freehold import _native as native
from freehold.base.errors import CapacityExceeded, ContextOverflow, UsageError
from freehold.base.layers import MOST_STATES, LayerSpec, longest_window, recurrent_bytes
from freehold.base.machine import available_bytes, show_bytes
from freehold.base.types import KvType
from freehold.run.engine.cache import CacheKind
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.cache.window import SlidingWindow, quota
from freehold.run.engine.schedule.budget import MAX_NUM_BATCHED_TOKENS
from freehold.run.models.load import LoadedModel

MEMORY_SHARE = 0.5  # of available memory that the cache may take by default
REQUEST_SHARE = 0.9  # and where the caller names a size; the rest is for activations and other programs
MOST_BLOCKS = 1 << 26  # KvCache takes no more
# Window layers have window blocks for at least ROOMS sequences, and one for each WINDOW_SHARE blocks: a cache of many
# streams holds mostly short ones, whose every position some window sees.
ROOMS, WINDOW_SHARE = 2, 4
# States of recurrent layers: two sequences and two snapshots; beyond that, as many bytes as blocks take. Where blocks
# take little, as in a hybrid of few attention layers, or none, sixteen sequences and as many snapshots, as far as those
# take STATE_SHARE of available memory: with four slots, eight streams would take turns and compute their prompts again.
LEAST_STATES, STATE_SHARE = 4, 0.125
MIN_CONTEXT = 256  # below this a chat makes no sense, so it is an error rather than a default


KV_TYPES: tuple[KvType, ...] = get_args(KvType)


def bytes_per_block(model: LoadedModel, kv_type: KvType = "f16") -> int:
    """Return the bytes of one cache block over all layers: keys and values."""
    return model.new_cache(1, kv_type).bytes_per_block


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """Memory of a cache with a given number of blocks."""

    block: int  # bytes of a block's pages of layers that see all positions
    window_block: int  # and of those with a window
    least: int  # window blocks below which there are none; 0: no layer has a window
    state: int = 0  # bytes of one state of all recurrent layers; 0: there are none
    least_states: int = LEAST_STATES

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        kv_type: KvType,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        also: int = 0,
    ) -> CacheBytes:
        """Return the sizes for a model. `also`: bytes that a draft model keeps of a block."""
        window, state = longest_window(model.layers), 0
        if recurrent_bytes(model.layers):
            state = model.new_cache(1, kv_type, slots=1).bytes_per_slot
        states = _least_states(state)
        if not window:
            return cls(bytes_per_block(model, kv_type) + also, 0, 0, state, states)
        cache = model.new_cache(1, kv_type, window_blocks=1)
        least = ROOMS * quota(window, max_num_batched_tokens)
        return cls(cache.bytes_per_block + also, cache.bytes_per_window_block, least, state, states)

    def places(self, blocks: int) -> dict[str, int]:
        """Return the places that go with this many blocks, by kind, full attention apart.

        In a short cache window layers keep all positions in its blocks: a window and a step's tokens would take more
        window blocks than there are blocks.
        """
        sizes, window_blocks = {}, max(self.least, blocks // WINDOW_SHARE)
        if self.least and window_blocks < blocks:
            sizes[SlidingWindow.name] = window_blocks
        if self.state:
            sizes[Recurrent.name] = max(self.least_states, blocks * self.block // self.state)
        return sizes

    def total(self, blocks: int) -> int:
        """Return the bytes of this many blocks, with what window and recurrent layers keep beside them."""
        places = self.places(blocks)
        windows, states = places.get(SlidingWindow.name, blocks), places.get(Recurrent.name, 0)
        return blocks * self.block + windows * self.window_block + states * self.state

    def blocks(self, room: int) -> int:
        """Return how many blocks fit in these bytes."""
        low, high = 0, MOST_BLOCKS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.total(middle) <= room else (low, middle - 1)
        return low


def _least_states(state: int) -> int:
    """Return how many states of a size there are at least: what a share of available memory holds."""
    fits = int(available_bytes() * STATE_SHARE) // max(state, 1)
    return max(LEAST_STATES, min(fits, MOST_STATES))


def kinds_beside_full(
    layers: Iterable[LayerSpec], places: Mapping[str, int], blocks: int, max_num_batched_tokens: int
) -> list[CacheKind]:
    """Return the kinds that have this many places, for a model's layers in a pool of `blocks` blocks."""
    kinds: list[CacheKind] = []
    if count := places.get(SlidingWindow.name):
        kinds.append(SlidingWindow(count, blocks, longest_window(layers), max_num_batched_tokens))
    if count := places.get(Recurrent.name):
        kinds.append(Recurrent(count))
    return kinds


def choose_context(
    model: LoadedModel, wanted: int | None, share: float = MEMORY_SHARE, kv_type: KvType = "f16"
) -> tuple[int, str]:
    """Return the context to load with, in tokens, and a phrase that says how it was chosen.

    Raises UsageError for a size below 1, ContextOverflow for one beyond the model's own, CapacityExceeded
    for one memory cannot hold.
    """
    have = available_bytes()
    if wanted is not None:
        return _asked_context(model, wanted, have, kv_type)
    fits = CacheBytes.of(model, kv_type).blocks(int(have * share)) * native.BLOCK_TOKENS
    if fits >= model.context:
        return model.context, "the model's own"
    if fits < min(MIN_CONTEXT, model.context):
        raise CapacityExceeded(
            f"{share:.0%} of the {show_bytes(have)} available hold a context of {fits} tokens; "
            f"at least {MIN_CONTEXT} are needed",
            "free memory, choose a smaller model, or name a size with --context",
        )
    return (
        fits,
        f"cut from the model's {model.context:,} to what {share:.0%} of {show_bytes(have)} available hold",
    )


def _asked_context(model: LoadedModel, wanted: int, have: int, kv_type: KvType) -> tuple[int, str]:
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UsageError(f"the context is {wanted!r}; expected a number of tokens, 1 or more")
    if wanted > model.context:
        raise ContextOverflow(
            f"a context of {wanted:,} tokens was asked for; {model.name} was made for {model.context:,}",
            f"load it with --context {model.context} or less",
        )
    bytes_, room = CacheBytes.of(model, kv_type), int(have * REQUEST_SHARE)
    need = bytes_.total(blocks_for(wanted))
    if need > room:
        most = bytes_.blocks(room) * native.BLOCK_TOKENS
        raise CapacityExceeded(
            f"a context of {wanted:,} tokens takes {show_bytes(need)}; {show_bytes(room)} are free for it",
            f"--context {most} would fit" if most else "free memory or choose a smaller model",
        )
    return wanted, "as asked"

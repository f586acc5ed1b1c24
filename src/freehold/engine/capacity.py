"""How long a context this machine can carry.

Knows bytes a token and available memory; knows no sequence.
Path: Engine.__init__ -> choose_context
"""

from __future__ import annotations

from typing import Literal, get_args

from freehold import _native as native
from freehold.engine.blocks import blocks_for
from freehold.errors import CapacityExceeded, ContextOverflow, UsageError
from freehold.models.loader import LoadedModel
from freehold.models.machine import available_bytes, show_bytes

MEMORY_SHARE = 0.5  # of available memory the cache may take when nobody asked for a size
REQUEST_SHARE = 0.9  # and when somebody did; the rest is for activations and everybody else
MIN_CONTEXT = 256  # below this a chat makes no sense, so it is an error rather than a default


KvType = Literal["f16", "q8", "f32"]
KV_TYPES: tuple[KvType, ...] = get_args(KvType)


def bytes_per_block(model: LoadedModel, kv_type: KvType = "f16") -> int:
    """Return the bytes of one cache block over all layers: keys and values."""
    return native.KvCache(model.kv_layers, 1, kv_type).bytes_per_block


def choose_context(
    model: LoadedModel, asked: int | None, share: float = MEMORY_SHARE, kv_type: KvType = "f16"
) -> tuple[int, str]:
    """Return the context to load with, in tokens, and a phrase that says how it was chosen.

    Raises UsageError for a size below 1, ContextOverflow for one beyond the model's own, CapacityExceeded
    for one memory cannot hold.
    """
    have = available_bytes()
    if asked is not None:
        return _asked_context(model, asked, have, kv_type)
    fits = int(have * share) // bytes_per_block(model, kv_type) * native.BLOCK_TOKENS
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


def _asked_context(model: LoadedModel, asked: int, have: int, kv_type: KvType) -> tuple[int, str]:
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise UsageError(f"the context is {asked!r}; expected a number of tokens, 1 or more")
    if asked > model.context:
        raise ContextOverflow(
            f"a context of {asked:,} tokens was asked for; {model.name} was made for {model.context:,}",
            f"load it with --context {model.context} or less",
        )
    need, room = blocks_for(asked) * bytes_per_block(model, kv_type), int(have * REQUEST_SHARE)
    if need > room:
        most = room // bytes_per_block(model, kv_type) * native.BLOCK_TOKENS
        raise CapacityExceeded(
            f"a context of {asked:,} tokens takes {show_bytes(need)}; {show_bytes(room)} are free for it",
            f"--context {most} would fit" if most else "free memory or choose a smaller model",
        )
    return asked, "as asked"

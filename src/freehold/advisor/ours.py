"""Costs of a model on our own engine: bytes of memory, and work of a prompt and of a decoded token.

Physics with a few constants: a token reads its weights and what is kept of the conversation at the machine's
bandwidth, while its cores unpack and multiply them at a small share of their int8 rate; a prompt multiplies its
weights at a larger share, and attention on top. machine.Cost says what seconds that makes. The constants are fitted
to benches/choose/fit.py; what they miss, calibration.py learns.
Knows the engine's rules as far as bytes depend on them, and imports none of it (a test holds the two together).
Path: fit.fit -> footprint, decode_cost, prefill_cost, load_s
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from freehold.advisor.anatomy import Anatomy, WeightGroup
from freehold.advisor.machine import Cost
from freehold.catalog.model import Structure
from freehold.layers import longest_window

Refuses = Callable[[Structure], str]  # why our engine does not run such a model; empty: it does
BLOCK = 32  # tokens of a cache block
ROWS = 512  # rows of a step at most
WINDOW_SHARE, ROOMS = 4, 2  # blocks for each window block; sequences whose quotas the window pool must hold
KV_WIDTHS = {
    "f16": 2.0,
    "q8": 1.03,
    "f32": 4.0,
}  # bytes of a cached value; q8 has a float for each token's head beside

# bytes: the interpreter, its libraries and ours, a tokenizer; and for each token of a vocabulary
_PROCESS, _PROCESS_TOKEN = 67_000_000, 100
_WIDER = 10.0  # bits of a weight whose type has no kernel of its own: an int8 code, and a scale for sixteen
# Shares of the int8 rate: of a prompt's matrices, of attention over it, which multiplies floats, and of the matrices of
# one token, each of whose weights is unpacked for two operations.
_DOTS, _ATTENTION, _LONE = 0.52, 0.15, 0.095
_LOOK = 0.0235  # bytes of cache that a lone token looks at in the time of one operation
# operations that would take as long as what a step and a layer cost whatever their size
_STEP, _LAYER = 2e8, 2e7
_LOAD_S, _PACK_GB_S = 0.36, 0.3  # a load of packed weights; bytes packed a second by each thread


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a process of ours takes. `cache`: by kind of layer, for one conversation of the context's length."""

    weights: int
    cache: dict[str, int]
    activations: int
    process: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + sum(self.cache.values()) + self.activations + self.process


def footprint(anatomy: Anatomy, context: int, kv_type: str = "f16") -> Footprint:
    """Return what a model takes when a conversation of `context` tokens fills its cache."""
    return Footprint(
        weights=packed_bytes(anatomy),
        cache=cache_bytes(anatomy, context, kv_type),
        activations=activation_bytes(anatomy),
        process=_PROCESS + _PROCESS_TOKEN * anatomy.vocab,
    )


def packed_bytes(anatomy: Anatomy) -> int:
    """Return the bytes of the packed weights."""
    return round(sum(part.weights * _bits(part) / 8 for part in anatomy.parts))


def _bits(part: WeightGroup) -> float:
    """Return what a weight takes when it is packed."""
    from freehold import _native as native

    return next((packed for name, _, _, _, packed in native.type_routes() if name == part.type), _WIDER)


def cache_bytes(anatomy: Anatomy, context: int, kv_type: str = "f16") -> dict[str, int]:
    """Return what the cache reserves by kind of layer: whole blocks, and window blocks where layers have a window."""
    width, blocks = KV_WIDTHS[kv_type], -(-context // BLOCK)
    window = longest_window(anatomy.layers)
    least = ROOMS * (-(-(window + ROWS) // BLOCK) + 2) if window else 0
    window_blocks = max(least, blocks // WINDOW_SHARE)
    found = anatomy.cache_by_kind(blocks * BLOCK, width)
    if window:
        kept = sum(g.count * g.values_per_token for g in anatomy.layers if g.kind == "window")
        found["window"] = round(kept * width * BLOCK * min(window_blocks, blocks))
    return found


def activation_bytes(anatomy: Anatomy) -> int:
    """Return what a step of ROWS rows works in: floats of its widest layers' inputs, outputs and codes of them."""
    return ROWS * 4 * (2 * inner(anatomy) + 3 * anatomy.hidden + 2 * anatomy.queries)


def inner(anatomy: Anatomy) -> int:
    """Return the width of a layer's MLP, out of its weights: what attention's matrices leave, by three."""
    body = sum(p.weights * p.share for p in anatomy.parts if p.role in ("body", "experts"))
    if not anatomy.hidden or not anatomy.depth:
        return 0
    values = sum(g.count * g.values_per_token for g in anatomy.layers) / anatomy.depth
    attention = anatomy.hidden * (2 * anatomy.queries + values)
    return max(round((body / anatomy.depth - attention) / (3 * anatomy.hidden)), 0)


def decode_cost(anatomy: Anatomy, depth: int, kv_type: str = "f16") -> Cost:
    """Return what one token after `depth` others asks of a machine."""
    kept = anatomy.cache_bytes(depth, KV_WIDTHS[kv_type])
    return Cost(
        read=sum(p.weights * p.share * _bits(p) / 8 for p in anatomy.parts) + anatomy.state_bytes + kept,
        cores=2 * anatomy.token_weights / _LONE + kept / _LOOK,
        rest=_STEP + _LAYER * anatomy.depth,
    )


def batch_cost(anatomy: Anatomy, depth: int, sequences: int) -> Cost:
    """Return the work of a decode step of one token for each of this many sequences.

    Weights are read once; from some three rows on they are multiplied as a prompt's are.
    """
    kept = anatomy.cache_bytes(depth, KV_WIDTHS["f16"]) + anatomy.state_bytes
    one = decode_cost(anatomy, 0)
    dots = 2 * anatomy.token_weights * max(1 / _LONE, sequences / _DOTS)
    return Cost(one.read + sequences * kept, dots + sequences * kept / _LOOK, one.rest)


def prefill_cost(anatomy: Anatomy, tokens: int) -> Cost:
    """Return what a prompt of `tokens` asks to its first token; never less than one token does."""
    matrices = 2 * (anatomy.token_weights - anatomy.head_weights) * tokens
    one = decode_cost(anatomy, 0)
    return replace(one, rest=one.rest + matrices / _DOTS + anatomy.attention_ops(tokens) / _ATTENTION)


def load_s(anatomy: Anatomy, threads: int, packed: bool) -> float:
    """Return the seconds of a load whose file is in memory; the first one packs the weights."""
    return _LOAD_S + (0.0 if packed else packed_bytes(anatomy) / (_PACK_GB_S * 1e9 * threads))

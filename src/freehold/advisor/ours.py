"""Costs of a model on our own engine: bytes of memory, and work of a prompt and of a decoded token.

Physics with a few constants: a token reads its weights and what is kept of the conversation at the machine's
bandwidth, while its cores unpack and multiply them at a small share of their int8 rate; a prompt multiplies its
weights at a larger share, and attention on top; experts, states and latents have costs of their own. machine.Cost says
what seconds that makes. The constants are fitted to benches/choose/fit.py and fit_layers.py; what they miss,
calibration.py learns from each machine's runs, by what a model is made of.
Knows the engine's rules as far as bytes depend on them, and imports none of it (a test holds the two together).
Path: fit.fit -> footprint, decode_cost, prefill_cost, load_s
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from freehold.advisor.anatomy import Anatomy, WeightGroup
from freehold.advisor.machine import Cost
from freehold.catalog.model import Structure
from freehold.layers import STATE_WIDTH, longest_window

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
# one token, each of whose weights is unpacked for two operations. Matrices wider than _NARROW inputs come nearer to
# the rate: 0.52 at 1,024, 0.76 at 2,048.
_DOTS, _ATTENTION, _LONE = 0.52, 0.15, 0.095
_NARROW, _WIDENING, _MOST_DOTS = 1150, 0.65, 0.9
_LOOK = 0.0235  # bytes of cache that a lone token looks at in the time of one operation
# Experts of a prompt: a share of the rate, and operations to unpack each weight of every expert that a step's rows
# choose, which some dozen rows share.
_EXPERT_DOTS, _UNPACK = 0.68, 6.0
# A value of a recurrent state, which is read and written: operations for a lone token, and for each of a prompt's.
_STATE, _STATE_CHUNK, _STATE_PASSES = 470.0, 28.0, 2
# Latent attention: shares of the rate of a lone token's and of a prompt's products of all heads with each latent, and
# operations for each pair of a latent's value and a query's, which queries and outputs are brought into its space by.
_LATENT_LOOK, _LATENT_ATTENTION, _ABSORB = 0.13, 1.0, 165.0
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
    return _routes().get(part.type, _WIDER)


@cache
def _routes() -> dict[str, float]:
    from freehold import _native as native

    return {name: packed for name, _, _, _, packed in native.type_routes()}


def cache_bytes(anatomy: Anatomy, context: int, kv_type: str = "f16") -> dict[str, int]:
    """Return what the cache reserves by kind of layer: whole blocks, and window blocks where layers have a window."""
    width, blocks = KV_WIDTHS[kv_type], -(-context // BLOCK)
    window = longest_window(anatomy.layers)
    least = ROOMS * (-(-(window + ROWS) // BLOCK) + 2) if window else 0
    window_blocks = max(least, blocks // WINDOW_SHARE)
    sizes = anatomy.cache_by_kind(blocks * BLOCK, width)
    if window:
        kept = sum(g.count * g.values_per_token for g in anatomy.layers if g.kind == "window")
        sizes["window"] = round(kept * width * BLOCK * min(window_blocks, blocks))
    return sizes


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
        read=_read(anatomy, 1) + kept + _STATE_PASSES * anatomy.state_bytes,
        cores=2 * anatomy.token_weights / _LONE + _look(anatomy, depth, kept) + _lone_states(anatomy),
        rest=_STEP + _LAYER * anatomy.depth + _absorb(anatomy),
    )


def batch_cost(anatomy: Anatomy, depth: int, sequences: int) -> Cost:
    """Return the work of a decode step of one token for each of this many sequences.

    Weights are read once, of experts those that any token chooses; from some three rows on they are multiplied as a
    prompt's are.
    """
    kept = anatomy.cache_bytes(depth, KV_WIDTHS["f16"])
    own = kept + _STATE_PASSES * anatomy.state_bytes
    dense = anatomy.token_weights - sum(p.weights * p.share for p in anatomy.parts if p.role == "experts")
    dots = 2 * dense * max(1 / _LONE, sequences / _DOTS) + _batched_experts(anatomy, sequences)
    seen = _look(anatomy, depth, kept) + _lone_states(anatomy) + _absorb(anatomy)
    rest = _STEP + _LAYER * anatomy.depth
    return Cost(_read(anatomy, sequences) + sequences * own, dots + sequences * seen, rest)


def prefill_cost(anatomy: Anatomy, tokens: int) -> Cost:
    """Return what a prompt of `tokens` asks to its first token; never less than one token does."""
    one, steps = decode_cost(anatomy, 0), -(-tokens // ROWS)
    rows = min(tokens, ROWS)
    experts = sum(p.weights * p.share for p in anatomy.parts if p.role == "experts")
    chosen = sum(p.weights * _touched(p.share, rows) for p in anatomy.parts if p.role == "experts")
    dense = anatomy.token_weights - anatomy.head_weights - experts
    matrices = 2 * tokens * (dense / _dots(anatomy.hidden) + experts / _EXPERT_DOTS)
    seen = anatomy.attention_ops(tokens) / (_LATENT_ATTENTION if _latents(anatomy) else _ATTENTION)
    states = anatomy.state_bytes / STATE_WIDTH * _STATE_CHUNK * tokens
    rest = one.rest + matrices + steps * chosen * _UNPACK + seen + states
    return replace(one, read=_read(anatomy, tokens), rest=rest)


def _read(anatomy: Anatomy, tokens: int) -> float:
    """Return the bytes of weights that a step of this many tokens reads, each choosing experts of its own."""
    return sum(
        p.weights * (_touched(p.share, tokens) if p.role == "experts" else p.share) * _bits(p) / 8
        for p in anatomy.parts
    )


def _batched_experts(anatomy: Anatomy, sequences: int) -> float:
    """Return the operations of experts in a step: of each that is chosen, by the rows that it gets."""
    total = 0.0
    for part in anatomy.parts:
        if part.role == "experts":
            chosen = _touched(part.share, sequences)
            rows = sequences * part.share / chosen
            total += 2 * part.weights * chosen * max(rows / _EXPERT_DOTS, 1 / _LONE)
    return total


def _touched(share: float, tokens: int) -> float:
    """Return the share of experts that any of this many tokens is sent to."""
    return 1 - (1 - share) ** tokens


def _dots(hidden: int) -> float:
    """Return the share of the int8 rate that a prompt's matrices of this many inputs reach."""
    return min(_DOTS * max(hidden / _NARROW, 1.0) ** _WIDENING, _MOST_DOTS)


def _latents(anatomy: Anatomy) -> int:
    """Return how many layers attend to latents."""
    return sum(g.count for g in anatomy.layers if g.kind == "latent")


def _look(anatomy: Anatomy, depth: int, kept: int) -> float:
    """Return the operations of one token's attention: bytes, or of latents the products of all heads with each."""
    if latents := _latents(anatomy):
        return 4 * anatomy.queries * depth * latents / _LATENT_LOOK
    return kept / _LOOK


def _absorb(anatomy: Anatomy) -> float:
    """Return the operations that bring one token's queries and outputs into the latents' space and back."""
    return _ABSORB * anatomy.queries * sum(g.count * g.latent for g in anatomy.layers)


def _lone_states(anatomy: Anatomy) -> float:
    return _STATE * anatomy.state_bytes / STATE_WIDTH


def load_s(anatomy: Anatomy, threads: int, packed: bool) -> float:
    """Return the seconds of a load whose file is in memory; the first one packs the weights."""
    return _LOAD_S + (0.0 if packed else packed_bytes(anatomy) / (_PACK_GB_S * 1e9 * threads))

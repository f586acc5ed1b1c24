"""A mix of types under a byte target, by what each group of tensors costs when it alone is quantised: measured.

A group is one kind of matrix (attn_q, ffn_down, ...) in one band of layers. Its divergence from the source is measured
on a short text with only this group in a coarse type, and divided by the squared error of that: nat per unit of error.
Each tensor's error in each type is taken from some of its rows, so a mix's divergence is predicted as a sum, and the
knapsack is solved for the least. Knows tensors, types and the engine; knows no file to be written.
Path: quantising.quantise -> mixed -> side_by_side, encoding.encode_rows -> mix.chosen_options
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.encoding import encode, encode_rows, slabs
from freehold.adapt.quantize.recipes import (
    FLOATS,
    TensorChoice,
    divides,
    fitting,
    in_layer_order,
    layer_of,
    quantisable,
)
from freehold.errors import UsageError
from freehold.evals.divergence import DivergenceCounter
from freehold.evals.side_by_side import LogitSource
from freehold.formats import GGUFFile, QuantType, Tensor, dequantize
from freehold.formats.trellis import BITS
from freehold.formats.weight_types import tensor_bytes
from freehold.models.load import LoadedModel, load_model
from freehold.store.space import human

T = QuantType
GGML_TYPES = (T.Q2_K, T.Q3_K, T.IQ4_NL, T.IQ4_XS, T.Q4_K, T.Q5_0, T.Q5_K, T.Q6_K, T.Q8_0)
HEAD_TYPES = (T.Q4_K, T.IQ4_NL, T.Q5_K, T.Q6_K, T.Q8_0)  # of the embedding and the head
PROBES = (T.Q3_K, T.Q4_0)  # coarse enough that a group's divergence exceeds the engine's own rounding
SAMPLE = 1 << 16  # weights of a tensor whose error is taken
REFERENCE_BYTES = 1 << 27  # of the base's logits, in memory
ALIGNMENT = 32
# Of a trellis type's plain error, once errors are fed back: 0.5 to 0.6 on layers of two models.
FED_BACK = 0.55
_ENDS = "ends"

OnGroup = Callable[[int, int, str], None]  # groups done, in all, the one that follows


@dataclass(frozen=True, slots=True)
class TypeMix:
    """A type for every tensor; `predicted`: the divergence from the source that is expected, in nats per token."""

    choices: tuple[TensorChoice, ...]
    predicted: float
    sensitivity: Mapping[str, float]  # nats per token by group, as measured with the probe


def mixed(
    source: GGUFFile,
    ids: Sequence[int],
    target: int,
    header: int,
    types: Sequence[QuantType],
    threads: native.Threads,
    on_group: OnGroup | None = None,
) -> TypeMix:
    """Choose types from `types` so that `header` bytes and all tensors, padding too, take at most `target` bytes.

    `ids`: a text to measure on. Raises UsageError, before it measures, where the target is below the smallest mix.
    """
    tensors = in_layer_order(source.tensors.values())
    free = [t for t in tensors if quantisable(t) and divides(PROBES[-1], t.shape[-1])]
    named = {t.name for t in free}
    fixed = header + sum(_padded(t.nbytes) for t in tensors if t.name not in named)
    least = fixed + sum(
        min(_padded(tensor_bytes(each, t.shape)) for each in _fitting(t, types)) for t in free
    )
    if target < least:
        raise UsageError(
            f"--target-bytes {human(target)} is too small: the smallest mix of these types takes {human(least)}",
            f"allow at least {human(math.ceil(least * 1.01))}, or choose a smaller model",
        )
    groups = _grouped(free)
    measured = _Sensitivity(source, ids, threads).measure(groups, on_group)
    price = _prices(groups, measured, threads)
    options = [_options(t, types, price[t.name], threads) for t in free]
    picked = chosen_options([[option for _, option in each] for each in options], target - fixed)
    assert picked is not None, "the smallest mix fits"
    chosen = {t.name: each[i] for t, each, i in zip(free, options, picked, strict=True)}
    choices = [
        TensorChoice(t, *(2 * [chosen[t.name][0]])) if t.name in chosen else TensorChoice(t, t.type, t.type)
        for t in tensors
    ]
    return TypeMix(tuple(choices), sum(option.cost for _, option in chosen.values()), measured)


def _prices(
    groups: Mapping[str, Sequence[Tensor]], measured: Mapping[str, float], threads: native.Threads
) -> dict[str, float]:
    """Return nats per token per squared error, by tensor; a group that was not measured has the others' median."""
    prices = {
        name: nat / max(sum(sampled_error(t, _probe(t), threads) for t in groups[name]), 1e-30)
        for name, nat in measured.items()
    }
    usual = float(np.median(list(prices.values()))) if prices else 0.0
    return {t.name: prices.get(name, usual) for name, group in groups.items() for t in group}


def _options(
    tensor: Tensor, types: Sequence[QuantType], price: float, threads: native.Threads
) -> list[tuple[QuantType, SizedOption]]:
    """Return the types that a tensor may get with bytes and predicted divergence; its own costs nothing."""
    options = [
        (
            type,
            SizedOption(
                _padded(tensor_bytes(type, tensor.shape)), price * sampled_error(tensor, type, threads)
            ),
        )
        for type in _fitting(tensor, types)
        if type is not tensor.type
    ]
    return [*options, (tensor.type, SizedOption(_padded(tensor.nbytes), 0.0))]


def _fitting(tensor: Tensor, types: Sequence[QuantType]) -> list[QuantType]:
    """Return the types that a tensor may get, its own among them."""
    allowed = [t for t in types if t in HEAD_TYPES] if layer_of(tensor.name) < 0 else types
    return sorted({each for each in allowed if fitting(tensor, each) is each} | {tensor.type})


def sampled_error(tensor: Tensor, type: QuantType, threads: native.Threads) -> float:
    """Estimate the sum of squared errors of a tensor in a type, from rows spread over it."""
    if type in FLOATS:
        return 0.0
    k = tensor.shape[-1]
    count = len(tensor.rows)
    take = np.unique(np.linspace(0, count - 1, max(min(SAMPLE // k, count), 1)).astype(np.int64))
    values = dequantize(np.ascontiguousarray(tensor.rows[take]), tensor.type, k, tensor.table)
    if type in BITS:
        coded, share = encode(values, None, BITS[type], threads).values, FED_BACK
    else:
        coded, share = dequantize(encode_rows(values, type, threads), type, k), 1.0
    return share * float(np.square(values - coded, dtype=np.float64).sum()) * count / len(take)


def _probe(tensor: Tensor) -> QuantType:
    return next(t for t in PROBES if fitting(tensor, t) is t)


def _grouped(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Group matrices by kind and band of layers, those of no layer by name."""
    held = list(tensors)
    layers = 1 + max((layer_of(t.name) for t in held), default=-1)
    groups: dict[str, list[Tensor]] = {}
    for t in held:
        layer = layer_of(t.name)
        kind = t.name.split(".")[2] if layer >= 0 else t.name.removesuffix(".weight")
        groups.setdefault(f"{_band(layer, layers)} {kind}", []).append(t)
    return groups


def _band(layer: int, layers: int) -> str:
    """Name the band a layer is in: the first and the last alone, thirds between."""
    if layer < 0:
        return _ENDS
    if layer in (0, layers - 1):
        return "first" if layer == 0 else "last"
    return ("early", "middle", "late")[min(3 * layer // layers, 2)]


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class _Sensitivity:
    """Measures what a model loses when one group of its matrices is coarse."""

    def __init__(self, source: GGUFFile, ids: Sequence[int], threads: native.Threads) -> None:
        self._path, self._pool = source.path, threads
        self._model = load_model(source.path, threads=threads)
        most = max(REFERENCE_BYTES // (4 * self._model.vocab), 32)
        self._ids = list(ids)[:most]
        with LogitSource.open(self._model, threads) as reference:
            self._reference = np.concatenate(list(reference.rows(self._ids)))

    def measure(self, groups: Mapping[str, Sequence[Tensor]], on_group: OnGroup | None) -> dict[str, float]:
        """Return the divergence in nats per token of each group in its probe type."""
        divergences: dict[str, float] = {}
        for done, (name, tensors) in enumerate(sorted(groups.items())):
            if on_group is not None:
                on_group(done, len(groups), name)
            if any(t.name in self._model.matrices for t in tensors):
                divergences[name] = self._divergence(tensors)
        return divergences

    def _divergence(self, tensors: Sequence[Tensor]) -> float:
        coarse = {t.name: self._packed(t) for t in tensors if t.name in self._model.matrices}
        counter = DivergenceCounter()
        targets: NDArray[np.int64] = np.array(self._ids[1:], np.int64)
        at = 0
        with LogitSource.open(self._with(coarse), self._pool) as other:
            for rows in other.rows(self._ids):
                count = min(len(rows), len(targets) - at)
                counter.add(self._reference[at : at + count], rows[:count], targets[at : at + count])
                at += count
        return counter.result().mean

    def _with(self, coarse: Mapping[str, Any]) -> LoadedModel:
        return load_model(self._path, threads=self._pool, packed={**self._model.matrices, **coarse})

    def _packed(self, tensor: Tensor) -> native.Matrix:
        """Pack a matrix as it is in its probe type."""
        k, count, type = tensor.shape[-1], len(tensor.rows), _probe(tensor)
        parts = [encode_rows(values, type, self._pool) for values in slabs(tensor)]
        return native.Matrix.pack(np.concatenate(parts).reshape(-1), type.name, count, k, self._pool)


# --- one option for each item -----------------------------------------------------------------------
# So that costs are least and sizes stay under a limit: by gain per byte, deterministic.
# An item's options that no price of a byte would choose are left out first (the lower convex hull of cost
# over size); then every item starts with its smallest, and the steps to the next larger ones are taken in the
# order of cost saved per byte. That is the optimum for the bytes it uses; what is left at the end buys the
# best single steps that still fit.


class SizedOption(NamedTuple):
    """What an item may be: its bytes, and what it costs (lower is better)."""

    size: int
    cost: float


class _Step(NamedTuple):
    gain: float  # cost saved per byte
    item: int
    option: int  # the one to change to


def chosen_options(items: Sequence[Sequence[SizedOption]], limit: int) -> list[int] | None:
    """Return the index of each item's option; None where even the smallest ones exceed `limit` together."""
    hulls = [_hull(options) for options in items]
    chosen = [hull[0] for hull in hulls]
    left = limit - sum(options[i].size for options, i in zip(items, chosen, strict=True))
    if left < 0:
        return None
    steps = [
        _Step(_gain(options[a], options[b]), item, b)
        for item, (options, hull) in enumerate(zip(items, hulls, strict=True))
        for a, b in itertools.pairwise(hull)
    ]
    blocked: set[int] = set()
    for step in sorted(steps, key=lambda s: (-s.gain, s.item, s.option)):
        if step.item in blocked:
            continue  # its earlier step did not fit, and a larger one would not either
        extra = items[step.item][step.option].size - items[step.item][chosen[step.item]].size
        if extra <= left:
            chosen[step.item], left = step.option, left - extra
        else:
            blocked.add(step.item)
    return chosen


def _hull(options: Sequence[SizedOption]) -> list[int]:
    """Return indices on the lower convex hull, by size; ties go to the first."""
    order = sorted(range(len(options)), key=lambda i: (options[i].size, options[i].cost, i))
    kept: list[int] = []
    for i in order:
        if kept and options[i].cost >= options[kept[-1]].cost:
            continue
        while len(kept) > 1 and _gain(options[kept[-2]], options[kept[-1]]) <= _gain(
            options[kept[-1]], options[i]
        ):
            kept.pop()
        kept.append(i)
    return kept


def _gain(a: SizedOption, b: SizedOption) -> float:
    return (a.cost - b.cost) / max(b.size - a.size, 1)

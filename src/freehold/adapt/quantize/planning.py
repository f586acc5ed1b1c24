"""What a quantised model will be, before anything is encoded: each tensor's type, the file's keys, the texts.

Knows requests, recipes and mixes; encodes nothing. A mix is measured once: a run that continues takes the types
that its folder kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.evals.divergence import DivergenceCounter, LogitSource
from freehold.adapt.quantize.changed import FusedFile, own_type
from freehold.adapt.quantize.encoding import encode, encode_rows, slabs
from freehold.adapt.quantize.recipes import (
    FILE_TYPES,
    FLOATS,
    WRITTEN,
    TensorChoice,
    choose,
    divides,
    file_type,
    fitting,
    in_layer_order,
    layer_of,
    quantisable,
)
from freehold.adapt.quantize.texts import default_texts, file_texts, held_out
from freehold.adapt.run import RunFolder
from freehold.adapt.settings import QuantizeSettings
from freehold.base.errors import UsageError
from freehold.base.version import __version__
from freehold.choose.advisor.verdict import Facts
from freehold.run.formats import GGUFFile, QuantType, Tensor, dequantize
from freehold.run.formats.gguf_writer import (
    Bytes,
    GGUFWriter,
    TensorPlan,
    Value,
    copied_keys,
    gguf_header,
    gguf_size,
)
from freehold.run.formats.trellis import BITS, REQUIRES
from freehold.run.formats.weight_types import TABLE_TYPES, tensor_bytes
from freehold.run.local.opening import text_side
from freehold.run.models.load import load_model
from freehold.run.store.space import human

# --- a mix of types under a byte target, by what each group of tensors alone costs ------------------
# A group is one kind of matrix (attn_q, ffn_down, ...) in one band of layers. Its divergence from the source
# is measured on a short text with only this group in a coarse type, and divided by the squared error of that:
# nat per unit of error. Each tensor's error in each type is taken from some of its rows, so a mix's
# divergence is predicted as a sum, and the knapsack is solved for the least.
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
    options = []
    for type in _fitting(tensor, types):
        if type is not tensor.type:
            cost = price * sampled_error(tensor, type, threads)
            options.append((type, SizedOption(_padded(tensor_bytes(type, tensor.shape)), cost)))
    return [*options, (tensor.type, SizedOption(_padded(tensor.nbytes), 0.0))]


def _fitting(tensor: Tensor, types: Sequence[QuantType]) -> list[QuantType]:
    """Return the types that a tensor may get, its own among them."""
    allowed = [t for t in types if t in HEAD_TYPES] if layer_of(tensor.name) < 0 else types
    return sorted({each for each in allowed if fitting(tensor, each) is each} | {tensor.type})


def sampled_error(tensor: Tensor, type: QuantType, threads: native.Threads) -> float:
    """Estimate the sum of squared errors of a tensor in a type, from rows spread over it."""
    if type in FLOATS:
        return 0.0
    k, rows = tensor.shape[-1], tensor.rows
    count = len(rows)
    take = np.unique(np.linspace(0, count - 1, max(min(SAMPLE // k, count), 1)).astype(np.int64))
    values = dequantize(np.ascontiguousarray(rows[take]), tensor.type, k, tensor.table)
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
        self._source, self._pool = source, threads
        self._model = load_model(source, threads=threads)
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
        coarse: dict[str, Any] = {}
        for t in tensors:
            if t.name in self._model.matrices:
                type = _probe(t)
                rows = np.concatenate([encode_rows(values, type, self._pool) for values in slabs(t)])
                shape = len(t.rows), t.shape[-1]
                coarse[t.name] = native.Matrix.pack(rows.reshape(-1), type.name, *shape, self._pool)
        packed = {**self._model.matrices, **coarse}
        model = load_model(self._source, threads=self._pool, packed=packed)
        counter = DivergenceCounter()
        targets: NDArray[np.int64] = np.array(self._ids[1:], np.int64)
        at = 0
        with LogitSource.open(model, self._pool) as other:
            for rows in other.rows(self._ids):
                count = min(len(rows), len(targets) - at)
                counter.add(self._reference[at : at + count], rows[:count], targets[at : at + count])
                at += count
        return counter.result().mean


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


# --- a request, and the plan that it becomes --------------------------------------------------------

NAMED_BITS = {2: "T2", 3: "T3", 4: "Q4_K_M"}
TRELLIS_NAMES = ("T2", "T3")
DEFAULT_TEXTS = "default"
COARSE_BITS = 6.0  # of a source: below, its own errors are part of what is quantised
MIX = "mix"  # the name of a file type that a byte target chose
MIX_TYPES = (*TABLE_TYPES, *GGML_TYPES)
MEASURED_ON = 510  # tokens that sensitivities are measured on, from texts of several kinds
_BASE_TYPE_IDS = {kind.base: kind.id for kind in FILE_TYPES.values()} | {
    QuantType.Q3_K: FILE_TYPES["Q3_K_M"].id,
    QuantType.Q4_K: FILE_TYPES["Q4_K_M"].id,
    QuantType.Q5_K: FILE_TYPES["Q5_K_M"].id,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest(QuantizeSettings):
    """What to make of a model, for whom."""

    fresh: bool = False
    facts: Facts = field(default_factory=Facts)  # the user's, for the licence
    base: str = ""  # the model's name, written into the file; empty: the source's own word stays
    verb: str = "quantize"
    as_base: bool = False  # each matrix keeps the type that it has in its model's file

    def check(self) -> None:
        """Raise UsageError for wishes that exclude each other."""
        chosen = [name for name in ("quant", "bits", "target_bytes") if getattr(self, name)]
        if len(chosen) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise UsageError(f"{options} say different things", "give one of them")
        if self.portable and not self.target_bytes:
            raise UsageError(
                "--portable limits the types of a byte target", "add --target-bytes, or name a --quant"
            )
        if self.bits and self.bits not in NAMED_BITS:
            raise UsageError(f"--bits {self.bits}: one of {', '.join(map(str, NAMED_BITS))} is written")

    @property
    def name(self) -> str:
        """The file type that is asked for; empty: a byte target chooses."""
        if self.target_bytes or self.as_base:
            return ""
        return file_type(self.quant or NAMED_BITS[self.bits or 4])[0]

    @property
    def texts(self) -> str:
        """What to calibrate on: "default", a path, or nothing."""
        own = self.name in TRELLIS_NAMES or (self.target_bytes and not self.portable)
        return self.calibrate or (DEFAULT_TEXTS if own else "")


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What becomes of a source. `predicted`: a mix's divergence from it, in nats per token; None: of a named type."""

    name: str  # of the file type
    choices: Sequence[TensorChoice]
    keys: Mapping[str, Value]
    predicted: float | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    def as_state(self) -> dict[str, Any]:
        """Return what a run that continues needs, as plain values."""
        return {
            "types": {c.tensor.name: c.type.name for c in self.choices},
            "predicted": self.predicted,
            "sensitivity": dict(self.sensitivity),
        }


def calibration_texts(request: QuantizeRequest, source: GGUFFile) -> list[list[int]]:
    """Return the texts to calibrate on as ids; none where nothing is calibrated. Raises UsageError."""
    if not request.texts:
        return []
    tokenizer, template = text_side(source, source.path)
    if request.texts == DEFAULT_TEXTS:
        return default_texts(tokenizer, template, request.tokens)
    return file_texts(Path(request.texts).expanduser(), tokenizer, template, request.tokens)


def planned(
    source: GGUFFile,
    request: QuantizeRequest,
    texts: Sequence[Sequence[int]],
    threads: native.Threads,
    kept: Mapping[str, Any],
    on_group: OnGroup | None = None,
) -> QuantizationPlan:
    """Choose each tensor's type; `kept`: the state of an interrupted run. Raises UsageError."""
    if request.target_bytes:
        return _of_target(source, request, texts, threads, kept, on_group)
    if request.as_base:
        return _as_base(source, request)
    name, kind = file_type(request.name)
    choices = choose(source, name, weighted=bool(texts))
    if not any(c.changes for c in choices):
        raise UsageError(
            f"nothing would change: every matrix of {source.path.name} already has the type that {name} gives it",
            "choose another type",
        )
    return QuantizationPlan(name, choices, _keys(source, request, name, kind.id, choices))


def _as_base(source: GGUFFile, request: QuantizeRequest) -> QuantizationPlan:
    """Give each matrix the type that it has in its model's file, and a changed one of fewer bits eight.

    On the grid of four bits a small change is rounded away: smollm2 answered as if it had no adapter
    (docs/log/adapt.md). T2 and T3, whose errors cancel, are kept. Raises UsageError for a type that is not written.
    """
    choices = []
    for tensor in in_layer_order(source.tensors.values()):
        own = own_type(tensor)
        coarse = tensor.type is not own and own not in (*FLOATS, *TABLE_TYPES)
        choices.append(TensorChoice(tensor, *(2 * [fitting(tensor, QuantType.Q8_0) if coarse else own])))
    for choice in choices:
        if choice.changes and choice.type not in WRITTEN:
            raise UsageError(
                f"{choice.tensor.name} has the type {choice.type.name}, which is not written",
                "name a type of the result: --quant Q4_K_M, for example",
            )
    meta = source.metadata
    by_id = {kind.id: name for name, kind in FILE_TYPES.items()}
    stated = meta.get_int("general.file_type", -1)
    name = meta.get_str("freehold.quantized_as", "") or by_id.get(stated, MIX)
    return QuantizationPlan(name, choices, _keys(source, request, name, max(stated, 0), choices))


def _of_target(
    source: GGUFFile,
    request: QuantizeRequest,
    texts: Sequence[Sequence[int]],
    threads: native.Threads,
    kept: Mapping[str, Any],
    on_group: OnGroup | None,
) -> QuantizationPlan:
    if "types" in kept:
        types = {name: QuantType[each] for name, each in kept["types"].items()}
        choices = [
            TensorChoice(t, types[t.name], types[t.name]) for t in in_layer_order(source.tensors.values())
        ]
        return _mix_plan(source, request, choices, kept["predicted"], kept["sensitivity"])
    allowed = GGML_TYPES if request.portable else MIX_TYPES
    unchanged = [TensorChoice(t, t.type, t.type) for t in in_layer_order(source.tensors.values())]
    keys = _keys(source, request, MIX, 0, unchanged) | {"freehold.requires": REQUIRES}
    header = len(gguf_header(keys, plans_of(unchanged)))
    default = replace(request, calibrate=DEFAULT_TEXTS, tokens=3 * MEASURED_ON)
    ids = _measured_on(texts) or _measured_on(calibration_texts(default, source))
    mix = mixed(source, ids, request.target_bytes, header, allowed, threads, on_group)
    return _mix_plan(source, request, mix.choices, mix.predicted, mix.sensitivity)


def _measured_on(texts: Sequence[Sequence[int]]) -> list[int]:
    """Join the beginnings of three texts, which are of several kinds: of those that are held out, where any are."""
    apart = [text for text, out in zip(texts, held_out(texts), strict=True) if out] or texts
    return [token for text in apart[:3] for token in text[: MEASURED_ON // 3]]


def _mix_plan(
    source: GGUFFile,
    request: QuantizeRequest,
    choices: Sequence[TensorChoice],
    predicted: float,
    sensitivity: Mapping[str, float],
) -> QuantizationPlan:
    sums = _bytes_of_types(choices)
    main = max(sums, key=lambda each: (sums[each], each))
    keys = _keys(source, request, MIX, _BASE_TYPE_IDS.get(main, 0), choices)
    return QuantizationPlan(MIX, choices, keys, predicted, sensitivity)


def _keys(
    source: GGUFFile, request: QuantizeRequest, name: str, type_id: int, choices: Sequence[TensorChoice]
) -> dict[str, Value]:
    ours: dict[str, Value] = {"freehold.quantized_as": name, "freehold.base.version": __version__}
    if request.base:
        ours["freehold.base"] = request.base
    if any(c.type in TABLE_TYPES for c in choices):
        ours["freehold.requires"] = REQUIRES
    if isinstance(source, FusedFile):
        ours["freehold.adapters"] = ",".join(source.adapters.digests)
    changed: dict[str, Value] = {
        "general.file_type": type_id,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return copied_keys(source) | changed | ours


# --- what the user should know -------------------------------------------------------------------------------


def notes_before(choices: Sequence[TensorChoice], size: int, source_size: int) -> list[str]:
    """Return what to say before the work: a coarse source, types that rows could not take, a larger result."""
    larger = f"the result, {human(size)}, is larger than the source, {human(source_size)}"
    return [*_coarse_source(choices), *_fallbacks(choices), *([larger] if size > source_size else [])]


def _coarse_source(choices: Sequence[TensorChoice]) -> list[str]:
    tensors = [c.tensor for c in choices if quantisable(c.tensor)]
    weights = sum(math.prod(t.shape) for t in tensors)
    bits = 8 * sum(t.nbytes for t in tensors) / weights if weights else math.inf
    if not bits < COARSE_BITS:
        return []
    return [
        f"the source itself has {bits:.1f} bits per weight; quality is measured against it, not the original"
    ]


def _fallbacks(choices: Iterable[TensorChoice]) -> list[str]:
    """Return a line for each kind of fall-back: what was wanted, what was given, why, and how many tensors."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for c in choices:
        if c.fell_back:
            groups.setdefault((c.wanted.name, c.type.name, c.tensor.shape[-1]), []).append(c.tensor.name)
    return [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} with rows of {columns} cannot be stored as {wanted} and "
        f"become{'s' if len(names) == 1 else ''} {fallback}: {names[0]}{', ...' if len(names) > 1 else ''}"
        for (wanted, fallback, columns), names in sorted(groups.items())
    ]


# --- writes a quantised model -----------------------------------------------------------------------
# The source's metadata, every tensor in its chosen type, in steps that a crash keeps.
# The header is complete before the first tensor, so the file of an interrupted run continues after the last
# tensor that was brought to disk, and comes out with the same bytes.

MODEL = "model.gguf"
KEEP_BYTES = 1 << 24  # written between two checkpoints: seconds of work
QUANTIZATION_VERSION = 2  # of ggml's block formats, as llama.cpp writes it

Encode: TypeAlias = Callable[[TensorChoice], Iterable[Bytes]]
OnTensor: TypeAlias = Callable[[int, int, TensorChoice], None]  # tensors done, in all, the one that follows


def plans_of(choices: Sequence[TensorChoice]) -> list[TensorPlan]:
    """Return the tensors to write, in order."""
    return [TensorPlan(c.tensor.name, c.type, c.tensor.shape) for c in choices]


def model_bytes(keys: dict[str, Value], choices: Sequence[TensorChoice]) -> int:
    """Return the size of the file to the byte, before anything is written."""
    return gguf_size(keys, plans_of(choices))


def write_model(
    run: RunFolder,
    keys: dict[str, Value],
    choices: Sequence[TensorChoice],
    encode: Encode,
    on_tensor: OnTensor | None = None,
    also: Callable[[], Mapping[str, Any]] = dict,
    *,
    by_layer: bool = False,
) -> Path:
    """Write the model into the run's folder, from where an interrupted run of the same inputs stopped.

    The run's state is saved after some bytes, after each tensor in a type of our own, which takes seconds, and with
    `by_layer` after each layer. It keeps its values; `whole` is the number of tensors on disk, and `also` adds more.
    """
    path = run.path(MODEL)
    state = dict(run.kept.state) if run.kept else {}
    whole = int(state.get("whole", 0))
    with GGUFWriter(path, keys, plans_of(choices), whole) as writer:
        kept_at = writer.nbytes
        layers = [layer_of(choice.tensor.name) for choice in choices]
        for done, choice in enumerate(choices[whole:], whole):
            if on_tensor is not None:
                on_tensor(done, len(choices), choice)
            for piece in encode(choice):
                writer.write(piece)
            ends_layer = by_layer and layers[done] >= 0 and layers[done] not in layers[done + 1 :]
            slow = choice.changes and choice.type in TABLE_TYPES
            if writer.nbytes - kept_at >= KEEP_BYTES or ends_layer or slow:
                kept_at = writer.nbytes
                run.keep(done + 1, {}, {**state, **also(), "whole": writer.sync()})
        writer.finish()
    run.keep(len(choices), {}, {**state, **also(), "whole": len(choices)})
    return path


def weight_bits(choices: Iterable[TensorChoice]) -> float:
    """Return the bits per weight of what was encoded, or NaN for nothing."""
    encoded = [c for c in choices if c.changes]
    weights = sum(math.prod(c.tensor.shape) for c in encoded)
    return 8 * sum(p.nbytes for p in plans_of(encoded)) / weights if weights else float("nan")


def by_type(choices: Iterable[TensorChoice]) -> dict[str, int]:
    """Return the bytes of each type, the most first."""
    sizes = _bytes_of_types(list(choices))
    return {t.name: n for t, n in sorted(sizes.items(), key=lambda item: -item[1])}


def _bytes_of_types(choices: Sequence[TensorChoice]) -> dict[QuantType, int]:
    sums: dict[QuantType, int] = {}
    for plan in plans_of(choices):
        sums[plan.type] = sums.get(plan.type, 0) + plan.nbytes
    return sums

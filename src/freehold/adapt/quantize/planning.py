"""What a quantised model will be, before anything is encoded: each tensor's type, the file's keys, the texts.

Knows requests, recipes and mixes; writes nothing. A mix is measured once: a run that continues takes the types that its
folder kept.
Path: quantising.quantise -> planned -> recipes.choose or mix.mixed -> QuantizationPlan
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold import _native as native
from freehold.adapt.quantize.mix import GGML_TYPES, OnGroup, mixed
from freehold.adapt.quantize.recipes import (
    FILE_TYPES,
    TensorChoice,
    choose,
    file_type,
    in_layer_order,
    quantisable,
)
from freehold.adapt.quantize.texts import TOKENS, default_texts, file_texts, held_out
from freehold.adapt.quantize.writing import plans_of, quantised_keys
from freehold.advisor.facts import Facts
from freehold.errors import UsageError
from freehold.evals.divergence import UNTIL
from freehold.formats import GGUFFile, QuantType, Tensor
from freehold.formats.gguf_writer import Value, gguf_header
from freehold.formats.trellis import REQUIRES
from freehold.formats.weight_types import TABLE_TYPES
from freehold.local.opening import text_side
from freehold.store.space import human
from freehold.version import __version__

BITS = {2: "T2", 3: "T3", 4: "Q4_K_M"}
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
class QuantizeRequest:
    """What to make of a model. One of `quant`, `bits` and `target_bytes`, or none for four bits."""

    quant: str = ""  # llama.cpp's name of a type
    bits: int = 0
    target_bytes: int = 0
    portable: bool = False  # with target_bytes: only types that llama.cpp reads
    calibrate: str = ""  # "default", or a file of text; empty: default for T2 and T3, nothing for others
    tokens: int = TOKENS  # most of the texts that are calibrated on
    report: bool = False
    text: Path | None = None  # what a report reads; None: the held-out text of the package
    until: float = UNTIL
    threads: int = 0  # 0: as many as help
    fresh: bool = False
    facts: Facts = field(default_factory=Facts)  # the user's, for the licence
    base: str = ""  # the model's name, written into the file; empty: the source's own word stays

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
        if self.bits and self.bits not in BITS:
            raise UsageError(f"--bits {self.bits}: one of {', '.join(map(str, BITS))} is written")

    @property
    def name(self) -> str:
        """The file type that is asked for; empty: a byte target chooses."""
        return "" if self.target_bytes else file_type(self.quant or BITS[self.bits or 4])[0]

    @property
    def texts(self) -> str:
        """What to calibrate on: "default", a path, or nothing."""
        own = self.name in ("T2", "T3") or (self.target_bytes and not self.portable)
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
    name, kind = file_type(request.name)
    choices = choose(source, name, weighted=bool(texts))
    if not any(c.changes for c in choices):
        raise UsageError(
            f"nothing would change: every matrix of {source.path.name} already has the type that {name} gives it",
            "choose another type",
        )
    return QuantizationPlan(name, choices, _keys(source, request, name, kind.id, choices))


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
    ids = _measured_on(texts) or _measured_on(calibration_texts(_with_default(request), source))
    mix = mixed(source, ids, request.target_bytes, header, allowed, threads, on_group)
    return _mix_plan(source, request, mix.choices, mix.predicted, mix.sensitivity)


def _with_default(request: QuantizeRequest) -> QuantizeRequest:
    return QuantizeRequest(calibrate=DEFAULT_TEXTS, tokens=3 * MEASURED_ON, target_bytes=request.target_bytes)


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
    sums: dict[QuantType, int] = {}
    for plan in plans_of(choices):
        sums[plan.type] = sums.get(plan.type, 0) + plan.nbytes
    main = max(sums, key=lambda each: (sums[each], each))
    keys = _keys(source, request, MIX, _BASE_TYPE_IDS.get(main, 0), choices)
    return QuantizationPlan(MIX, choices, keys, predicted, sensitivity)


def _keys(
    source: GGUFFile, request: QuantizeRequest, name: str, type_id: int, choices: Sequence[TensorChoice]
) -> dict[str, Value]:
    ours: dict[str, Value] = {"freehold.quantized_as": name, "freehold.version": __version__}
    if request.base:
        ours["freehold.base"] = request.base
    if any(c.type in TABLE_TYPES for c in choices):
        ours["freehold.requires"] = REQUIRES
    return quantised_keys(source, type_id, ours)


# --- what the user should know -------------------------------------------------------------------------------


def notes_before(choices: Sequence[TensorChoice], size: int, source_size: int) -> list[str]:
    """Return what to say before the work: a coarse source, types that rows could not take, a larger result."""
    larger = f"the result, {human(size)}, is larger than the source, {human(source_size)}"
    notes = [_coarse_source(choices), *_fallbacks(choices), larger if size > source_size else ""]
    return [note for note in notes if note]


def _coarse_source(choices: Sequence[TensorChoice]) -> str:
    bits = _bits([c.tensor for c in choices if quantisable(c.tensor)])
    if not bits < COARSE_BITS:
        return ""
    return f"the source itself has {bits:.1f} bits a weight; quality is measured against it, not the original"


def _bits(tensors: Sequence[Tensor]) -> float:
    weights = sum(math.prod(t.shape) for t in tensors)
    return 8 * sum(t.nbytes for t in tensors) / weights if weights else math.inf


def _fallbacks(choices: Iterable[TensorChoice]) -> list[str]:
    """Return a line for each kind of fall-back: what was wanted, what was given, why, and how many tensors."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for c in choices:
        if c.fell_back:
            groups.setdefault((c.wanted.name, c.type.name, c.tensor.shape[-1]), []).append(c.tensor.name)
    return [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} with rows of {columns} cannot be {wanted} and "
        f"become{'s' if len(names) == 1 else ''} {fallback}: {names[0]}{', ...' if len(names) > 1 else ''}"
        for (wanted, fallback, columns), names in sorted(groups.items())
    ]

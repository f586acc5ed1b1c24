"""What a quantised model will be, before anything is encoded: each tensor's type, the file's keys, the texts.

Knows requests, recipes and mixes; writes nothing. A mix is measured once: a run that continues takes the types that its
folder kept.
Path: quantising.quantise -> planned -> recipes.choose or mix.mixed -> QuantizationPlan
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from freehold import _native as native
from freehold.adapt.quantize.mix import GGML_TYPES, OnGroup, mixed
from freehold.adapt.quantize.recipes import (
    FILE_TYPES,
    TensorChoice,
    choose,
    file_type,
    in_layer_order,
    layer_of,
    quantisable,
)
from freehold.adapt.quantize.texts import TOKENS, default_texts, file_texts, held_out
from freehold.adapt.run import RunFolder
from freehold.advisor.facts import Facts
from freehold.errors import UsageError
from freehold.evals.divergence import UNTIL
from freehold.formats import GGUFFile, QuantType, Tensor
from freehold.formats.gguf_writer import (
    Bytes,
    GGUFWriter,
    TensorPlan,
    Value,
    copied_keys,
    gguf_header,
    gguf_size,
)
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
    return (
        f"the source itself has {bits:.1f} bits per weight; quality is measured against it, not the original"
    )


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


# --- writes a quantised model -----------------------------------------------------------------------
# The source's metadata, every tensor in its chosen type, in steps that a crash keeps.
# The header is complete before the first tensor, so the file of an interrupted run continues after the last
# tensor that was brought to disk, and comes out with the same bytes.

MODEL = "model.gguf"
KEEP_BYTES = 1 << 24  # written between two checkpoints: seconds of work
QUANTIZATION_VERSION = 2  # of ggml's block formats, as llama.cpp writes it

Encode: TypeAlias = Callable[[TensorChoice], Iterable[Bytes]]
OnTensor: TypeAlias = Callable[[int, int, TensorChoice], None]  # tensors done, in all, the one that follows


def quantised_keys(source: GGUFFile, file_type: int, ours: dict[str, Value]) -> dict[str, Value]:
    """Return the source's metadata with what quantising changes, and keys of our own."""
    changed: dict[str, Value] = {
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return copied_keys(source) | changed | ours


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
    weights = sum(_elements(c) for c in encoded)
    return 8 * sum(p.nbytes for p in plans_of(encoded)) / weights if weights else float("nan")


def by_type(choices: Iterable[TensorChoice]) -> dict[str, int]:
    """Return the bytes of each type, the most first."""
    sizes: dict[QuantType, int] = {}
    for plan in plans_of(list(choices)):
        sizes[plan.type] = sizes.get(plan.type, 0) + plan.nbytes
    return {t.name: n for t, n in sorted(sizes.items(), key=lambda item: -item[1])}


def _elements(choice: TensorChoice) -> int:
    count = 1
    for dim in choice.tensor.shape:
        count *= dim
    return count

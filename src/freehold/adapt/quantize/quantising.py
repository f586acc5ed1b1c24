"""`freehold quantize`, without the command line: a stored model in, a folder with model.gguf and receipt.json out.

Knows the order of the work: choose types, write the model in steps that a crash keeps, measure, write down. Knows no
terminal. Nothing is fetched; no network is used.
Path: cli/quantize.py -> quantise -> planning, writing, report -> RunFolder.finish
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freehold import _native as native
from freehold.adapt.base import check_base
from freehold.adapt.licences import base_licence
from freehold.adapt.quantize.calibrated import CalibratedEncoder
from freehold.adapt.quantize.calibration import OnText
from freehold.adapt.quantize.kept_layers import KeptLayers
from freehold.adapt.quantize.mix import OnGroup
from freehold.adapt.quantize.planning import (
    QuantizationPlan,
    QuantizeRequest,
    calibration_texts,
    notes_before,
    planned,
)
from freehold.adapt.quantize.recipes import layer_of
from freehold.adapt.quantize.report import Measurement, coarse_note, measured
from freehold.adapt.quantize.spent import SpentSeconds
from freehold.adapt.quantize.texts import texts_hash
from freehold.adapt.quantize.writing import MODEL, OnTensor, by_type, model_bytes, weight_bits, write_model
from freehold.adapt.receipt import file_digest, model_digest, receipt
from freehold.adapt.run import RunFolder
from freehold.config import Settings
from freehold.errors import UnsupportedModel
from freehold.evals.side_by_side import OnBlock
from freehold.formats import GGUFFile, open_model_file
from freehold.formats.trellis import BITS
from freehold.machine import default_threads
from freehold.models.binding.bind import Source, read_source
from freehold.store import ModelRef
from freehold.version import __version__

SPOOL = "streams.tmp"  # what texts have become on their way through the layers


@dataclass(frozen=True, slots=True)
class Watching:
    """Callbacks for notes and progress, and the seconds that they may show."""

    on_note: Callable[[str], None] = lambda _: None
    on_group: OnGroup | None = None
    on_tensor: OnTensor | None = None
    on_text: OnText | None = None
    on_block: OnBlock | None = None
    spent: SpentSeconds = field(default_factory=SpentSeconds)


def quantise(
    ref: ModelRef,
    out: Path,
    request: QuantizeRequest,
    settings: Settings,
    watching: Watching | None = None,
) -> dict[str, Any]:
    """Quantise a model into the folder `out`; return its receipt.

    The same call after an interruption continues, and makes the same bytes. Raises UsageError, UnsupportedModel,
    CapacityExceeded and StoreError.
    """
    request.check()
    check_base(ref)
    if not ref.source.startswith("file:"):  # a file's name says nothing of what is in it
        request = replace(request, base=ref.name)
    watching = watching or Watching()
    threads = request.threads or default_threads()
    pool = native.Threads(threads)
    with closing(_opened(ref)) as source:
        bound = read_source(source)
        texts = calibration_texts(request, source)
        inputs = _inputs(ref, request, texts)
        with RunFolder.open(out, "quantize", inputs, fresh=request.fresh) as run:
            kept = run.kept.state if run.kept else {}
            spent = watching.spent
            spent.resume(kept.get("spent", {}))
            with spent.on("mix"):
                plan = planned(source, request, texts, pool, kept, watching.on_group)
            size = model_bytes(dict(plan.keys), plan.choices)
            for note in notes_before(plan.choices, size, _source_bytes(source)):
                watching.on_note(note)
            if not kept:
                run.keep(0, {}, {**plan.as_state(), "spent": spent.so_far()})
            with spent.on("encoding"):
                path = _written(run, plan, bound, texts, pool, watching)
            source.check_whole()
            with spent.on("report"):
                measurement = _measured(ref, path, request, settings, threads, watching)
            dampings = run.kept.state["damping"] if run.kept else {}
            record = _receipt(ref, source, inputs, plan, path, measurement, request) | {
                "damping": dict(dampings),
                "cpu_seconds_by_part": spent.so_far(),
            }
            for note in record["notes"]:
                watching.on_note(note)
            run.finish(record)
    return record


def _opened(ref: ModelRef) -> GGUFFile:
    """Open a source. Raises UnsupportedModel for what is not written as a GGUF."""
    opened = open_model_file(ref.path)
    if isinstance(opened, GGUFFile):
        return opened
    opened.close()
    raise UnsupportedModel(
        f"{ref.name} is a folder of safetensors; a GGUF is what is quantised",
        "take a GGUF of the model in F16, BF16 or Q8_0; freehold pull --quant q4 rounds safetensors when they load",
    )


def _inputs(ref: ModelRef, request: QuantizeRequest, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what decides the result's bytes."""
    return {
        "base": {"name": ref.name, "sha256": model_digest(ref)},
        "type": request.name,
        "target_bytes": request.target_bytes,
        "portable": request.portable,
        "calibration": {
            "texts": request.texts,
            "tokens": sum(map(len, texts)),
            "sha256": texts_hash(texts) if texts else "",
        },
        "code": __version__,
    }


def _written(
    run: RunFolder,
    plan: QuantizationPlan,
    bound: Source,
    texts: Sequence[Sequence[int]],
    pool: native.Threads,
    watching: Watching,
) -> Path:
    kept = run.kept.state.get("damping", {}) if run.kept else {}
    bits = max((BITS.get(c.type, 0) for c in plan.choices), default=0)
    dampings = {int(layer): damping for layer, damping in kept.items()}
    spent = watching.spent
    whole = int(run.kept.state.get("whole", 0)) if run.kept else 0
    wanted = (layer_of(c.tensor.name) for c in plan.choices[whole:] if c.changes)
    layers = KeptLayers(run.folder, next((n for n in wanted if n >= 0), 0))
    with CalibratedEncoder(
        bound,
        texts,
        run.path(SPOOL),
        pool,
        bits=bits,
        dampings=dampings,
        spent=spent,
        kept=layers,
        on_text=watching.on_text,
    ) as encoder:
        path = write_model(
            run,
            dict(plan.keys),
            plan.choices,
            encoder.pieces,
            watching.on_tensor,
            lambda: {
                "damping": {str(layer): each for layer, each in encoder.dampings.items()},
                "spent": spent.so_far(),
            },
            by_layer=bool(texts),
        )
    layers.clear()
    run.path(SPOOL).unlink(missing_ok=True)  # of a run that was killed
    return path


def _measured(
    ref: ModelRef,
    path: Path,
    request: QuantizeRequest,
    settings: Settings,
    threads: int,
    watching: Watching,
) -> Measurement | None:
    if not request.report:
        return None
    return measured(
        ref.path,
        path,
        settings,
        text=request.text,
        until=request.until,
        threads=threads,
        on_block=watching.on_block,
    )


def _source_bytes(source: GGUFFile) -> int:
    return sum(path.stat().st_size for path in source.paths)


def _receipt(
    ref: ModelRef,
    source: GGUFFile,
    inputs: Mapping[str, Any],
    plan: QuantizationPlan,
    path: Path,
    measurement: Measurement | None,
    request: QuantizeRequest,
) -> dict[str, Any]:
    result = _result(source, plan, path)
    layers = weight_bits(c for c in plan.choices if layer_of(c.tensor.name) >= 0)
    coarse = coarse_note(layers, result["weights"], measurement.divergence if measurement else None)
    return receipt(
        "quantize",
        inputs,
        result=result,
        licence=base_licence(ref, request.facts).as_json(),
        notes=[coarse] if coarse else [],
        **({} if plan.predicted is None else {"mix": _mix(plan, plan.predicted)}),
        **(measurement.as_json() if measurement else {}),
    )


def _result(source: GGUFFile, plan: QuantizationPlan, path: Path) -> dict[str, Any]:
    bits = weight_bits(plan.choices)
    return {
        "file": MODEL,
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "source_bytes": _source_bytes(source),
        "type": plan.name,
        "bits_a_weight": None if math.isnan(bits) else round(bits, 4),
        "weights": sum(math.prod(c.tensor.shape) for c in plan.choices),
        "bytes_by_type": by_type(plan.choices),
        "fell_back": {
            c.tensor.name: {"wanted": c.wanted.name, "given": c.type.name}
            for c in plan.choices
            if c.fell_back
        },
    }


def _mix(plan: QuantizationPlan, predicted: float) -> dict[str, Any]:
    return {
        "predicted_divergence": predicted,
        "sensitivity": dict(plan.sensitivity),
        "types": {c.tensor.name: c.type.name for c in plan.choices if c.changes},
    }

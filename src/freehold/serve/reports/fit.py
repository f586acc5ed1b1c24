"""Whether a model fits, how long a context and how fast, here or on named hardware, per quantisation.

Knows which quantisations are asked about and where sizes come from; the answers are advisor/fit.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from freehold.base import catalog
from freehold.base.catalog import quants
from freehold.base.catalog.model import Model
from freehold.base.config import Settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.layers import PICTURES_AT_ONCE
from freehold.base.machine import show_bytes
from freehold.base.types import KvType
from freehold.choose.advisor import engines
from freehold.choose.advisor import fit as fits
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue, in_quant
from freehold.choose.advisor.file_anatomy import ROUNDINGS, from_file
from freehold.choose.advisor.fit import Fit, Misfit, Place
from freehold.choose.choosing import with_published_tower, with_tower

SCHEMA = 1
# Default quantisations: here and for llama.cpp, and for engines on GPUs.
USUAL = ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
_SPEECH = "whisper"
USUAL_ON = ("Q4_K_M", "Q8_0", "INT4", "NVFP4", "MXFP4", "FP8", "BF16")


@dataclass(frozen=True, slots=True)
class FitReport:
    """A row for each quantisation of one model in one place."""

    asked: str
    place: Place
    rows: tuple[Fit | Misfit, ...]
    held: Anatomy | None  # the stored file, whose row has this very object as its anatomy
    known: Model | None  # what the catalogue has of it

    def as_json(self) -> dict[str, Any]:
        """Return it as --json has it."""
        return {
            "schema": SCHEMA,
            "model": self.known.id if self.known else self.asked,
            "place": place_json(self.place),
            "context": self.rows[0].context if self.rows else None,
            "fits": [_row_json(row, self.held, self.known) for row in self.rows],
        }


def fit_report(
    settings: Settings,
    model: str,
    context: int | None = None,
    *,
    quant: str = "",
    on: str = "",
    engine: str = "",
    kv_type: KvType = "f16",
    measure: bool = False,
    disk: bool = True,
) -> FitReport:
    """Predict a model's memory, context and speed. `on`: hardware, here if empty; `measure`: this machine again.

    `disk`: whether `model` may be a path.

    Raises ModelNotFound with the nearest names, UsageError for an unknown quantisation, hardware or engine.
    """
    held, known, packed = _find(settings, model, disk)
    place = _place(settings, on, engine, measure=measure)
    anatomies = _anatomies(held, known, quant, place)
    rows = [fits.fit(a, place, context, kv_type=kv_type, packed=packed and a is held) for a in anatomies]
    return FitReport(model, place, tuple(rows if place.rig else _by_size(rows)), held, known)


def _by_size(rows: list[Fit | Misfit]) -> list[Fit | Misfit]:
    """Order rows by what their weights take in memory, and name the largest that fits to those that do not.

    A type without a kernel is converted at load: Q3_K_M takes more memory here than Q4_K_M.
    """
    ordered = sorted(rows, key=lambda row: row.memory.weights if row.memory else row.anatomy.weight_bytes)
    fitting = [row.anatomy.quant for row in ordered if isinstance(row, Fit)]
    if not fitting:
        return ordered
    pointed: list[Fit | Misfit] = []
    for row in ordered:
        if isinstance(row, Misfit):
            shorter = f"--context {row.longest} fits; " if row.longest else ""
            row = replace(row, hint=f"{shorter}{fitting[-1]} fits, or --on larger hardware")
        pointed.append(row)
    return pointed


def _find(settings: Settings, text: str, disk: bool) -> tuple[Anatomy | None, Model | None, bool]:
    """Return the stored file's sizes, the catalogue's facts, and whether its weights are packed."""
    from freehold.run.store import Store
    from freehold.run.store.eyes import hears

    store = Store(settings)
    try:
        ref = store.resolve(text, disk=disk)
    except ModelNotFound:
        return None, catalog.model(text), False  # raises with the nearest names
    rounding = ref.rounding or ("q8" if hears(ref) else "")  # as speech models are loaded
    held, known = with_tower(from_file(ref.path, rounding), ref), None
    for name in (text, ref.name):
        with suppress(ModelNotFound):
            known = known or catalog.model(name)
    named = f"{ref.digest}-{ref.rounding}" if ref.rounding else ref.digest
    packed = bool(ref.digest) and any(store.packs.glob(f"{named}-*.pack"))
    return held, known if known and known.may_have(held.weights) else None, packed


def _place(settings: Settings, hardware: str, engine: str, *, measure: bool) -> Place:
    if hardware:
        return fits.place_on(catalog.rig(hardware), engine)
    if engine not in ("", fits.OURS):
        raise UsageError(f"--engine {engine} needs --on HARDWARE", "such as --on rtx-4090 or --on zen4-2vcpu")
    if measure:
        from freehold.choose.advisor import machine

        for _ in range(machine.FIRST):
            machine.measured(settings.home)
    from freehold.choose.choosing import here

    return here(settings)


def _anatomies(held: Anatomy | None, known: Model | None, quant: str, place: Place) -> list[Anatomy]:
    """Return the quantisations to show, the stored file's own first; the others are computed from it."""
    names = _names(quant, place, known.native if known else "")
    if _SPEECH in (held and held.architecture, known and known.architecture) and not quant and not place.rig:
        names = () if held else ("Q8_0",)  # it runs in int8 alone
    if held is not None:
        own = [held] if quant.upper() in ("", "ALL", held.quant.upper()) else []
        return [*own, *(_in_quant(held, name) for name in names if name != held.quant)]
    if known is None:
        return []
    published = [from_catalogue(known, name) for name in names]
    return published if place.rig else [with_published_tower(each, known) for each in published]


def _in_quant(held: Anatomy, name: str) -> Anatomy:
    """Return a stored model in another quantisation; a folder's weights in a rounding by their own shapes."""
    folder = held.path is not None and held.path.is_dir()
    if folder and held.path and name in ROUNDINGS:
        return replace(from_file(held.path, name), tower=held.tower)
    return in_quant(held, name)


def _names(quant: str, place: Place, native: str) -> Iterable[str]:
    """Return the quantisations to show; by default none that is finer than the published weights."""
    if quant and quant.lower() != "all":
        return (quants.mix(quant).name,)
    if quant:
        return tuple(m.name for m in quants.mixes() if place.rig or m.file_type >= 0)
    if place.rig is None:
        return (native, *USUAL) if native == "MXFP4" else USUAL  # which files keep as published
    own = () if native in ("", *USUAL_ON, "F16", "F32") else (native,)
    return (*own, *(name for name in USUAL_ON if not quants.finer(name, native)))


def run_command(row: Fit, known: Model | None, held: Anatomy | None = None) -> str:
    """Return the command that runs a row on its hardware; empty if no files are known for it."""
    own = held is not None and row.anatomy is held
    if known is None:
        here = held is not None and own and row.engine == fits.OURS
        if held and here and held.architecture == _SPEECH:
            return f"freehold transcribe FILE --model {held.path}"
        return f"freehold run {held.path} --context {row.context}" if held and here else ""
    name = (known.name or str(held.path)) if held is not None and own else ""
    count = row.place.rig.count if row.place.rig else 1
    quant = row.anatomy.quant
    return engines.line(known, quant, row.engine, devices=count, context=row.context, held=name).command


def place_json(place: Place) -> dict[str, Any]:
    machine = place.machine
    if machine is None:
        return {"name": place.name, "engine": place.engine or None, "memory": place.free, "free": place.free}
    rates = {"read_gb_s": machine.rates.read_gb_s, "int8_gops": machine.rates.int8_gops}
    return {
        "name": place.name,
        "engine": place.engine,
        "memory": machine.memory,
        "free": machine.free,
        "cpu": machine.cpu,
        "threads": machine.threads,
        "isa": machine.isa,
        "gpus": [{"title": g.title, "memory": g.memory, "device": g.device or None} for g in machine.gpus],
        **rates,
        "measured": machine.rates.measured,
        "damaged_runs": place.history.damaged if place.history else 0,
    }


def _row_json(row: Fit | Misfit, held: Anatomy | None, known: Model | None) -> dict[str, Any]:
    memory = row.memory
    parts = None
    if memory is not None:
        parts = {"weights": memory.weights, "cache": dict(memory.cache), "activations": memory.activations}
        parts |= {"overhead": memory.overhead, "tower": memory.tower, "features": memory.features}
        parts["total"] = memory.total
    shared = {
        "quant": row.anatomy.quant,
        "held": row.anatomy is held,
        "exact": row.anatomy.exact,
        "fits": isinstance(row, Fit),
        "engine": row.engine,
        "memory": parts,
        "needs": needs(row),
        "longest_context": row.longest or None,
        "pictures": _pictures_json(row),
    }
    if isinstance(row, Misfit):
        return shared | {"reason": row.reason, "hint": row.hint}
    return shared | {
        "load_s": row.load_s.as_json(),
        "prefill_tok_s": row.prefill.as_json() if row.prefill else None,
        "decode_tok_s": row.decode.as_json(),
        "streams": row.streams,
        "basis": row.basis,
        "command": run_command(row, known, held) or None,
    }


def _pictures_json(row: Fit | Misfit) -> dict[str, Any] | None:
    """Return what pictures take; None for a model that reads text alone, or is judged elsewhere."""
    tower = row.anatomy.tower
    if tower is None or row.place.rig is not None:
        return None
    times = row.screen if isinstance(row, Fit) else None
    return {
        "tower": tower.name or None,
        "least_tokens": tower.least or None,
        "most_tokens": tower.most or None,
        "at_once": PICTURES_AT_ONCE,
        "at_once_bytes": tower.at_once or None,
        "screen": times
        and {
            "width": times.picture.width,
            "height": times.picture.height,
            "tokens": times.picture.tokens,
            "encode_s": times.encode.as_json(),
            "prefill_s": times.prefill.as_json(),
        },
    }


def pictures_lines(row: Fit | Misfit) -> Iterable[str]:
    """Say what a model's towers take, and what a screenshot costs."""
    tower = row.anatomy.tower
    if tower is None or row.place.rig is not None:
        return
    if row.anatomy.architecture == _SPEECH:
        kept = show_bytes(tower.kept)
        yield f"audio: {show_bytes(tower.weights)} for the encoder and up to {kept} of windows, within the memory above"
        return
    sounds = tower.sounds
    if sounds is not None:
        yield (
            f"audio: {show_bytes(sounds.weights)} for the encoder, within the memory above; at most "
            f"{sounds.seconds:g} s per recording, {sounds.tokens:,} tokens"
        )
        if sounds.name == tower.name:
            return
    kept = f"{show_bytes(tower.kept)} of their features"
    weights = tower.weights - (sounds.weights if sounds else 0)
    yield f"pictures: {show_bytes(weights)} for the vision encoder and up to {kept}, within the memory above"
    if isinstance(row, Fit) and (times := row.screen) is not None:
        picture = times.picture
        size = f"{picture.width} x {picture.height} pixels: {picture.tokens:,} tokens"
        yield f"a picture of {size}, {times.encode} s to encode and {times.prefill} s of prefill"
        yield f"{PICTURES_AT_ONCE} of them at once: {show_bytes(tower.at_once)} more"


# --- what a model needs in memory, in one sentence: Models, Engine, `fit` and `ps` all say this one -


def needs(fitted: Fit | Misfit) -> str:
    """Return "needs 648.2 MB at 4,096 tokens of context"; "" where its sizes are not known.

    That is the process with its weights and the cache of one conversation of this length.
    """
    if fitted.memory is None:
        return ""
    return f"needs {show_bytes(fitted.memory.total)} at {fitted.context:,} tokens of context"

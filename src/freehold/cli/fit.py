"""`freehold fit MODEL`: memory, longest context and speed, here or on named hardware, per quantisation.

Knows options, columns and the commands that run a model; the answers are advisor/fit.py's.
Path: main -> fit -> file_anatomy.from_file or anatomy.from_catalogue -> advisor.fit.fit
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click

from freehold import catalog
from freehold.advisor import commands
from freehold.advisor import fit as fits
from freehold.advisor.anatomy import Anatomy, from_catalogue, in_quant
from freehold.advisor.file_anatomy import from_file
from freehold.advisor.fit import Fit, Misfit, Place
from freehold.advisor.interval import Interval, digits
from freehold.advisor.rounded import ROUNDINGS
from freehold.catalog import quants
from freehold.catalog.model import Model
from freehold.cli.report.facts import tokens
from freehold.cli.shared import Amount, json_option, kv_option, table
from freehold.config import Settings
from freehold.errors import ModelNotFound, UsageError
from freehold.machine import show_bytes

SCHEMA = 1
HEAD = ("QUANT", "WEIGHTS", "CACHE", "OTHER", "NEEDS", "LONGEST", "LOAD s", "PREFILL tok/s", "DECODE tok/s")
# Default quantisations: here and for llama.cpp, and for engines on GPUs.
USUAL = ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
USUAL_ON = ("Q4_K_M", "Q8_0", "INT4", "NVFP4", "MXFP4", "FP8", "BF16")
_WIDER = 1.15  # times the file's bytes that weights may take here without a note
_HELD = "held"  # marks the row whose file is in the store


@click.command("fit")
@click.argument("model")
@click.option(
    "--context",
    type=Amount(whole=True),
    help="Context in tokens: 8192, 32k. Default: 4,096, or the model's own.",
)
@click.option(
    "--quant",
    metavar="Q|all",
    default="",
    help="Quantisation, such as Q4_K_M, or q8, q6, q4 as pull rounds; default: the usual ones.",
)
@click.option("--on", "hardware", metavar="HARDWARE", default="", help="Hardware: h100, 2xh100, m4-max:64gb.")
@click.option(
    "--engine", metavar="NAME", default="", help="With --on: vllm, sglang, tensorrt-llm, llama.cpp, mlx."
)
@kv_option
@click.option("--measure", is_flag=True, help="Measure this machine again (one second).")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    context: int | None,
    quant: str,
    hardware: str,
    engine: str,
    kv_type: str,
    measure: bool,
    as_json: bool,
) -> None:
    """Predict whether MODEL fits, its longest context and its speed, with 80 % ranges.

    Without --on the prediction is for this machine and Freehold's engine: the machine is measured once, and every run
    corrects the next prediction. Sizes come from the file of a model in the store, otherwise from published facts.

    With --json, prints {"schema": 1, "model": ..., "place": {...}, "context": ..., "fits": [...]}.
    """
    held, known, packed = _find(settings, model)
    place = _place(settings, hardware, engine, measure=measure)
    asked = _anatomies(held, known, quant, place)
    rows = [fits.fit(a, place, context, kv_type=kv_type, packed=packed and a is held) for a in asked]
    if as_json:
        click.echo(json.dumps(_as_json(model, place, rows, held, known), indent=1))
    else:
        _print(place, rows, held, known)


def _find(settings: Settings, text: str) -> tuple[Anatomy | None, Model | None, bool]:
    """Return the stored file's sizes, the catalogue's facts, and whether its weights are packed."""
    from freehold.store import Store

    store = Store(settings)
    try:
        ref = store.resolve(text)
    except ModelNotFound:
        return None, catalog.model(text), False  # raises with the nearest names
    held, known = from_file(ref.path, ref.rounding), None
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
        from freehold.advisor import machine

        for _ in range(machine.FIRST):
            machine.measured(settings.home)
    from freehold.choosing import here

    return here(settings)


def _anatomies(held: Anatomy | None, known: Model | None, quant: str, place: Place) -> list[Anatomy]:
    """Return the quantisations to show, the stored file's own first; the others are computed from it."""
    names = _names(quant, place, known.native if known else "")
    if held is not None:
        own = [held] if quant.upper() in ("", "ALL", held.quant.upper()) else []
        return [*own, *(_in_quant(held, name) for name in names if name != held.quant)]
    return [from_catalogue(known, name) for name in names] if known else []


def _in_quant(held: Anatomy, name: str) -> Anatomy:
    """Return a stored model in another quantisation; a folder's weights in a rounding by their own shapes."""
    folder = held.path is not None and held.path.is_dir()
    return from_file(held.path, name) if folder and held.path and name in ROUNDINGS else in_quant(held, name)


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


# --- for people ---------------------------------------------------------------------------------------


def _print(place: Place, rows: list[Fit | Misfit], held: Anatomy | None, known: Model | None) -> None:
    name = known.name or known.id if known else held.name if held else ""
    click.echo(f"{name} on {_where(place)}, {rows[0].context:,} tokens of context")
    fitting = [row for row in rows if isinstance(row, Fit)]
    if fitting:
        several = place.rig is not None and not place.engine
        head = (*HEAD, "ENGINE") if several else HEAD
        cells = [_cells(row, held) + ((row.engine,) if several else ()) for row in fitting]
        table(head, cells, right=tuple(range(1, 7)))
    misfits = [row for row in rows if isinstance(row, Misfit)]
    for reason in dict.fromkeys(row.reason for row in misfits if row.refused):
        click.echo(reason)
    for row in misfits:
        if not row.refused:
            click.echo(f"{row.anatomy.quant} does not fit: {row.reason}")
    for hint in dict.fromkeys(row.hint for row in misfits):
        click.echo(f"  {hint}")
    for line in _notes(place, fitting, held):
        click.echo(line)
    if fitting and (run := run_command(_best(fitting, held), known, held)):
        click.echo(f"to run it: {run}")


def _where(place: Place) -> str:
    machine = place.machine
    if machine is None:
        return place.name
    free = f"{show_bytes(machine.free)} of {show_bytes(machine.memory)} free"
    free += " in its control group" if machine.limited else ""
    return f"this machine ({machine.cpu}, {machine.threads} threads, {machine.isa}, {free})"


def _cells(row: Fit, held: Anatomy | None) -> tuple[str, ...]:
    memory = row.memory
    cache, other = sum(memory.cache.values()), memory.activations + memory.overhead
    return (
        row.anatomy.quant + (f" ({_HELD})" if row.anatomy is held else ""),
        show_bytes(memory.weights),
        show_bytes(cache) if row.anatomy.cache_known else "?",
        show_bytes(other),
        show_bytes(memory.total),
        tokens(row.longest) or "?",
        digits(row.load_s.mid),
        _rate(row.prefill),
        _rate(row.decode),
    )


def _rate(speed: Interval | None) -> str:
    return "?" if speed is None else str(speed)


def _notes(place: Place, fitting: list[Fit], held: Anatomy | None) -> Iterable[str]:
    if fitting:
        yield f"speeds: {fitting[0].basis}; 80 % ranges"
    if held is not None and len(fitting) > 1:
        yield "sizes: exact for the stored file; for the others its matrices in each quantisation's usual types"
    elif held is None and fitting:
        yield "sizes: published counts in each quantisation's usual types"
    wider = [r.anatomy.quant for r in fitting if r.memory.weights > _WIDER * r.anatomy.weight_bytes]
    if wider:
        yield f"{', '.join(wider)}: larger in memory than in the file, as the engine has no kernel for that type"
    unknown = [row for row in fitting if not row.anatomy.cache_known]
    if unknown:
        yield "this model's layers are not known: its cache is not included, and the speeds leave it out"
    machine = place.machine
    for gpu in machine.gpus if machine else ():
        hint = f"--on {gpu.device} predicts for it" if gpu.device else "not in the catalogue"
        yield f"this machine has {gpu.title}: {hint}"
    if machine and machine.device:
        yield f"other engines use this machine's GPU: --on {machine.device} predicts for them"
    if place.history and place.history.crowded:
        yield f"note: {place.history.crowded} runs under other load are left out"
    if place.history and place.history.damaged:
        yield f"note: {place.history.damaged} damaged lines of runs.jsonl were left out"


def _best(fitting: list[Fit], held: Anatomy | None) -> Fit:
    """Return the row to run: the held file's, else the usual quantisation, else the first."""
    ranked = sorted(
        fitting, key=lambda row: (row.anatomy is not held, row.anatomy.quant not in ("Q4_K_M", "BF16"))
    )
    return ranked[0]


def run_command(row: Fit, known: Model | None, held: Anatomy | None = None) -> str:
    """Return the command that runs a row on its hardware; empty if no files are known for it."""
    own = held is not None and row.anatomy is held
    if known is None:
        here = held is not None and own and row.engine == fits.OURS
        return f"freehold run {held.path} --context {row.context}" if held and here else ""
    name = (known.name or str(held.path)) if held is not None and own else ""
    count = row.place.rig.count if row.place.rig else 1
    quant = row.anatomy.quant
    return commands.line(known, quant, row.engine, devices=count, context=row.context, held=name).command


# --- for programs -------------------------------------------------------------------------------------


def _as_json(
    asked: str, place: Place, rows: list[Fit | Misfit], held: Anatomy | None, known: Model | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": known.id if known else asked,
        "place": _place_json(place),
        "context": rows[0].context if rows else None,
        "fits": [_row_json(row, held, known) for row in rows],
    }


def _place_json(place: Place) -> dict[str, Any]:
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
        parts |= {"overhead": memory.overhead, "total": memory.total}
    shared = {
        "quant": row.anatomy.quant,
        "held": row.anatomy is held,
        "exact": row.anatomy.exact,
        "fits": isinstance(row, Fit),
        "engine": row.engine,
        "memory": parts,
        "longest_context": row.longest or None,
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

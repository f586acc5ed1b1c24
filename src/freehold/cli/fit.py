"""`freehold fit MODEL`: memory, longest context and speed, here or on named hardware, per quantisation.

Knows options and columns; the report is reports/fit.py's, its answers advisor/fit.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from freehold.base.catalog.model import Model
from freehold.base.config import Settings
from freehold.base.machine import show_bytes
from freehold.base.terminal import Ticking
from freehold.choose.advisor.anatomy import Anatomy
from freehold.choose.advisor.fit import Fit, Misfit, Place
from freehold.choose.advisor.interval import Interval, digits
from freehold.cli.report.facts import tokens
from freehold.cli.shared import Amount, json_option, kv_option, table
from freehold.serve.reports.fit import fit_report, needs, pictures_lines, run_command

HEAD = ("QUANT", "WEIGHTS", "CACHE", "OTHER", "NEEDS", "LONGEST", "LOAD s", "PREFILL tok/s", "DECODE tok/s")
_WIDER = 1.15  # times the file's bytes that weights may take here without a note
_HELD = "here"  # marks the row whose file is in the store


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
def command(settings: Settings, model: str, context: int | None, as_json: bool, **options: Any) -> None:
    """Predict whether MODEL fits, its longest context and its speed, with 80 % ranges.

    Without --on, the prediction is for this machine and Freehold's engine: the machine is measured once, and every
    run corrects the next prediction. Sizes come from the file of an installed model, or from published facts.

    With --json, prints {"schema": 1, "model": ..., "place": {...}, "context": ..., "fits": [...]}.
    """
    with Ticking(f"predicting {model}: this machine is measured once"):
        report = fit_report(settings, model, context, on=options.pop("hardware"), **options)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report.place, list(report.rows), report.held, report.known)


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
    if fitting:
        best = _best(fitting, held)
        click.echo(f"{best.anatomy.quant} {needs(best)}")
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
    cache = sum(memory.cache.values())
    other = memory.activations + memory.overhead + memory.tower + memory.features
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
    bases = dict.fromkeys(row.basis for row in (_best(fitting, held), *fitting)) if fitting else ()
    for number, basis in enumerate(bases):
        yield f"{'speeds of the others' if number else 'speeds'}: {basis}; 80 % ranges"
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
    if fitting:
        yield from pictures_lines(_best(fitting, held))
    machine = place.machine
    for gpu in machine.gpus if machine else ():
        hint = f"--on {gpu.device} predicts for it" if gpu.device else "not in the catalogue"
        yield f"this machine has {gpu.title}: {hint}"
    if machine and machine.device:
        yield f"other engines use this machine's GPU: --on {machine.device} predicts for them"
    if place.history and place.history.damaged:
        yield f"note: {place.history.damaged} damaged lines of runs.jsonl were left out"


def _best(fitting: list[Fit], held: Anatomy | None) -> Fit:
    """Return the row to run: that of the file in the store, else the usual quantisation, else the first."""
    ranked = sorted(
        fitting, key=lambda row: (row.anatomy is not held, row.anatomy.quant not in ("Q4_K_M", "BF16"))
    )
    return ranked[0]

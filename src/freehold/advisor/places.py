"""Where a model of the catalogue would run, in which quantisation and on which engine: `Placer`s for advice.

`on_rigs` chooses among named hardware, cheapest first, and takes the quantisation that rounds least of those that are
fast enough. `here` is this machine with our own engine, and the very file that the model's name would fetch.
Path: cli/advise -> here or on_rigs -> fit, roofline -> advice.Placement or Refusal
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from freehold.advisor import roofline
from freehold.advisor.advice import Placement, Placer, Refusal
from freehold.advisor.anatomy import from_catalogue, from_file
from freehold.advisor.engines import Engine, engines
from freehold.advisor.engines import engine as engine_called
from freehold.advisor.fit import Misfit, Place, fit
from freehold.advisor.ours import ARCHITECTURES
from freehold.advisor.ownership import HOURS
from freehold.catalog.hardware import Rig, devices
from freehold.catalog.model import Model
from freehold.errors import UsageError

# What rounds less stands first; below four bits a smaller model is the better choice.
QUANTS = ("BF16", "FP8", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "INT4")
_NATIVE = {"gpt-oss": ("MXFP4",)}  # families that are published in four bits, and in nothing finer
_COUNTS = (1, 2, 4, 8)  # devices of one kind that are rented as one box


def here(place: Place, held: Mapping[str, Path]) -> Placer:
    """Return a Placer over this machine (fit.place_here's); `held`: the files of models that are here, by id."""

    def placed(model: Model, context: int) -> Placement | Refusal:
        anatomy = from_file(held[model.id]) if model.id in held else from_catalogue(model, quant_of(model))
        found = fit(anatomy, place, context)
        if isinstance(found, Misfit):
            rule = "memory" if anatomy.architecture in ARCHITECTURES else "engine"
            return Refusal(rule, found.reason)
        return Placement(
            where=place.name,
            engine=found.engine,
            quant=anatomy.quant,
            memory=found.memory.total,
            context=context,
            decode=found.decode,
            prefill=found.prefill,
            command=f"freehold run {model.name or model.id}",
        )

    return placed


def quant_of(model: Model) -> str:
    """Return the quantisation that our store fetches of a model: its name's file, or the weights as published."""
    found = [r.quants[0] for r in model.repos if r.format == "gguf" and r.quants]
    return found[0] if found else "BF16"


def rented_for(budget: float) -> list[Rig]:
    """Return what a month's dollars rent, cheapest first. Raises UsageError where that is nothing."""
    rigs = [Rig(d, n) for d in devices() for n in _COUNTS if d.rent]
    found = [r for r in rigs if month_of(r) <= budget]
    if not found:
        least = min(rigs, key=month_of)
        raise UsageError(
            f"${budget:,.0f} a month rents no hardware that is known here",
            f"the cheapest is {least.name}, ${month_of(least):,.0f} a month",
        )
    return sorted(found, key=month_of)


def on_rigs(rigs: Sequence[Rig], engine: str, speed: float) -> Placer:
    """Return a Placer over hardware: the first rig on which a model fits and reaches `speed` tokens a second.

    `engine` empty: whichever answers fastest. Where no rig reaches the speed, the fastest placement is the answer.
    Raises UsageError for an engine that nobody knows or that runs on none of the rigs.
    """
    chosen = (engine_called(engine),) if engine else tuple(e for e in engines() if e.name != "freehold")
    if not any(e.runs_on(r.device) for e in chosen for r in rigs):
        ours = ", ".join(e.name for e in engines() if any(e.runs_on(r.device) for r in rigs))
        raise UsageError(
            f"{engine or 'no engine'} does not run on {rigs[0].name}", f"engines that do: {ours}"
        )

    def place(model: Model, context: int) -> Placement | Refusal:
        best: Placement | None = None
        why = ""
        for rig in rigs:
            for found in _on(model, context, rig, chosen):
                if isinstance(found, str):
                    why = found
                elif found.decode.mid >= speed:
                    return found
                elif best is None or found.decode.mid > best.decode.mid:
                    best = found
        return best or Refusal("memory", why)

    return place


def _on(model: Model, context: int, rig: Rig, chosen: Sequence[Engine]) -> Iterator[Placement | str]:
    """Yield a model's placements on a rig, what rounds least first; or once why there is none."""
    why, fits = f"no engine reads it on {rig.name}", False
    for quant in quants_of(model):
        able = tuple(e for e in chosen if e.reads(quant, rig.device) and e.runs_on(rig.device))
        if not able:
            continue
        work = from_catalogue(model, quant)
        ranked = roofline.candidates(work, rig, able, context)
        if not ranked:
            why = roofline.place(work, rig, able[0], context).why
            continue
        fits = True
        engine, single = ranked[0]
        placed = roofline.place(work, rig, engine, context)
        yield Placement(
            where=rig.name,
            engine=engine.name,
            quant=quant,
            memory=placed.weights + placed.sequence,
            context=context,
            decode=single.answer,
            prefill=single.prompt,
            command=_command(model, quant, engine, rig),
            month=month_of(rig) if rig.rent else None,
        )
    if not fits:
        yield why


def quants_of(model: Model) -> tuple[str, ...]:
    """Return the quantisations to think of, what rounds least first."""
    return _NATIVE.get(model.family, QUANTS)


def month_of(rig: Rig) -> float:
    """Return a month's rent in dollars; infinite where nobody is known to rent it out."""
    return rig.rent.mid * HOURS if rig.rent else float("inf")


def _command(model: Model, quant: str, engine: Engine, rig: Rig) -> str:
    """Return the line that serves a model there; where the weights must be had quantised, it says so."""
    gguf = next((r.repo for r in model.repos if r.format == "gguf"), "")
    if engine.name == "llama.cpp":
        return f"llama-server -hf {gguf or model.id}:{quant}"
    line = {
        "vllm": f"vllm serve {model.id} --tensor-parallel-size {rig.count}",
        "sglang": f"python -m sglang.launch_server --model-path {model.id} --tp {rig.count}",
        "tensorrt-llm": f"trtllm-serve {model.id} --tp_size {rig.count}",
        "mlx": f"mlx_lm.server --model {model.id}",
    }[engine.name]
    if quant == "FP8" and engine.name in ("vllm", "sglang"):
        return f"{line} --quantization fp8"
    return line if quant in ("BF16", "MXFP4") else f"{line}  # a copy of the weights in {quant}"

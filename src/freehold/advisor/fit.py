"""Predicts whether a model fits on a machine, and how fast it answers there.

    place = place_here(settings, refuses)        # this machine, our own engine; calibrated by what ran here
    place = place_on(catalog.rig("2xh100"))      # named hardware; engine "" is the one that roofline prefers
    found = fit(anatomy, place, context)         # Fit, or Misfit with .reason and .hint
    if isinstance(found, Fit): found.memory, found.longest, found.load_s, found.prefill, found.decode

Speeds are Intervals in tokens a second: `decode` of one answer when the context is full, `prefill` of a prompt that
fills it. Knows nothing of licences and of quality. Physics of our engine is ours.py's, of others roofline.py's.
Path: cli/fit, cli/advise -> place_here or place_on -> fit -> Fit | Misfit
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from freehold.advisor import calibration, engines, ours, roofline
from freehold.advisor import machine as machines
from freehold.advisor.anatomy import Anatomy
from freehold.advisor.calibration import Correction, History, Run
from freehold.advisor.interval import Interval
from freehold.advisor.machine import Cost, Machine, Rates
from freehold.advisor.ours import Refuses
from freehold.catalog.hardware import Rig
from freehold.config import Settings
from freehold.errors import UsageError
from freehold.machine import show_bytes

OURS = "freehold"
USUAL_CONTEXT = 4096  # tokens a fit is computed for where no number is given
MOST_CONTEXT = 1 << 30
CACHE_SHARE = 0.9  # of free memory that a requested context may take; the engine's own rule
_GUESSED = 2.0  # how far off a speed may be on a machine that was never measured
_CROWDED = 4.0  # how much more a machine may give alone than the best that was measured beside others
_LOAD_SPREAD = 1.6  # of a load: whether its file is in memory yet decides more than the machine
_DISK_GB_S = (1.0, 3.0, 7.0)  # what reads weights into a rig's memory: a disk of a cloud, NVMe, several


@dataclass(frozen=True, slots=True)
class Place:
    """Where models would run: this machine with our engine (`machine`), or named hardware (`rig`)."""

    name: str
    engine: str  # ours, or another's name; empty: the fastest that runs the model there
    machine: Machine | None = None
    history: History | None = None  # what ran here before
    rig: Rig | None = None
    refuses: Refuses | None = None  # here: what our engine does not run, by its registry

    @property
    def free(self) -> int:
        """Bytes that a model may take."""
        return self.machine.free if self.machine else self.rig.memory_bytes if self.rig else 0


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by what they are for. `cache`: one conversation of the context's length, by kind of layer."""

    weights: int
    cache: Mapping[str, int]
    activations: int
    overhead: int  # the process; of a rig what its engine keeps back

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + sum(self.cache.values()) + self.activations + self.overhead


@dataclass(frozen=True, slots=True)
class Fit:
    """A model that fits. `longest`: tokens of the longest conversation that would; 0: not known."""

    anatomy: Anatomy
    place: Place
    engine: str
    context: int
    memory: MemoryNeed
    longest: int
    load_s: Interval
    prefill: Interval | None  # None: the device's rate of operations was never published
    decode: Interval
    basis: str  # what the speeds rest on
    streams: int = 1  # conversations of this length that fit at a time
    sure: bool = True  # whether the speeds rest on quiet measurements, or on published ones


@dataclass(frozen=True, slots=True)
class Misfit:
    """A model that does not fit, why, and the way out. `longest`: tokens that would fit; 0: none."""

    anatomy: Anatomy
    place: Place
    engine: str
    context: int
    memory: MemoryNeed | None
    longest: int
    reason: str
    hint: str
    refused: bool = False  # by our engine, in whatever quantisation and whatever the memory


def place_here(settings: Settings, refuses: Refuses, *, measure: bool = True) -> Place:
    """Return this machine with our own engine; it is measured if it never was and `measure` allows it.

    `refuses` asks the engine's registry, which this room does not know: choosing.here gives it.
    """
    machine = machines.here(settings.home, measure=measure)
    history = calibration.read(settings.home, machines.name_here(), machine.rates)
    return Place("this machine", OURS, machine, history, refuses=refuses)


def place_on(rig: Rig, engine: str = "") -> Place:
    """Return named hardware with an engine's name; empty: the one that roofline prefers. Raises UsageError."""
    return Place(rig.name, engines.engine(engine).name if engine else "", rig=rig)


def fit(
    anatomy: Anatomy, place: Place, context: int | None = None, *, kv_type: str = "f16", packed: bool = False
) -> Fit | Misfit:
    """Say whether `anatomy` fits with a conversation of `context` tokens, and how fast it is.

    `context` None: 4,096, or what the model was made for if that is less. `kv_type`: what our cache holds.
    `packed`: our engine has loaded it before, so that its weights need not be laid out again.
    Raises UsageError for a context that is not a number of tokens, and beyond what the model was made for.
    """
    most = anatomy.context or MOST_CONTEXT
    if context is None:
        context = min(USUAL_CONTEXT, most, (anatomy.index_topk if place.rig is None else 0) or most)
    if not 1 <= context <= most:
        limit = (
            f"{anatomy.name} was made for {most:,}" if anatomy.context else f"at most {most:,} are counted"
        )
        limit, hint = limit + (anatomy.stretch.says if anatomy.stretch else ""), f"name 1 to {most}"
        if anatomy.stretch and most < context <= anatomy.stretch.context:
            hint += f"; freehold deploy --context {context} plans an engine that stretches it"
        raise UsageError(f"a context of {context:,} tokens: {limit}", hint)
    if place.rig is not None:
        return _on(anatomy, place, place.rig, context)
    return _here(anatomy, place, context, kv_type, packed)


# --- this machine -----------------------------------------------------------------------------------


def _here(anatomy: Anatomy, place: Place, context: int, kv_type: str, packed: bool) -> Fit | Misfit:
    machine = place.machine
    assert machine is not None
    memory = _memory(anatomy, context, kv_type)
    room = machine.free * CACHE_SHARE
    longest = _longest(anatomy, lambda n: _memory(anatomy, n, kv_type).total <= room, anatomy.index_topk)
    misfit = Misfit(anatomy, place, OURS, context, memory, longest, "", "")
    if place.refuses is not None and (reason := place.refuses(anatomy.structure)):
        return replace(misfit, reason=reason, hint="--on HARDWARE says how other engines do", refused=True)
    if anatomy.index_topk and context > anatomy.index_topk:
        return replace(misfit, **_beyond_picked(anatomy, context, longest))
    if memory.total > room:
        return replace(misfit, **_too_large(memory, machine.free, context, longest))
    history = place.history or History(machine.rates)
    decode, prefill = (
        history.correction(kind, model_key(anatomy), anatomy.make) for kind in calibration.KINDS
    )
    one, prompt = ours.decode_cost(anatomy, context, kv_type), ours.prefill_cost(anatomy, context)
    return Fit(
        anatomy,
        place,
        OURS,
        context,
        memory,
        longest,
        load_s=Interval.within(ours.load_s(anatomy, machine.threads, packed), _LOAD_SPREAD),
        prefill=_told(prefill, prompt, context, machine),
        decode=_told(decode, one, 1, machine),
        basis=f"{_basis(decode, machine)}{_timed(history, model_key(anatomy), decode)}",
        sure=machine.rates.measured and not machine.rates.busy,
    )


def model_key(anatomy: Anatomy) -> str:
    """Return what runs of a model are kept under: no two models of an architecture have the same bytes of weights."""
    return f"{anatomy.architecture} {anatomy.weight_bytes}"


def observed(
    anatomy: Anatomy,
    place: Place,
    kind: str,
    depth: int,
    measured: float,
    at: str,
    rates: Rates | None = None,
    load: float = 0.0,
) -> Run:
    """Return what a run here leaves for those to come: `measured` tokens a second beside what was predicted.

    `kind`: decode after `depth` tokens, or prefill of as many. `rates`: of the same run, where they were measured.
    `load`: what others took meanwhile, as Crowd.share has it.
    """
    machine, key = place.machine, model_key(anatomy)
    assert machine is not None
    cost = ours.decode_cost(anatomy, depth) if kind == "decode" else ours.prefill_cost(anatomy, depth)
    run = Run(
        kind,
        machine=machines.name_here(),
        model=key,
        quant=anatomy.quant,
        depth=depth,
        read=cost.read,
        cores=cost.cores,
        rest=cost.rest,
        read_gb_s=rates.read_gb_s if rates else 0.0,
        int8_gops=rates.int8_gops if rates else 0.0,
        told=0.0,
        measured=measured,
        at=at,
        load=load,
        make=anatomy.make,
        costs=calibration.COSTS,
    )
    correction = (place.history or History(machine.rates)).correction(kind, key, anatomy.make)
    return replace(run, told=run.raw(machine.rates) * correction.factor)


def _memory(anatomy: Anatomy, context: int, kv_type: str) -> MemoryNeed:
    f = ours.footprint(anatomy, context, kv_type)
    return MemoryNeed(f.weights, f.cache, f.activations, f.process)


def _told(correction: Correction, cost: Cost, tokens: int, machine: Machine) -> Interval:
    """Return the corrected speed; where rates were measured in a crowd, up to what the machine may give alone."""
    speed = correction.apply(tokens / cost.seconds(machine.rates))
    if machine.rates.busy:
        alone = correction.factor * tokens / cost.seconds(machines.unmeasured(machine.threads))
        return Interval(speed.mid / _GUESSED, speed.mid, max(speed.mid * _CROWDED, alone * _GUESSED))
    known = correction.runs or machine.rates.measured
    return speed if known else Interval.within(speed.mid, _GUESSED)


def _basis(correction: Correction, machine: Machine) -> str:
    how = "measured here" if machine.rates.measured else "guessed: never measured here"
    how = "measured while others computed: see fit --measure" if machine.rates.busy else how
    measured = f"{machine.rates.read_gb_s:.0f} GB/s and {machine.rates.int8_gops:,.0f} int8 GOPS, {how}"
    if not correction.runs:
        return measured
    subject = f"models of {correction.make}" if correction.make not in ("", "dense") else "models"
    of = "this model" if correction.own else subject
    return f"{measured}; last {correction.runs} runs of {of} here: median error {correction.error:.0%}"


def _timed(history: History, model: str, correction: Correction) -> str:
    """Say how many runs of this model the speeds rest on, where the correction does not; `why` counts the same."""
    counted, crowded = history.timed(model)
    loaded = f"; {left_out(crowded)}" if crowded else ""
    if correction.own:
        return loaded
    none = (
        "none of this model in this quantisation"
        if correction.runs
        else "no run here yet"
        if not crowded
        else "no other run here"
    )
    few = f"{counted} {'run' if counted == 1 else 'runs'} of this model here, too few to correct by"
    return f"; {few if counted else none}{loaded}"


def left_out(crowded: int) -> str:
    """Return in words that runs were timed beside others' load, which correct nothing."""
    return f"{crowded} of this model under other load {'is' if crowded == 1 else 'are'} left out"


def _beyond_picked(anatomy: Anatomy, context: int, longest: int) -> dict[str, str]:
    """Word that our engine computes attention with an indexer only while it picks every token."""
    picked = f"beyond {anatomy.index_topk:,} tokens its attention reads only those that an indexer picks"
    return {
        "reason": f"a context of {context:,} tokens: {picked}, which Freehold's engine does not compute",
        "hint": f"--context {longest or anatomy.index_topk}, or --on HARDWARE for other engines",
    }


def _too_large(memory: MemoryNeed, free: int, context: int, longest: int) -> dict[str, str]:
    """Word why it does not fit and what would."""
    allowed = f"{show_bytes(free * CACHE_SHARE)} of the {show_bytes(free)} free"
    if longest:
        return {
            "reason": f"a context of {context:,} tokens needs {show_bytes(memory.total)}; {allowed} may be taken",
            "hint": f"--context {longest} fits; so may a smaller quantisation, or --on larger hardware",
        }
    without = memory.total - sum(memory.cache.values())
    return {
        "reason": f"it needs {show_bytes(without)} before any context; {allowed} may be taken",
        "hint": "choose a smaller quantisation or a smaller model, or --on larger hardware",
    }


def _longest(anatomy: Anatomy, fits: Callable[[int], bool], most: int = 0) -> int:
    """Return the longest context that fits, up to what the model was made for, and `most` if that is not 0."""
    if not anatomy.cache_known:
        return 0
    low, high = 0, min(most or MOST_CONTEXT, anatomy.context or MOST_CONTEXT)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


# --- named hardware ---------------------------------------------------------------------------------


def _on(anatomy: Anatomy, place: Place, rig: Rig, context: int) -> Fit | Misfit:
    engine = engines.engine(place.engine) if place.engine else _fastest(anatomy, rig, context)
    placed = roofline.place(anatomy, rig, engine, context)
    kinds = anatomy.cache_by_kind(context, engine.cache_widths[0], engine.conv_width)
    reserved = max(rig.memory_bytes - placed.weights - max(placed.room, 0), 0)
    memory = MemoryNeed(placed.weights, kinds, 0, reserved)
    longest = _longest(anatomy, lambda n: roofline.place(anatomy, rig, engine, n).fits)
    if not placed.fits:
        hint = f"--context {longest} fits" if longest else "a smaller quantisation, or more or larger devices"
        return Misfit(anatomy, place, engine.name, context, memory, longest, placed.why, hint)
    speed = roofline.single_stream(anatomy, rig, engine, context, context)
    low, mid, high = (placed.weights / (rate * 1e9) for rate in reversed(_DISK_GB_S))
    return Fit(
        anatomy,
        place,
        engine.name,
        context,
        memory,
        longest,
        load_s=Interval(low, mid, high),
        prefill=speed.prompt,
        decode=speed.answer,
        basis=f"{engine.title}: published figures of {rig.device.title}, and rows measured by others",
        streams=placed.streams,
    )


def _fastest(anatomy: Anatomy, rig: Rig, context: int) -> engines.UpstreamEngine:
    """Return the engine that roofline prefers; where none fits, the first that runs on the device at all."""
    others = tuple(e for e in engines.engines() if e.runs_on(rig.device))
    if not others:
        raise UsageError(f"no engine runs on {rig.device.title}")
    ranked = roofline.candidates(anatomy, rig, others, context)
    readers = [e for e in others if e.reads(anatomy.quant, rig.device)]
    return ranked[0][0] if ranked else (readers or others)[0]

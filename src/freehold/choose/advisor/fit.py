"""Predicts whether a model fits on a machine, and how fast it answers there.

    place = place_here(settings, refuses)        # this machine, our own engine; calibrated by what ran here
    place = place_on(catalog.rig("2xh100"))      # named hardware; engine "" is the one that roofline prefers
    found = fit(anatomy, place, context)         # Fit, or Misfit with .reason and .hint
    if isinstance(found, Fit): found.memory, found.longest, found.load_s, found.prefill, found.decode

Speeds are Intervals in tokens a second: `decode` of one answer when the context is full, `prefill` of a prompt that
fills it. Knows nothing of licences and of quality. Physics of other engines is roofline.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from freehold.base.catalog.hardware import Rig
from freehold.base.catalog.model import Structure
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.layers import STATE_WIDTH, PictureNeed, TowerNeed, kept_bytes, longest_window
from freehold.base.machine import show_bytes
from freehold.choose.advisor import calibration, engines, roofline
from freehold.choose.advisor import machine as machines
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup
from freehold.choose.advisor.calibration import Correction, History, Run
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.machine import Cost, Machine, Rates

# --- costs of a model on our own engine: bytes of memory, work of a prompt and of a decoded token ---
# Physics with a few constants: a token reads its weights and what is kept of the conversation at the
# machine's bandwidth, while its cores unpack and multiply them at a small share of their int8 rate; a prompt
# multiplies its weights at a larger share, and attention on top; experts, states and latents have costs of
# their own. machine.Cost says what seconds that makes. The constants are fitted to benches/choose/fit.py and
# fit_layers.py; what they miss, calibration.py learns from each machine's runs, by what a model is made of.
Refuses = Callable[[Structure], str]  # why our engine does not run such a model; empty: it does
BLOCK = 32  # tokens of a cache block
ROWS = 512  # rows of a step at most
WINDOW_SHARE, ROOMS = 4, 2  # blocks for each window block; sequences whose quotas the window pool must hold
KV_WIDTHS = {
    "f16": 2.0,
    "q8": 1.03,
    "f32": 4.0,
}  # bytes of a cached value; q8 has a float for each token's head beside

# bytes: the interpreter, its libraries and ours, a tokenizer; and for each token of a vocabulary
_PROCESS, _PROCESS_TOKEN = 67_000_000, 100
_WIDER = 10.0  # bits of a weight whose type has no kernel of its own: an int8 code, and a scale for sixteen
# Shares of the int8 rate: of a prompt's matrices, of attention over it, which multiplies floats, and of the matrices of
# one token, each of whose weights is unpacked for two operations. Matrices wider than _NARROW inputs come nearer to
# the rate: 0.52 at 1,024, 0.76 at 2,048.
_DOTS, _ATTENTION, _LONE = 0.52, 0.15, 0.095
_NARROW, _WIDENING, _MOST_DOTS = 1150, 0.65, 0.9
_LOOK = 0.0235  # bytes of cache that a lone token looks at in the time of one operation
# Experts of a prompt: a share of the rate, and operations to unpack each weight of every expert that a step's rows
# choose, which some dozen rows share.
_EXPERT_DOTS, _UNPACK = 0.68, 6.0
# A value of a recurrent state, which is read and written: operations for a lone token, and for each of a prompt's.
_STATE, _STATE_CHUNK, _STATE_PASSES = 470.0, 28.0, 2
# Latent attention: shares of the rate of a lone token's and of a prompt's products of all heads with each latent, and
# operations for each pair of a latent's value and a query's, which queries and outputs are brought into its space by.
_LATENT_LOOK, _LATENT_ATTENTION, _ABSORB = 0.13, 1.0, 165.0
# Heads of an indexer (DeepSeek-V3.2's; GLM-5 has 32), which multiplies floats as a lone token's latents do.
_INDEX_HEADS = 64
# Share of the rate of a tower's attention, by kernels: tiles multiply bfloat16, all others floats. From
# docs/log/eyes.md, 2,040 tokens of Qwen3.5; `benches/eyes/encode.py --by-op` prints it.
_BOTH_WAYS, _BOTH_WAYS_IN_FLOATS = {"amx": 0.62}, 0.085
# operations that would take as long as what a step and a layer cost whatever their size
_STEP, _LAYER = 2e8, 2e7
_LOAD_S, _PACK_GB_S = 0.36, 0.3  # a load of packed weights; bytes packed a second by each thread


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by what they are for. `cache`: one conversation of the context's length, by kind of layer."""

    weights: int
    cache: Mapping[str, int]
    activations: int
    overhead: int  # the process; of a rig what its engine keeps back
    tower: int = 0  # weights of the tower of pictures,
    features: int = 0  # and what is kept of pictures at most

    @property
    def total(self) -> int:
        """Bytes in all."""
        cache = sum(self.cache.values())
        return self.weights + cache + self.activations + self.overhead + self.tower + self.features


def footprint(anatomy: Anatomy, context: int, kv_type: str = "f16") -> MemoryNeed:
    """Return what a model takes when a conversation of `context` tokens fills its cache."""
    return MemoryNeed(
        weights=packed_bytes(anatomy),
        cache=cache_bytes(anatomy, context, kv_type),
        activations=activation_bytes(anatomy),
        overhead=_PROCESS + _PROCESS_TOKEN * anatomy.vocab,
        tower=anatomy.tower.weights if anatomy.tower else 0,
        features=anatomy.tower.kept if anatomy.tower else 0,
    )


def packed_bytes(anatomy: Anatomy) -> int:
    """Return the bytes of the packed weights."""
    return round(sum(part.weights * _bits(part) / 8 for part in anatomy.parts))


def _bits(part: WeightGroup) -> float:
    """Return what a weight takes when it is packed."""
    return _routes().get(part.type, _WIDER)


@cache
def _routes() -> dict[str, float]:
    from freehold import _native as native

    return {name: packed for name, _, _, _, packed in native.type_routes()}


def cache_bytes(anatomy: Anatomy, context: int, kv_type: str = "f16") -> dict[str, int]:
    """Return what the cache reserves by kind of layer: whole blocks, and window blocks where layers have a window."""
    width, blocks = KV_WIDTHS[kv_type], -(-context // BLOCK)
    window = longest_window(anatomy.layers)
    least = ROOMS * (-(-(window + ROWS) // BLOCK) + 2) if window else 0
    window_blocks = max(least, blocks // WINDOW_SHARE)
    sizes = anatomy.cache_by_kind(blocks * BLOCK, width)
    if window:
        kept = sum(g.count * g.values_per_token for g in anatomy.layers if g.kind == "window")
        sizes["window"] = round(kept * width * BLOCK * min(window_blocks, blocks))
    return sizes


def activation_bytes(anatomy: Anatomy) -> int:
    """Return what a step of ROWS rows works in: floats of its widest layers' inputs, outputs and codes of them."""
    return ROWS * 4 * (2 * inner(anatomy) + 3 * anatomy.hidden + 2 * anatomy.queries)


def inner(anatomy: Anatomy) -> int:
    """Return the width of a layer's MLP, out of its weights: what attention's matrices leave, by three."""
    body = sum(p.weights * p.share for p in anatomy.parts if p.role in ("body", "experts"))
    if not anatomy.hidden or not anatomy.depth:
        return 0
    values = sum(g.count * g.values_per_token for g in anatomy.layers) / anatomy.depth
    attention = anatomy.hidden * (2 * anatomy.queries + values)
    return max(round((body / anatomy.depth - attention) / (3 * anatomy.hidden)), 0)


def decode_cost(anatomy: Anatomy, depth: int, kv_type: str = "f16") -> Cost:
    """Return what one token after `depth` others asks of a machine."""
    kept = _looked(anatomy, depth, KV_WIDTHS[kv_type])
    return Cost(
        read=_read(anatomy, 1) + kept + _STATE_PASSES * anatomy.state_bytes,
        cores=2 * anatomy.token_weights / _LONE + _look(anatomy, depth, kept) + _lone_states(anatomy),
        rest=_STEP + _LAYER * anatomy.depth + _absorb(anatomy),
    )


def batch_cost(anatomy: Anatomy, depth: int, sequences: int) -> Cost:
    """Return the work of a decode step of one token for each of this many sequences.

    Weights are read once, of experts those that any token chooses; from some three rows on they are multiplied as a
    prompt's are.
    """
    kept = _looked(anatomy, depth, KV_WIDTHS["f16"])
    own = kept + _STATE_PASSES * anatomy.state_bytes
    dense = anatomy.token_weights - sum(p.weights * p.share for p in anatomy.parts if p.role == "experts")
    dots = 2 * dense * max(1 / _LONE, sequences / _DOTS) + _batched_experts(anatomy, sequences)
    seen = _look(anatomy, depth, kept) + _lone_states(anatomy) + _absorb(anatomy)
    rest = _STEP + _LAYER * anatomy.depth
    return Cost(_read(anatomy, sequences) + sequences * own, dots + sequences * seen, rest)


def prefill_cost(anatomy: Anatomy, tokens: int) -> Cost:
    """Return what a prompt of `tokens` asks to its first token; never less than one token does."""
    one, steps = decode_cost(anatomy, 0), -(-tokens // ROWS)
    rows = min(tokens, ROWS)
    experts = sum(p.weights * p.share for p in anatomy.parts if p.role == "experts")
    chosen = sum(p.weights * _touched(p.share, rows) for p in anatomy.parts if p.role == "experts")
    dense = anatomy.token_weights - anatomy.head_weights - experts
    matrices = 2 * tokens * (dense / _dots(anatomy.hidden) + experts / _EXPERT_DOTS)
    seen = anatomy.attention_ops(tokens, anatomy.index_topk)
    seen = (
        seen / (_LATENT_ATTENTION if _latents(anatomy) else _ATTENTION) + _index(anatomy, tokens) * tokens / 2
    )
    states = anatomy.state_bytes / STATE_WIDTH * _STATE_CHUNK * tokens
    rest = one.rest + matrices + steps * chosen * _UNPACK + seen + states
    return replace(one, read=_read(anatomy, tokens), rest=rest)


def encode_cost(tower: TowerNeed, picture: PictureNeed, isa: str) -> Cost:
    """Return what the features of a picture ask of a machine: all its patches attend to each other, part by part.

    `isa`: whose kernels it has, as Machine.isa.
    """
    pairs = picture.patches**2 / picture.parts
    matrices = 2 * (picture.patches * tower.patch_weights + picture.tokens * tower.token_weights)
    seen = 4 * pairs * tower.width * tower.layers
    return Cost(
        tower.weights,
        0,
        _STEP + matrices / _dots(tower.width) + seen / _BOTH_WAYS.get(isa, _BOTH_WAYS_IN_FLOATS),
    )


def _read(anatomy: Anatomy, tokens: int) -> float:
    """Return the bytes of weights that a step of this many tokens reads, each choosing experts of its own."""
    return sum(
        p.weights * (_touched(p.share, tokens) if p.role == "experts" else p.share) * _bits(p) / 8
        for p in anatomy.parts
    )


def _batched_experts(anatomy: Anatomy, sequences: int) -> float:
    """Return the operations of experts in a step: of each that is chosen, by the rows that it gets."""
    total = 0.0
    for part in anatomy.parts:
        if part.role == "experts":
            chosen = _touched(part.share, sequences)
            rows = sequences * part.share / chosen
            total += 2 * part.weights * chosen * max(rows / _EXPERT_DOTS, 1 / _LONE)
    return total


def _touched(share: float, tokens: int) -> float:
    """Return the share of experts that any of this many tokens is sent to."""
    return 1 - (1 - share) ** tokens


def _dots(hidden: int) -> float:
    """Return the share of the int8 rate that a prompt's matrices of this many inputs reach."""
    return min(_DOTS * max(hidden / _NARROW, 1.0) ** _WIDENING, _MOST_DOTS)


def _latents(anatomy: Anatomy) -> int:
    return sum(g.count for g in anatomy.layers if g.kind == "latent")


def _look(anatomy: Anatomy, depth: int, kept: int) -> float:
    """Return the operations of one token's attention: bytes, or of latents the products of all heads with each."""
    if latents := _latents(anatomy):
        seen = min(depth, anatomy.index_topk or depth)
        return 4 * anatomy.queries * seen * latents / _LATENT_LOOK + _index(anatomy, depth) / _LATENT_LOOK
    return kept / _LOOK


def _looked(anatomy: Anatomy, depth: int, width: float) -> int:
    """Return the bytes of a cache that one token reads: of latents those that an indexer picks, and all of its keys."""
    if not anatomy.index_topk or depth <= anatomy.index_topk:
        return anatomy.cache_bytes(depth, width)
    keys = [replace(g, latent=0, rope=0) for g in anatomy.layers]
    beyond = kept_bytes(keys, depth, width) - kept_bytes(keys, anatomy.index_topk, width)
    return anatomy.cache_bytes(anatomy.index_topk, width) + beyond


def _index(anatomy: Anatomy, depth: int) -> float:
    """Return the operations of an indexer's scores of this many tokens; none where attention reads all of them."""
    if not anatomy.index_topk or depth <= anatomy.index_topk:
        return 0.0
    values = sum(g.count * g.index for g in anatomy.layers if g.kind == "latent")
    return 2 * _INDEX_HEADS * values * depth


def _absorb(anatomy: Anatomy) -> float:
    """Return the operations that bring one token's queries and outputs into the latents' space and back."""
    return _ABSORB * anatomy.queries * sum(g.count * g.latent for g in anatomy.layers)


def _lone_states(anatomy: Anatomy) -> float:
    return _STATE * anatomy.state_bytes / STATE_WIDTH


def load_s(anatomy: Anatomy, threads: int, packed: bool) -> float:
    """Return the seconds of a load whose file is in memory; the first one packs the weights."""
    return _LOAD_S + (0.0 if packed else packed_bytes(anatomy) / (_PACK_GB_S * 1e9 * threads))


# --- whether a model fits a place, and its speed there ----------------------------------------------

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
    screen: PictureTimes | None = None  # of a screenshot, where the model sees and its tower's file is here


@dataclass(frozen=True, slots=True)
class PictureTimes:
    """Seconds of a picture in a prompt: its features, which are kept, and the prefill of its tokens."""

    picture: PictureNeed
    encode: Interval
    prefill: Interval


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

    `context` None: 4,096, or the model's own context if that is less. `kv_type`: what our cache holds.
    `packed`: our engine has loaded it before, so that its weights need not be laid out again.
    Raises UsageError for a context that is not a number of tokens, and beyond the model's own context.
    """
    most = anatomy.context or MOST_CONTEXT
    if context is None:
        context = min(USUAL_CONTEXT, most)
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
    memory = footprint(anatomy, context, kv_type)
    room = machine.free * CACHE_SHARE
    longest = _longest(anatomy, lambda n: footprint(anatomy, n, kv_type).total <= room)
    misfit = Misfit(anatomy, place, OURS, context, memory, longest, "", "")
    if place.refuses is not None and (reason := place.refuses(anatomy.structure)):
        return replace(misfit, reason=reason, hint="--on HARDWARE says how other engines do", refused=True)
    if memory.total > room:
        return replace(misfit, **_too_large(memory, machine.free, context, longest))
    history = place.history or History(machine.rates)
    decode, prefill = (
        history.correction(kind, model_key(anatomy), anatomy.make) for kind in calibration.KINDS
    )
    one, prompt = decode_cost(anatomy, context, kv_type), prefill_cost(anatomy, context)
    return Fit(
        anatomy,
        place,
        OURS,
        context,
        memory,
        longest,
        load_s=Interval.within(load_s(anatomy, machine.threads, packed), _LOAD_SPREAD),
        prefill=_told(prefill, prompt, context, machine),
        decode=_told(decode, one, 1, machine),
        basis=f"{_basis(decode, machine)}{_timed(history, model_key(anatomy), decode)}",
        sure=machine.rates.measured and not machine.rates.busy,
        screen=_screen(anatomy, machine, prefill),
    )


def _screen(anatomy: Anatomy, machine: Machine, prefill: Correction) -> PictureTimes | None:
    """Predict the seconds of a screenshot in a prompt. No run corrects those of its features yet."""
    tower = anatomy.tower
    if tower is None or (picture := tower.screen) is None:
        return None
    seconds = encode_cost(tower, picture, machine.isa).seconds(machine.rates)
    rate = _told(prefill, prefill_cost(anatomy, picture.tokens), picture.tokens, machine)
    return PictureTimes(
        picture,
        Interval.within(seconds, _GUESSED),
        Interval(*(picture.tokens / speed for speed in (rate.high, rate.mid, rate.low))),
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
    cost = decode_cost(anatomy, depth) if kind == "decode" else prefill_cost(anatomy, depth)
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


def _too_large(memory: MemoryNeed, free: int, context: int, longest: int) -> dict[str, str]:
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


def _longest(anatomy: Anatomy, fits: Callable[[int], bool]) -> int:
    """Return the longest context that fits, up to the model's own context."""
    if not anatomy.cache_known:
        return 0
    low, high = 0, anatomy.context or MOST_CONTEXT
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

"""Places models of the catalogue on hardware: quantisation, engine and speed; and sizes hardware for a model.

`on_rigs` chooses among named hardware, cheapest first, and takes the quantisation that rounds least of those that are
fast enough. `here` is this machine with our own engine, and the very file that the model's name would fetch.
Both are `Placer`s of advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from freehold.base.catalog import quants
from freehold.base.catalog.hardware import Device, Money, Rig, devices
from freehold.base.catalog.model import Model
from freehold.base.errors import UsageError
from freehold.choose.advisor import fit as ours
from freehold.choose.advisor import roofline
from freehold.choose.advisor.advice import Placement, Placer, Refusal
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue
from freehold.choose.advisor.breakeven import HOURS
from freehold.choose.advisor.engines import Line, UpstreamEngine, engines, line, quant_of
from freehold.choose.advisor.engines import engine as engine_called
from freehold.choose.advisor.fit import CACHE_SHARE, OURS, Fit, Misfit, Place, Refuses, fit
from freehold.choose.advisor.interval import Interval

# The least rounding comes first; below four bits a smaller model is the better choice.
QUANTS = ("BF16", "FP8", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "INT4")
_FOUR_BITS = 5.0  # bits per weight below which what a lab publishes is kept as it is
_COUNTS = (1, 2, 4, 8)  # devices of one kind that are rented as one box
_UNMEASURED_BATCH = 2.0  # how far off many users' speed may be on our engine, of which no row was fitted


@dataclass(frozen=True, slots=True)
class Load:
    """The load: `users` at a time, each with a prompt and an answer of given lengths in tokens."""

    users: int = 1
    prompt: int = 512
    answer: int = 256


ALONE = Load()


def here(place: Place, held: Mapping[str, Anatomy], load: Load = ALONE) -> Placer:
    """Return a Placer over this machine (fit.place_here's); `held`: the models that are here, by id."""

    def placed(model: Model, context: int) -> Placement | Refusal:
        anatomy = held.get(model.id) or from_catalogue(model, quant_of(model))
        if 0 < anatomy.context < context:
            return Refusal("context", f"its file supports {anatomy.context:,} tokens")
        fitted = fit(anatomy, place, context)
        if isinstance(fitted, Misfit):
            unfit = place.refuses is not None and place.refuses(anatomy.structure)
            return Refusal("engine" if unfit else "memory", fitted.reason)
        if why := _crowded(fitted, load.users):
            return Refusal("users", why)
        name = model.name or str(anatomy.path) if model.id in held else ""
        command_line = line(model, anatomy.quant, OURS, context=context, users=load.users, held=name)
        return Placement(
            where=place.name,
            engine=fitted.engine,
            quant=anatomy.quant,
            memory=fitted.memory.total + (load.users - 1) * sum(fitted.memory.cache.values()),
            context=context,
            decode=_shared(fitted, anatomy, load.users)
            if model.role == "generator"
            else fitted.prefill or fitted.decode,
            prefill=fitted.prefill,
            command=command_line.command,
            users=load.users,
            sure=fitted.sure,
            why_none=command_line.why_none,
        )

    return placed


def _crowded(fitted: Fit, users: int) -> str:
    """Say why this machine cannot hold this many conversations at a time; empty: it can."""
    machine, cache = fitted.place.machine, sum(fitted.memory.cache.values())
    assert machine is not None
    most = engine_called(OURS).streams
    room = machine.free * CACHE_SHARE - fitted.memory.total
    fitting = min(1 + int(room // cache) if cache else most, most)
    return (
        ""
        if users <= fitting
        else f"memory for {fitting} conversations of {fitted.context:,} tokens at a time"
    )


def _shared(fitted: Fit, anatomy: Anatomy, users: int) -> Interval:
    """Return each user's speed where a step answers all: weights are read once, caches and dots are each one's own."""
    machine = fitted.place.machine
    if users == 1 or machine is None:
        return fitted.decode
    one = ours.decode_cost(anatomy, fitted.context).seconds(machine.rates)
    step = ours.batch_cost(anatomy, fitted.context, users).seconds(machine.rates)
    return Interval.within(fitted.decode.mid * one / step, _UNMEASURED_BATCH)


def rented_for(budget: float) -> list[Rig]:
    """Return what a month's dollars rent, cheapest first. Raises UsageError where that is nothing."""
    rigs = [Rig(d, n) for d in devices() for n in _COUNTS if d.rent]
    affordable = [r for r in rigs if month_of(r) <= budget]
    if not affordable:
        least = min(rigs, key=month_of)
        raise UsageError(
            f"${budget:,.0f} a month rents no hardware that is known here",
            f"the cheapest is {least.name}, ${month_of(least):,.0f} a month",
        )
    return sorted(affordable, key=month_of)


def on_rigs(
    rigs: Sequence[Rig], engine: str, speed: float, load: Load = ALONE, refuses: Refuses | None = None
) -> Placer:
    """Return a Placer over hardware: the first rig on which a model fits and reaches `speed` tokens a second.

    `engine` empty: whichever answers fastest. What a command is known for goes before what has none. Where no rig
    reaches the speed, the fastest placement is the answer. `refuses` says what our own engine does not run; of
    others' architectures nothing is known.
    Raises UsageError for an unknown engine, and for one that runs on none of the rigs.
    """
    chosen = (engine_called(engine),) if engine else engines()
    if not any(e.runs_on(r.device) for e in chosen for r in rigs):
        ours = ", ".join(e.name for e in engines() if any(e.runs_on(r.device) for r in rigs))
        raise UsageError(
            f"{engine or 'no engine'} does not run on {rigs[0].name}", f"engines that do: {ours}"
        )

    def place(model: Model, context: int) -> Placement | Refusal:
        placements: list[Placement] = []
        refused = refuses(model.structure) if refuses else ""
        able = tuple(e for e in chosen if e.name != OURS or not refused)
        if model.role != "generator":  # of other engines it is not known what they run of these
            able = tuple(e for e in able if e.name in (OURS, "vllm"))
        why = Refusal("memory", "") if able else Refusal("engine", refused)
        for rig in rigs if able else ():
            for one in _on(model, context, rig, able, load):
                if isinstance(one, Refusal):
                    why = one
                elif one.decode.mid >= speed and one.command:
                    return one
                else:
                    placements.append(one)
        quick = [p for p in placements if p.decode.mid >= speed]
        return quick[0] if quick else max(placements, key=lambda p: p.decode.mid, default=why)

    return place


def _on(
    model: Model, context: int, rig: Rig, chosen: Sequence[UpstreamEngine], load: Load
) -> Iterator[Placement | Refusal]:
    """Yield a model's placements on a rig, what rounds least first; or once why there is none."""
    why, fits = Refusal("memory", f"no engine reads it on {rig.name}"), False
    for quant in quants_of(model):
        able = tuple(e for e in chosen if e.reads(quant, rig.device) and e.runs_on(rig.device))
        if not able:
            continue
        work = from_catalogue(model, quant)
        ranked = roofline.candidates(work, rig, able, context)
        if not ranked:
            why = Refusal("memory", roofline.place(work, rig, able[0], context).why)
            continue
        for engine, single in ranked:
            placement = _placement(model, work, rig, engine, context, load, single)
            if isinstance(placement, str):
                why = Refusal("users", placement)
            else:
                fits = True
                yield placement
    if not fits:
        yield why


def _placement(
    model: Model,
    work: Anatomy,
    rig: Rig,
    engine: UpstreamEngine,
    context: int,
    load: Load,
    single: roofline.Single,
) -> Placement | str:
    """Return the placement on one engine, or why it does not answer this many users."""
    placed = roofline.place(work, rig, engine, context)
    answer = single.answer if model.role == "generator" else single.prompt or single.answer
    if load.users > 1 and model.role == "generator":
        if placed.streams < load.users:
            return f"{engine.title} on {rig.name} has memory for {placed.streams} conversations of {context:,} tokens"
        try:
            many = roofline.serving(work, rig, engine, load.prompt, max(load.answer, 1), load.users)
        except UsageError as e:
            return e.message
        answer = many.tpot.inverse()
    command_line = line(model, work.quant, engine.name, devices=rig.count, context=context, users=load.users)
    return Placement(
        where=rig.name,
        engine=engine.name,
        quant=work.quant,
        memory=placed.weights + load.users * placed.sequence,
        context=context,
        decode=answer,
        prefill=single.prompt,
        command=command_line.command,
        month=month_of(rig) if rig.rent else None,
        users=load.users,
        why_none=command_line.why_none,
    )


def quants_of(model: Model) -> tuple[str, ...]:
    """Return the quantisations to think of, what rounds least first; none that is finer than what is published."""
    native = model.native
    if native and quants.mix(native).bits < _FOUR_BITS:
        # GGUFs of others are in another four bits
        return (native,) if native == "MXFP4" else (native, "Q4_K_M")
    return tuple(q for q in QUANTS if not quants.finer(q, native))


def month_of(rig: Rig) -> float:
    """Return a month's rent in dollars; infinite where no rent is known."""
    return rig.rent.mid * HOURS if rig.rent else float("inf")


# --- sizes hardware for a model and a number of users -----------------------------------------------
# The fewest of each device, and why other devices fail.
# Every device of the catalogue is tried in the numbers that one machine has, with every engine and
# quantisation that it reads. All users ask at the same moment, which is the worst hour.

COUNTS = (1, 2, 4, 8)  # GPUs of one kind in one machine
PACE = 10.0  # tokens a second that each user gets at least, unless an option says otherwise: faster than most read


@dataclass(frozen=True, slots=True)
class Option:
    """Hardware that does: `answer` in tokens a second of each user, `first` in seconds to the first token.

    `rent`: dollars an hour of all of it; `price`: to buy the devices; None: not known.
    """

    rig: Rig
    engine: str
    quant: str
    memory: int
    streams: int  # conversations that it has room for
    answer: Interval
    first: Interval | None
    line: Line

    @property
    def rent(self) -> Money | None:
        """Dollars an hour."""
        return self.rig.rent

    @property
    def price(self) -> Money | None:
        """Dollars to buy the devices, without the box."""
        return self.rig.price


@dataclass(frozen=True, slots=True)
class Failure:
    """Hardware that is too small or too slow, in the largest number that was tried, and why."""

    rig: Rig
    why: str


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer: `options`, those with a command first, the cheapest to rent first, then to buy."""

    model: Model
    load: Load
    context: int
    pace: float
    options: tuple[Option, ...]
    failures: tuple[Failure, ...]


def size(
    model: Model,
    load: Load,
    *,
    context: int,
    pace: float = PACE,
    quant: str = "",
    engine: str = "",
    refuses: Refuses | None = None,
) -> Sizing:
    """Size hardware for `load`, each conversation of `context` tokens and at least `pace` tokens a second.

    `quant`, `engine` empty: any; `refuses` says what our own engine does not run. Raises UsageError for numbers that
    cannot be, and a context beyond the model's.
    """
    if model.role != "generator":
        raise UsageError(
            f"{model.id} makes no text: hundreds of requests a second fit any GPU",
            "name a model that answers",
        )
    if model.context and context > model.context:
        raise UsageError(
            f"a context of {context:,} tokens: {model.id} was made for {model.context:,}"
            + (model.stretch.says if model.stretch else ""),
            f"--context {model.context}",
        )
    options: list[Option] = []
    failures: list[Failure] = []
    ours = not (refuses and refuses(model.structure))
    chosen = [e for e in engines() if engine in ("", e.name) and (ours or e.name != OURS)]
    for device in devices():
        option = _least(model, device, load, context, pace, quant, chosen)
        if isinstance(option, Option):
            options.append(option)
        elif option is not None:
            failures.append(option)
    options.sort(key=_cost)
    failures.sort(key=lambda f: -f.rig.memory_bytes)
    return Sizing(model, load, context, pace, tuple(options), tuple(failures))


def _cost(option: Option) -> tuple[bool, float, float, int]:
    rent, price = option.rent, option.price
    return (
        not option.line.command,
        rent.mid if rent else 1e9,
        price.mid if price else 1e9,
        option.rig.memory_bytes,
    )


def _least(
    model: Model,
    device: Device,
    load: Load,
    context: int,
    pace: float,
    quant: str,
    chosen: Sequence[UpstreamEngine],
) -> Option | Failure | None:
    """Return the fewest devices that do, of those for which a command is known if there are any.

    Where none do, the most that were tried and why not; None: no engine runs there.
    """
    able = [e for e in chosen if e.runs_on(device)]
    if not able:
        return None
    bare: Option | None = None
    failure: Failure | None = None
    for count in COUNTS if device.kind == "gpu" else COUNTS[:1]:
        rig, why = Rig(device, count), ""
        for kind in (quant,) if quant else quants_of(model):
            tried = [_tried(model, rig, kind, e, load, context, pace) for e in able]
            done = [t for t in tried if isinstance(t, Option)]
            ways = roofline.preferred(done, lambda o: o.answer)
            best = next((o for o in ways if o.line.command), ways[0] if ways else None)
            if best and best.line.command:
                return best
            bare = bare or best
            why = _better(why, [t for t in tried if isinstance(t, str)])
        failure = Failure(rig, why)
    return bare or failure


def _better(why: str, reasons: Sequence[str]) -> str:
    """Return the reason that comes nearest to a success: too slow, then too little room, then not read at all."""
    marks = ("GiB", "conversations", "tokens a second")

    def nearness(reason: str) -> int:
        return max((i for i, mark in enumerate(marks) if mark in reason), default=-1)

    return max(filter(None, (why, *reasons)), key=nearness, default="")


def _tried(
    model: Model, rig: Rig, quant: str, engine: UpstreamEngine, load: Load, context: int, pace: float
) -> Option | str:
    """Return the option, or why this engine with this quantisation does not do."""
    if not engine.reads(quant, rig.device):
        return f"{engine.title} does not read {quant} there"
    work = from_catalogue(model, quant)
    placed = roofline.place(work, rig, engine, context)
    if not placed.fits:
        return placed.why
    if placed.streams < load.users:
        return f"{engine.title} in {quant}: memory for {placed.streams} conversations of {context:,} tokens at a time"
    try:
        answer, first = _speeds(work, rig, engine, load, context)
    except UsageError as e:
        return e.message
    if answer.mid < pace:
        return f"{engine.title} in {quant}: {answer} tokens a second for each user, where {pace:g} are asked"
    command_line = line(model, quant, engine.name, devices=rig.count, context=context, users=load.users)
    memory = placed.weights + load.users * placed.sequence
    return Option(rig, engine.name, quant, memory, placed.streams, answer, first, command_line)


def _speeds(
    work: Anatomy, rig: Rig, engine: UpstreamEngine, load: Load, context: int
) -> tuple[Interval, Interval | None]:
    if load.users > 1:
        many = roofline.serving(work, rig, engine, load.prompt, load.answer, load.users)
        return many.tpot.inverse(), many.ttft
    one = roofline.single_stream(work, rig, engine, context, load.prompt)
    return one.answer, one.prompt.inverse().times(load.prompt) if one.prompt else None


def boxes(sizing: Sizing) -> Iterable[str]:
    """Yield what to do where nothing does: several machines side by side share the users, not the model."""
    if not sizing.options and sizing.load.users > 1:
        yield f"{sizing.load.users} users can be shared among machines: ask with fewer, such as --users 1"

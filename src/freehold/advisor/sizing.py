"""Sizes hardware for a model and a number of users: the fewest of each device, and why other devices fail.

Every device of the catalogue is tried in the numbers that one machine has, with every engine and quantisation that
it reads. All users ask at the same moment, which is the worst hour. Knows no traffic and no machine at hand.
Path: cli/hardware, freehold.choosing.hardware -> size -> Sizing
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freehold.advisor import roofline
from freehold.advisor.anatomy import from_catalogue
from freehold.advisor.commands import Line, line
from freehold.advisor.engines import UpstreamEngine, engines
from freehold.advisor.fit import OURS
from freehold.advisor.interval import Interval
from freehold.advisor.ours import Refuses
from freehold.advisor.places import Load, quants_of
from freehold.catalog.hardware import Device, Money, Rig, devices
from freehold.catalog.model import Model
from freehold.errors import UsageError

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
    return max(filter(None, (why, *reasons)), key=_nearness, default="")


def _nearness(why: str) -> int:
    marks = ("tokens a second", "conversations", "GiB")
    return next((len(marks) - i for i, mark in enumerate(marks) if mark in why), 0)


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
        return f"{engine.title} in {quant}: room for {placed.streams} conversations of {context:,} tokens at a time"
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
    work: roofline.Work, rig: Rig, engine: UpstreamEngine, load: Load, context: int
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

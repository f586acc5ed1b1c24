"""Answers one question of cost: host this model for this traffic, or pay an API by the token?

Chooses what the caller left open: machines, their speed, the APIs to compare with. Knows no wording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date

from freehold.base import catalog
from freehold.base.catalog import prices
from freehold.base.catalog.hardware import Device, Rig, rig
from freehold.base.catalog.model import Model
from freehold.base.catalog.prices import Offer
from freehold.base.errors import UsageError
from freehold.choose.advisor import breakeven, roofline
from freehold.choose.advisor.anatomy import from_catalogue
from freehold.choose.advisor.breakeven import (
    Assumption,
    Comparison,
    CostOptions,
    Owned,
    Traffic,
    bill,
    compare,
    from_figures,
)
from freehold.choose.advisor.engines import UpstreamEngine, engine, engines
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.places import quants_of

MOST_HOSTS = 5  # of the same model, the cheapest


def cost(
    model: str | None = None,
    traffic: Traffic | None = None,
    *,
    on: str | None = None,
    bought: bool = False,
    speed: Interval | float | None = None,
    engine: str | None = None,
    quant: str | None = None,
    users: int = 64,
    against: Sequence[str] = (),
    batch: bool = False,
    day: date | None = None,
    growth: float = 0.0,
    **given: Interval | float,
) -> Comparison:
    """Compare hosting `model` on hardware `on` with APIs; `given` are assumptions by key, `hourly` and `price` too.

    `speed`: decode speed of one machine in tokens per second; None: predicted. `growth`: per month, 0.05 is 5 %.
    `traffic` None: 10 million tokens per day. Raises UsageError, ModelNotFound.
    """
    CostOptions(users=users)  # refuses what the command line refuses, in the same words
    day = day or date.today()
    facts = catalog.model(model) if model else None
    traffic = traffic or from_figures()
    if speed is not None:
        rate = _interval(speed)
        if rate.low <= 0:
            raise UsageError("0 tokens a second answer nothing", "give what one machine writes a second")
        rig_taken, fast = catalog.rig(on or USUAL), breakeven.speed(rate)
    elif facts is None:
        raise UsageError(
            "how fast would it answer?", "name a MODEL of the catalogue, or give --tokens-per-second and --on"
        )
    else:
        rig_taken, fast = host(facts, on, traffic, engine, quant, users)
    owned = Owned(rig_taken, bought)
    assumed = breakeven.assumptions(owned, fast, traffic, {key: _interval(v) for key, v in given.items()})
    traffic = traffic.growing(growth, assumed["months"].value.mid)
    offers, left_out = _offers(facts, against, traffic, day, batch)
    comparison = compare(owned, assumed, traffic, offers, day, batch)
    return replace(comparison, model=facts, left_out=tuple(left_out))


def _offers(
    facts: Model | None, against: Sequence[str], traffic: Traffic, day: date, batch: bool
) -> tuple[list[tuple[Offer, bool]], list[str]]:
    """Return what to compare with and whether it is the same model; of the unasked ones, what was left out and why."""
    hosts = prices.hosts(facts) if facts else ()
    if against:
        named = {o.name: o for o in map(prices.find, against)}
        for why in filter(None, (_why_not(o, traffic, day, batch) for o in named.values())):
            raise UsageError(why, "leave it out of --against, or change the request")
        return [(o, o in hosts) for o in named.values()], []
    everything = {o: _why_not(o, traffic, day, batch) for o in (*prices.usual(), *hosts)}
    left_out = [why for why in everything.values() if why]
    sold = [o for o, why in everything.items() if not why]
    same = sorted((o for o in sold if o in hosts), key=lambda o: bill(o, traffic, day, batch).month.mid)
    if dearer := len(same[MOST_HOSTS:]):
        left_out.append(f"{dearer} dearer hosts of the same model")
    return [*((o, False) for o in sold if o not in hosts), *((o, True) for o in same[:MOST_HOSTS])], left_out


def _why_not(offer: Offer, traffic: Traffic, day: date, batch: bool) -> str:
    longest = max(s.request.input + s.request.output for s in traffic.shapes)
    if 0 < offer.context < longest:
        return f"{offer.name} takes {offer.context:,} tokens, and requests have {longest:,.0f}"
    if batch and not offer.sells_batch(day):
        return f"{offer.name} has no batch price that we know of"
    return ""


def _interval(value: Interval | float) -> Interval:
    return value if isinstance(value, Interval) else Interval.exactly(value)


# --- chooses hardware and quantisation for a hosted model, and predicts its speed there -------------
# Defaults are chosen here: FP8 where the device has units for it, else what rounds least of what fits, and as
# few devices as hold it.

USUAL = "h100"  # what most rent: the most sellers have it
_COUNTS = (1, 2, 4, 8)


def host(
    model: Model, on: str | None, traffic: Traffic, named: str | None, quant: str | None, users: int
) -> tuple[Rig, Assumption]:
    """Place `model` on the hardware `on` names, or on as few of the usual devices as hold it; predict its speed.

    `named`: the engine; the first that runs there if None. Raises UsageError where it does not fit or nothing is
    known to predict from.
    """
    read = max(1, round(traffic.input / traffic.requests))
    written = max(1, round(traffic.output / traffic.requests))
    rig_taken, runs, kind, streams = _place(model, on, named, quant, read + written)
    together = min(users, streams)
    try:
        serves = roofline.serving(from_catalogue(model, kind), rig_taken, runs, read, written, together)
    except UsageError as e:
        raise UsageError(e.message, "give --tokens-per-second in its place") from e
    source = (
        f"predicted for {runs.title}, {kind}, {together} requests of {read:,} + {written:,} tokens at a time, "
        "prompts read in full"
    )
    return rig_taken, breakeven.speed(serves.output, source, runs.checked)


def _place(
    model: Model, on: str | None, named: str | None, quant: str | None, context: int
) -> tuple[Rig, UpstreamEngine, str, int]:
    """Return the first rig that holds the model, engine, type of weights, and how many requests it answers."""
    why = "no hardware"
    for machine in [rig(on)] if on else [rig(f"{n}x{USUAL}") for n in _COUNTS]:
        for runs, kind in _ways(model, machine.device, named, quant):
            placed = roofline.place(from_catalogue(model, kind), machine, runs, context)
            if placed.fits:
                return machine, runs, kind, placed.streams
            why = f"{model.id} as {kind}: {placed.why}"
    raise UsageError(why, "name larger hardware, such as --on 8xh200, or give --tokens-per-second")


def _ways(
    model: Model, device: Device, named: str | None, quant: str | None
) -> Iterator[tuple[UpstreamEngine, str]]:
    """Yield engines and types of weights to try on a device, the best first."""
    able = [engine(named)] if named else [e for e in engines() if e.runs_on(device)]
    kinds = [quant] if quant else sorted(quants_of(model), key=lambda q: q != "FP8" or not device.fp8)
    for runs in able or engines()[:1]:
        for kind in kinds:
            if quant or runs.reads(kind, device):
                yield runs, kind

"""Answers one question of cost: host this model for this traffic, or pay an API by the token?

Chooses what the caller left open: machines, their speed, the APIs to compare with. Knows no wording.
Path: cli/cost.py -> cost -> hosting, breakeven.assumptions, breakeven.compare -> Comparison
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from freehold import catalog
from freehold.advisor import breakeven, hosting
from freehold.advisor.breakeven import Assumption, Comparison, Owned, bill, compare
from freehold.advisor.interval import Interval
from freehold.advisor.traffic import Traffic, from_figures
from freehold.catalog import Model, prices
from freehold.catalog.prices import Offer
from freehold.errors import UsageError

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

    `speed`: tokens a second of answers of one machine, predicted where None. `growth`: a month, 0.05 is 5 %.
    `traffic`: 10 million tokens a day where None. Raises UsageError, ModelNotFound.
    """
    day = day or date.today()
    facts = catalog.model(model) if model else None
    traffic = traffic or from_figures()
    owned, fast = _owned(facts, traffic, on, bought, speed, engine, quant, users)
    assumed = breakeven.assumptions(owned, fast, traffic, {key: _interval(v) for key, v in given.items()})
    traffic = traffic.growing(growth, assumed["months"].value.mid)
    offers, left_out = _offers(facts, against, traffic, day, batch)
    comparison = compare(owned, assumed, traffic, offers, day, batch)
    return replace(comparison, model=facts, left_out=tuple(left_out))


def _owned(
    facts: Model | None,
    traffic: Traffic,
    on: str | None,
    bought: bool,
    speed: Interval | float | None,
    engine: str | None,
    quant: str | None,
    users: int,
) -> tuple[Owned, Assumption]:
    """Return the machines and how fast one answers: as given, else as predicted for the model."""
    if speed is not None:
        rate = _interval(speed)
        if rate.low <= 0:
            raise UsageError("0 tokens a second answer nothing", "give what one machine writes a second")
        return Owned(catalog.rig(on or hosting.USUAL), bought), breakeven.speed(rate)
    if facts is None:
        raise UsageError(
            "how fast would it answer?", "name a MODEL of the catalogue, or give --tokens-per-second and --on"
        )
    rig, fast = hosting.host(facts, on, traffic, engine, quant, users)
    return Owned(rig, bought), fast


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
    """Say why the traffic cannot go there; empty: it can."""
    longest = max(s.request.input + s.request.output for s in traffic.shapes)
    if 0 < offer.context < longest:
        return f"{offer.name} takes {offer.context:,} tokens, and requests have {longest:,.0f}"
    if batch and not offer.sells_batch(day):
        return f"{offer.name} has no batch price that we know of"
    return ""


def _interval(value: Interval | float) -> Interval:
    return value if isinstance(value, Interval) else Interval.exactly(value)

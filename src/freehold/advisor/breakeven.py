"""Compares self-hosting with API prices: the cost of each per month, and the break-even volume in tokens a day.

Every figure is a range: the answer at every assumption's middle, and what four of five draws of all of them
lie between, each drawn for itself between its ends (the same draws every time). The tornado moves one alone.
Knows no table and no page.
Path: cost -> compare(Owned, assumptions, Traffic, offers) -> Comparison
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import NormalDist

from freehold.advisor.interval import Interval
from freehold.advisor.ownership import DAYS, Assumption, Owned, Point, people
from freehold.advisor.traffic import Traffic
from freehold.catalog.model import Model
from freehold.catalog.prices import Offer

DRAWS = 1000  # ten times as many move bounds by 1 to 6 %, and more only where `never` is near
_NORMAL = NormalDist()
_TENTH = _NORMAL.inv_cdf(0.9)  # standard deviations with a tenth of all chances beyond


@dataclass(frozen=True, slots=True)
class Swing:
    """One assumption alone at its low and at its high end, and the answer at each."""

    assumption: Assumption
    at_low: float
    at_high: float

    @property
    def factor(self) -> float:
        """How many times the larger answer is the smaller one."""
        low, high = sorted((self.at_low, self.at_high))
        return high / low if low > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Bill:
    """What an API asks for the traffic in a month at today's prices; bounds: its dearest and cheapest hour."""

    offer: Offer
    month: Interval
    batch: bool
    same: bool  # it sells the model that would be owned


@dataclass(frozen=True, slots=True)
class Even:
    """Where owning costs as much as one API; infinite tokens: never, whatever the traffic."""

    bill: Bill
    tokens_per_day: Interval
    utilisation: Interval  # of the speed of all machines paid for, spare ones too; above 1 is out of reach
    swings: tuple[Swing, ...]  # of tokens_per_day, the widest first


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole answer; dollars a month and tokens a day."""

    owned: Owned
    traffic: Traffic
    day: date  # whose prices
    assumptions: Mapping[str, Assumption]
    month: Interval
    parts: Mapping[str, float]
    machines: int
    utilisation: float
    swings: tuple[Swing, ...]  # of the month's cost of owning, the widest first
    evens: tuple[Even, ...]  # by the bills' order, the cheapest first
    model: Model | None = None  # advisor.cost fills this
    left_out: tuple[str, ...] = ()  # and this: what it did not compare with, and why


def compare(
    owned: Owned,
    assumed: Mapping[str, Assumption],
    traffic: Traffic,
    offers: Sequence[tuple[Offer, bool]],
    day: date,
    batch: bool = False,
) -> Comparison:
    """Compare owning with every (offer, whether it sells the same model) at the prices of `day`."""
    mid = {key: a.value.mid for key, a in assumed.items()}
    draws = points(assumed)
    month, swings = ranged(lambda at: sum(owned.month(at, traffic).values()), assumed, draws)
    bills = sorted((bill(o, traffic, day, batch, same) for o, same in offers), key=lambda b: b.month.mid)
    machines = owned.machines(mid, traffic)
    return Comparison(
        owned,
        traffic,
        day,
        assumed,
        month,
        owned.month(mid, traffic),
        machines,
        traffic.output / 86_400 / (machines * mid["speed"]),
        swings,
        tuple(_even(owned, assumed, traffic, b, draws) for b in bills),
    )


def bill(offer: Offer, traffic: Traffic, day: date, batch: bool = False, same: bool = False) -> Bill:
    """Return a month of `traffic` at an offer, each length of request priced apart and each hour by its share."""
    hours = [0.0] * 24
    for shape in traffic.shapes:
        for hour, cost in enumerate(offer.costs(shape.request, day, batch)):
            hours[hour] += shape.a_day * float(cost)
    low, high = min(hours), max(hours)
    mean = sum(cost * share for cost, share in zip(hours, traffic.hours, strict=True))
    month = Interval(
        low, min(max(mean, low), high), high
    )  # a mean of equal costs may miss them by its rounding
    return Bill(offer, month.times(DAYS), batch, same)


def _even(
    owned: Owned, assumed: Mapping[str, Assumption], traffic: Traffic, against: Bill, draws: Sequence[Point]
) -> Even:
    """Return from where on owning costs no more than `against`, for requests of the traffic's mix."""
    per_token = against.month.mid / (traffic.tokens * DAYS)
    share = traffic.output / traffic.tokens

    def tokens(at: Point) -> float:
        return even_tokens(owned, at, per_token * at["api"], share)

    def full(at: Point) -> float:
        ours = sum(owned.month(at, traffic).values())
        could = owned.machines(at, traffic) * at["speed"] * 86_400 / share * DAYS
        return ours / (per_token * at["api"] * could)

    a_day, swings = ranged(tokens, assumed, draws)
    return Even(against, a_day, ranged(full, assumed, draws)[0], swings)


def even_tokens(owned: Owned, at: Point, per_token: float, out_share: float) -> float:
    """Return the fewest tokens a day for which owning costs no more; infinite if each machine costs more than it saves.

    `per_token`: the API's dollars for a token of the mix; `out_share`: of the tokens, those written.
    """
    each, full = owned.per_machine(at), owned.capacity(at, out_share)
    spare = round(at["spare"])
    fixed = sum(people(at).values()) + spare * each
    saved = per_token * DAYS  # a month, for each token a day
    gain = saved * full - each  # what one more busy machine leaves
    if gain <= 0:
        return math.inf
    count = max(1, math.ceil(fixed / gain - 1e-9))
    return max((fixed + count * each) / saved, full * (count - 1))


def ranged(
    answer: Callable[[Point], float], assumed: Mapping[str, Assumption], draws: Sequence[Point]
) -> tuple[Interval, tuple[Swing, ...]]:
    """Return the answer with bounds, and what each assumption alone does to it."""
    mid = {key: a.value.mid for key, a in assumed.items()}
    here = answer(mid)
    swings = [
        Swing(a, answer({**mid, key: a.value.low}), answer({**mid, key: a.value.high}))
        for key, a in assumed.items()
        if a.value.low < a.value.high
    ]
    answers = sorted(answer(at) for at in draws)
    low, high = answers[len(answers) // 10], answers[-1 - len(answers) // 10]
    moving = sorted((s for s in swings if s.at_low != s.at_high), key=lambda s: s.factor, reverse=True)
    return Interval(min(low, here), here, max(high, here)), tuple(moving)


def points(assumed: Mapping[str, Assumption]) -> list[Point]:
    """Return points drawn from all ranges: every tenth of each range's chances comes up equally often."""
    source = random.Random(DRAWS)
    columns: dict[str, list[float]] = {}
    for key, assumption in assumed.items():
        chances = [(i + 0.5) / DRAWS for i in range(DRAWS)]
        source.shuffle(chances)
        columns[key] = [_drawn(assumption.value, chance) for chance in chances]
    return [{key: column[i] for key, column in columns.items()} for i in range(DRAWS)]


def _drawn(value: Interval, chance: float) -> float:
    """Return the value that is exceeded with 1 - `chance`: normal on either side of the middle, clamped to its ends."""
    off = max(-1.0, min(1.0, _NORMAL.inv_cdf(chance) / _TENTH))
    end = value.high if off > 0 else value.low
    if value.low > 0:
        return value.mid * (end / value.mid) ** abs(off)
    return value.mid + (end - value.mid) * abs(off)

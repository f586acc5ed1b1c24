"""Monthly cost of self-hosting a model: machines rented or bought, power, rack, people, migration.

A month's cost is a sum over machines and people at one `Point`, a value for every assumption; how sure it is
comes from moving the assumptions one by one (breakeven.py). Machines run day and night. Knows no API, no
interest on capital, no tax, and prices prompts by the answers' tokens: a speed holds for the traffic's mix.
Path: cost -> assumptions -> Owned.month(Point, Traffic) -> breakeven
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib import resources

from freehold.advisor.interval import Interval
from freehold.advisor.traffic import Traffic
from freehold.catalog.hardware import Money, Rig
from freehold.errors import UsageError

HOURS = 365.25 * 24 / 12  # a month
DAYS = 365.25 / 12
DAY_S = 86_400.0
PARTS = ("machines", "power and rack", "people", "moving over")

SPEED = "a machine's answers, all users"

Point = Mapping[str, float]  # a value for every assumption, by key


@dataclass(frozen=True, slots=True)
class Assumption:
    """A value that the answer hangs on, with who said so and when."""

    key: str  # the option's name, too
    title: str
    unit: str
    value: Interval
    source: str
    checked: date
    given: bool = False  # by the user
    limits: tuple[float, float] = (0.0, math.inf)  # of what an option takes

    def with_value(self, value: Interval, source: str = "given") -> Assumption:
        """Return it with the user's own value; raise UsageError for one that cannot be."""
        least, most = self.limits
        if not (least <= value.low and value.high <= most):
            text = f"{value.low:g}" if value.low == value.high else f"{value.low:g}-{value.high:g}"
            raise UsageError(
                f"--{self.key} {text} is not within {least:g}..{most:,g}",
                f"the default is {self.value.mid:g}",
            )
        return replace(self, value=value, source=source, checked=date.today(), given=True)


@dataclass(frozen=True, slots=True)
class Owned:
    """A model on machines of one kind, `bought` or rented."""

    rig: Rig
    bought: bool

    @property
    def name(self) -> str:
        """As a table names it."""
        return f"{self.rig.name}, {'bought' if self.bought else 'rented'}"

    def machines(self, at: Point, traffic: Traffic) -> int:
        """Return how many rigs carry the busiest hour, the spare ones included."""
        busiest = traffic.output / DAY_S * at["peak"]
        return max(1, math.ceil(busiest / (at["speed"] * at["load"]) - 1e-9)) + round(at["spare"])

    def month(self, at: Point, traffic: Traffic) -> dict[str, float]:
        """Return dollars a month by PARTS."""
        count = self.machines(at, traffic)
        return {
            "machines": count * self._machine(at),
            "power and rack": count * self._running(at),
            **people(at),
        }

    def per_machine(self, at: Point) -> float:
        """Return dollars a month for one more rig."""
        return self._machine(at) + self._running(at)

    def hour(self, at: Point) -> float:
        """Return dollars an hour of one rig, busy or not: rent, or amortisation, power and rack."""
        return self.per_machine(at) / HOURS

    def capacity(self, at: Point, out_share: float) -> float:
        """Return tokens a day, read and written, that one rig carries under the given peak and load."""
        return at["speed"] * at["load"] / at["peak"] * DAY_S / out_share

    def _machine(self, at: Point) -> float:
        if not self.bought:
            return at["hourly"] * HOURS
        return at["price"] * (1 + at["box"]) * (1 - at["resale"]) / (12 * at["years"])

    def _running(self, at: Point) -> float:
        if not self.bought:
            return 0.0  # a rent includes them
        kw = self.rig.watts * at["overhead"] / 1000
        return kw * (at["draw"] * at["pue"] * at["electricity"] * HOURS + at["rack"])


def people(at: Point) -> dict[str, float]:
    """Return dollars a month that hang on no machine."""
    return {
        "people": at["people"] * at["wage"],
        "moving over": at["migration"] * at["wage"] / at["months"],
    }


def assumptions(
    owned: Owned, fast: Assumption, traffic: Traffic, overrides: Mapping[str, Interval]
) -> dict[str, Assumption]:
    """Return all that the answer hangs on, by key: ours, in their place what the CSV and the user tell.

    Raises UsageError where the hardware has neither a known price nor a given one.
    """
    by_key = {a.key: a for use, a in _defaults() if use in ("", "buy" if owned.bought else "rent")}
    if traffic.peak is not None:
        by_key["peak"] = by_key["peak"].with_value(Interval.exactly(traffic.peak), traffic.source)
    for one in (fast, _paid(owned, overrides)):
        by_key[one.key] = one
    for key, value in overrides.items():
        if key not in by_key:
            mode = "bought" if owned.bought else "rented"
            raise UsageError(f"--{key} says nothing of {mode} machines", "leave it away, or --buy or --rent")
        by_key[key] = by_key[key].with_value(value)
    return by_key


def speed(value: Interval, source: str = "given", checked: date | None = None) -> Assumption:
    """Return how fast one machine answers: the user's own figure, or a prediction with its source."""
    return Assumption("speed", SPEED, "tokens/s", value, source, checked or date.today(), source == "given")


def _paid(owned: Owned, overrides: Mapping[str, Interval]) -> Assumption:
    """Return what one rig is paid for: dollars to buy it, or an hour's rent."""
    key, unit = ("price", "$") if owned.bought else ("hourly", "$/h")
    title = f"{'price' if owned.bought else 'rent'} of {owned.rig.name}"
    if key in overrides:
        return Assumption(key, title, unit, overrides[key], "given", date.today(), given=True)
    money = owned.rig.price if owned.bought else owned.rig.rent
    if money is None:
        other = "--rent" if owned.bought else "--buy"
        what = "buy" if owned.bought else "rent"
        raise UsageError(
            f"no price to {what} {owned.rig.device.title} is known", f"give --{key}, or try {other}"
        )
    return Assumption(key, title, unit, _range(money), money.source, money.checked)


def _range(money: Money) -> Interval:
    """Return the sellers' range; where one seller alone was seen, a fifth to either side."""
    if money.low < money.high:
        return Interval(money.low, money.mid, money.high)
    return Interval.within(money.mid, 1.2)


@cache
def _defaults() -> tuple[tuple[str, Assumption], ...]:
    """Return every assumption of ownership.toml with what it is for: rent, buy, or both (empty)."""
    text = resources.files("freehold.advisor").joinpath("ownership.toml").read_text(encoding="utf-8")
    defaults = []
    for raw in tomllib.loads(text)["assumption"]:
        value = Interval(raw["low"], raw["mid"], raw["high"])
        about = raw["key"], raw["title"], raw["unit"], value, raw["source"], raw["checked"]
        one = Assumption(*about, limits=tuple(raw["limits"]))
        defaults.append((raw.get("for", ""), one))
    return tuple(defaults)


def known() -> tuple[Assumption, ...]:
    """Return every assumption with its default, for options and docs."""
    return tuple(a for _, a in _defaults())

"""Compares self-hosting with API prices: the cost of each per month, and the break-even volume in tokens a day.

Every figure is a range: the answer at every assumption's middle, and what four of five draws of all of them
lie between, each drawn for itself between its ends (the same draws every time). The tornado moves one alone.
Knows no table and no page.
"""

from __future__ import annotations

import csv
import math
import random
import tomllib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import NormalDist

from freehold.base.catalog.hardware import Money, Rig
from freehold.base.catalog.model import Model
from freehold.base.catalog.prices import Offer, PricedRequest
from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.base.options import check, option
from freehold.base.regular import bounded_lines
from freehold.choose.advisor.interval import Interval

# --- a model's traffic: tokens a day by kind, requests by length, the busiest hour ------------------
# From a few figures, or from a CSV of what was served. Requests are kept by length, since sellers price long
# ones apart.
COLUMNS = ("time", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "requests")
NEEDED = COLUMNS[:3]
MOST_TOKENS = 1e15  # a day, and in one line of a CSV
MOST_ROWS = 2_000_000
MOST_BYTES = 256 << 20
MOST_LINE = 1 << 16  # characters
_SHOWN = 5  # bad lines named one by one
_FLAT = (1 / 24,) * 24


@dataclass(frozen=True, slots=True)
class RequestShape:
    """Requests of like length: how many a day, and the mean one of them."""

    a_day: float
    request: PricedRequest


@dataclass(frozen=True, slots=True)
class Traffic:
    """A day's requests. `peak` is None where it was not given: an assumption stands in for it."""

    shapes: tuple[RequestShape, ...]
    hours: tuple[float, ...] = _FLAT  # of the day's tokens, the share of each hour (UTC)
    peak: float | None = None  # tokens of the busiest hour over those of the mean one
    source: str = ""

    @property
    def requests(self) -> float:
        """Requests a day."""
        return sum(s.a_day for s in self.shapes)

    @property
    def input(self) -> float:
        """Tokens read a day, those from a cache included."""
        return sum(s.a_day * s.request.input for s in self.shapes)

    @property
    def cached(self) -> float:
        """Of the tokens read a day, those that came from a cache."""
        return sum(s.a_day * s.request.cached for s in self.shapes)

    @property
    def output(self) -> float:
        """Tokens written a day."""
        return sum(s.a_day * s.request.output for s in self.shapes)

    @property
    def tokens(self) -> float:
        """Tokens a day, read and written."""
        return self.input + self.output

    def times(self, factor: float) -> Traffic:
        """Return as many times the requests."""
        return replace(self, shapes=tuple(replace(s, a_day=s.a_day * factor) for s in self.shapes))

    def growing(self, monthly: float, months: float) -> Traffic:
        """Return the mean day of `months` that begin with this one, each `monthly` (0.05: 5 %) more than the last."""
        if not monthly:
            return self
        if not -0.5 <= monthly <= 1:
            raise UsageError(f"a growth of {100 * monthly:g} % a month is not within -50..100")
        whole = max(1, round(months))
        mean = sum((1 + monthly) ** m for m in range(whole)) / whole
        return replace(
            self.times(mean),
            source=f"{self.source}, {100 * monthly:+g} % a month: the mean of {whole} months",
        )


@dataclass(frozen=True, slots=True)
class TrafficFigures:
    """What `from_figures` takes, which are options of `freehold cost` too."""

    tokens_per_day: float = option(
        10e6, "Tokens of prompts and answers a day; default: 10M.", form="amount", shown=False
    )
    input_share: float = option(0.75, "Share of prompts in the tokens.")
    cached_share: float = option(0.3, "Share of cached tokens in the prompts.", name="cached")
    request_tokens: float = option(
        2000.0, "Tokens per request; default: 2,000.", name="request", form="amount", shown=False
    )


@dataclass(frozen=True, slots=True)
class CostOptions:
    """Own hardware, and APIs to compare it with, which are options of `freehold cost` too."""

    on: str | None = option(
        None,
        "Hardware, such as 2xh100; default: the smallest number of H100s that can hold the model.",
        metavar="HARDWARE",
    )
    bought: bool = option(False, "Buy the hardware, or rent it by the hour.", name="buy", off="rent")
    engine: str | None = option(None, "Engine to predict; default: vllm if it runs there.", metavar="NAME")
    quant: str | None = option(None, "Quantisation to predict, such as FP8.", metavar="NAME")
    users: int = option(64, "Concurrent users.", least=1, most=4096)
    against: tuple[str, ...] = option(
        (), "API to compare, such as gpt-5-mini or groq:...; repeatable.", metavar="API"
    )
    batch: bool = option(False, "Use the APIs' batch prices (answers within a day).")

    def __post_init__(self) -> None:
        check(self)


_USUAL = TrafficFigures()


def from_figures(
    tokens_per_day: float = _USUAL.tokens_per_day,
    input_share: float = _USUAL.input_share,
    cached_share: float = _USUAL.cached_share,
    request_tokens: float = _USUAL.request_tokens,
) -> Traffic:
    """Return a day of equal requests; `cached_share` is of the input, `request_tokens` read and written.

    Raises UsageError for no traffic and for shares that cannot be.
    """
    if not 0 < tokens_per_day <= MOST_TOKENS:
        raise UsageError(
            f"{tokens_per_day:,.0f} tokens a day are not within 1..{MOST_TOKENS:,.0f}",
            "without traffic there is nothing to compare; give what a usual day has, such as 10M",
        )
    if not 0 <= input_share < 1:
        raise UsageError(
            f"an input share of {input_share:g} leaves no answers; give 0 or more and less than 1",
            "0.75: three tokens are read for each that is written",
        )
    if not 0 <= cached_share <= 1:
        raise UsageError(
            f"a cached share of {cached_share:g} is not within 0..1", "it is of the input tokens"
        )
    if not 1 <= request_tokens <= 1e8:
        raise UsageError(f"{request_tokens:,.0f} tokens a request are not within 1..100,000,000")
    read = request_tokens * input_share
    one = PricedRequest(read, request_tokens - read, read * cached_share)
    source = f"requests of {request_tokens:,.0f} tokens"
    return Traffic((RequestShape(tokens_per_day / request_tokens, one),), source=source)


def from_csv(path: Path, edges: Sequence[int]) -> Traffic:
    """Return the mean day of a CSV with a line for each request, hour or day (docs/guides/cost.md names the columns).

    Requests are summed by length between `edges`, beyond each of which some seller asks more. Raises UsageError
    that names the bad lines: none is left out in silence.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UsageError(
                f"{path} has {size:,} bytes, more than {MOST_BYTES:,}", "sum it up by hour: `requests` counts"
            )
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(bounded_lines(file, MOST_LINE), restkey="more")
            _check_head(path, lines.fieldnames or ())
            sums = _Sums(edges)
            for count, row in enumerate(lines, 1):
                if count > MOST_ROWS:
                    raise UsageError(f"{path} has more than {MOST_ROWS:,} lines", "sum it up by hour")
                sums.add(lines.line_num, row)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", "--csv takes a file") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UsageError(f"{path} is not a CSV file in UTF-8: {e}") from e
    return sums.traffic(path)


def _check_head(path: Path, head: Iterable[str]) -> None:
    for name in head:
        if name not in COLUMNS:
            hint = suggestion(name, COLUMNS, f"known are {', '.join(COLUMNS)}")
            raise UsageError(f"{path}: no column named {name!r}", hint)
    if missing := [n for n in NEEDED if n not in head]:
        raise UsageError(f"{path} has no column {missing[0]}", f"needed are {', '.join(NEEDED)}")


class _Sums:
    """What is kept of a CSV while it is read: sums by length, by hour, and the bad lines."""

    def __init__(self, edges: Sequence[int]) -> None:
        self._edges = edges
        self._shapes: dict[int, list[float]] = defaultdict(lambda: [0.0] * 5)
        self._hours: dict[tuple[date, int], float] = defaultdict(float)
        self._days: set[date] = set()
        self._timed = True
        self._bad: list[str] = []

    def add(self, line: int, row: Mapping[str, str | None]) -> None:
        try:
            moment, timed = _moment(row["time"] or "")
            count = _number(row, "requests", 1.0)
            numbers = [_number(row, c) for c in COLUMNS[1:5]]
            read, _, cached, put = numbers
            if count < 1:
                raise ValueError(f"requests {count:g} is less than 1")
            if cached + put > read:
                tokens = f"{cached + put:,.0f} tokens cached or written to a cache"
                raise ValueError(f"{tokens}, of {read:,.0f} read")
        except ValueError as e:
            self._bad.append(f"line {line}: {e}")
            return
        self._timed &= timed
        self._days.add(moment.date())
        self._hours[moment.date(), moment.hour] += numbers[0] + numbers[1]
        # An edge belongs to the cheaper side: "more than 200,000 tokens" is dearer.
        kept = self._shapes[bisect_left(self._edges, numbers[0] / count)]
        for i, number in enumerate((count, *numbers)):
            kept[i] += number

    def traffic(self, path: Path) -> Traffic:
        if self._bad:
            shown = "; ".join(self._bad[:_SHOWN])
            more = f"; and {len(self._bad) - _SHOWN:,} more" if len(self._bad) > _SHOWN else ""
            raise UsageError(f"{path}: {shown}{more}", "mend or remove these lines")
        days = (max(self._days) - min(self._days)).days + 1 if self._days else 0
        written = sum(kept[2] for kept in self._shapes.values())
        if not written:
            raise UsageError(f"{path} has no answers", "output_tokens is 0 everywhere, or there is no line")
        shapes = tuple(
            RequestShape(count / days, PricedRequest(*(n / count for n in (read, out, cached, put))))
            for _, (count, read, out, cached, put) in sorted(self._shapes.items())
        )
        source = f"{path.name}, {min(self._days)} to {max(self._days)}"
        if not self._timed:
            return Traffic(shapes, source=source)
        total = sum(self._hours.values())
        by_hour = [sum(v for (_, h), v in self._hours.items() if h == hour) / total for hour in range(24)]
        return Traffic(shapes, tuple(by_hour), max(self._hours.values()) / (total / (24 * days)), source)


def _moment(text: str) -> tuple[datetime, bool]:
    """Read an ISO 8601 date or time as UTC; say whether it tells the hour."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"time {text[:40]!r} is neither 2026-11-25 nor 2026-11-25T14:00") from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment), len(text.strip()) > len("2026-11-25")


def _number(row: Mapping[str, str | None], column: str, missing: float = 0.0) -> float:
    text = (row.get(column) or "").strip()
    if not text:
        if column in NEEDED:
            raise ValueError(f"{column} is empty")
        return missing
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{column} {text[:40]!r} is not a number") from None
    if not 0 <= number <= MOST_TOKENS:
        raise ValueError(f"{column} {text[:40]} is not within 0..{MOST_TOKENS:,.0f}")
    return number


# --- the comparison ---------------------------------------------------------------------------------

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


# --- monthly cost of self-hosting a model: machines rented or bought, power, rack, people, migration
# A month's cost is a sum over machines and people at one `Point`, a value for every assumption; how sure it
# is comes from moving the assumptions one by one. Machines run day and night.

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
    return {"people": at["people"] * at["wage"], "moving over": at["migration"] * at["wage"] / at["months"]}


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
    text = resources.files("freehold.choose.advisor").joinpath("ownership.toml").read_text(encoding="utf-8")
    defaults = []
    for raw in tomllib.loads(text)["assumption"]:
        value = Interval(raw.pop("low"), raw.pop("mid"), raw.pop("high"))
        use, limits = raw.pop("for", ""), tuple(raw.pop("limits"))
        defaults.append((use, Assumption(**raw, value=value, limits=limits)))
    return tuple(defaults)


def known() -> tuple[Assumption, ...]:
    """Return every assumption with its default, for options and docs."""
    return tuple(a for _, a in _defaults())

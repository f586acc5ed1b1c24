"""What the ledger's mix of models cost, and what the same requests would have cost elsewhere: four counterfactuals.

Each is a range. What a request did cost is exact to the nano-dollar. What it would have cost is not: another
tokenizer counts other tokens, another provider's cache holds other prefixes, and an owned machine is paid for when it
is idle too. A request that a counterfactual says nothing of keeps its cost, and is counted as such. Nothing here
says that the other answers were as good; the bar does. Knows no wording of a page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from freehold.base import catalog
from freehold.base.types import Usage
from freehold.choose.advisor import breakeven
from freehold.choose.advisor.breakeven import Assumption, Owned, from_figures, points, ranged
from freehold.choose.advisor.interval import Interval
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.ledger.rows import LedgerRow
from freehold.route.router.price import NANO, Price

# Tokens of one text by another model's tokenizer, as a factor. Our own guess: released tokenizers of 2024 to 2026
# stay within it on English and code; other scripts differ by more.
TOKENS = Interval(0.85, 1.0, 1.2)
_ANSWERED = frozenset({"whole", "broken", "left"})
Passing = Callable[[str, GatewayModel], bool]  # task, model -> whether it reaches the bar
Hosts = Callable[[GatewayModel], Sequence[tuple[str, Price]]]  # who sells the same weights, by name


@dataclass(frozen=True, slots=True)
class DollarRange:
    """Dollars, low to high; a saving may be negative."""

    low: float
    mid: float
    high: float

    def plus(self, other: DollarRange | Interval) -> DollarRange:
        """Return the sum; bounds add up, as if both were wrong in the same direction."""
        return DollarRange(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def minus(self, other: DollarRange) -> DollarRange:
        """Return the difference, at its widest."""
        return DollarRange(self.low - other.high, self.mid - other.mid, self.high - other.low)

    def as_json(self) -> dict[str, float]:
        """Return it in whole millionths of a dollar."""
        return {"low": round(self.low, 6), "mid": round(self.mid, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What the requests would have cost otherwise. `saved`: that less what they did cost."""

    name: str
    what: str  # which models it came out as
    cost: DollarRange
    saved: DollarRange
    requests: int  # that it says something of
    unchanged: int  # that keep the cost they had

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "what": self.what,
            "cost": self.cost.as_json(),
            "saved": self.saved.as_json(),
            "requests": self.requests,
            "unchanged": self.unchanged,
        }


@dataclass(frozen=True, slots=True)
class Savings:
    """What was paid, and beside what it is a saving or a loss."""

    requests: int
    rented: float  # dollars to providers, shadows and discarded answers included
    owned: DollarRange  # machines
    cost: DollarRange  # both
    busy_s: Mapping[str, float]  # by place
    period_s: float
    against: tuple[Counterfactual, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "requests": self.requests,
            "rented": round(self.rented, 9),
            "owned": self.owned.as_json(),
            "cost": self.cost.as_json(),
            "busy_seconds": {k: round(v, 3) for k, v in self.busy_s.items()},
            "period_seconds": self.period_s,
            "against": [one.as_json() for one in self.against],
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class _Sum:
    """Nano-dollars to providers and seconds of owned machines by place, while rows are added up."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    requests: int = 0
    unchanged: int = 0

    def add(self, nano: tuple[float, float, float], share: float = 1.0) -> None:
        self.low += share * nano[0]
        self.mid += share * nano[1]
        self.high += share * nano[2]


class _Books:
    """Prices rows at models: the arithmetic that the counterfactuals share."""

    def __init__(
        self,
        rows: Iterable[LedgerRow],
        models: Mapping[str, GatewayModel],
        machines: Mapping[str, OwnedMachine],
        period_s: float,
    ) -> None:
        self.models, self.machines, self.period_s = models, machines, period_s
        self.rows: list[LedgerRow] = []
        self.nano = 0
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        work: defaultdict[str, float] = defaultdict(float)  # seconds of requests, overlapping ones each
        tokens: Counter[str] = Counter()
        for row in rows:
            self.nano += row.nano
            if row.owned and row.place:
                spans[row.place].append((row.at, row.at + row.whole_s))
                work[row.place] += row.whole_s
                tokens[row.place] += row.usage.completion_tokens
            if row.outcome in _ANSWERED:
                self.rows.append(row)
        self.busy = {place: busy_seconds(row_spans) for place, row_spans in spans.items()}
        # Of a machine's busy time, what a second of one request and what a token of an answer took.
        self._a_second = {place: self.busy[place] / work[place] for place in spans if work[place]}
        self._a_token = {place: self.busy[place] / tokens[place] for place in spans if tokens[place]}

    def kept(self, row: LedgerRow, into: _Sum) -> None:
        """Add what a row did cost."""
        into.add((row.nano, row.nano, row.nano))
        if row.owned:
            into.seconds[row.place] += row.whole_s * self._a_second.get(row.place, 1.0)

    def at(self, row: LedgerRow, model: GatewayModel, into: _Sum, share: float = 1.0) -> None:
        """Add what a row, or a share of it, would have cost at a model."""
        if model.name == row.target and not row.owned:
            into.add((row.nano, row.nano, row.nano), share)
            return
        if model.price is None or model.owned:
            into.seconds[model.place] += share * self._seconds(row, model)
        if model.price is not None:
            into.add(priced(row, model.price), share)

    def dollars(self, total_nano: _Sum) -> DollarRange:
        """Return a sum with its machines."""
        total = DollarRange(total_nano.low / NANO, total_nano.mid / NANO, total_nano.high / NANO)
        for place, seconds in total_nano.seconds.items():
            if place in self.machines and seconds:
                total = total.plus(self.machines[place].cost(seconds, max(self.period_s, seconds)))
        return total

    def mid_nano(self, row: LedgerRow, model: GatewayModel) -> float:
        """Return a row's middle price at a model, its machine's time included, to choose the cheapest by."""
        total = _Sum()
        self.at(row, model, total)
        hours = {p: self.machines[p].hour.mid for p in total.seconds if p in self.machines}
        return total.mid + sum(NANO * hours[p] * total.seconds[p] / 3600 for p in hours)

    def _seconds(self, row: LedgerRow, model: GatewayModel) -> float:
        if row.owned and row.place == model.place:
            return row.whole_s * self._a_second.get(row.place, 1.0)
        return row.usage.completion_tokens * self._a_token.get(model.place, 0.0)


def priced(row: LedgerRow, price: Price) -> tuple[float, float, float]:
    """Return nano-dollars of a row at another model's price, with and without its cache hits, tokens counted anew."""
    cold = Usage(row.usage.prompt_tokens, row.usage.completion_tokens)
    warm = replace(cold, cached_tokens=row.usage.cached_tokens)
    most = price.cost(cold, row.at, batch=row.batch)
    least = price.cost(warm, row.at, batch=row.batch) if row.usage.cached_tokens else most
    least, most = min(least, most), max(least, most)
    return least * TOKENS.low, (least + most) / 2 * TOKENS.mid, most * TOKENS.high


def savings(
    rows: Iterable[LedgerRow],
    before: Iterable[LedgerRow],
    models: Mapping[str, GatewayModel],
    machines: Mapping[str, OwnedMachine],
    period_s: float,
    *,
    passing: Passing = lambda task, model: False,
    hosts: Hosts = lambda model: (),
) -> Savings:
    """Compare a period's rows with four counterfactuals; `before`: the rows of the period before it.

    `machines` by place (HOUSE, or an owned provider's name). Seconds of a place without one cost nothing, and a note
    says so.
    """
    books = _Books(rows, models, machines, period_s)
    owned = DollarRange(0.0, 0.0, 0.0)
    for place, busy in books.busy.items():
        if place in machines:
            owned = owned.plus(machines[place].cost(busy, max(period_s, busy)))
    rented = books.nano / NANO
    cost = owned.plus(DollarRange(rented, rented, rented))
    results = (_dearest(books), _above_bar(books, passing), _same_weights(books, hosts), _mix(books, before))
    against = []
    for name, what, total in results:
        dollars, changed = books.dollars(total), total.requests - total.unchanged
        against.append(Counterfactual(name, what, dollars, dollars.minus(cost), changed, total.unchanged))
    free = [
        f"the machine {p!r} has no cost given and counts as free" for p in books.busy if p not in machines
    ]
    return Savings(len(books.rows), rented, owned, cost, books.busy, period_s, tuple(against), tuple(free))


_Counterfactual = tuple[str, str, _Sum]


def _spread(books: _Books, models_of: Callable[[LedgerRow], Sequence[tuple[GatewayModel, float]]]) -> _Sum:
    """Price each row at the models that it would have gone to, with their shares; one without any keeps its cost."""
    total = _Sum(requests=len(books.rows))
    for row in books.rows:
        models = models_of(row) if not row.sound_ms else ()  # other models' prices of sound are not compared
        for model, share in models:
            books.at(row, model, total, share)
        if not models:
            total.unchanged += 1
            books.kept(row, total)
    return total


def _grouped(rows: Sequence[LedgerRow], by: Callable[[LedgerRow], str]) -> dict[str, list[LedgerRow]]:
    groups: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        groups[by(row)].append(row)
    return groups


def _dearest(books: _Books) -> _Counterfactual:
    """All on the one rented model that would have cost most."""
    rented = [model for model in books.models.values() if model.price is not None and not model.owned]
    if not rented:
        return "all on the most expensive model", "no model has a price", _spread(books, lambda row: ())
    sums = {model.name: _spread(books, lambda row, model=model: ((model, 1.0),)) for model in rented}
    name = max(sums, key=lambda n: sums[n].mid)
    return "all on the most expensive model", name, sums[name]


def _above_bar(books: _Books, passing: Passing) -> _Counterfactual:
    """Each task's requests on the cheapest model that reaches its bar."""
    best: dict[str, GatewayModel] = {}
    for task, rows in _grouped(books.rows, lambda row: row.task).items():
        if able := [m for m in books.models.values() if task and passing(task, m)]:
            best[task] = min(able, key=lambda m: sum(books.mid_nano(r, m) for r in rows))
    total = _spread(books, lambda row: ((best[row.task], 1.0),) if row.task in best else ())
    chosen = ", ".join(f"{task}: {model.name}" for task, model in best.items())
    return "all on the cheapest above the bar", chosen or "no task has a model above its bar", total


def _same_weights(books: _Books, hosts: Hosts) -> _Counterfactual:
    """Each answer from the cheapest seller of the same weights."""
    total, chosen = _Sum(requests=len(books.rows)), []
    for target, rows in _grouped(books.rows, lambda row: row.target).items():
        model = books.models.get(target)
        sold = list(hosts(model)) if model is not None and not any(row.sound_ms for row in rows) else []
        if not sold:
            total.unchanged += len(rows)
            for row in rows:
                books.kept(row, total)
            continue
        name, price = min(sold, key=lambda s: sum(priced(r, s[1])[1] for r in rows))
        chosen.append(f"{target}: {name}")
        for row in rows:
            total.add(priced(row, price))
    sellers = ", ".join(chosen) or "no seller of these weights is known"
    return "cheapest host of the same weights", sellers, total


def _mix(books: _Books, before: Iterable[LedgerRow]) -> _Counterfactual:
    """Each request spread over the models that answered the same name in the period before."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in before:
        if row.outcome in _ANSWERED and row.target in books.models:
            answers[row.asked][row.target] += 1
    shares = {
        name: [(books.models[target], count / targets.total()) for target, count in targets.items()]
        for name, targets in answers.items()
    }
    shares_of = "split as in the previous period" if shares else "no request in the previous period"
    return "previous mix", shares_of, _spread(books, lambda row: shares.get(row.asked, ()))


# --- what owned machines cost while the ledger's requests ran ---------------------------------------
# A machine is paid for day and night. Three figures bound what of it answers are charged with: the busy time
# alone (other work fills the rest), a stated share, and all of it. Overlapping requests keep a machine busy
# once. People's time is not in it; `freehold cost` has it.

HOUR_S = 3600.0
_PARTS = (  # the assumptions that an hour of a machine hangs on
    "hourly", "price", "box", "resale", "years", "overhead", "draw", "pue", "electricity", "rack",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OwnedMachine:
    """A machine, what an hour of it costs, and the share of it that is charged to the gateway, when idle too."""

    owned: Owned
    hour: Interval  # dollars
    assumed: tuple[Assumption, ...]  # with their sources
    share: Interval | None = None  # 0 to 1; None: from the busy time alone to the whole machine

    def cost(self, busy_s: float, period_s: float) -> Interval:
        """Return dollars of a period in which it was busy for `busy_s` seconds; never less than those."""
        busy = min(busy_s / period_s, 1.0) if period_s > 0 else 0.0
        share = self.share or Interval(busy, 1.0, 1.0)
        low, mid, high = (period_s / HOUR_S * max(s, busy) for s in (share.low, share.mid, share.high))
        return Interval(low * self.hour.low, mid * self.hour.mid, high * self.hour.high)


def owned_machine(
    on: str,
    *,
    bought: bool = False,
    share: Interval | None = None,
    overrides: Mapping[str, Interval] | None = None,
) -> OwnedMachine:
    """Return the machine called `on`, such as 2xh100, with `overrides` assumptions by key in place of ours.

    Raises UsageError for unknown hardware, hardware without a price, and values that cannot be.
    """
    owned = Owned(catalog.rig(on), bought)
    fast = breakeven.speed(Interval.exactly(1.0))  # an hour's cost does not hang on it
    all_of_them = breakeven.assumptions(owned, fast, from_figures(), overrides or {})
    assumed = {key: a for key, a in all_of_them.items() if key in _PARTS}
    hour, _ = ranged(owned.hour, assumed, points(assumed))
    return OwnedMachine(owned, hour, tuple(assumed.values()), share)


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the (begin, end) spans lasted."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        if end > until:
            total += end - max(begin, until)
            until = end
    return total

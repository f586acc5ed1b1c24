"""A model's traffic: tokens a day by kind, requests by length, and how much busier the busiest hour is.

From a few figures, or from a CSV of what was served. Requests are kept by length, since sellers price long
ones apart. Knows no price and no hardware.
Path: cli/cost.py -> from_figures or from_csv -> Traffic -> ownership, breakeven
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from freehold.catalog.prices import PricedRequest
from freehold.config import nearest
from freehold.errors import UsageError
from freehold.regular import bounded_lines

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


def from_figures(
    tokens_per_day: float = 10e6,
    input_share: float = 0.75,
    cached_share: float = 0.3,
    request_tokens: float = 2000.0,
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
            near = nearest(name, COLUMNS)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(COLUMNS)}"
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
            _check(numbers, count)
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


def _check(numbers: Sequence[float], count: float) -> None:
    read, _, cached, put = numbers
    if count < 1:
        raise ValueError(f"requests {count:g} is less than 1")
    if cached + put > read:
        raise ValueError(f"{cached + put:,.0f} tokens cached or written to a cache, of {read:,.0f} read")

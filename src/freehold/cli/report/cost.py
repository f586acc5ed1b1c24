"""A comparison of self-hosting with APIs, and a ledger's savings, as text: lines, tables and a tornado diagram.

As one HTML page too, in the same words: the verdict, then bills, break-evens, sensitivity (advisor.report draws).
Knows wording, sections and captions; knows no arithmetic.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING

import click

from freehold.choose.advisor.breakeven import PARTS
from freehold.choose.advisor.interval import Interval
from freehold.choose.advisor.report import (
    Axis,
    Bar,
    Section,
    Span,
    bars,
    figure,
    page,
    paragraph,
    spans,
    tornado,
)
from freehold.choose.advisor.report import TornadoBar as Drawn
from freehold.choose.advisor.report import (
    table as page_table,
)
from freehold.cli.shared import pairs, table

if TYPE_CHECKING:
    from freehold.choose.advisor.breakeven import Assumption, Comparison, Even, Swing
    from freehold.route.router.savings import DollarRange
    from freehold.serve.reports.cost import LedgerCost

HEAD = ("OPTION", "DOLLARS A MONTH", "PER MILLION", "BREAK-EVEN (TOKENS A DAY)", "UTILISATION")
ASSUMPTIONS = ("ASSUMPTION", "LOW", "MID", "HIGH", "UNIT", "WHAT")
SHORT = {"hours a month": "h/month", "hours": "h", "tokens/s": "tok/s", "$/kW a month": "$/kW/month"}
MOST_SWINGS = 10
_BAR = 44  # characters


def show(comparison: Comparison, today: date) -> None:
    """Print a comparison: the inputs, the bills, the sensitivity, the assumptions."""
    pairs(about(comparison, today))
    click.echo()
    table(HEAD, [own_row(comparison), *(row(comparison, e) for e in comparison.evens)], right=(2,))
    click.echo(f"\n{verdict(comparison)}")
    _show_tornado(comparison)
    click.echo()
    assumed = comparison.assumptions.values()
    table(ASSUMPTIONS, [assumption_row(a) for a in assumed], right=(1, 2, 3))
    click.echo()
    pairs([(a.key, source(a, today)) for a in assumed])
    for line in comparison.left_out:
        click.echo(f"left out: {line}", err=True)


def verdict(comparison: Comparison) -> str:
    """Return in one or two sentences which is cheaper at this traffic, and the break-even."""
    names = [e.bill.offer.name for e in comparison.evens]
    dearer = sum(e.bill.month.mid > comparison.month.mid for e in comparison.evens)
    if len(names) == 1:
        than = f"{'less' if dearer else 'more'} than {names[0]}"
    else:
        than = (
            f"less than {dearer} of {len(names)} APIs" if dearer else f"more than each of {len(names)} APIs"
        )
    sentence = f"Self-hosting costs ${dollars(comparison.month.mid)} a month, {than}."
    even = headline(comparison)
    if even is None:
        return f"{sentence} It never breaks even under these assumptions."
    first = f" with {even.bill.offer.name}, the first API" if len(names) > 1 else ""
    return f"{sentence} It breaks even at {spoken_tokens(even.tokens_per_day)} tokens a day{first}."


def about(comparison: Comparison, today: date) -> list[tuple[str, str]]:
    """Return rows: traffic, hardware, speed, prices."""
    from freehold.base.catalog import prices

    t, sheet = comparison.traffic, prices.table()
    age = sheet.age_days(today)
    old = ": update the package genai-prices" if age > prices.STALE_DAYS else ""
    mix = f"{t.input / t.tokens:.0%} prompts"
    if t.cached:
        mix += f" ({t.cached / t.input:.0%} of it cached)"
    count, spare = comparison.machines, round(comparison.assumptions["spare"].value.mid)
    machines = f"{count} machine{'s' * (count != 1)}" + (f", {spare} of them to spare" if spare else "")
    what = f"{comparison.model.id} on {comparison.owned.name}" if comparison.model else comparison.owned.name
    fast = comparison.assumptions["speed"]
    rows = [
        ("traffic", f"{short(t.tokens)} tokens a day: {t.source}; {mix}"),
        ("owned", f"{what}: {machines}, {comparison.utilisation:.1%} used"),
        ("speed", f"{fast.value} tokens/s of answers a machine: {fast.source}"),
        ("prices", f"genai-prices {sheet.version}, newest note {sheet.noted}, {age} days old{old}"),
    ]
    for even in comparison.evens:
        if change := even.bill.offer.next_change(today):
            rows.append(("", f"{even.bill.offer.name} announces other prices from {change}: see --date"))
    return rows


def own_row(comparison: Comparison) -> tuple[str, ...]:
    """Return the row of self-hosting."""
    return (
        comparison.owned.name,
        spoken_dollars(comparison.month),
        per_million(comparison, comparison.month.mid),
        "",
        "",
    )


def row(comparison: Comparison, even: Even) -> tuple[str, ...]:
    """Return one API's row."""
    bill = even.bill
    marks = ", ".join(["same model"] * bill.same + ["batch"] * bill.batch)
    return (
        f"{bill.offer.name}{f' ({marks})' if marks else ''}",
        spoken_dollars(bill.month),
        per_million(comparison, bill.month.mid),
        spoken_tokens(even.tokens_per_day),
        spoken_share(even.utilisation),
    )


def assumption_row(one: Assumption) -> tuple[str, ...]:
    """Return one assumption's row."""
    value = one.value
    return (one.key, *map(_figure, (value.low, value.mid, value.high)), one.unit, one.title)


def source(one: Assumption, today: date) -> str:
    """Return an assumption's source and date, with its age if it is old."""
    from freehold.base.catalog.model import STALE_DAYS

    if one.given:
        return one.source
    age = (today - one.checked).days
    return f"{one.source} ({one.checked}{f', {age} days old' if age > STALE_DAYS else ''})"


def headline(comparison: Comparison) -> Even | None:
    """Return the break-even that the tornado explains: of the finite ones the lowest, as it is reached first."""
    finite = [e for e in comparison.evens if math.isfinite(e.tokens_per_day.mid)]
    return min(finite, key=lambda e: e.tokens_per_day.mid, default=None)


def tornado_title(comparison: Comparison, even: Even | None) -> str:
    """Return the title of the tornado diagram."""
    if even is None:
        return f"What changes the {dollars(comparison.month.mid)} dollars a month of self-hosting"
    return f"What changes the break-even with {even.bill.offer.name}, {short(even.tokens_per_day.mid)} tokens a day"


def ends(swing: Swing) -> tuple[str, str]:
    """Return an assumption's two ends with units; a share as a percentage."""
    value, unit = swing.assumption.value, swing.assumption.unit
    if unit.startswith("of "):
        return f"{_figure(100 * value.low)} %", f"{_figure(100 * value.high)} %"
    behind = SHORT.get(unit, unit)
    return f"{_figure(value.low)} {behind}", f"{_figure(value.high)} {behind}"


def _show_tornado(comparison: Comparison) -> None:
    even = headline(comparison)
    swings = (even or comparison).swings[:MOST_SWINGS]
    if not swings:
        return
    mid = even.tokens_per_day.mid if even else comparison.month.mid
    click.echo(f"\n{tornado_title(comparison, even)}:")
    values = [v for s in swings for v in (s.at_low, s.at_high)]
    shown = [v for v in (mid, *values) if 0 < v < math.inf]
    low, high = min(shown), max(shown) * (1.5 if math.inf in values else 1)
    width = max(len(s.assumption.title) for s in swings)
    for swing in swings:
        value = swing.assumption.value
        at = sorted([(swing.at_low, value.low), (swing.at_high, value.high)])
        bar = _bar(at[0][0], mid, at[1][0], low, high)
        click.echo(
            f"  {swing.assumption.title:{width}}  {short(at[0][0]):>6} {bar} {short(at[1][0]):6}"
            f"  {_figure(at[0][1])} … {_figure(at[1][1])} {swing.assumption.unit}"
        )


def _bar(start: float, mid: float, end: float, low: float, high: float) -> str:
    """Draw one bar on a logarithmic scale, with a mark at the answer itself."""

    def at(value: float) -> int:
        held = min(max(value, low), high)
        share = math.log(held / low) / math.log(high / low) if high > low else 0.5
        return round(share * (_BAR - 1))

    a, b, m = at(start), at(end), at(mid)
    return "".join("|" if i == m else "█" if a <= i <= b else " " for i in range(_BAR))


def dollars(value: float) -> str:
    """Return dollars as text."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def spoken_dollars(value: Interval) -> str:
    """Return dollars with their range."""
    mid, low, high = (dollars(v) for v in (value.mid, value.low, value.high))
    return mid if low == high else f"{mid} ({low} to {high})"


def spoken_tokens(value: Interval) -> str:
    """Return tokens a day with their range; `never` if no traffic reaches them."""
    if value.low == value.high:
        return short(value.mid)
    return f"{short(value.mid)} ({short(value.low)} to {short(value.high)})"


def spoken_share(value: Interval) -> str:
    """Return the utilisation at break-even; above 100 % is not possible."""
    low, mid, high = (f"{100 * v:.2g}" if v <= 1 else "100+" for v in (value.low, value.mid, value.high))
    return f"{mid} %" if low == high else f"{mid} % ({low} to {high})"


def per_million(comparison: Comparison, month: float) -> str:
    """Return dollars per million tokens of the mix."""
    from freehold.choose.advisor.breakeven import DAYS

    return f"{month / (comparison.traffic.tokens * DAYS) * 1e6:,.3g}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """Return a large number as text: 85M, 1.2B; `never` for an infinite one."""
    if math.isinf(value):
        return "never"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def spoken(value: Interval) -> str:
    """Return a range as plain numbers."""
    return f"{value.mid:g}" + ("" if value.low == value.high else f" ({value.low:g} to {value.high:g})")


# --- what a gateway's requests did cost beside what they would have cost elsewhere ------------------

LEDGER_HEAD = ("INSTEAD", "WOULD HAVE COST, USD", "SAVED, USD", "REQUESTS", "MODELS")


def show_ledger(cost: LedgerCost) -> None:
    """Print a comparison."""
    savings = cost.found
    days = savings.period_s / 86400
    rows = [
        ("requests", f"{savings.requests:,} in {days:g} days"),
        ("to providers", f"{savings.rented:,.6f} USD, as the ledger's rows add up"),
        ("owned machines", _range(savings.owned)),
        ("in all", _range(savings.cost)),
    ]
    for place, seconds in savings.busy_s.items():
        speed = f", {cost.speeds[place]:,.1f} tokens/s while busy" if place in cost.speeds else ""
        on = f" on {cost.machines[place].owned.name}" if place in cost.machines else ""
        rows.append((place, f"busy for {seconds:,.1f} s{speed}{on}"))
    pairs(rows)
    click.echo()
    against = [
        (one.name, _range(one.cost), _range(one.saved), f"{one.requests:,}", one.what)
        for one in savings.against
    ]
    table(LEDGER_HEAD, against, right=(3,))
    click.echo(
        "\nA negative saving is a loss. REQUESTS: those it says something of; the others keep their cost."
    )
    for note in savings.notes:
        click.echo(f"note: {note}", err=True)
    for place, machine in cost.machines.items():
        click.echo(f"\n{place}: {machine.owned.name}, {_words(machine.hour)} USD an hour")
        pairs([(a.key, f"{_words(a.value)} {a.unit}: {a.source}") for a in machine.assumed])


def _words(value: Interval) -> str:
    return f"{value.mid:g}" if value.low == value.high else f"{value.low:g}-{value.high:g}"


def _range(value: DollarRange) -> str:
    if value.low == value.high:
        return f"{value.mid:,.6f}"
    return f"{value.mid:,.4f} ({value.low:,.4f} to {value.high:,.4f})"


# --- the HTML page ---------------------------------------------------------------------------------

_FOOT = (
    "Ranges are 80 % ranges, as far as the assumptions' own ranges are. Prices are list prices, without contracts, "
    "taxes or interest. Quality is not compared: a cheaper model may be worse.",
)


def report(comparison: Comparison, today: date) -> str:
    """Return the whole page."""
    title = f"Self-hosting {comparison.model.id if comparison.model else comparison.owned.rig.name} compared with APIs"
    sections = [
        _bills(comparison),
        _evens(comparison),
        _moves(comparison),
        Section("Inputs", (page_table(("", ""), about(comparison, today)),)),
        _rests(comparison, today),
    ]
    return page(title, verdict(comparison), [s for s in sections if s], (f"freehold cost, {today}.", *_FOOT))


def _bills(comparison: Comparison) -> Section:
    parts = [part for part in PARTS if comparison.parts[part]]
    ours = (*(comparison.parts[part] for part in parts), 0.0)
    own = Bar(comparison.owned.name, ours, dollars(comparison.month.mid), strong=True)
    apis = [
        Bar(e.bill.offer.name, (*(0.0 for _ in parts), e.bill.month.mid), dollars(e.bill.month.mid))
        for e in comparison.evens
    ]
    both = sorted([own, *apis], key=lambda b: b.total)

    def draw(width: float) -> str:
        return bars(both, title="Dollars a month", series=(*parts, "API"), width=width)

    caption = f"At {short(comparison.traffic.tokens)} tokens a day. Ranges are in the table below."
    return Section("Dollars a month", (figure(draw, caption),))


def _evens(comparison: Comparison) -> Section:
    """Show the break-even with each API beside the present traffic."""
    rows = [own_row(comparison), *(row(comparison, e) for e in comparison.evens)]
    reached = [e for e in comparison.evens if math.isfinite(e.tokens_per_day.low)]
    items = [
        Span(e.bill.offer.name, *_bounds(e.tokens_per_day), short(e.tokens_per_day.mid)) for e in reached
    ]
    here = comparison.traffic.tokens
    axis = Axis("tokens a day at break-even", short, log=True)

    def draw(width: float) -> str:
        return spans(items, here, f"now {short(here)}", axis, title="Break-even", width=width)

    chart = figure(draw, "Self-hosting is cheaper right of a range, the API left of it.") if items else ""
    caption = (
        "“Utilisation” is the share of the machines' full speed, around the clock, at which both cost the same. "
        "“Never”: each further machine costs more than it saves."
    )
    missing = [paragraph(f"Left out: {line}.", note=True) for line in comparison.left_out]
    lines = page_table([h.capitalize() for h in HEAD], rows, right=(2,), strong=(0,))
    return Section("Break-even", (chart, lines, paragraph(caption, note=True), *missing))


def _bounds(value: Interval) -> tuple[float, float, float]:
    return value.low, value.mid, value.high


def _moves(comparison: Comparison) -> Section | None:
    even = headline(comparison)
    swings = [Drawn(s.assumption.title, s.at_low, s.at_high, *ends(s)) for s in (even or comparison).swings]
    if not swings:
        return None
    mid = even.tokens_per_day.mid if even else comparison.month.mid
    axis = Axis("tokens a day" if even else "dollars a month", short, log=True)
    title = tornado_title(comparison, even)

    def draw(width: float) -> str:
        return tornado(swings[:MOST_SWINGS], mid, axis, title=title, width=width)

    caption = "One assumption alone goes from its low to its high end, all others stay at their middle."
    return Section(title, (figure(draw, caption),))


def _rests(comparison: Comparison, today: date) -> Section:
    rows = [(*assumption_row(a)[1:], source(a, today)) for a in comparison.assumptions.values()]
    head = [h.capitalize() for h in (*ASSUMPTIONS[1:], "SOURCE")]
    return Section("Assumptions", (page_table(head, rows, right=(0, 1, 2)),))

"""The report of a comparison as one HTML page: the verdict, then bills, break-evens, sensitivity.

Knows sections and captions; the wording is cost.py's, advisor.report draws.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING

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
    table,
    tornado,
)
from freehold.choose.advisor.report import TornadoBar as Drawn
from freehold.cli.report.cost import (
    ASSUMPTIONS,
    HEAD,
    MOST_SWINGS,
    about,
    assumption_row,
    dollars,
    ends,
    headline,
    own_row,
    row,
    short,
    source,
    tornado_title,
    verdict,
)

if TYPE_CHECKING:
    from freehold.choose.advisor.breakeven import Comparison

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
        Section("Inputs", (table(("", ""), about(comparison, today)),)),
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
    lines = table([h.capitalize() for h in HEAD], rows, right=(2,), strong=(0,))
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
    return Section("Assumptions", (table(head, rows, right=(0, 1, 2)),))

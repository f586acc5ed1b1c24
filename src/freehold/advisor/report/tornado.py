"""A tornado chart: how far an answer moves when one assumption alone goes from one end to the other.

Rows come sorted as given; an infinite end is drawn as an open one.
Path: cli/cost.py -> tornado -> svg.chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from freehold.advisor.report.svg import (
    FONT,
    SLACK,
    Axis,
    FittedAxis,
    chart,
    element,
    shortened,
    text,
    width_of,
)

_ROW, _THICK, _NARROW = 34.0, 15.0, 520.0


@dataclass(frozen=True, slots=True)
class TornadoBar:
    """One assumption: the answer at its low end and at its high end, and what those ends are."""

    label: str
    at_low: float
    at_high: float
    low_text: str  # the assumption's low end, as `1.50 $/h`
    high_text: str


def tornado(swings: Sequence[TornadoBar], mid: float, axis: Axis, *, title: str, width: float = 720.0) -> str:
    """Draw each swing as a bar around the answer `mid`; green goes to the low end's answer."""
    above = width < _NARROW
    room = 0.0 if above else min(0.36 * width, max((width_of(s.label) for s in swings), default=0.0) + 14)
    beside = (
        max((width_of(label) for s in swings for label in (s.low_text, s.high_text)), default=0.0) + 8 + SLACK
    )
    values = [mid, *(v for s in swings for v in (s.at_low, s.at_high))]
    scale = axis.scale(values, room + beside, width - beside)
    parts, y = [], 0.0
    rows: list[str] = []
    for swing in swings:
        if above:
            rows.append(text(0.0, y + FONT, shortened(swing.label, width), "strong halo"))
            y += FONT + 6
        else:
            rows.append(text(room - 8, y + 20, shortened(swing.label, room - 8), "", "end"))
        rows += _bar(swing, mid, scale, y)
        y += _ROW
    for tick in scale.ticks:
        x = scale.at(tick)
        parts.append(element("line", class_="rule", x1=x, x2=x, y1=0, y2=y))
    if math.isfinite(mid):
        x = scale.at(mid)
        parts.append(element("line", class_="mid", x1=x, x2=x, y1=0, y2=y))
    parts += [*rows, *_ticks(scale, y + 16, width)]
    parts.append(text((scale.start + scale.end) / 2, y + 38, axis.label, "soft", "middle"))
    return chart(width, y + 46, title, parts)


def _bar(swing: TornadoBar, mid: float, scale: FittedAxis, y: float) -> list[str]:
    """Return the two halves of a bar, and the assumption's ends beside it."""
    top, parts = y + 8, []
    for value, class_, label in (
        (swing.at_low, "low", swing.low_text),
        (swing.at_high, "high", swing.high_text),
    ):
        a, b = sorted((scale.at(value), scale.at(mid)))
        hint = element("title", escape(label))
        parts.append(element("rect", hint, class_=class_, x=a, y=top, width=max(b - a, 1.0), height=_THICK))
    ends = sorted([(swing.at_low, swing.low_text), (swing.at_high, swing.high_text)], key=lambda end: end[0])
    if ends[0][0] != ends[1][0]:
        parts.append(text(scale.at(ends[0][0]) - 5, top + 12, ends[0][1], "soft", "end"))
        parts.append(text(scale.at(ends[1][0]) + 5, top + 12, ends[1][1], "soft"))
    return parts


def _ticks(scale: FittedAxis, y: float, width: float) -> list[str]:
    """Write the ticks' values, leaving out those that would touch."""
    parts, free = [], -math.inf
    for tick in scale.ticks:
        label = scale.axis.format(tick)
        half = width_of(label) / 2
        x = min(max(scale.at(tick), half), width - half)
        if x - half > free:
            parts.append(text(x, y, label, "soft", "middle"))
            free = x + half + 10
    return parts

"""Ranges under each other on one axis, each with its middle, and a line for the reader's own value.

An infinite end is drawn open, to the edge; the caller writes each range's text. Knows no unit.
Path: cli -> spans -> svg.chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

_ROW, _THICK, _NARROW = 30.0, 14.0, 520.0


@dataclass(frozen=True, slots=True)
class Span:
    """One range and the text after it."""

    label: str
    low: float
    mid: float
    high: float
    text: str


def spans(
    items: Sequence[Span], mark: float, mark_label: str, axis: Axis, *, title: str, width: float = 720.0
) -> str:
    """Draw ranges as an <svg>, with a line at `mark` that says `mark_label`. Under 520 px labels are above."""
    above = width < _NARROW
    room = 0.0 if above else min(0.36 * width, max((width_of(s.label) for s in items), default=0.0) + 14)
    behind = max((width_of(s.text) for s in items), default=0.0) + 10 + SLACK
    scale = axis.scale([mark, *(v for s in items for v in (s.low, s.mid, s.high))], room, width - behind)
    rows, y = [], 22.0
    for span in items:
        if above:
            rows.append(text(0.0, y + FONT, shortened(span.label, width), "halo"))
            y += FONT + 5
        else:
            rows.append(text(room - 8, y + 17, shortened(span.label, room - 8), "", "end"))
        rows += _row(span, scale, y + (_ROW - _THICK) / 2 - 2)
        y += _ROW
    x, half = scale.at(mark), width_of(mark_label) / 2 + 5  # bold letters are wider
    here = [
        element("line", class_="mid", x1=x, x2=x, y1=18, y2=y),
        text(min(max(x, half), width - half), FONT, mark_label, "strong", "middle"),
    ]
    label = text((scale.start + scale.end) / 2, y + 36, axis.label, "soft", "middle")
    return chart(width, y + 44, title, [*_grid(scale, y, width), *here, *rows, label])


def _row(span: Span, scale: FittedAxis, top: float) -> list[str]:
    """Return a range's bar, its middle, and its text after the longest one."""
    parts = [text(scale.end + 10, top + 12, span.text)]
    if span.low < math.inf:
        start, end = scale.at(span.low), scale.at(span.high)
        parts.append(element("rect", class_="c0", x=start, y=top, width=max(end - start, 2.0), height=_THICK))
    if span.mid < math.inf:
        at = scale.at(span.mid)
        parts.append(element("line", class_="mid", x1=at, x2=at, y1=top - 3, y2=top + _THICK + 3))
    return parts


def _grid(scale: FittedAxis, y: float, width: float) -> list[str]:
    """Draw the ticks' lines, and their values where they do not touch."""
    parts, free = [], -math.inf
    for tick in scale.ticks:
        at, label = scale.at(tick), scale.axis.format(tick)
        half = width_of(label) / 2
        x = min(max(at, half), width - half)
        parts.append(element("line", class_="rule", x1=at, x2=at, y1=20, y2=y))
        if x - half > free:
            parts.append(text(x, y + 16, label, "soft", "middle"))
            free = x + half + 10
    return parts

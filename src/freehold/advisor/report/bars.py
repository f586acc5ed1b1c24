"""Horizontal bars, each of one part or several, with their values after them.

Knows no units: the caller writes each value's text.
Path: cli -> bars -> svg.chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.advisor.report.svg import (
    FONT,
    SERIES,
    SLACK,
    Axis,
    chart,
    element,
    shortened,
    text,
    width_of,
)

_ROW, _THICK, _NARROW = 30.0, 16.0, 520.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its parts in the order of the chart's series, and the text after it. `strong` sets it off."""

    label: str
    parts: tuple[float, ...]
    text: str
    strong: bool = False

    @property
    def total(self) -> float:
        """The length of the whole bar."""
        return sum(self.parts)


def bars(items: Sequence[Bar], *, title: str, series: Sequence[str] = (), width: float = 720.0) -> str:
    """Draw bars as an <svg>; `series` names the parts and makes a legend. Under 520 px labels are above the bars."""
    above = width < _NARROW
    room = 0.0 if above else min(0.42 * width, max((width_of(b.label) for b in items), default=0.0) + 12)
    behind = max((width_of(b.text) for b in items), default=0.0) + 10 + SLACK
    scale = Axis("").scale([b.total for b in items], room, width - behind, zero=True)
    full = max((b.total for b in items), default=0.0)
    parts, y = _legend(series, width)
    for bar in items:
        weight = "strong" if bar.strong else ""
        if above:
            parts.append(text(0.0, y + FONT, shortened(bar.label, width), weight))
            y += FONT + 5
        else:
            parts.append(text(room - 10, y + 17, shortened(bar.label, room - 10), weight, "end"))
        top, x = y + (_ROW - _THICK) / 2 - 2, room
        for i, part in enumerate(bar.parts):
            # The longest bar ends where the values' column begins, whatever the ticks would round to.
            length = part / full * (scale.end - room) if full > 0 else 0.0
            if length > 0:
                parts.append(
                    element("rect", class_=f"c{i % SERIES}", x=x, y=top, width=length, height=_THICK)
                )
            x += length
        parts.append(text(x + 8, top + 13, bar.text, weight))
        y += _ROW
    return chart(width, y + 2, title, parts)


def _legend(series: Sequence[str], width: float) -> tuple[list[str], float]:
    """Return the legend's marks, wrapped to the width, and where the bars may begin."""
    parts, x, y = [], 0.0, 0.0
    for i, name in enumerate(series):
        wide = 16 + width_of(name) + 18
        if x > 0 and x + wide > width:
            x, y = 0.0, y + 20
        parts.append(element("rect", class_=f"c{i % SERIES}", x=x, y=y + 2, width=11, height=11))
        parts.append(text(x + 16, y + 12, name, "soft"))
        x += wide
    return parts, y + (26 if series else 0)

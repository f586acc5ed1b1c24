"""Points in a plane, a third value as their size, groups as colours; labels where they do not touch.

Every point also says its label and values when pointed at. Knows no model.
Path: cli/advise.py -> scatter -> svg.chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from html import escape

from freehold.advisor.report.svg import FONT, SERIES, Axis, FittedAxis, chart, element, text, width_of

_SMALL, _LARGE = 5.0, 22.0  # radii
_LINE = 20.0  # pixels of a line of text
_HELD = 0.85  # of a radius: the square that no label enters; its corners lie outside the circle


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its place, its size (area goes with it), its group by number, and what it says beyond its label."""

    label: str
    x: float
    y: float
    size: float = 1.0
    group: int = 0
    note: str = ""


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    title: str,
    groups: Sequence[str] = (),
    width: float = 720.0,
    height: float = 430.0,
) -> str:
    """Draw points as an <svg>; the first points get their labels first where room is short."""
    across = x.scale([p.x for p in points], 0, 0)
    legend, top = _legend(groups, {p.group for p in points}, width, width_of(y.label))
    up = y.scale([p.y for p in points], height - 48, top + 4)
    left = max((width_of(y.format(t)) for t in up.ticks), default=0.0) + 12
    across = x.scale([p.x for p in points], left + 14, width - 16)
    parts = [text(0, FONT, y.label, "soft"), *legend, *_grid(across, up, left, top, width, height)]
    largest = max((p.size for p in points), default=1.0) or 1.0
    taken: list[tuple[float, float, float, float]] = []
    placed = [(p, across.at(p.x), up.at(p.y), _radius(p.size, largest)) for p in points]
    for point, px, py, radius in sorted(placed, key=lambda place: -place[3]):
        label = ": ".join(filter(None, (point.label, point.note)))
        hint = element("title", escape(label))
        parts.append(element("circle", hint, class_=f"c{point.group % SERIES}", cx=px, cy=py, r=radius))
        held = _HELD * radius
        taken.append((px - held, py - held, px + held, py + held))
    for point, px, py, radius in placed:
        parts += _label(point.label, px, py, radius, taken, (left, top - 8, width, height - 40))
    return chart(width, height, title, parts)


def _radius(size: float, largest: float) -> float:
    return max(_SMALL, _LARGE * math.sqrt(max(size, 0.0) / largest))


def _grid(
    across: FittedAxis, up: FittedAxis, left: float, top: float, width: float, height: float
) -> list[str]:
    parts, bottom, free = [], height - 40, -math.inf
    for tick in up.ticks:
        at = up.at(tick)
        parts.append(element("line", class_="rule", x1=left, x2=width, y1=at, y2=at))
        parts.append(text(left - 6, at + 4, up.axis.format(tick), "soft", "end"))
    for tick in across.ticks:
        at, label = across.at(tick), across.axis.format(tick)
        half = width_of(label) / 2
        parts.append(element("line", class_="rule", x1=at, x2=at, y1=top, y2=bottom))
        if at - half > free and at + half <= width:
            parts.append(text(at, bottom + 16, label, "soft", "middle"))
            free = at + half + 10
    parts.append(text((left + width) / 2, height - 4, across.axis.label, "soft", "middle"))
    return parts


def _label(
    label: str,
    x: float,
    y: float,
    radius: float,
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> list[str]:
    """Write a label beside its point, above or below it, wherever it touches nothing; else leave it out."""
    wide, gap, slant = width_of(label), radius + 4, 0.72 * radius + 4
    tries = (
        (x + gap, y + 4, "start", x + gap),
        (x - gap, y + 4, "end", x - gap - wide),
        (x, y - gap, "middle", x - wide / 2),
        (x, y + gap + 10, "middle", x - wide / 2),
        (x + slant, y - slant, "start", x + slant),
        (x + slant, y + slant + 8, "start", x + slant),
        (x - slant, y - slant, "end", x - slant - wide),
        (x - slant, y + slant + 8, "end", x - slant - wide),
    )
    for tx, ty, anchor, from_x in tries:
        box = (from_x, ty - 11, from_x + wide, ty + 3)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(_touch(box, other) for other in taken):
            taken.append(box)
            return [text(tx, ty, label, "halo", anchor)]
    return []


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(
    groups: Sequence[str], drawn: AbstractSet[int], width: float, axis: float
) -> tuple[list[str], float]:
    """Return the names of the groups that have points, right-aligned, and where the plot may begin.

    They are beside the axis's label, `axis` wide, or below it where there is no space.
    """
    named = [(i, name) for i, name in enumerate(groups) if i in drawn]
    wide = sum(28 + width_of(name) for _, name in named)
    line = _LINE if axis + wide > width else 0.0
    parts, x = [], width - wide
    for i, name in named:
        parts.append(element("circle", class_=f"c{i % SERIES}", cx=x + 19, cy=line + 9, r=5))
        parts.append(text(x + 28, line + FONT, name, "soft"))
        x += 28 + width_of(name)
    return parts, line + 26

"""Charts as SVG and a report as one HTML page: nothing in it is fetched from anywhere, and it prints.

Knows shapes, text and two colour schemes; knows no model and no price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources

__all__ = [
    "Axis",
    "Bar",
    "Point",
    "Section",
    "Span",
    "TornadoBar",
    "bars",
    "figure",
    "page",
    "paragraph",
    "scatter",
    "spans",
    "standalone",
    "table",
    "tornado",
]


# --- bars, ranges and tornadoes as SVG --------------------------------------------------------------
# And what every chart shares: escaped elements, an axis with ticks, widths of text.
# Colours are classes, so one stylesheet serves light, dark and paper.

FONT = 13  # CSS pixels; a chart is drawn for its width and never scaled down
# The mean width of a system font's letters is 0.5 to 0.6 of its size; the upper end keeps labels apart.
_LETTER = 0.6
_MAX_TICKS = 6

SERIES = 6  # c0 to c5
# pixels kept free after text at an edge: bold letters and capitals are wider than `width_of` says
SLACK = 8.0


@cache
def _style(of: str) -> str:
    return (
        resources.files("freehold.choose.advisor").joinpath(f"{of}.css").read_text(encoding="utf-8").strip()
    )


def element(name: str, content: str = "", **attributes: object) -> str:
    """Return one element; `content` is markup already, attribute values are escaped, `class_` is class."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> str:
    """Return a line of text whose baseline is at (x, y)."""
    looks = {"class_": class_} if class_ else {}
    return element("text", escape(content), x=x, y=y, text_anchor=anchor, **looks)


def chart(width: float, height: float, title: str, parts: list[str]) -> str:
    """Wrap parts into an <svg> with a title that a screen reader says."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" width="{_value(width)}" '
        f'height="{_value(height)}" viewBox="0 0 {_value(width)} {_value(height)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>\n"
    )


def standalone(svg: str) -> str:
    """Return a chart as a file of its own: the stylesheet goes inside, the background is the scheme's."""
    inside = f"<style>{_style('chart')} svg {{ background: var(--paper) }}</style>"
    return svg.replace("<title>", f"{inside}<title>", 1)


def width_of(content: str, size: float = FONT) -> float:
    """Estimate the width of a line in CSS pixels."""
    return len(content) * size * _LETTER


def shortened(content: str, room: float) -> str:
    """Cut a label to the room it has, with an ellipsis."""
    letters = max(4, int(room / (FONT * _LETTER)))
    return content if len(content) <= letters else content[: letters - 1].rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart. `log`: decades have equal lengths, for values of very different size."""

    label: str
    format: Callable[[float], str] = "{:,.4g}".format
    log: bool = False

    def scale(self, values: list[float], start: float, end: float, *, zero: bool = False) -> FittedAxis:
        """Return the mapping of `values` onto pixels start..end; what the axis cannot show is left out."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not self.log)]
        low, high = (min(kept), max(kept)) if kept else (1.0, 10.0)
        if zero and not self.log:
            low, high = min(low, 0.0), max(high, 0.0)
        ticks = _log_ticks(low, high) if self.log else _ticks(low, high)
        return FittedAxis(self, min(low, ticks[0]), max(high, ticks[-1]), start, end, tuple(ticks))


@dataclass(frozen=True, slots=True)
class FittedAxis:
    """An axis fitted to its values: from `low`..`high` to the pixels `start`..`end`."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the pixel of a value, clamped to the axis (an infinite one is at its end)."""
        held = min(max(value, self.low), self.high)
        way = math.log if self.axis.log else float
        share = (way(held) - way(self.low)) / (way(self.high) - way(self.low))
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float) -> list[float]:
    """Return round values around low..high, steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = (0.0, 1.0) if low == 0 else (min(0.0, 2 * low), max(0.0, 2 * low))
    rough = (high - low) / (_MAX_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each decade where few decades are shown, powers of ten where many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 2:
        every = math.ceil((last - first) / _MAX_TICKS)
        return [10.0**e for e in range(first, last + every, every)]
    fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    below = [t for t in fine if t <= low * 1.001] or fine[:1]
    above = [t for t in fine if t >= high * 0.999] or [10.0 ** (last + 1)]
    kept = [t for t in fine if below[-1] <= t <= above[0]]
    if len(kept) > 2:
        return kept
    return _ticks(low, high) if high > 1.05 * low else [below[-1], low * 2]


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return escape(str(value), quote=True)


# --- horizontal bars, each of one part or several, with their values after them ---------------------

_ROW, _THICK = 30.0, 16.0
_NARROW = 520.0  # pixels: below, labels are above their bars


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


# --- ranges under each other on one axis, each with its middle, and a line for the reader's own value
# An infinite end is drawn open, to the edge; the caller writes each range's text.

_SPAN_THICK = 14.0


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
        rows += _row(span, scale, y + (_ROW - _SPAN_THICK) / 2 - 2)
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
        parts.append(
            element("rect", class_="c0", x=start, y=top, width=max(end - start, 2.0), height=_SPAN_THICK)
        )
    if span.mid < math.inf:
        at = scale.at(span.mid)
        parts.append(element("line", class_="mid", x1=at, x2=at, y1=top - 3, y2=top + _SPAN_THICK + 3))
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


# --- a tornado chart --------------------------------------------------------------------------------
# How far an answer moves when one assumption alone goes from one end to the other.
# Rows come sorted as given; an infinite end is drawn as an open one.

_TORNADO_ROW, _TORNADO_THICK = 34.0, 15.0


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
        y += _TORNADO_ROW
    for tick in scale.ticks:
        x = scale.at(tick)
        parts.append(element("line", class_="rule", x1=x, x2=x, y1=0, y2=y))
    if math.isfinite(mid):
        x = scale.at(mid)
        parts.append(element("line", class_="mid", x1=x, x2=x, y1=0, y2=y))
    parts += [*rows, *_tornado_ticks(scale, y + 16, width)]
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
        parts.append(
            element("rect", hint, class_=class_, x=a, y=top, width=max(b - a, 1.0), height=_TORNADO_THICK)
        )
    ends = sorted([(swing.at_low, swing.low_text), (swing.at_high, swing.high_text)], key=lambda end: end[0])
    if ends[0][0] != ends[1][0]:
        parts.append(text(scale.at(ends[0][0]) - 5, top + 12, ends[0][1], "soft", "end"))
        parts.append(text(scale.at(ends[1][0]) + 5, top + 12, ends[1][1], "soft"))
    return parts


def _tornado_ticks(scale: FittedAxis, y: float, width: float) -> list[str]:
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


# --- one HTML page around charts and tables: no script, no font and no picture from anywhere --------
# A chart is drawn twice, for a desk and for a phone, and the stylesheet shows the one that fits: scaling a
# wide one down would leave its text unreadable. On a phone a row of a table becomes a list of its cells, each
# after its column's name: nothing has to be scrolled sideways.

_WIDE, _SLIM = 760.0, 340.0


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and markup below it from `figure`, `table` and `paragraph`."""

    heading: str
    parts: tuple[str, ...]


def page(title: str, lead: str, sections: Sequence[Section], footer: Sequence[str] = ()) -> str:
    """Return a whole HTML document; all given texts are escaped here, only a section's parts are markup."""
    body = "".join(f"<section><h2>{escape(s.heading)}</h2>{''.join(s.parts)}</section>\n" for s in sections)
    foot = "".join(f"<p>{escape(line)}</p>" for line in footer)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{_style('chart')}\n{_style('page')}\n</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n{body}'
        f"{f'<footer>{foot}</footer>' if foot else ''}</main></body></html>\n"
    )


def figure(draw: Callable[[float], str], caption: str = "") -> str:
    """Return a chart with its caption; `draw` takes a width in pixels and is called for a desk and a phone."""
    figcaption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    wide, slim = draw(_WIDE), draw(_SLIM)
    return f'<figure><div class="wide">{wide}</div><div class="slim">{slim}</div>{figcaption}</figure>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), strong: Sequence[int] = ()
) -> str:
    """Return a table; `right` numbers the columns of figures, `strong` the rows set off."""
    top = "".join(_cell("th", cell, i in right) for i, cell in enumerate(head))
    names = [f' data-head="{escape(name, quote=True)}"' if name else "" for name in head]
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(_cell("td", cell, i in right, names[i]) for i, cell in enumerate(row))
        lines.append(f'<tr class="strong">{cells}</tr>' if number in strong else f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def paragraph(content: str, note: bool = False) -> str:
    """Return a paragraph of plain text; a note is set smaller and softer."""
    return f'<p class="note">{escape(content)}</p>' if note else f"<p>{escape(content)}</p>"


def _cell(kind: str, content: str, figure: bool, name: str = "") -> str:
    looks = ' class="n"' if figure else ""
    return f"<{kind}{looks}{name}>{escape(content)}</{kind}>"


# --- points in a plane ------------------------------------------------------------------------------
# A third value as their size, groups as colours; labels where they do not touch.
# Every point also says its label and values when pointed at.

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
    legend, top = _group_names(groups, {p.group for p in points}, width, width_of(y.label))
    up = y.scale([p.y for p in points], height - 48, top + 4)
    left = max((width_of(y.format(t)) for t in up.ticks), default=0.0) + 12
    across = x.scale([p.x for p in points], left + 14, width - 16)
    parts = [text(0, FONT, y.label, "soft"), *legend, *_plane(across, up, left, top, width, height)]
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


def _plane(
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


def _group_names(
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

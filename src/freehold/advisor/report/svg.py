"""Bars, ranges and tornadoes as SVG, and what every chart shares: escaped elements, an axis with ticks, widths of text.

Colours are classes, so one stylesheet serves light, dark and paper.
Path: bars, scatter, tornado -> Axis, element -> text of an <svg>.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

FONT = 13  # CSS pixels; a chart is drawn for its width and never scaled down
# The mean width of a system font's letters is 0.5 to 0.6 of its size; the upper end keeps labels apart.
_LETTER = 0.6
_MAX_TICKS = 6

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --soft: #5c6570; --rule: #dfe3e8;
  --wash: #f4f6f8; --c0: #1f5fa8; --c1: #c4661f; --c2: #2f7d4f; --c3: #8a4fa3; --c4: #a8323e; --c5: #6b6f1d;
  --low: #2f7d4f; --high: #c4661f }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e7eaee; --soft: #9aa4b0;
  --rule: #30363d; --wash: #1d2126; --c0: #6aa9ee; --c1: #ef9a54; --c2: #67c08a; --c3: #c495dc; --c4: #ee7f88;
  --c5: #c5c968; --low: #67c08a; --high: #ef9a54 } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb;
  --wash: #f4f4f4; --c0: #1f5fa8; --c1: #c4661f; --c2: #2f7d4f; --c3: #8a4fa3; --c4: #a8323e; --c5: #6b6f1d;
  --low: #2f7d4f; --high: #c4661f } }
svg.chart { display: block; font: 13px system-ui, sans-serif; font-variant-numeric: tabular-nums }
.chart text { fill: var(--ink) } .chart .soft { fill: var(--soft) } .chart .strong { font-weight: 600 }
.chart .rule { stroke: var(--rule); stroke-width: 1 } .chart .mid { stroke: var(--ink); stroke-width: 1.5 }
.chart .c0 { fill: var(--c0) } .chart .c1 { fill: var(--c1) } .chart .c2 { fill: var(--c2) }
.chart .c3 { fill: var(--c3) } .chart .c4 { fill: var(--c4) } .chart .c5 { fill: var(--c5) }
.chart .low { fill: var(--low) } .chart .high { fill: var(--high) }
.chart circle { fill-opacity: .72; stroke: var(--paper); stroke-width: 1.5 }
.chart .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round }
""".strip()
SERIES = 6  # c0 to c5
SLACK = (
    8.0  # pixels kept free after text at an edge: bold letters and capitals are wider than `width_of` says
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
    inside = f"<style>{STYLE} svg {{ background: var(--paper) }}</style>"
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


# --- ranges under each other on one axis, each with its middle, and a line for the reader's own value
# An infinite end is drawn open, to the edge; the caller writes each range's text.

_SPAN_ROW, _SPAN_THICK, _NARROW_SPANS = 30.0, 14.0, 520.0


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
    above = width < _NARROW_SPANS
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
        rows += _row(span, scale, y + (_SPAN_ROW - _SPAN_THICK) / 2 - 2)
        y += _SPAN_ROW
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

_TORNADO_ROW, _TORNADO_THICK, _NARROW_TORNADO = 34.0, 15.0, 520.0


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
    above = width < _NARROW_TORNADO
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

"""Shared parts of charts: escaped elements, an axis that scales and ticks, the width of text.

Colours are classes, so one stylesheet serves light, dark and paper. Knows no chart.
Path: bars, scatter, tornado -> Axis, element -> text of an <svg>.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

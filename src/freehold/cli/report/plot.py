"""A plot of points for a terminal: x on a logarithmic axis, marks of one letter, in plain text.

Knows numbers and labels; knows no model. Path: cli/advise -> plot -> lines on stdout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.advisor.report.svg import Axis, FittedAxis


@dataclass(frozen=True, slots=True)
class PlotMark:
    """One point and its letter; where two points share a cell, the first is drawn."""

    x: float
    y: float
    letter: str


def plot(marks: Sequence[PlotMark], x: Axis, y: Axis, width: int = 72, height: int = 16) -> list[str]:
    """Return the lines of a plot `width` columns wide and `height` rows high, its axes' labels included."""
    across, up = x.scale([m.x for m in marks], 0, 0), y.scale([m.y for m in marks], 0, 0)
    margin = max(len(up.axis.format(t)) for t in up.ticks) + 1
    columns = width - margin - 2
    across, up = x.scale([m.x for m in marks], 0, columns - 1), y.scale([m.y for m in marks], height - 1, 0)
    field = [[" "] * columns for _ in range(height)]
    for mark in reversed(marks):
        field[round(up.at(mark.y))][round(across.at(mark.x))] = mark.letter
    sides = {round(up.at(t)): up.axis.format(t) for t in up.ticks}
    lines = [f"{y.label}"]
    for row, cells in enumerate(field):
        lines.append(f"{sides.get(row, ''):>{margin}} |{''.join(cells).rstrip()}")
    lines.append(" " * margin + " +" + "-" * columns)
    lines.append(" " * (margin + 2) + _below(across, columns))
    lines.append(f"{x.label:>{width}}")
    return lines


def _below(across: FittedAxis, columns: int) -> str:
    """Return the line of tick labels under the plot; one that touches its neighbour is left out."""
    row = ""
    for tick in across.ticks:
        label = across.axis.format(tick)
        at = min(max(round(across.at(tick)) - len(label) // 2, 0), columns - len(label))
        if math.isfinite(tick) and (not row or at > len(row)):
            row = row.ljust(at) + label
    return row

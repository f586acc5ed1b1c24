"""Turns the figures of a race of engines into a table, ratios and rows for benches/results/. Measures nothing.

Path: peers.py -> line, ratios, rows -> results.append
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import Any

from benches.engine.contest import Figure
from benches.lib.measures import Ceilings, Facts
from benches.lib.results import OURS


def ratio(figure: Figure, figures: list[Figure]) -> tuple[float, float, float] | None:
    """Ours over the peer's, as tokens per second (or theirs over ours, as seconds and bytes).

    Median, least and greatest over the rounds, in which both ran side by side; our best setting beside a
    peer's best, our defaults beside its defaults. None for ourselves.
    """
    same = (figure.measure, figure.busy)
    ours = [f for f in figures if f.peer.name == OURS and (f.measure, f.busy) == same]
    if not ours or figure.peer.name == OURS:
        return None
    alike = next((f for f in ours if f.best == figure.best), ours[0])
    pairs = zip(alike.values, figure.values, strict=False)
    faster = figure.measure.unit == "tok/s"
    ratios = [mine / theirs if faster else theirs / mine for mine, theirs in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def line(figure: Figure, figures: list[Figure], ceiling: float | None) -> str:
    """Write one row for a reader."""
    median = statistics.median(figure.values)
    spread = f"{min(figure.values):.4g} to {max(figure.values):.4g}"
    name = figure.measure.name + (f" beside {figure.busy}" if figure.busy else "")
    setting = f"{figure.threads} threads" + ("" if str(figure.setting) == "default" else f" {figure.setting}")
    text = f"{name:<18}{figure.peer.name:<14}{setting:<25}{median:>9.4g} {figure.measure.unit:<6}({spread})"
    if ceiling:
        text += f"  {median / ceiling:.0%} of {ceiling:.4g}"
    if figure.busy and figure.cores:
        text += f"  {statistics.median(figure.cores):.2f} cores"
    against = ratio(figure, figures)
    if against:
        text += f"  we are {against[0]:.2f}x ({against[1]:.2f} to {against[2]:.2f})"
    return text


def shares(figures: list[Figure]) -> list[str]:
    """Say what company costs beyond the processor time it takes: busy rate / (quiet rate x time received)."""
    lines = []
    for busy in (f for f in figures if f.busy and f.cores):
        quiet = [
            f
            for f in figures
            if not f.busy and f.cores and f.peer is busy.peer and f.measure == busy.measure
            if f.setting == busy.setting
        ]
        if quiet:
            rate = statistics.median(busy.values) / statistics.median(quiet[0].values)
            time = statistics.median(busy.cores) / statistics.median(quiet[0].cores)
            what = f"{busy.measure.name} beside {busy.busy}, {busy.threads} threads: {busy.peer.name}"
            lines.append(f"{what} runs at {rate / time:.0%} of its quiet speed for the time it gets")
    return lines


def rows(
    figures: list[Figure], machine: dict[str, Any], facts: Facts, ceilings: Ceilings
) -> list[dict[str, Any]]:
    """Give every figure as a record with the columns of the CSV file."""
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    made = []
    for figure in figures:
        ceiling = ceilings.of(figure.measure, facts)
        made.append(
            {
                "date": date,
                **{name: machine[name] for name in ("commit", "cpu", "model")},
                "peer": figure.peer.name,
                "version": figure.peer.facts["version"],
                "weights": figure.peer.facts["weights"],
                "setting": str(figure.setting) + (" (best)" if figure.best else ""),
                "threads": figure.threads,
                "busy": figure.busy,
                "measure": figure.measure.name,
                "unit": figure.measure.unit,
                "median": _short(statistics.median(figure.values)),
                "min": _short(min(figure.values)),
                "max": _short(max(figure.values)),
                "cores": _short(statistics.median(figure.cores)) if figure.cores else "",
                "ceiling": _short(ceiling) if ceiling else "",
            }
        )
    return made


def ratios(figures: list[Figure]) -> dict[str, list[float]]:
    """Give our ratios to each peer at its best setting, by measure and peer: median, least, greatest."""
    found = {}
    for figure in (f for f in figures if f.best):
        against = ratio(figure, figures)
        if against:
            beside = f" beside {figure.busy}" if figure.busy else ""
            found[f"{figure.measure.name}{beside} / {figure.peer.name}"] = [round(x, 3) for x in against]
    return found


def _short(value: float) -> float:
    return float(f"{value:.4g}")

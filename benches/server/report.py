"""Turns the figures of a race of servers into a table, ratios and rows of benches/results/. Measures nothing.

Path: race.py -> lines, ratios, rows -> report.append
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from benches.lib.measures import Ceilings, Facts, Measure
from benches.lib.results import OURS
from benches.server.scenarios import Figures, Scenario

COLUMNS = [
    *("date", "commit", "cpu", "model", "server", "version", "weights", "setting", "scenario"),
    *("clients", "prompt", "output", "measure", "unit", "median", "min", "max", "ceiling"),
]
MORE_IS_BETTER = ("tok/s", "req/s")


@dataclass
class Entry:
    """A server under one setting, and for each round of a scenario its figures."""

    server: str
    version: str
    weights: str
    setting: str
    options: dict[str, Any]
    best: bool  # its best setting; it may also be its default
    rounds: list[Figures] = field(default_factory=list)

    def values(self, measure: str) -> list[float]:
        """One figure, round by round."""
        return [figures[measure] for figures in self.rounds if measure in figures]


def ceiling(scenario: Scenario, facts: Facts, bounds: Ceilings) -> dict[str, float]:
    """Bound what bytes and multiplications bound: a load's output and a drift's, the first token of a long prompt."""
    reading = bounds.of(Measure("prompt", "prefill", max(scenario.prompt, 1)), facts) or 1.0
    writing = bounds.of(Measure("batch", "batch", scenario.clients), facts) or 1.0
    output = 1 / (scenario.prompt / scenario.output / reading + 1 / writing)
    if scenario.kind == "load":
        return {"output tok/s": output}
    if scenario.kind == "drift":
        window = {"output tok/s": output, "itl p50 ms": 1e3 * scenario.clients / writing}
        return {f"{name} {key}": value for name in ("first", "last") for key, value in window.items()}
    return {
        "cold ttft ms": 1e3 * scenario.prompt / reading,
        "long alone ttft ms": 1e3 * scenario.prompt / reading,
    }


def ratio(mine: Entry, other: Entry, measure: str) -> float | None:
    """How many times better the median of ours is."""
    ours, theirs = mine.values(measure), other.values(measure)
    if not ours or not theirs:
        return None
    a, b = statistics.median(ours), statistics.median(theirs)
    if not measure.endswith(MORE_IS_BETTER):
        a, b = b, a
    return a / b if b else None


def ours(entries: list[Entry]) -> Entry | None:
    """Find our own entry."""
    return next((entry for entry in entries if entry.server == OURS), None)


def lines(scenario: Scenario, entries: list[Entry], bounds: dict[str, float]) -> list[str]:
    """Write a scenario for a reader: a line for each server and figure."""
    mine, made = ours(entries), []
    for entry in entries:
        for measure in entry.rounds[0] if entry.rounds else ():
            values = entry.values(measure)
            text = f"{scenario.name:<10}{entry.server:<11}{entry.setting:<34}{measure:<22}"
            text += f"{statistics.median(values):>9.4g}  ({min(values):.4g} to {max(values):.4g})"
            if measure in bounds:
                text += f"  bound {bounds[measure]:.4g}"
            if mine and entry is not mine and (times := ratio(mine, entry, measure)):
                text += f"  we are {times:.2f}x"
            made.append(text)
    return made


def ratios(scenario: Scenario, entries: list[Entry]) -> dict[str, float]:
    """Give our ratios to each server at its best setting, by its figures."""
    mine, found = ours(entries), {}
    for entry in (e for e in entries if mine and e is not mine and e.best):
        for measure in entry.rounds[0] if entry.rounds else ():
            if mine and (times := ratio(mine, entry, measure)):
                found[f"{scenario.name} {measure} / {entry.server}"] = round(times, 3)
    return found


def rows(
    scenario: Scenario, entries: list[Entry], machine: dict[str, Any], bounds: dict[str, float]
) -> list[dict[str, Any]]:
    """Give every figure as a record with the columns of the CSV file."""
    common = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
    common |= {name: machine[name] for name in ("commit", "cpu", "model")}
    made = []
    for entry in entries:
        who = {name: getattr(entry, name) for name in ("server", "version", "weights")}
        who["setting"] = entry.setting + (" (best)" if entry.best else "")
        what = {name: getattr(scenario, name) for name in ("clients", "prompt", "output")}
        for measure in entry.rounds[0] if entry.rounds else ():
            name, _, unit = measure.rpartition(" ")
            values = entry.values(measure)
            figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            row = {**common, **who, "scenario": scenario.name, **what, "measure": name, "unit": unit}
            row |= {key: float(f"{value:.4g}") for key, value in figures.items()}
            made.append({**row, "ceiling": float(f"{bounds[measure]:.4g}") if measure in bounds else ""})
    return made

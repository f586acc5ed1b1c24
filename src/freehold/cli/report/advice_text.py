"""The advice in a terminal: the ranking, the reasons for the first, the best of each size, and what was ruled out.

Knows columns and wording; the ranking is the advisor's. Path: cli/advise -> print_advice, relaxed -> stdout
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from freehold import catalog
from freehold.advisor.report import Axis, FittedAxis
from freehold.cli.report.advice import (
    apart,
    beside_lines,
    command_of,
    head,
    name,
    needs,
    reasons,
    row,
    short_of,
    understood,
    vouched,
)
from freehold.cli.report.facts import size
from freehold.cli.shared import table

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice, Judged


LETTERS = "123456789abcdefghijklmnopqrstuvwxyz"


_NAMED = 3  # excluded models named for each rule


def print_advice(advice: Advice, shown: tuple[Judged, ...], *, everything: bool, plotted: bool) -> None:
    """Print the whole answer; `everything`: each refusal with its reason."""
    task = advice.request.task
    scale = f", on the scale of {advice.benchmark}" if advice.benchmark else ""
    click.echo(f"{task.id}: {task.title}; {needs(advice)}{scale}")
    for line in understood(advice):
        click.echo(line)
    if shown:
        _print_picks(advice, shown)
        if plotted:
            _print_plot(advice, shown)
        _print_tiers(advice)
        if any(j.placement and not j.placement.sure for j in shown):
            click.echo(
                "this machine was busy when measured: a model is excluded only by the upper end of its speed"
            )
    for line in beside_lines(advice):
        click.echo(line)
    if lines := apart(advice):
        click.echo("")
        for line in lines:
            click.echo(line)
    _print_ruled_out(advice, everything)
    if advice.request.facts is None:
        click.echo("licences were not checked: --for commercial does (not legal advice)")


def _print_picks(advice: Advice, shown: tuple[Judged, ...]) -> None:
    """Print the ranking, then the reasons and the command of the first."""
    marks = (LETTERS[i] if i < len(LETTERS) else f"{i + 1}" for i in range(len(shown)))
    rows = [(mark, *row(advice, judged)) for mark, judged in zip(marks, shown, strict=True)]
    table(tuple(h.upper() for h in head(advice)), rows, right=(2, 4))
    if len(advice.picks) > len(shown):
        click.echo(f"and {len(advice.picks) - len(shown)} more: --top {len(advice.picks)}")
    click.echo("")
    for line in reasons(advice, shown[0]):
        click.echo(line)
    click.echo(command_of(shown[0]))


def _print_plot(advice: Advice, shown: tuple[Judged, ...]) -> None:
    from freehold.advisor.report import Axis

    marks = [
        PlotMark(j.placement.decode.mid, j.quality.range.mid, letter)
        for letter, j in zip(LETTERS, shown, strict=False)
        if j.placement and j.quality
    ]
    if marks:
        click.echo("")
        for line in plot(marks, Axis("tokens a second", log=True), Axis(advice.benchmark)):
            click.echo(line)


def _print_tiers(advice: Advice) -> None:
    """Print the best model of each size class, also those that only the hardware excludes."""
    rows = []
    for tier, judged in advice.by_tier.items():
        there = str(judged.placement.decode) + " tok/s" if judged.placement else ""
        against = "; ".join(r.why for r in judged.refusals)
        rows.append((tier, name(judged.model), size(judged.model), vouched(judged)[0], against or there))
    click.echo("")
    table(("TIER", "BEST OF IT", "SIZE", advice.benchmark.upper() or "QUALITY", "THERE"), rows, right=(2,))


def _print_ruled_out(advice: Advice, everything: bool) -> None:
    from freehold.advisor.advice import RULES

    click.echo("")
    if everything:
        rows = [(j.model.id, r.rule, r.why) for j in advice.ruled_out for r in j.refusals]
        table(("EXCLUDED", "BY", "WHY"), rows)
        return
    counts = Counter(rule for j in advice.ruled_out for rule in {r.rule for r in j.refusals})
    several = " (some by several rules)" if counts.total() > len(advice.ruled_out) else ""
    of = f"{advice.considered} models of this kind, {catalog.counts().models} in the catalogue"
    click.echo(f"excluded: {len(advice.ruled_out)} of {of}{several}")
    ranked = sorted(advice.ruled_out, key=lambda j: -j.lower_bound)
    for rule in RULES:
        if rule in counts:
            names = [name(j.model) for j in ranked if any(r.rule == rule for r in j.refusals)]
            more = ", ..." if len(names) > _NAMED else ""
            click.echo(f"  by {rule}: {counts[rule]} ({', '.join(names[:_NAMED])}{more})")
    click.echo("--all lists each with its reason")


def relaxed(advice: Advice) -> str:
    """Return that no model is good enough, or which condition to drop, and how many models that adds."""
    if advice.below or advice.unproven:
        text = f"no model here is good enough for {advice.request.task.id}: {_best(advice)}"
        good = [f"{n} {_with(option)}" for option, n in advice.relax_to_good[:3]]
        text += f"; good enough would be {', '.join(good)}" if good else ""
        return text + ("; on other hardware: see above" if advice.instead else "")
    ways = [f"{count} {_with(option)}" for option, count in advice.relax[:4]]
    return "no model is left: " + (
        f"there would be {', '.join(ways)}" if ways else "the task itself excludes all"
    )


# How to change a condition whose option was not given: it came from the hardware, the task or the question.
_CHANGES = {
    "--engine": "on another engine (--on HARDWARE --engine NAME)",
    "--on": "with more memory (--on HARDWARE)",
    "--budget": "with a higher --budget",
    "--users": "for fewer --users",
    "--min-speed": "at a lower --min-speed",
}


def _with(options: str) -> str:
    """Describe relaxed conditions: without --language and for fewer --users."""
    return " and ".join(_CHANGES.get(option, f"without {option}") for option in options.split(" and "))


def _best(advice: Advice) -> str:
    if not advice.below:
        return f"the {len(advice.unproven)} models that run have no published result for this kind of work"
    best = advice.below[0]
    return (
        f"the best that runs has {short_of(advice, best)} on {advice.benchmark}, and its range begins below "
        f"the bar of {advice.bar:g}"
    )


# --- a plot of points for a terminal: x on a logarithmic axis, marks of one letter, in plain text ---


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
    for at, cells in enumerate(field):
        lines.append(f"{sides.get(at, ''):>{margin}} |{''.join(cells).rstrip()}")
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

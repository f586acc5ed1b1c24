"""What `freehold eval` prints: a table of tasks with intervals, or one JSON object.

Knows results; knows no model. Path: cli/eval -> said, compared_lines
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from freehold.cli.shared import table

if TYPE_CHECKING:
    from freehold.evals.comparing import ResultComparison
    from freehold.evals.results import Report

_HEAD = ("TASK", "METRIC", "SCORE", "95 %", "ITEMS", "ANSWERED NOW")


def show(report: Report) -> None:
    """Print the table on stdout, and what needs saying on stderr."""
    from freehold.evals.results import faults, interval, values

    rows = []
    for each in report.tasks:
        for metric in each.task.metrics:
            if numbers := values(each, metric):
                r = interval(numbers)
                bounds = f"{r.low:.3f} to {r.high:.3f}"
                now = str(each.answered) if metric == each.task.metrics[0] else ""
                rows.append((each.task.name, metric, f"{r.mid:.3f}", bounds, f"{len(numbers):,}", now))
    table(_HEAD, rows, right=(2, 4, 5))
    for each in report.tasks:
        for kind, count in faults(each).items():
            click.echo(f"{each.task.name}: {kind} on {count} answers, counted as wrong", err=True)
        if errors := [row.reply.error for row in each.rows if row.reply.error]:
            click.echo(f"{each.task.name}: {len(errors)} items count as wrong: {errors[0]}", err=True)
    click.echo(f"{report.cpu_seconds:.1f} CPU-seconds in {report.seconds:.1f} s", err=True)


def compared_lines(comparison: ResultComparison) -> list[str]:
    """Return a comparison as lines."""
    lines = []
    for each in comparison.tasks:
        lines.append(f"{each.task}, {each.metric}, {each.items:,} items")
        lines.append(f"  A {each.one:.3f}  {comparison.one}")
        lines.append(f"  B {each.other:.3f}  {comparison.other}")
        p = "" if each.p is None else f", p = {each.p:.2g} (exact McNemar)"
        lines.append(
            f"  A - B {each.one - each.other:+.3f} ({each.low:+.3f} to {each.high:+.3f}, 95 %); "
            f"A higher on {each.wins}, B on {each.losses}{p}"
        )
        lines += [f"  note: {note}" for note in each.notes]
    return [*lines, *(f"note: {note}" for note in comparison.notes)]

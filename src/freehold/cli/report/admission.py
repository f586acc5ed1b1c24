"""The verdict of `freehold route admit` as lines. Knows figures and words. Path: cli/route -> show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from freehold.cli.shared import table

if TYPE_CHECKING:
    from freehold.router.admission.curves import SampledFigure
    from freehold.router.admission.verdict import RouterFigures, RouterVerdict

_HEAD = ("", "APGR", "CPT50", "CPT80", "AIQ", "OVER LENGTH", "OVER TASK MEAN")


def show(result: RouterVerdict) -> None:
    """Print both tables and a line for each candidate."""
    click.echo(
        f"{result.table}: {result.questions:,} questions of {result.tasks} tasks; weak {result.weak:.3f}, "
        f"strong {result.strong:.3f}, difference {result.gain}"
    )
    if result.no_router:
        click.echo(f"\nno router: {result.no_router}")
        return
    click.echo("\nin domain (5 folds; 95 % intervals over questions)")
    _figures(result.in_domain)
    if result.held_out:
        click.echo(f"\n{result.held_out_tasks} whole tasks held out (95 % intervals over tasks)")
        _figures(result.held_out)
    click.echo()
    for name, why in (result.refused or {}).items():
        click.echo(f"{name}: {'refused: ' + why if why else 'admitted'}")


def _figures(rows: Sequence[RouterFigures]) -> None:
    cells = []
    for one in rows:
        a, over = one.apgr, list(one.over.values())
        length = next((s for base, s in one.over.items() if "length" in base), None)
        task = next((s for base, s in one.over.items() if "length" not in base), None) if over else None
        apgr = f"{a.mid:.3f} [{a.low:.3f}, {a.high:.3f}]"
        rates = (f"{one.cpt50:.1f}", f"{one.cpt80:.1f}", f"{one.aiq:.4f}")
        cells.append((one.name, apgr, *rates, _over(length), _over(task)))
    table(_HEAD, cells, right=(2, 3, 4))


def _over(figure: SampledFigure | None) -> str:
    return "" if figure is None else str(figure)

"""`freehold why MODEL`: all facts about a model on one card, with their sources, and what is not known.

Knows columns and wording; the facts are collected by reports/why.py. Path: main -> why -> why_report -> stdout
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.company import company_options
from freehold.cli.shared import json_option, pairs
from freehold.cli.show import card_lines
from freehold.config import Settings
from freehold.reports.why import SpeedHere, why_report
from freehold.terminal import Ticking

if TYPE_CHECKING:
    from freehold.advisor.quality import Quality
    from freehold.advisor.verdict import Verdict
    from freehold.evals.trial import Kept

_MOST_REASONS = 6


@click.command("why")
@click.argument("model")
@company_options
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool, **options: Any) -> None:
    """Show all known facts about MODEL, with their sources, and what is unknown.

    File, digest, template and defaults; the licence's verdict on your facts (as for `freehold license`); quality by
    task from published results; predicted memory and speed beside what was measured here.

    With --json: {"schema": 1, "model", "licence", "quality", "own", "here", "unknown"}.
    """
    with Ticking(f"collecting what is known about {model}"):
        report = why_report(settings, model, options)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
        return
    rows = card_lines(report.card) + _licence_lines(report.verdict) + _quality_lines(report.quality)
    rows += [("on your cases" if not i else "", line) for i, line in enumerate(map(_own_line, report.own))]
    rows += _speed_lines(report.here)
    rows += [("not known" if not i else "", gap) for i, gap in enumerate(report.unknown)]
    pairs(rows)


def _licence_lines(ruled: Verdict | None) -> list[tuple[str, str]]:
    from freehold.advisor.verdict import DISCLAIMER

    if ruled is None:
        return [("licence", "no verdict: no licence is known")]
    rows = [("licence", f"{ruled.answer}, by {', '.join(ruled.licences) or 'no known licence'}")]
    rows += [("", f"{r.bearing}: {r.sentence} [{r.clause}]") for r in ruled.reasons[:_MOST_REASONS]]
    if ruled.questions:
        rows.append(("", "to decide it, state: " + "; ".join(ruled.questions)))
    return [*rows, ("", DISCLAIMER)]


def _quality_lines(quality: list[tuple[list[str], Quality]]) -> list[tuple[str, str]]:
    rows = []
    for names, q in quality:
        r = q.range
        likely = f"{q.benchmark} {r.mid:.0f} ({r.low:.0f} to {r.high:.0f})"
        text = f"{likely}, {q.basis}: {q.evidence}; for {', '.join(names)}"
        rows.append(("quality" if not rows else "", text))
    return rows


def _own_line(kept: Kept) -> str:
    from freehold.evals.paired import share

    answered = f"{kept.samples}: passed {kept.passed} of {kept.answered}"
    r = share([True] * kept.passed + [False] * (kept.answered - kept.passed)) if kept.answered else None
    bounds = f", {r.mid:.0f} % ({r.low:.0f} to {r.high:.0f})" if r else ""
    rest = f"; {kept.cases - kept.answered} wait" if kept.answered < kept.cases else ""
    return f"{answered}{bounds}{rest}, {kept.at[:10]}"


def _speed_lines(here: SpeedHere) -> list[tuple[str, str]]:
    """Return the predicted speed and the latest measured runs as rows of a card."""
    from freehold.advisor.fit import Fit
    from freehold.advisor.interval import digits
    from freehold.store.space import human

    rows = []
    if isinstance(here.foreseen, Fit):
        f = here.foreseen
        rows.append(
            ("here", f"{human(f.memory.total)} at {f.context:,} tokens; up to {f.longest:,} tokens fit")
        )
        rows.append(("", f"predicted {f.decode} tokens a second, prompts {f.prefill}; {f.basis}"))
    elif here.foreseen:
        rows.append(("here", f"does not run: {here.foreseen.reason}"))
    for run in here.measured[-3:]:
        text = f"measured {digits(run.measured)} tokens a second, {run.kind} at {run.depth:,} tokens"
        rows.append(("" if rows else "here", f"{text}, {run.at[:10]}"))
    return rows

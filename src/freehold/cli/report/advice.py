"""The advice in a terminal, as a chart and as one HTML page. Knows columns; advisor.report draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import click

from freehold.base import catalog
from freehold.choose.advisor.finders import result
from freehold.choose.advisor.report import (
    Axis,
    FittedAxis,
    Point,
    Section,
    figure,
    page,
    paragraph,
    scatter,
    standalone,
    table,
)
from freehold.cli.report.facts import short_licence, size
from freehold.cli.shared import table as print_table
from freehold.run.store.space import human

if TYPE_CHECKING:
    from freehold.base.catalog import Model
    from freehold.choose.advisor.advice import Advice, Judged
    from freehold.choose.advisor.quality import Quality


_BASES = ("published", "converted")
_MOST_RULED_OUT = 400
_NAMED = 4  # unranked models that are named


def chart(advice: Advice, shown: tuple[Judged, ...]) -> str:
    """Return speed against quality as an SVG file; a point's size is the memory it needs."""
    return standalone(_scatter(advice, shown, 760.0))


def report(advice: Advice, shown: tuple[Judged, ...]) -> str:
    """Return the whole answer as an HTML page that fetches nothing."""
    task = advice.request.task
    first = f"First: {name(shown[0].model)}. " if shown else "No model here is good enough. "
    lead = (
        f"{first}Of {advice.considered} models, {len(advice.picks)} are good enough, {len(advice.below)} run and are "
        f"not, {len(advice.unproven)} run and have no published result, {len(advice.ruled_out)} are excluded; "
        f"{needs(advice)}."
    )
    sections = [Section("The question", tuple(paragraph(line) for line in understood(advice)))]
    sections += [_ranking(advice, shown)] if shown else []
    if lines := apart(advice):
        sections.append(Section("Not ranked", tuple(paragraph(line) for line in lines)))
    if advice.by_tier:
        sections.append(_tiers(advice))
    sections.append(_ruled_out(advice))
    footer = (
        "Quality: published results with a deduction for quantisation and 80 % ranges. "
        "No model was run for this report.",
        "Speed and memory are predictions with 80 % ranges. Licence answers are not legal advice.",
        f"Made by freehold advise on {date.today().isoformat()}.",
    )
    return page(f"Models for {task.title}", lead, sections, footer)


def needs(advice: Advice) -> str:
    """Return the least speed and context of a pick; some tasks have no least speed."""
    speed = advice.request.speed
    paced = f"{speed:g} tokens a second or more, " if speed else ""
    return f"{paced}{advice.request.context:,} tokens of context"


def understood(advice: Advice) -> list[str]:
    """Return lines: what was understood of the question, what was ignored, notes."""
    conditions = advice.asked
    if conditions is None:
        return []
    by_part: dict[tuple[str, str, str], list[str]] = {}
    for part in conditions.understood:
        by_part.setdefault((part.what, part.value, part.says), []).append(part.words)
    lines = ["understood: " + "; ".join(_part(*key, words) for key, words in by_part.items())]
    if conditions.question.ignored:
        lines.append(f"ignored: {', '.join(conditions.question.ignored)}")
    return lines + [f"note: {note}" for note in conditions.notes]


def apart(advice: Advice) -> list[str]:
    """Return lines about models that run here and are not ranked, and about good ones on other hardware."""
    lines = []
    if advice.below:
        best = advice.below[0]
        lines.append(
            f"not ranked, as the range begins below the bar of {advice.bar:g} on {advice.benchmark}: "
            f"{_names(advice.below)}; the best of them, {name(best.model)}, has {short_of(advice, best)}"
        )
    if advice.unproven:
        lines.append(
            f"not ranked, without a published result for this kind of work: {_names(advice.unproven)}"
        )
    for judged in advice.instead:
        place, quality = judged.placement, judged.quality
        assert place is not None and quality is not None  # elsewhere it has both
        rent = f", ${place.month:,.0f} a month of rent" if place.month is not None else ""
        place_text = f"{name(judged.model)}, {per_cent(quality)} {quality.basis}, on {place.where}{rent}"
        lines.append(f"good enough: {place_text}")
    if advice.stretched:
        context = advice.request.context
        lines.append(
            f"with a stretched context of {context:,} tokens: {_names(advice.stretched)}; their cards give the rope "
            f"scaling that config.json lacks, and freehold deploy MODEL --context {context} plans it"
        )
    return lines


def short_of(advice: Advice, judged: Judged) -> str:
    """Return a quality below the bar; its low end has decimals if rounding would put it at the bar."""
    low = judged.lower_bound
    if round(low) < advice.bar:
        return per_cent(judged.quality)
    digits = next((d for d in (1, 2) if round(low, d) < advice.bar), 3)
    return f"{per_cent(judged.quality)}, beginning at {low:.{digits}f}"


def _names(judged: tuple[Judged, ...]) -> str:
    """Count models and name the first few."""
    shown = ", ".join(name(j.model) for j in judged[:_NAMED])
    return f"{len(judged)} ({shown}{', ...' if len(judged) > _NAMED else ''})"


def _part(what: str, value: str, says: str, words: list[str]) -> str:
    """Describe one part of the question: language de (German); hardware m4:16gb (macbook: taken as an Apple M4)."""
    shown = "" if value in ("yes", "") else f" {value}"
    because = f"{', '.join(words)}: {says}" if says else ", ".join(words)
    return f"{what}{shown} ({because})"


def _ranking(advice: Advice, shown: tuple[Judged, ...]) -> Section:
    rows = [(f"{i}", *row(advice, j)) for i, j in enumerate(shown, 1)]
    parts = [table(head(advice), rows, right=(2, 4, 5, 6), strong=(0,))]
    if any(j.quality for j in shown):
        parts.append(
            figure(
                lambda width: _scatter(advice, shown, width),
                "Up and to the right is better. A point's area is the memory it needs.",
            )
        )
    lines = (*reasons(advice, shown[0]), command_of(shown[0]), *beside_lines(advice))
    parts += [paragraph(line.strip()) for line in lines]
    return Section("Ranking", tuple(parts))


def head(advice: Advice) -> tuple[str, ...]:
    """Return the columns of a ranking: a mark, then those of `row`."""
    return (
        "",
        "model",
        "size",
        "quant",
        "memory",
        "tok/s",
        advice.benchmark or "quality",
        "basis",
        "licence",
        *(("languages",) if advice.request.languages else ()),
        *(("yours",) if advice.own else ()),
    )


def row(advice: Advice, judged: Judged) -> tuple[str, ...]:
    """Return a pick's cells."""
    place = judged.placement
    assert place is not None  # a pick has one
    return (
        name(judged.model),
        size(judged.model),
        place.quant,
        human(place.memory),
        str(place.decode),
        *vouched(judged),
        short_licence(judged.model),
        *(("; ".join(t.says for t in judged.languages),) if advice.request.languages else ()),
        *((own_words(advice, judged),) if advice.own else ()),
    )


def vouched(judged: Judged) -> tuple[str, str]:
    """Return a result and its basis; for embedders and rerankers with its benchmark, as there are several."""
    if judged.model.role == "generator":
        return per_cent(judged.quality), judged.quality.basis if judged.quality else ""
    score = result(judged.model)
    return (f"{score.benchmark} {score.value:g}", "published") if score else ("not known", "")


def beside_lines(advice: Advice) -> list[str]:
    """Return the embedder and the reranker for a RAG model, each with its command."""
    beside = advice.beside
    if beside is None:
        return []
    lines = []
    for what, one in (("embeddings", beside.embedder), ("reranker", beside.reranker)):
        if one:
            lines += [f"{what}: {name(one.model)} ({size(one.model)}): {one.says}", f"  {one.line.command}"]
    if beside.embedder and advice.request.task.reranker:
        served = beside.embedder.model
        lines.append(
            f"  freehold serve {served.name or served.id}: its /v1/rerank sorts texts by their embeddings"
        )
    if beside.embedder is None:
        lines.append("embeddings: no embedder of the catalogue runs there and covers the languages")
    if beside.reranker is None and beside.no_reranker:
        lines.append(f"no reranker: {beside.no_reranker}")
    return lines


def own_words(advice: Advice, judged: Judged) -> str:
    """Return a model's result on the user's own cases: 4 of 4 (71 to 100 %); empty if it was not run."""
    own = advice.own.get(judged.model.id)
    return f"{own.passed} of {own.cases} ({own.range.low:.0f} to {own.range.high:.0f} %)" if own else ""


def _tiers(advice: Advice) -> Section:
    rows = [
        (
            tier,
            name(j.model),
            size(j.model),
            vouched(j)[0],
            "; ".join(r.why for r in j.refusals) or (f"{j.placement.decode} tokens/s" if j.placement else ""),
        )
        for tier, j in advice.by_tier.items()
    ]
    columns = ("tier", "best of it", "size", advice.benchmark or "quality", "there")
    return Section("By size", (table(columns, rows, right=(2, 3)),))


def _ruled_out(advice: Advice) -> Section:
    ranked = sorted(advice.ruled_out, key=lambda j: -j.lower_bound)
    rows = [(j.model.id, r.rule, r.why) for j in ranked for r in j.refusals]
    parts = [table(("model", "rule", "why"), rows[:_MOST_RULED_OUT])]
    if len(rows) > _MOST_RULED_OUT:
        parts.append(paragraph(f"and {len(rows) - _MOST_RULED_OUT} more reasons: --json has all", note=True))
    return Section("Excluded", tuple(parts))


def _scatter(advice: Advice, shown: tuple[Judged, ...], width: float) -> str:
    points = [
        Point(
            name(j.model),
            j.placement.decode.mid,
            j.quality.range.mid,
            float(j.placement.memory),
            _BASES.index(j.quality.basis),
            f"{j.placement.decode} tokens/s, {per_cent(j.quality)}, {human(j.placement.memory)}",
        )
        for j in shown
        if j.placement and j.quality
    ]
    across, up = Axis("tokens a second", log=True), Axis(advice.benchmark)
    return scatter(points, across, up, title="Speed against quality", groups=_BASES, width=width)


def name(model: Model) -> str:
    """Return a model's short name, or the last part of its id."""
    return model.name or model.id.rpartition("/")[2]


def command_of(judged: Judged) -> str:
    """Return the command that runs a pick, or why none is known."""
    place = judged.placement
    assert place is not None  # a pick has one
    return f"  {place.command}" if place.command else f"  no command is known: {place.why_none}"


def reasons(advice: Advice, judged: Judged) -> list[str]:
    """Return the reasons for a pick: quality, speed and memory, licence."""
    model, place = judged.model, judged.placement
    lines = [f"why {name(model)}:"]
    if own := own_words(advice, judged):
        lines.append(f"  passed {own} of your own cases; no other tried model passed more")
    if judged.quality:
        quality = judged.quality
        lines.append(f"  {quality.benchmark} {per_cent(quality)} {quality.basis}: {quality.evidence}")
    if place:
        rent = f", ${place.month:,.0f} a month" if place.month is not None else ""
        lines.append(
            f"  {place.decode} tokens a second, {human(place.memory)} at {place.context:,} tokens, "
            f"by {place.engine} on {place.where}{rent}"
        )
    lines += [f"  {t.says}" for t in judged.languages]
    if judged.verdict:
        clause = judged.verdict.deciding[:1]
        because = f": {clause[0].sentence} [{clause[0].clause}]" if clause else ""
        lines.append(
            f"  licence {', '.join(judged.verdict.licences) or 'not known'}: {judged.verdict.answer}{because}"
        )
    return lines


def per_cent(quality: Quality | None) -> str:
    """Return a quality as text: 71 (67 to 74)."""
    if quality is None:
        return "not known"
    r = quality.range
    return f"{r.mid:.0f} ({r.low:.0f} to {r.high:.0f})"


# --- the advice in a terminal -----------------------------------------------------------------------
# The ranking, the reasons for the first, the best of each size, and what was ruled out.

LETTERS = "123456789abcdefghijklmnopqrstuvwxyz"


_NAMED_BY_RULE = 3  # excluded models named for each rule


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
                "this machine was busy when measured: a model is excluded only "
                "by the upper bound of its predicted speed"
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
    marks = (LETTERS[i] if i < len(LETTERS) else f"{i + 1}" for i in range(len(shown)))
    rows = [(mark, *row(advice, judged)) for mark, judged in zip(marks, shown, strict=True)]
    print_table(tuple(h.upper() for h in head(advice)), rows, right=(2, 4))
    if len(advice.picks) > len(shown):
        click.echo(f"and {len(advice.picks) - len(shown)} more: --top {len(advice.picks)}")
    click.echo("")
    for line in reasons(advice, shown[0]):
        click.echo(line)
    click.echo(command_of(shown[0]))


def _print_plot(advice: Advice, shown: tuple[Judged, ...]) -> None:
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
    print_table(
        ("TIER", "BEST MODEL", "SIZE", advice.benchmark.upper() or "QUALITY", "SPEED OR REASON"),
        rows,
        right=(2,),
    )


def _print_ruled_out(advice: Advice, everything: bool) -> None:
    from freehold.choose.advisor.advice import RULES

    click.echo("")
    if everything:
        rows = [(j.model.id, r.rule, r.why) for j in advice.ruled_out for r in j.refusals]
        print_table(("EXCLUDED", "BY", "WHY"), rows)
        return
    counts = Counter(rule for j in advice.ruled_out for rule in {r.rule for r in j.refusals})
    several = " (some by several rules)" if counts.total() > len(advice.ruled_out) else ""
    of = f"{advice.considered} models of this kind, {catalog.counts().models} in the catalogue"
    click.echo(f"excluded: {len(advice.ruled_out)} of {of}{several}")
    ranked = sorted(advice.ruled_out, key=lambda j: -j.lower_bound)
    for rule in RULES:
        if rule in counts:
            names = [name(j.model) for j in ranked if any(r.rule == rule for r in j.refusals)]
            more = ", ..." if len(names) > _NAMED_BY_RULE else ""
            click.echo(f"  by {rule}: {counts[rule]} ({', '.join(names[:_NAMED_BY_RULE])}{more})")
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

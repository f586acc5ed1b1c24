"""`freehold show|why MODEL`: the card of a model, in the store or in the catalogue; and all that is known about it.

Knows columns and wording; the card is reports/card.py's, the facts reports/card.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from freehold.base import catalog
from freehold.base.config import Settings
from freehold.base.terminal import Ticking
from freehold.cli.report.facts import facts_lines
from freehold.cli.shared import company_options, json_option, pairs
from freehold.run.store import Store
from freehold.run.store.records import STATE_WORDS
from freehold.run.store.space import human
from freehold.serve.reports.card import UNREAD, describe

if TYPE_CHECKING:
    from freehold.adapt.evals.trial import Kept
    from freehold.choose.advisor.quality import Quality
    from freehold.choose.advisor.verdict import Verdict
    from freehold.serve.reports.card import SpeedHere


SCHEMA = 1
_OUTPUT = "output.weight"  # the head of a GGUF file


@click.command("show")
@click.argument("model")
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool) -> None:
    """Show MODEL's file, digest, quantisation, context, licence, template and sampling defaults.

    For a model made by `freehold create`, also shows its own parameters, system prompt and template, which override
    its base's. The catalogue's facts follow: lab, sizes, lineage, layers, cache, published scores, each with its
    source.

    With --json, prints {"schema": 1, "model": {..., "catalogue": {...}}}.
    """
    card = describe(Store(settings), model)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "model": card}, indent=1))
    else:
        pairs(card_lines(card))


def card_lines(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the card as rows of text; unknown facts are left out."""
    held = f"{human(card['held'])} of {human(card['bytes'])}" if card["state"] == "incomplete" else ""
    state = "" if card["state"] == "ready" else STATE_WORDS.get(card["state"], card["state"])
    packed = f", packed {human(card['pack_bytes'])}" if card.get("pack_bytes") else ""
    rows = [
        ("name", card["name"]),
        ("", f"note: {card['note']}" if card.get("note") else ""),
        ("model", card.get("model", "")),
        ("state", " ".join(s for s in (state, held) if s)),
        ("file", card.get("path", "")),
        ("size", f"{card['bytes']:,} bytes ({human(card['bytes'])}){packed}" if card["bytes"] else ""),
        ("", f"shared with {card['base']}" if card.get("base") else ""),
        ("sha256", "" if card.get("base") else card.get("digest", "")),
        ("architecture", _architecture(card)),
        ("parameters", _parameters(card)),
        (
            "quantisation",
            ", ".join(f"{p['type']} {100 * p['share']:.1f} %" for p in card.get("quantisation", [])),
        ),
        ("context", f"{card['context']:,} tokens" if card.get("context") else ""),
        ("vision", _sight(card)),
        ("audio", _hearing(card)),
        *(("", f"note: {note}") for note in card.get("notes", ())),
        ("licence", _licence(card["licence"])),
        ("owner", card.get("owner", "")),
        ("source", card["source"]),
        ("", card.get("detail", "")),
        ("template", card.get("template", "")),
        *(("system" if not i else "", line) for i, line in enumerate(card.get("system", "").splitlines())),
        ("messages", f"{card['messages']} before each chat" if card.get("messages") else ""),
        ("adapter", card.get("adapter", "")),
        *(("made by" if not i else "", _stage(each)) for i, each in enumerate(card.get("descent", ()))),
        ("stop", ", ".join(map(repr, card.get("stop", ())))),
    ]
    sampling = card.get("sampling", {}).items()
    rows += [
        ("sampling" if not i else "", f"{k} {s['value']} ({s['origin']})")
        for i, (k, s) in enumerate(sampling)
    ]
    known = facts_lines(catalog.model(card["model"]), date.today()) if card.get("model") else []
    return [(k, v) for k, v in rows if v] + known


def _stage(stage: Mapping[str, Any]) -> str:
    """Return a stage of a line of descent in words: its verb, its folder, and what its receipt measured."""
    gate = stage.get("gate") or {}
    parts = [f"{stage['verb'] or 'another program'}: {stage['path']}"]
    if gate.get("items"):
        before, after, p = gate["before"], gate["after"], gate["p"]
        sure = "" if p is None else f", p = {p:.2g}"
        parts.append(f"{before:.0%} to {after:.0%} of {gate['items']} items{sure}")
    if gate.get("divergence") is not None:
        parts.append(f"{gate['divergence']:.4f} nats per token from its source")
    if gate.get("lost"):
        parts.append(f"{gate['lost']} facts lost")
    return "; ".join(parts)


def _parameters(card: Mapping[str, Any]) -> str:
    """Describe the number of weights; a file that stores a tied embedding twice has more than the model."""
    in_file, output = card.get("parameters", 0), card.get("output_parameters", 0)
    known = (card.get("catalogue") or {}).get("parameters", 0)
    if not in_file:
        return ""
    if output and known == in_file - output:
        return f"{in_file:,} in the file, {known:,} in the model: the file repeats the embedding as {_OUTPUT}"
    return f"{in_file / 1e6:,.0f} million" if in_file >= 1e7 else f"{in_file:,}"


def _architecture(card: Mapping[str, Any]) -> str:
    name, refused = str(card.get("architecture", "")), str(card.get("refused", ""))
    unread = any(note.startswith(UNREAD) for note in card.get("notes", ()))  # which says more
    return name if unread or not refused else f"{name or 'not known'}: {refused}"


def _sight(card: Mapping[str, Any]) -> str:
    """Say whether a model reads pictures; nothing of a model of text alone."""
    if card.get("sees"):
        least, most = card.get("least_tokens", 0), card.get("most_tokens", 0)
        span = f"{least:,} to {most:,}" if 0 < least < most else f"{most:,}"
        return f"yes, encoder {human(card['eyes_bytes'])}{f', {span} tokens per picture' if most else ''}"
    return f"no: {card['blind']}" if card.get("blind") else ""


def _hearing(card: Mapping[str, Any]) -> str:
    """Say whether a model reads sounds in a chat; nothing of a model without a tower of them."""
    if card.get("hears"):
        span = f"at most {card['sound_seconds']:g} s per recording, {card['sound_tokens']:,} tokens"
        return f"yes, encoder {human(card['ears_bytes'])}, {span}"
    return f"no: {card['deaf']}" if card.get("deaf") else ""


def _licence(name: str) -> str:
    return {"": "not stated by the source", "NOASSERTION": "NOASSERTION: its source does not state one"}.get(
        name, name
    )


# --- `freehold why MODEL`: all facts on one card, with their sources, and what is not known ---------

_MOST_REASONS = 6


@click.command("why")
@click.argument("model")
@company_options
@json_option
@click.pass_obj
def why_command(settings: Settings, model: str, as_json: bool, **options: Any) -> None:
    """Show all known facts about MODEL, with their sources, and what is unknown.

    File, digest, template and defaults; the licence's verdict on your facts (as for `freehold license`); quality by
    task from published results; predicted memory and speed beside what was measured here.

    With --json: {"schema": 1, "model", "licence", "quality", "own", "here", "unknown"}.
    """
    with Ticking(f"collecting what is known about {model}"):
        from freehold.serve.reports.card import why_report

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
    from freehold.choose.advisor.verdict import DISCLAIMER

    if ruled is None:
        return [("licence", "no verdict: no licence is known")]
    rows = [("licence", f"{ruled.answer}, by {', '.join(ruled.licences) or 'no known licence'}")]
    rows += [("", f"{r.bearing}: {r.sentence} [{r.clause}]") for r in ruled.reasons[:_MOST_REASONS]]
    if ruled.questions:
        rows.append(("", "for a verdict, state: " + "; ".join(ruled.questions)))
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
    from freehold.adapt.evals.paired import share

    answered = f"{kept.samples}: passed {kept.passed} of {kept.answered}"
    r = share([True] * kept.passed + [False] * (kept.answered - kept.passed)) if kept.answered else None
    bounds = f", {r.mid:.0f} % ({r.low:.0f} to {r.high:.0f})" if r else ""
    rest = f"; {kept.cases - kept.answered} wait" if kept.answered < kept.cases else ""
    return f"{answered}{bounds}{rest}, {kept.at[:10]}"


def _speed_lines(here: SpeedHere) -> list[tuple[str, str]]:
    """Return the predicted speed and the latest measured runs as rows of a card."""
    from freehold.choose.advisor.fit import Fit
    from freehold.choose.advisor.interval import digits
    from freehold.run.store.space import human

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

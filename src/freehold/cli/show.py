"""`freehold show MODEL`: the card of a model, in the store or in the catalogue.

Knows columns and wording; the card is reports/card.py's. Path: main -> show -> describe -> stdout
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import click

from freehold import catalog
from freehold.cli.report.facts import facts_lines
from freehold.cli.shared import json_option, pairs
from freehold.config import Settings
from freehold.reports.card import UNREAD, describe
from freehold.store import Store
from freehold.store.records import STATE_WORDS
from freehold.store.space import human

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
        ("quantisation", _mix(card.get("quantisation", []))),
        ("context", f"{card['context']:,} tokens" if card.get("context") else ""),
        *(("", f"note: {note}") for note in card.get("notes", ())),
        ("licence", _licence(card["licence"])),
        ("owner", card.get("owner", "")),
        ("source", card["source"]),
        ("", card.get("detail", "")),
        ("template", card.get("template", "")),
        *(("system" if not i else "", line) for i, line in enumerate(card.get("system", "").splitlines())),
        ("messages", f"{card['messages']} before each chat" if card.get("messages") else ""),
        ("adapter", card.get("adapter", "")),
        ("stop", ", ".join(map(repr, card.get("stop", ())))),
    ]
    sampling = card.get("sampling", {}).items()
    rows += [
        ("sampling" if not i else "", f"{k} {s['value']} ({s['origin']})")
        for i, (k, s) in enumerate(sampling)
    ]
    known = facts_lines(catalog.model(card["model"]), date.today()) if card.get("model") else []
    return [(k, v) for k, v in rows if v] + known


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


def _mix(parts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{p['type']} {100 * p['share']:.1f} %" for p in parts)


def _licence(name: str) -> str:
    return {"": "not stated by the source", "NOASSERTION": "NOASSERTION: its source does not state one"}.get(
        name, name
    )

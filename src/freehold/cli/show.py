"""`freehold show MODEL`: the card of a model, in the store or in the catalogue.

Reads the store's record, the catalogue's facts and the file's metadata, with the source of each fact.
Path: main -> show -> Store.show, catalog.model, formats.open_model_file, store.sampling.sampling_defaults.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from freehold import catalog
from freehold.catalog.model import Structure
from freehold.cli.report.facts import facts_json, facts_lines
from freehold.cli.shared import json_option, pairs
from freehold.config import Settings
from freehold.errors import FreeholdError, ModelNotFound
from freehold.formats import GGUFFile, ModelFile, open_model_file
from freehold.store import Listed, Store
from freehold.store.sampling import sampling_defaults
from freehold.store.space import human

if TYPE_CHECKING:
    from freehold.models.binding.bind import Source

SCHEMA = 1
_UNREAD = "it does not load: "
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"  # in GGUF files


@click.command("show")
@click.argument("model")
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool) -> None:
    """Show MODEL's file, digest, quantisation, context, licence, template and sampling defaults.

    Then the catalogue's facts: lab, sizes, lineage, layers, cache, published scores, each with its source.

    With --json, prints {"schema": 1, "model": {..., "catalogue": {...}}}.
    """
    card = describe(Store(settings), model)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "model": card}, indent=1))
    else:
        pairs(card_lines(card))


def describe(store: Store, model: str) -> dict[str, Any]:
    """Return the card of `model` as plain values; raise ModelNotFound for one that is unknown."""
    try:
        listed = store.show(model)
    except ModelNotFound:
        return _from_catalogue(model)
    card = {**listed.as_json(), **_known(listed)}
    if listed.state in ("ready", "changed"):
        with open_model_file(listed.path) as file:
            card |= file_facts(file)
            if card["model"] and not catalog.model(card["model"]).may_have(card["parameters"]):
                card |= {"model": "", "note": "", "catalogue": None}
            if not card["licence"] and isinstance(file, GGUFFile):
                card["licence"] = file.metadata.get_str("general.license", "")
    return card


def file_facts(file: ModelFile) -> dict[str, Any]:
    """Return the facts of the model file: sizes, types, context, template, sampling defaults."""
    from freehold.advisor.file_anatomy import of_expert

    tensors = file.tensors.values()
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.nbytes
    total = sum(by_type.values()) or 1
    architecture, context, template = (
        _gguf_facts(file) if isinstance(file, GGUFFile) else _directory_facts(file)
    )
    refused = _refused(Structure(architecture, experts=any(of_expert(t.name) for t in tensors)))
    read = _read(file)
    notes = (f"{_UNREAD}{read.message}",) if isinstance(read, FreeholdError) else read.notes
    output = file.tensors.get(_OUTPUT)
    chats = not _is_encoder(architecture)
    return {
        "architecture": architecture,
        "runs": not refused and not isinstance(read, FreeholdError),
        "refused": refused,
        "parameters": sum(math.prod(t.shape) for t in tensors),
        "output_parameters": math.prod(output.shape) if output and _EMBEDDING in file.tensors else 0,
        "quantisation": [
            {"type": t, "bytes": n, "share": round(n / total, 4)} for t, n in by_type.most_common()
        ],
        "context": context if isinstance(read, FreeholdError) else read.cfg.context,
        "notes": list(notes),
        "template": template if chats else "none: an embedding model has no chat",
        "sampling": {k: {"value": v, "origin": o} for k, (v, o) in sampling_defaults(file).items() if chats},
    }


def _read(file: ModelFile) -> Source | FreeholdError:
    """Return what loading would find: the context, notes on parts left out and on what is not stated; or its error."""
    from freehold.models.binding.bind import read_source

    try:
        return read_source(file)
    except FreeholdError as e:
        return e


def _is_encoder(architecture: str) -> bool:
    """Return whether the architecture is an encoder."""
    from freehold.models.families import naming

    return any(f.encoder for f in naming(architecture) if f.gguf_architecture == architecture)


def _refused(asked: Structure) -> str:
    """Return why the engine does not run such a model; empty: it does."""
    from freehold.models.binding.bind import refusal

    return refusal(asked)


def _gguf_facts(file: GGUFFile) -> tuple[str, int, str]:
    context = file.metadata.get_int(f"{file.architecture}.context_length", 0)
    has_template = bool(file.metadata.get_str("tokenizer.chat_template", ""))
    return file.architecture, context, "file: tokenizer.chat_template" if has_template else "none in the file"


def _directory_facts(file: Any) -> tuple[str, int, str]:
    if file.chat_template:
        template = "chat_template.jinja"
    else:
        config = json.loads(file.tokenizer_config.read_bytes()) if file.tokenizer_config else {}
        template = (
            "tokenizer_config.json: chat_template" if config.get("chat_template") else "none in the folder"
        )
    context = file.config.get("max_position_embeddings", 0)
    return str(file.config.get("model_type", "")), context if isinstance(context, int) else 0, template


def _known(listed: Listed) -> dict[str, Any]:
    """Return the catalogue's facts about a stored model, found by its short name or repository."""
    for name in (listed.name, *listed.aliases):
        with suppress(ModelNotFound):
            known = catalog.model(name)
            return {"model": known.id, "note": _note(name), "catalogue": facts_json(known, date.today())}
    return {"model": "", "note": "", "catalogue": None}


def _note(name: str) -> str:
    """Return the warning about a misleading short name."""
    with suppress(ModelNotFound):
        return catalog.find(name).note
    return ""


def _from_catalogue(text: str) -> dict[str, Any]:
    known = catalog.model(text)
    entry = catalog.find(known.name) if known.name else None
    hub = f"hub: {entry.hub_repo}:{entry.hub_quant}" if entry and entry.hub_repo else ""
    index = f"package index: {entry.packages[0]}" if entry and entry.packages else ""
    elsewhere = f"hub: {known.id}" if known.hub and not hub and not index else ""
    refused = _refused(known.structure)
    return {
        "name": known.name or known.id,
        "state": "not held",
        "model": known.id,
        "note": entry.note if entry else "",
        "architecture": known.architecture,
        "runs": not refused,
        "refused": refused,
        "parameters": known.parameters or round(known.params_b * 1e9),
        "context": known.context,
        "bytes": entry.bytes if entry else 0,
        "licence": known.licence,
        "source": ", ".join(s for s in (hub, index, elsewhere) if s),
        "catalogue": facts_json(known, date.today()),
    }


def card_lines(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the card as rows of text; unknown facts are left out."""
    held = f"{human(card['held'])} of {human(card['bytes'])}" if card["state"] == "incomplete" else ""
    state = {"vanished": "file vanished", "ready": ""}.get(card["state"], card["state"])
    packed = f", packed {human(card['pack_bytes'])}" if card.get("pack_bytes") else ""
    rows = [
        ("name", card["name"]),
        ("", f"note: {card['note']}" if card.get("note") else ""),
        ("model", card.get("model", "")),
        ("state", " ".join(s for s in (state, held) if s)),
        ("file", card.get("path", "")),
        ("size", f"{card['bytes']:,} bytes ({human(card['bytes'])}){packed}" if card["bytes"] else ""),
        ("sha256", card.get("digest", "")),
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
    unread = any(note.startswith(_UNREAD) for note in card.get("notes", ()))  # which says more
    return name if unread or not refused else f"{name or 'not known'}: {refused}"


def _mix(parts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{p['type']} {100 * p['share']:.1f} %" for p in parts)


def _licence(name: str) -> str:
    return {"": "not stated by the source", "NOASSERTION": "NOASSERTION: its source does not state one"}.get(
        name, name
    )

"""The card of a model, in the store or in the catalogue: the record, the catalogue's facts, the file's metadata.

Knows where each fact comes from; knows no wording beyond the sources' names.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base import catalog
from freehold.base.catalog.model import Structure
from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.choose.choosing import refusal
from freehold.run.formats import GGUFFile, ModelFile, SafetensorsFile, open_model_file
from freehold.run.store import Listed, Store
from freehold.run.store.eyes import beside, misfit
from freehold.run.store.overlays import Overlay
from freehold.run.store.sampling import sampling_defaults
from freehold.serve.reports.plain import facts_json

if TYPE_CHECKING:
    from freehold.run.models.binding.bind import Source
    from freehold.run.models.family import Family

UNREAD = "it does not load: "  # begins a note
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"  # in GGUF files


def describe(store: Store, model: str, *, disk: bool = True) -> dict[str, Any]:
    """Return the card of `model` as plain values; raise ModelNotFound for one that is unknown. `disk`: as `show`."""
    from freehold.run.models.family import TEXT_ALONE

    try:
        listed = store.show(model, disk=disk)
    except ModelNotFound:
        return _from_catalogue(model)
    overlay = store.overlays.find(listed.name) if listed.base else None
    card = {**listed.as_json(), **_known(listed)}
    if listed.state in ("ready", "changed"):
        with open_model_file(listed.path) as file:
            card |= file_facts(file) | sight(listed, file)
            if card["sees"]:
                card["notes"] = [note for note in card["notes"] if note != TEXT_ALONE]
            if card["model"] and not catalog.model(card["model"]).may_have(card["parameters"]):
                card |= {"model": "", "note": "", "catalogue": None}
            if not card["licence"] and isinstance(file, GGUFFile):
                card["licence"] = file.metadata.get_str("general.license", "")
    return card | _own(card, overlay) if overlay else card


def _own(card: Mapping[str, Any], overlay: Overlay) -> dict[str, Any]:
    """Return what a model made from another says itself, over its base's card."""
    read = overlay.read
    origin = f"PARAMETER of {overlay.name}"
    sampling = {name: {"value": value, "origin": origin} for name, value in read.sampling.items()}
    limit = {} if read.max_tokens is None else {"max_tokens": {"value": read.max_tokens, "origin": origin}}
    own: dict[str, Any] = {
        "system": overlay.system,
        "messages": len(overlay.messages),
        "adapter": overlay.adapter_name,
        "sampling": {**card.get("sampling", {}), **sampling, **limit},
        "notes": [*card.get("notes", ()), *overlay.notes],
    }
    if read.stop:
        own["stop"] = list(read.stop)
    if overlay.template:
        own["template"] = f"TEMPLATE of {overlay.name}"
    if overlay.licence:
        own["licence"] = "; ".join(text.strip().partition("\n")[0] for text in overlay.licence)
    return own


def file_facts(file: ModelFile) -> dict[str, Any]:
    """Return the facts of the model file: sizes, types, context, template, sampling defaults."""
    from freehold.choose.advisor.file_anatomy import of_expert
    from freehold.run.models.families import naming

    tensors = file.tensors.values()
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.nbytes
    total = sum(by_type.values()) or 1
    architecture, context, template = (
        _gguf_facts(file) if isinstance(file, GGUFFile) else _directory_facts(file)
    )
    refused = refusal(Structure(architecture, experts=any(of_expert(t.name) for t in tensors)))
    read = _read(file)
    notes = (f"{UNREAD}{read.message}",) if isinstance(read, FreeholdError) else read.notes
    output = file.tensors.get(_OUTPUT)
    chats = not any(f.encoder for f in naming(architecture) if f.gguf_architecture == architecture)
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


# --- whether a model reads pictures ------------------------------------------------------------------


def sight(listed: Listed, file: ModelFile) -> dict[str, Any]:
    """Return whether a model reads pictures (`sees`), its tower's bytes (`eyes_bytes`), and why not (`blind`).

    `blind` is empty for a model of text alone, and for one that is refused altogether.
    """
    from freehold.run.models.binding.bind import family_of, gguf_family

    try:
        if isinstance(file, GGUFFile):
            why, size = _gguf_blind(listed, file, gguf_family(file.metadata)[0]), listed.eyes_bytes
        else:
            why, size = _folder_blind(file, family_of(file.config)[0])
    except FreeholdError:
        return {"sees": False, "blind": ""}
    sees = bool(size) and not why
    return {"sees": sees, "eyes_bytes": size, "blind": why, **(_tokens(listed) if sees else {})}


def _tokens(listed: Listed) -> dict[str, int]:
    """Return how many tokens a picture becomes; zeros where the tower does not say."""
    from freehold.run.models.sight import tower_need

    need = None
    with suppress(FreeholdError):
        need = tower_need(listed.eyes or listed.path)
    return {"least_tokens": need.least if need else 0, "most_tokens": need.most if need else 0}


def _gguf_blind(listed: Listed, file: GGUFFile, family: Family) -> str:
    """Return why a GGUF reads no pictures; empty with a tower that it may be joined with, and where none is due."""
    from freehold.run.models.towers import registered

    if listed.eyes is not None:
        return misfit(listed.path, listed.eyes) or _unread(listed.eyes, family)
    name = listed.base or listed.name
    if listed.eyes_left_out:
        return f"its tower was left out; freehold pull {name} --eyes takes it"
    if any(tensor.startswith("v.") for tensor in file.tensors):
        return "its tower is inside its own file, which is not supported; take a model with an mmproj file"
    if listed.owner == "user" and (why := beside(listed.path).why):
        return why
    template = file.metadata.get_str("tokenizer.chat_template", "")
    if not any(tower.name in family.towers and tower.mark in template for tower in registered()):
        return ""  # a family has models of text alone too: the template of the others has a picture's mark
    if listed.owner == "freehold":
        return f"its tower was not downloaded; freehold pull {name} --eyes looks for one"
    return "there is no tower (an mmproj file) beside it"


def _unread(mmproj: Path, family: Family) -> str:
    """Return why a tower that fits a model's file cannot be joined with its family; empty: it can."""
    from freehold.run.models.binding.towers import read_tower

    try:
        with open_model_file(mmproj) as opened:
            source = read_tower(opened)
    except FreeholdError as e:
        return e.message
    if source is None or source.tower.name not in family.towers:
        return f"{mmproj.name} is a tower that is not supported with {family.gguf_architecture}"
    return ""


def _folder_blind(file: SafetensorsFile, family: Family) -> tuple[str, int]:
    """Return why a folder of safetensors reads no pictures, and the bytes of its tower."""
    from freehold.run.models.binding.towers import read_tower

    try:
        source = read_tower(file)
    except FreeholdError as e:
        return e.message, 0
    if source is None or source.tower.name not in family.towers:
        kind = str(file.config.get("model_type", ""))
        return f"the tower of {kind} is not supported yet" if file.config.get("vision_config") else "", 0
    return "", sum(tensor.nbytes for name, tensor in file.tensors.items() if source.tower.hf_name(name))


def _read(file: ModelFile) -> Source | FreeholdError:
    """Return what loading would find: the context, notes on parts left out and on what is not stated; or its error."""
    from freehold.run.models.binding.bind import read_source

    try:
        return read_source(file)
    except FreeholdError as e:
        return e


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
    for name in (listed.name, *listed.aliases):
        with suppress(ModelNotFound):
            known = catalog.model(name)
            return {"model": known.id, "note": _note(name), "catalogue": facts_json(known, date.today())}
    return {"model": "", "note": "", "catalogue": None}


def _note(name: str) -> str:
    with suppress(ModelNotFound):
        return catalog.find(name).note
    return ""


def _from_catalogue(text: str) -> dict[str, Any]:
    known = catalog.model(text)
    entry = catalog.find(known.name) if known.name else None
    hub = f"hub: {entry.hub_repo}:{entry.hub_quant}" if entry and entry.hub_repo else ""
    index = f"package index: {entry.packages[0]}" if entry and entry.packages else ""
    elsewhere = f"hub: {known.id}" if known.hub and not hub and not index else ""
    refused = refusal(known.structure)
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

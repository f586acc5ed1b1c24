"""GET /api/tags, GET /api/ps, POST /api/show: which models there are, which are in memory, what one is.

Knows the wire's shapes, cards and the store's records; loads nothing. Path: Gate -> tags, ps, show -> Cards.of
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.errors import ModelNotFound
from freehold.machine import resident_bytes
from freehold.server.core.call import HttpCall
from freehold.server.core.fields import Name
from freehold.server.core.problems import Refused
from freehold.server.ollama.abilities import of_template
from freehold.server.ollama.cards import Card, Cards
from freehold.server.ollama.fields import unknown_fields
from freehold.server.ollama.modelfiles import modelfile, parameter_lines
from freehold.server.ollama.wording import refusal
from freehold.serving import LoadedInfo, StoredModel
from freehold.store import Listed, Store
from freehold.store.overlays import Overlay
from freehold.store.refs import LATEST, parse_ref

NEVER = "9999-12-31T23:59:59Z"  # clients parse it as a date
# Continue offers to fill in the middle where a template mentions it.
_FILLS = "{# .Suffix: text between prompt and suffix is filled in, without this template #}"
# Of a listing, for templates that are met for the first time: one that never ends takes three, and a folder may hold
# hundreds. The next listing continues where this one stopped.
RENDERING_S = 5.0
_cards = Cards()
_reader = ThreadPoolExecutor(1, "freehold-cards")


class ShowRequest(Struct, kw_only=True):
    """POST /api/show: what a model is."""

    model: Annotated[Name | None, Meta(description="The model's name.")] = None
    name: Annotated[Name | None, Meta(description="The same, as older clients call it.")] = None
    verbose: Annotated[bool | None, Meta(description="List the tensors too.")] = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


async def tags(call: HttpCall) -> None:
    """List every model."""
    held = await call.models.names()
    cards = await _cards_of(call.server.store)
    await call.answer({"models": [_tag(each, *cards.get(each.name, (Card(), ""))) for each in held]})


async def ps(call: HttpCall) -> None:
    """List the models in memory."""
    held = {each.name: each for each in await call.models.names()}
    cards = await _cards_of(call.server.store)
    rows = [
        _loaded(each, held.get(each.name), cards.get(each.name, (Card(), ""))[0])
        for each in call.models.loaded()
    ]
    await call.answer({"models": rows})


async def show(call: HttpCall) -> None:
    """Say what a model is: its Modelfile, parameters, template, facts of its file, and what it can do."""
    request, raw = await call.struct(ShowRequest)
    name = request.model or request.name
    if not name:
        raise Refused(400, "model is missing", param="model", code="missing_required_parameter")
    for field in ("system", "template", "options"):
        if raw.get(field):
            raise Refused(
                400, f"{field} is of a request that answers; show tells what is stored", param=field
            )
    if call.key is not None and not call.key.may_use(name):
        raise refusal(ModelNotFound(f"there is no model {name[:200]!r} for the key {call.key.name}"), name)
    found = await asyncio.to_thread(look_up, stored(call), name)
    warnings = unknown_fields(raw, ShowRequest)
    shown = await asyncio.to_thread(_shown, stored(call), found, request.verbose is True)
    await call.answer({**shown, "freehold": {"warnings": warnings}})


def stored(call: HttpCall) -> Store:
    """Return the store; the routes that ask are there only where there is one."""
    assert call.server.store is not None
    return call.server.store


def look_up(store: Store, name: str) -> Listed:
    """Return a model's record; Refused with 404 in this protocol's words."""
    try:
        if parse_ref(name).kind == "path":
            raise ModelNotFound("no file of this machine can be named here")
        return store.show(name)
    except ModelNotFound as e:
        raise refusal(e, name) from e


def shown_name(name: str) -> str:
    """Return a name as clients of this protocol expect one: with a tag."""
    return name if ":" in name else name + LATEST


async def _cards_of(store: Store | None) -> dict[str, tuple[Card, str]]:
    """Return card and base of every model in the store. One listing at a time reads; the next finds it done."""
    if store is None:
        return {}
    return await asyncio.get_running_loop().run_in_executor(_reader, _read_cards, store)


def _read_cards(store: Store) -> dict[str, tuple[Card, str]]:
    home, until = store.settings.home, time.monotonic() + RENDERING_S
    ready = (m for m in store.list() if m.state in ("ready", "changed"))
    return {m.name: (_cards.of(m, home, until), m.base) for m in ready}


def _tag(held: StoredModel, card: Card, base: str) -> dict[str, Any]:
    name = shown_name(held.name)
    return {
        "name": name,
        "model": name,
        "modified_at": _time(held.modified),
        "size": held.bytes,
        "digest": _digest(held),
        "details": {
            **details(card, base),
            "context_length": card.context,
            "embedding_length": card.embedding,
        },
        "capabilities": list(card.capabilities),
    }


def _loaded(each: LoadedInfo, held: StoredModel | None, card: Card) -> dict[str, Any]:
    name = shown_name(each.name)
    quantization = card.quantization or each.info.quantization
    return {
        "name": name,
        "model": name,
        "size": resident_bytes(each.pid) or each.info.memory_bytes,
        "size_vram": 0,
        "digest": _digest(held) if held else "",
        "details": {**details(card, ""), "quantization_level": quantization},
        "expires_at": NEVER if each.expires_at is None else _time(each.expires_at),
        "context_length": each.info.context,
    }


def details(card: Card, base: str) -> dict[str, Any]:
    """Return what every listing says of a model's kind."""
    return {
        "parent_model": base,
        "format": card.format,
        "family": card.architecture,
        "families": [card.architecture] if card.architecture else [],
        "parameter_size": _size(card.parameters),
        "quantization_level": card.quantization,
    }


def _shown(store: Store, found: Listed, verbose: bool) -> dict[str, Any]:
    home = store.settings.home
    card = _cards.of(found, home)
    overlay = store.overlays.find(found.name) if found.base else None
    template = (overlay.template if overlay else "") or card.template
    if "insert" in card.capabilities:
        template += _FILLS
    said = {
        "license": _licence(found, card, overlay),
        "modelfile": modelfile(found, card, overlay),
        "parameters": parameter_lines(card, overlay),
        "template": template,
        "details": details(card, found.base),
        "model_info": dict(card.info),
        "capabilities": _capabilities(card, overlay, home),
        "modified_at": found.created or _time(0.0),
    }
    if overlay is not None:
        said |= {
            "system": overlay.system,
            "messages": [{"role": r, "content": t} for r, t in overlay.messages],
        }
    if verbose:
        said["tensors"] = [{"name": n, "type": t, "shape": list(s)} for n, t, s in card.tensors]
    return said


def _capabilities(card: Card, overlay: Overlay | None, home: Path) -> list[str]:
    """Return the file's, less and more what a template of the owner's changes."""
    if overlay is None or not overlay.template:
        return list(card.capabilities)
    own = of_template(overlay.template, home) or {}
    return [*(c for c in card.capabilities if c not in own), *(name for name, has in own.items() if has)]


def _licence(found: Listed, card: Card, overlay: Overlay | None) -> str:
    own = "\n".join(overlay.licence) if overlay else ""
    return own or found.licence or card.licence


def _digest(held: StoredModel) -> str:
    """Return a digest for clients that cache by it; for an unhashed file, one of its name, size and time."""
    return held.digest or hashlib.sha256(f"{held.name} {held.bytes} {held.modified}".encode()).hexdigest()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _size(parameters: int) -> str:
    """Write a number of parameters as clients show it: 494.03M."""
    for unit, many in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= many:
            return f"{parameters / many:.4g}{unit}"
    return str(parameters) if parameters else ""

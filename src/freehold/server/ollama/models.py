"""GET /api/tags, GET /api/ps, POST /api/show: which models there are, which are in memory, what one is.

Knows the wire's shapes, cards and the store's records; loads nothing. Path: Gate -> tags, ps, show -> Cards.of
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.errors import ModelNotFound
from freehold.machine import resident_bytes
from freehold.server.core.call import HttpCall
from freehold.server.core.fields import Name
from freehold.server.core.problems import Refused
from freehold.server.ollama.cards import Card, Cards, of_template
from freehold.server.ollama.fields import unknown_fields
from freehold.server.ollama.wording import refusal
from freehold.serving import LoadedInfo, StoredModel
from freehold.store import Listed, Store
from freehold.store.overlays import Overlay
from freehold.store.parameters import as_lines
from freehold.store.refs import LATEST, parse_ref

NEVER = "9999-12-31T23:59:59Z"  # clients parse it as a date
# Continue offers to fill in the middle where a template mentions it.
_FILLS = "{# .Suffix: text between prompt and suffix is filled in, without this template #}"
# Seconds that listings wait for a template from when it was first met. One that never ends takes three, and a folder
# may hold hundreds: they are rendered in a thread of their own, whether or not a listing still waits.
CHECK_S = 1.0
KNOWN = -math.inf  # for Cards.of: what is known by now
_cards = Cards()
_reader = ThreadPoolExecutor(1, "freehold-cards")
_checker = ThreadPoolExecutor(1, "freehold-templates")


@dataclass(frozen=True, slots=True)
class _Check:
    done: Future[None]
    until: float  # time.monotonic() to which a listing waits for it


_checking: dict[Path, _Check] = {}  # file -> the rendering of its template


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
    rows = [_tag(each, *cards.get(each.name, (Card(), ""))) for each in held]
    pending = [
        being_checked(each.name) for each in held if not cards.get(each.name, (Card(), ""))[0].is_whole
    ]
    await call.answer({"models": rows, **({"freehold": {"warnings": pending}} if pending else {})})


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
    listed = await asyncio.to_thread(look_up, stored(call), name)
    warnings = unknown_fields(raw, ShowRequest)
    store, verbose = stored(call), request.verbose is True
    shown, is_whole = await asyncio.to_thread(_shown, store, listed, verbose, KNOWN)
    if not is_whole:
        await _checked([(listed.path, partial(_shown, store, listed, verbose, math.inf))])
        shown, is_whole = await asyncio.to_thread(_shown, store, listed, verbose, KNOWN)
    warnings += [] if is_whole else [being_checked(listed.name)]
    await call.answer({**shown, "freehold": {"warnings": warnings}})


def stored(call: HttpCall) -> Store:
    """Return the store; the routes that ask are there only where there is one."""
    assert call.server.store is not None
    return call.server.store


def look_up(store: Store, name: str) -> Listed:
    """Return a model's record; Refused with 404 in this protocol's words."""
    try:
        if parse_ref(name, disk=False).kind == "path":
            raise ModelNotFound("name a model here, not a local file")
        return store.show(name, disk=False)
    except ModelNotFound as e:
        raise refusal(e, name) from e


def shown_name(name: str) -> str:
    """Return a name as clients of this protocol expect one: with a tag."""
    return name if ":" in name else name + LATEST


def being_checked(name: str) -> str:
    """Return the warning about a model whose template was not rendered yet."""
    return f"{name} is being checked: its template was not rendered yet, so capabilities may be missing"


async def _cards_of(store: Store | None) -> dict[str, tuple[Card, str]]:
    """Return card and base of every model in the store, without what is not known within CHECK_S."""
    if store is None:
        return {}
    loop, home = asyncio.get_running_loop(), store.settings.home
    cards = await loop.run_in_executor(_reader, _read_cards, store)
    new = [listed for listed, card in cards if not card.is_whole]
    if new:
        await _checked([(each.path, partial(_cards.of, each, home)) for each in new])
        cards = await loop.run_in_executor(_reader, _read_cards, store)
    return {listed.name: (card, listed.base) for listed, card in cards}


def _read_cards(store: Store) -> list[tuple[Listed, Card]]:
    """Return what is known of each model at once. One listing at a time reads; the next finds it done."""
    ready = (m for m in store.list() if m.state in ("ready", "changed"))
    return [(m, _cards.of(m, store.settings.home, KNOWN)) for m in ready]


async def _checked(work: Sequence[tuple[Path, Callable[[], object]]]) -> None:
    """Have templates rendered, each file's once at a time; return when they are, or CHECK_S after the last was met."""
    now = time.monotonic()
    for path, check in work:
        if path not in _checking:
            _checking[path] = _Check(_checker.submit(_once, path, check), now + CHECK_S)
    checks = [check for path, _ in work if (check := _checking.get(path)) and check.until > now]
    if checks:
        left = max(check.until for check in checks) - now
        await asyncio.wait([asyncio.wrap_future(check.done) for check in checks], timeout=left)


def drop_checks() -> None:
    """Cancel the renderings that have not begun: a server that ends does not wait for them."""
    for path, check in list(_checking.items()):
        if check.done.cancel():
            _checking.pop(path, None)


def _once(path: Path, check: Callable[[], object]) -> None:
    try:
        check()
    finally:
        _checking.pop(path, None)


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


def _shown(store: Store, listed: Listed, verbose: bool, until: float) -> tuple[dict[str, Any], bool]:
    """Return the description of a model, and whether that is all; `until` as Cards.of has it."""
    home = store.settings.home
    card = _cards.of(listed, home, until)
    overlay = store.overlays.find(listed.name) if listed.base else None
    template = (overlay.template if overlay else "") or card.template
    if "insert" in card.capabilities:
        template += _FILLS
    capabilities, is_whole = _capabilities(card, overlay, home, until)
    shown = {
        "license": _licence(listed, card, overlay),
        "modelfile": modelfile(listed, card, overlay),
        "parameters": parameter_lines(card, overlay),
        "template": template,
        "details": details(card, listed.base),
        "model_info": dict(card.info),
        "capabilities": capabilities,
        "modified_at": listed.created or _time(0.0),
    }
    if overlay is not None:
        shown |= {
            "system": overlay.system,
            "messages": [{"role": r, "content": t} for r, t in overlay.messages],
        }
    if verbose:
        shown["tensors"] = [{"name": n, "type": t, "shape": list(s)} for n, t, s in card.tensors]
    return shown, is_whole


def _capabilities(card: Card, overlay: Overlay | None, home: Path, until: float) -> tuple[list[str], bool]:
    """Return the file's, less and more what a template of the owner's changes, and whether that is all."""
    if overlay is None or not overlay.template:
        return list(card.capabilities), card.is_whole
    abilities = of_template(overlay.template, home, until)
    own = abilities or {}
    named = [*(c for c in card.capabilities if c not in own), *(name for name, has in own.items() if has)]
    return named, card.is_whole and abilities is not None


def _licence(listed: Listed, card: Card, overlay: Overlay | None) -> str:
    own = "\n".join(overlay.licence) if overlay else ""
    return own or listed.licence or card.licence


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


# --- a model written as the Modelfile that would make it again, and its parameters as aligned lines -
# Clients parse both as text: Continue reads num_ctx and stop.

_NAMES = {"repetition_penalty": "repeat_penalty", "penalty_window": "repeat_last_n"}
_WIDTH = 31  # of the names' column, where Ollama has it


def parameter_lines(card: Card, overlay: Overlay | None) -> str:
    """Return what is used where a request says nothing: the model's own or Freehold's, under the overlay's."""
    rows = as_lines({**_defaults(card), **(overlay.parameters if overlay else {})})
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in rows)


def modelfile(listed: Listed, card: Card, overlay: Overlay | None) -> str:
    """Write the Modelfile."""
    lines = [f"# {listed.name} as freehold create reads it", f"FROM {listed.base or listed.name}"]
    if overlay is None:
        return "\n".join(lines) + "\n"
    texts = {"TEMPLATE": overlay.template, "SYSTEM": overlay.system, "ADAPTER": Path(overlay.adapter).name}
    lines += [f"{word} {_quoted(text)}" for word, text in texts.items() if text]
    lines += [f"PARAMETER {name} {value}" for name, value in as_lines(overlay.parameters)]
    lines += [f"MESSAGE {role} {_quoted(text)}" for role, text in overlay.messages]
    lines += [f"LICENSE {_quoted(text)}" for text in overlay.licence]
    return "\n".join(lines) + "\n"


def _defaults(card: Card) -> Mapping[str, object]:
    """Return the sampling a model is used with, under Ollama's names."""
    return {_NAMES.get(name, name): value for name, value in card.sampling.items()}


def _quoted(text: str) -> str:
    if '"""' not in text:
        return f'"""{text}"""'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

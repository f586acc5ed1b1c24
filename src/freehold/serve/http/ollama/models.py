"""GET /api/tags, GET /api/ps, POST /api/show: which models there are, which are in memory, what one is.

A card holds the facts of a model's file: read once, and again when the file changes. A file that cannot be read has an
empty card, so that a list of models does not fail. Knows the wire's shapes, cards and the store's records; loads
nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Struct

from freehold.base import private
from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.base.machine import resident_bytes
from freehold.base.serving import LoadedInfo, StoredModel
from freehold.base.version import __version__
from freehold.run.formats import GGUFFile, ModelFile, open_model_file, quantization_of
from freehold.run.store import Listed, Store
from freehold.run.store.eyes import has_ears, has_tower
from freehold.run.store.manifest import write_json
from freehold.run.store.overlays import Overlay
from freehold.run.store.parameters import as_lines, sampling_defaults
from freehold.run.store.refs import LATEST, parse_ref
from freehold.run.tokenizer.core import SPELLINGS
from freehold.run.tokenizer.directory import read_json
from freehold.run.tokenizer.template import ChatTemplate, templates_from_dir, templates_from_gguf
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Name, doc
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.ollama.fields import unknown_fields
from freehold.serve.http.ollama.shape import refusal

MAX_CARDS = 512
MAX_VALUE = 16_384  # characters of a text in model_info; licences and templates have fields of their own
_ENCODERS = ("bert", "nomic-bert", "jina-bert-v2", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True)
class Card:
    """Facts of one file; empty and 0 where it does not tell."""

    format: str = ""  # gguf | safetensors
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    context: int = 0
    embedding: int = 0
    template: str = ""
    licence: str = ""
    capabilities: tuple[str, ...] = ()
    info: Mapping[str, object] = field(default_factory=dict)
    sampling: Mapping[str, object] = field(default_factory=dict)
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    is_whole: bool = True  # False: there was no time to look for what its template makes possible


class Cards:
    """Cards by file, a bounded number of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Path | None, int, int], Card] = {}

    def of(self, listed: Listed, home: Path, until: float = math.inf) -> Card:
        """Return a model's card; reads the disk, and keeps below `home` what its template makes possible.

        After `until`, of time.monotonic(), no template is rendered: what is not known then is left out of the card.
        """
        try:
            stat = listed.path.stat()
            key = (listed.path, listed.eyes, stat.st_size, stat.st_mtime_ns)
            if key not in self._known:
                if len(self._known) >= MAX_CARDS:
                    self._known.clear()
                with open_model_file(listed.path) as file:
                    senses = {"vision": has_tower(listed), "audio": has_ears(listed)}
                    own = tuple(name for name, has in senses.items() if has)
                    card = read_card(file, listed.path, home, until, senses=own)
                if not card.is_whole:
                    return card
                self._known[key] = card
            return self._known[key]
        except (FreeholdError, OSError):
            return Card()


def read_card(
    file: ModelFile, path: Path, home: Path, until: float = math.inf, *, senses: Sequence[str] = ()
) -> Card:
    """Read what a file tells, and what its template makes possible, unless it is too late to render."""
    tensors = list(file.tensors.values())
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.nbytes
    gguf = isinstance(file, GGUFFile)
    file_card = _gguf_said(file) if isinstance(file, GGUFFile) else _folder_said(file, path)
    parameters = sum(math.prod(t.shape) for t in tensors)
    info = {"general.parameter_count": parameters, **file_card.info}
    capabilities, is_whole = _file_capabilities(file_card, home, until)
    # Encoders make no tokens.
    sampling = {} if file_card.architecture in _ENCODERS else sampling_defaults(file)
    return Card(
        format="gguf" if gguf else "safetensors",
        architecture=file_card.architecture,
        parameters=parameters,
        quantization=quantization_of(file, dict(by_type.most_common())),
        context=file_card.context,
        embedding=file_card.embedding,
        template=file_card.template,
        licence=str(info.get("general.license", "")) if gguf else "",
        capabilities=(*capabilities, *senses),
        info=info,
        sampling={name: value for name, (value, _) in sampling.items()},
        tensors=tuple((t.name, t.type.name, tuple(t.shape)) for t in tensors),
        is_whole=is_whole,
    )


@dataclass(frozen=True, slots=True)
class _FileCard:
    """What the two kinds of file tell in different places."""

    architecture: str
    context: int
    embedding: int
    template: str
    can_fill: bool
    pools: bool  # it says how a text becomes one vector: it was made for that
    info: Mapping[str, object]


def _gguf_said(file: GGUFFile) -> _FileCard:
    name, metadata = file.architecture, file.metadata
    tokens = set(metadata.get_strings("tokenizer.ggml.tokens", []))
    return _FileCard(
        architecture=name,
        context=metadata.get_int(f"{name}.context_length", 0),
        embedding=metadata.get_int(f"{name}.embedding_length", 0),
        template=templates_from_gguf(metadata).get("default", ""),
        can_fill=any(tokens.issuperset(spelled) for spelled in SPELLINGS),
        pools=metadata.get_int(f"{name}.pooling_type", 0) > 0,
        info={k: _plain(v) for k, v in metadata.items() if not k.startswith("tokenizer.chat_template")},
    )


def _folder_said(file: Any, path: Path) -> _FileCard:
    """Tell the same of a folder of safetensors, under the names GGUF has."""
    config = file.config
    name = str(config.get("model_type", ""))
    context, width = config.get("max_position_embeddings", 0), config.get("hidden_size", 0)
    added = read_json(path / "tokenizer.json").get("added_tokens", [])
    tokens = {str(t.get("content")) for t in added if isinstance(t, dict)}
    return _FileCard(
        architecture=name,
        context=context if isinstance(context, int) else 0,
        embedding=width if isinstance(width, int) else 0,
        template=templates_from_dir(path).get("default", ""),
        can_fill=any(tokens.issuperset(spelled) for spelled in SPELLINGS),
        pools=(path / "modules.json").is_file(),
        info={
            "general.architecture": name,
            f"{name}.context_length": context,
            f"{name}.embedding_length": width,
        },
    )


def _plain(value: object) -> object:
    """Return what JSON may hold of a metadata value; null stands for a list, as in Ollama's short answers."""
    if isinstance(value, bool | int | str):
        return value if not isinstance(value, str) or len(value) <= MAX_VALUE else None
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return None


def _file_capabilities(file_card: _FileCard, home: Path, until: float) -> tuple[tuple[str, ...], bool]:
    """Return what a model can do, and whether that is all.

    Any decoder makes embeddings; only one that was made for it says so, because clients that choose a model for a chat
    leave those out that do.
    """
    if file_card.architecture in _ENCODERS:
        return ("embedding",), True
    if file_card.architecture == "whisper":
        return ("transcription",), True
    abilities = of_template(file_card.template, home, until)
    able = {
        "completion": True,
        "insert": file_card.can_fill,
        **(abilities or {}),
        "embedding": file_card.pools,
    }
    return tuple(name for name, has in able.items() if has), abilities is not None


# --- capabilities of chat templates, found by rendering each template once and stored below the home
#     <home>/templates/<digest>.json     of the template's text and this version of Freehold
# A listing asks for every model there is, and rendering is work on a stranger's file. One that never ends is
# found out once, by the process that renders, and is recorded as making nothing possible.

MAX_KEPT = 2048  # records of 40 bytes; as many as other programs' folders may hold models
NAMES = ("tools", "thinking")


def of_template(source: str, home: Path, until: float = math.inf) -> dict[str, bool] | None:
    """Tell for each of NAMES whether a template makes it possible; nothing without a template.

    None where no record tells and time.monotonic() is past `until`: rendering may take seconds.
    """
    if not source:
        return {}
    digest = hashlib.sha256(f"{__version__}\n{source}".encode("utf-8", "surrogatepass")).hexdigest()
    path = home / "templates" / f"{digest}.json"
    kept = _kept(path)
    if kept is None and time.monotonic() > until:
        return None
    return kept or _keep(path, _read_abilities(source))


def _read_abilities(source: str) -> dict[str, bool]:
    template = ChatTemplate(source)
    return {"tools": template.can_call, "thinking": template.thinking != "none" or bool(template.efforts)}


def _kept(path: Path) -> dict[str, bool] | None:
    with suppress(OSError, ValueError):
        kept = json.loads(path.read_bytes())
        if isinstance(kept, dict) and all(isinstance(kept.get(name), bool) for name in NAMES):
            return {name: kept[name] for name in NAMES}
    return None


def _keep(path: Path, abilities: dict[str, bool]) -> dict[str, bool]:
    """Write a record, and drop the oldest where there are too many; a home that cannot be written is ignored."""
    with suppress(OSError):
        private.folder(path.parent)
        write_json(path, abilities, durable=False)
        records = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in records[:-MAX_KEPT]:
            old.unlink()
    return abilities


# --- the routes -------------------------------------------------------------------------------------

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

    model: Annotated[Name | None, doc("The model's name.")] = None
    name: Annotated[Name | None, doc("The name that older clients use.")] = None
    verbose: Annotated[bool | None, doc("Also list the tensors.")] = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


async def tags(call: HttpCall) -> None:
    """List every model."""
    held = await call.models.names()
    cards = await _cards_of(call.server.store)
    sights = _sights(call)
    rows = [_tag(each, *cards.get(each.name, (Card(), "")), sights.get(each.name)) for each in held]
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
    """Describe a model: Modelfile, parameters, template, metadata and capabilities."""
    request, raw = await call.struct(ShowRequest)
    name = request.model or request.name
    if not name:
        raise Refused(400, "model is missing", param="model", code="missing_required_parameter")
    for other in ("system", "template", "options"):
        if raw.get(other):
            message = f"{other} is of a request that answers; show tells what is stored"
            raise Refused(400, message, param=other)
    if call.key is not None and not call.key.may_use(name):
        raise refusal(ModelNotFound(f"there is no model {name[:200]!r} for the key {call.key.name}"), name)
    listed = await call.in_thread(look_up, stored(call), name)
    warnings = unknown_fields(raw, ShowRequest)
    store, verbose = stored(call), request.verbose is True
    shown, is_whole = await call.in_thread(_shown, store, listed, verbose, KNOWN)
    if not is_whole:
        await _checked([(listed.path, partial(_shown, store, listed, verbose, math.inf))])
        shown, is_whole = await call.in_thread(_shown, store, listed, verbose, KNOWN)
    warnings += [] if is_whole else [being_checked(listed.name)]
    sights = _sights(call)
    sees = sights.get(listed.name, sights.get(listed.base))
    shown["capabilities"] = _with_sight(shown["capabilities"], sees)
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


def _sights(call: HttpCall) -> dict[str, Sequence[str]]:
    """Return of each model in memory whether it sees and hears, as capabilities."""
    return {
        each.name: [
            name for name, has in (("vision", each.info.can_see), ("audio", each.info.can_listen)) if has
        ]
        for each in call.models.loaded()
    }


def _with_sight(capabilities: Sequence[str], senses: Sequence[str] | None) -> list[str]:
    """Return what a model can do. `senses`: as its engine says, who knows it best; None: it is not in memory."""
    if senses is None:
        return list(capabilities)
    return [*(name for name in capabilities if name not in ("vision", "audio")), *senses]


def _tag(held: StoredModel, card: Card, base: str, sees: Sequence[str] | None) -> dict[str, Any]:
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
        "capabilities": _with_sight(card.capabilities, sees),
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
    own = "\n".join(overlay.licence) if overlay else ""
    shown = {
        "license": own or listed.licence or card.licence,
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

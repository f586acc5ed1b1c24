"""The models of a server: found by name, loaded on demand, unloaded when idle or for room.

Knows names, adapters and overlays; knows no stream and no protocol. Bytes are counted before a load, and idle models
are unloaded until they suffice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from freehold.base.errors import BadModelFile, CapacityExceeded, EngineClosed, ModelNotFound, UsageError
from freehold.base.machine import available_bytes, resident_bytes, show_bytes
from freehold.base.serving import (
    FEATURE_BYTES,
    CounterTable,
    DelegatingHandle,
    DelegatingTokenizer,
    EmbedJob,
    Job,
    LoadedInfo,
    ModelHandle,
    Origin,
    StoredModel,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.base.types import EYES, Message, ServedModelOptions, Turn
from freehold.base.version import __version__
from freehold.run.formats import open_lora
from freehold.run.formats.lora import check_adapter_name, unknown_adapter
from freehold.run.store import Listed, ModelRef, Store
from freehold.run.store.eyes import misfit
from freehold.run.store.judging import Judgements
from freehold.run.store.overlays import Overlay, canonical, overlaid, with_messages
from freehold.run.store.refs import parse_ref
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.wire import PROTOCOL, Open, Script

# --- memory ----------------------------------------------------------------------------------------

HEADROOM = 256 << 20  # bytes of an engine beside weights and cache: interpreter, tokenizer, activations
LEAST_CACHE = 64 << 20  # a model is not worth loading with less
# Of what memory is left once the weights are in: the cache of the first model takes half, of the next half of
# the rest. Pages of it count as soon as they are reserved here, though the kernel gives them when first used.
CACHE_SHARE = 0.5
PAGED_CACHE_SHARE = (
    0.1  # of free memory, where weights come from disk: what the cache takes is read again for each token
)


class EngineMemory:
    """Memory left on the machine for engines. `available` returns the bytes that may still be taken."""

    def __init__(
        self, handles: Mapping[str, EngineHandle], options: EngineOptions, available: Callable[[], int]
    ) -> None:
        self._handles, self._options, self._available = handles, options, available
        self._needs: dict[str, int] = {}  # bytes, by name, of models being loaded
        self._lock = asyncio.Lock()  # one load looks for room at a time

    async def reserve(self, handle: EngineHandle, weights: int, refused: CapacityExceeded | None) -> int:
        """Make room for a model of `weights` bytes; return the bytes its cache may take. Raises CapacityExceeded.

        `refused`: the engine's own error, which knows what a token costs; then one idle model more is unloaded.
        """
        async with self._lock:
            if refused is not None and not await self._unload_one(handle):
                raise refused
            cache = await self._make_room(handle, weights)
            self._needs[handle.name] = weights + cache + HEADROOM
            return cache

    def loaded_names(self) -> str:
        """Say which models are loaded, with their sizes; empty for none."""
        shown = [
            f"{each.name} ({show_bytes(each.info.memory_bytes)} reserved, {each.in_flight} running)"
            for each in self._handles.values()
            if each.loaded
        ]
        return f"loaded: {', '.join(shown)}" if shown else ""

    async def _make_room(self, handle: EngineHandle, weights: int) -> int:
        """Unload idle models until `weights` fit; return the bytes the cache may take."""
        wanted = self._options.cache_bytes
        need = weights + HEADROOM + (wanted or LEAST_CACHE)
        while True:
            free = self._free(handle)
            if need > free and self._pages(handle):
                return wanted or max(int(free * PAGED_CACHE_SHARE), LEAST_CACHE)
            if need <= free and not self._too_many(handle):
                return wanted or int((free - weights - HEADROOM) * CACHE_SHARE)
            if not await self._unload_one(handle):
                raise self._no_room(handle, need, free)

    def _pages(self, handle: EngineHandle) -> bool:
        """Whether a model may be read from disk: where it is allowed, and no idle one can make room."""
        movable = any(each.leaving or (each.loaded and each.idle) for each in self._others(handle))
        return self._options.allow_paging and not movable and not self._too_many(handle)

    async def _unload_one(self, handle: EngineHandle) -> bool:
        """Wait for a model that is leaving, else unload the idle one used longest ago; False if there is neither."""
        others = self._others(handle)
        leaving = [each for each in others if each.leaving]
        idle = [each for each in others if each.loaded and each.idle]
        if leaving:
            await leaving[0].left()
        elif idle:
            await min(idle, key=lambda each: each.keep_alive.used_at).unload()
        return bool(leaving or idle)

    def _others(self, handle: EngineHandle) -> list[EngineHandle]:
        return [each for each in self._handles.values() if each is not handle]

    def _too_many(self, handle: EngineHandle) -> bool:
        most = self._options.max_models
        return most is not None and sum(each.awake for each in self._others(handle)) >= most

    def _free(self, handle: EngineHandle) -> int:
        """Count the bytes a new engine may take: the machine's, less what loaded ones have yet to touch."""
        return self._available() - sum(self._untouched(each) for each in self._others(handle) if each.awake)

    def _untouched(self, handle: EngineHandle) -> int:
        promised = handle.info.memory_bytes if handle.loaded else self._needs.get(handle.name, 0)
        return max(promised - resident_bytes(handle.pid), 0)

    def _no_room(self, handle: EngineHandle, need: int, free: int) -> CapacityExceeded:
        if self._too_many(handle):
            most = self._options.max_models
            message = f"{handle.name} would be one model more than the {most} allowed at once"
        else:
            message = f"{handle.name} needs {show_bytes(need)} with its cache; {show_bytes(max(free, 0))} are available"
        # In the hint, which a client's key never sees: its scope may not hold them.
        busy = self.loaded_names()
        if not busy:
            return CapacityExceeded(message, "free memory, or choose a smaller model")
        return CapacityExceeded(
            message, f"{busy}; try again when one is idle, or unload one: freehold stop MODEL"
        )


# --- models by name --------------------------------------------------------------------------------

MAX_SPELLINGS = 1024  # of names that are cached; a client may write a name in any mixture of case and blanks

DEFAULTS = EngineOptions()

log = logging.getLogger("freehold.serve.worker")


class EngineModels:
    """All models of a server. `paths`: files and folders that have names too.

    `scripts`: models that compute nothing. `available` returns the bytes that may still be taken.
    `judgements`: of the store's files, where others ask for them too.
    """

    def __init__(
        self,
        store: Store,
        options: EngineOptions = DEFAULTS,
        *,
        paths: Mapping[str, ModelRef] | None = None,
        scripts: Mapping[str, Script] | None = None,
        available: Callable[[], int] = available_bytes,
        judgements: Judgements | None = None,
    ) -> None:
        self._store, self._options = store, options
        self._paths, self._scripts = dict(paths or {}), dict(scripts or {})
        self._handles: dict[str, EngineHandle] = {}
        self._adapters = {model: dict(held) for model, held in options.adapters.items()}
        self._lent: dict[
            str, dict[str, Path]
        ] = {}  # the same, of overlays' adapters, which have no name of their own
        self._aliases: dict[str, str] = {}
        self._judgements = judgements or Judgements()
        self._memory = EngineMemory(self._handles, options, available)
        self._noted: set[str] = set()  # notes on files that changed
        self._closed = False

    def asked_by(self, origin: Origin) -> EngineModels:
        """Return this: our engines answer all alike; keys are scoped before."""
        return self

    async def names(self) -> list[StoredModel]:
        """List the models that have a name."""
        listed = await asyncio.to_thread(self._store.list)
        runs = await asyncio.to_thread(self._runnable, listed)
        held = {m.name: StoredModel(m.name, m.bytes, _seconds(m.created), m.digest) for m in reversed(runs)}
        for name, ref in self._paths.items():
            held[name] = StoredModel(name, ref.bytes, digest=ref.digest)
        for name in self._scripts:
            held[name] = StoredModel(name, 0)
        for model, adapters in self._adapters.items():
            for each, path in adapters.items() if model in held else ():
                name = f"{model}+{each}"
                held[name] = StoredModel(name, size(path), held[model].modified, parent=model)
        return sorted(held.values(), key=lambda m: m.name)

    def _runnable(self, listed: Sequence[Listed]) -> list[Listed]:
        """Leave out what is not whole, and files whose architecture the engine refuses."""
        return [m for m, refused in self._judgements.listed(listed) if not refused]

    def _weight_bytes(self, refs: Sequence[ModelRef]) -> int:
        """Return the bytes of weights in memory: of a file as they lie, or as its rounding makes them."""
        judged = self._judgements.of([(ref.path, ref.rounding) for ref in refs if ref.rounding])
        rounded = iter(judged)
        text = sum((next(rounded).bytes if ref.rounding else 0) or ref.bytes for ref in refs)
        if self._options.eyes == "off":
            return text
        return text + sum(size(ref.eyes) + FEATURE_BYTES for ref in refs if ref.eyes is not None)

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        """Return the model, loaded; `base+adapter` with its adapter, one made from another as its overlay says.

        Raises ModelNotFound, CapacityExceeded, and what loading gave.
        """
        if self._closed:
            raise EngineClosed("the server is shutting down", "try again when it is back")
        overlay = self._shares(name)
        if overlay is not None:
            handle = await self._use(overlay.base, keep_alive)
            if overlay.adapter:
                await self._lend_adapter(overlay)
            return OverlaidHandle(handle, overlay)
        return await self._use(name, keep_alive)

    async def name_of(self, name: str) -> str:
        """Return the name under which a model is loaded when `name` is asked for. Raises ModelNotFound."""
        overlay = self._shares(name)
        base, _ = await self._split(name) if overlay is None else (overlay.base, "")
        known = self._aliases.get(base, base)
        if known in self._handles or known in self._scripts:
            return known
        return (await self._ref_of(known)).name

    async def stamp_of(self, name: str) -> str:
        """Return a digest of what a model's files are: their recorded digests, or their sizes and times."""
        overlay = self._shares(name)
        base, adapter = await self._split(name) if overlay is None else (overlay.base, "")
        known = self._aliases.get(base, base)
        if known in self._scripts:
            return ""
        ref = await self._ref_of(known)
        path = self._adapters.get(ref.name, {}).get(adapter)
        return await asyncio.to_thread(stamp, ref, path, overlay)

    def _shares(self, name: str) -> Overlay | None:
        """Return the record of a model that answers through its base's engine: one without its own template."""
        overlay = self._store.overlays.find(name)
        return overlay if overlay is not None and not overlay.template else None

    async def _use(self, name: str, keep_alive: float | None) -> ModelHandle:
        name, adapter = await self._split(name)
        handle = self._handles.get(self._aliases.get(name, name))
        if handle is None or not handle.awake:
            handle = self._known(name, (await self._ref_of(name)).name if name not in self._scripts else name)
        if adapter and adapter not in self._adapters.get(handle.name, {}):
            raise unknown_adapter(handle.name, adapter, [*self._adapters.get(handle.name, {})])
        await handle.load(keep_alive)
        return AdaptedHandle(handle, adapter) if adapter else handle

    async def _lend_adapter(self, overlay: Overlay) -> None:
        """Add an overlay's adapter to its base's engine, now and when it is loaded again."""
        handle, name = self._handles[self._aliases.get(overlay.base, overlay.base)], overlay.adapter_name
        if all(adapter.name != name for adapter in handle.info.adapters):
            await handle.change("add_adapter", name, overlay.adapter)
            self._lent.setdefault(handle.name, {})[name] = Path(overlay.adapter)

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        """Put an adapter beside a model: into its engine now if it is loaded, and whenever it is loaded again.

        Raises ModelNotFound for the model; UsageError for a path without an adapter for this model.
        """
        check_adapter_name(adapter)
        name = (await self._ref_of(name)).name
        try:
            await asyncio.to_thread(open_lora, path)
            await self._change_if_loaded(name, "add_adapter", adapter, str(path.absolute()))
        except (
            BadModelFile,
            ModelNotFound,
        ) as e:  # here it is an argument, and its model is as sound as before
            raise UsageError(
                f"{path} is not an adapter for {name}: {e.message}",
                e.hint or "give the folder that PEFT saved, or a GGUF adapter made for this model",
                field="path",
            ) from e
        self._adapters.setdefault(name, {})[adapter] = path.absolute()

    async def remove_adapter(self, name: str, adapter: str) -> None:
        """Remove an adapter; running jobs keep it to their end. Raises ModelNotFound."""
        name = (await self._ref_of(name)).name
        held = self._adapters.get(name, {})
        if adapter not in held:
            raise unknown_adapter(name, adapter, [*held])
        await self._change_if_loaded(name, "remove_adapter", adapter)
        held.pop(adapter, None)

    async def _change_if_loaded(self, name: str, method: str, *args: str) -> None:
        handle = self._handles.get(name)
        if handle is not None and handle.loaded:
            await handle.change(method, *args)

    def loaded(self) -> list[LoadedInfo]:
        """List the loaded models."""
        return [_loaded(handle) for handle in self._handles.values() if handle.awake and handle.was_loaded]

    def counters(self) -> tuple[CounterTable, ...]:
        """Count nothing besides the engines' own numbers."""
        return ()

    def loading(self) -> dict[str, tuple[int, int]]:
        """Return the progress of loads by name: bytes done, bytes in all."""
        return {s.name: s.progress for s in self._handles.values() if s.awake and not s.loaded}

    async def unload(self, name: str) -> None:
        """Unload a model; its jobs end with EngineClosed. Raises ModelNotFound if it is not loaded."""
        overlay = self._shares(name)
        known = self._aliases.get(name, name) if overlay is None else overlay.base
        handle = self._handles.get(known)
        if handle is None or not handle.awake:
            raise ModelNotFound(f"{name} is not loaded", self._memory.loaded_names())
        await handle.unload()

    async def retire(self, name: str) -> None:
        """Unload the engine of this very name once its requests have ended; nothing where there is none."""
        for handle in [*self._handles.values()]:
            if handle.awake and canonical(handle.name) == canonical(name):
                await handle.retire()

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new jobs, let running ones end for up to `drain_s`, and stop all engines."""
        self._closed = True
        await asyncio.gather(*(handle.close(drain_s) for handle in self._handles.values()))

    # --- finding -----------------------------------------------------------------------------------

    async def _split(self, name: str) -> tuple[str, str]:
        """Split `base+adapter`; a name that belongs to a model as a whole has no adapter."""
        base, _, adapter = name.rpartition("+")
        if not (base and adapter) or name in self._aliases or name in self._paths:
            return name, ""
        if base not in self._aliases and base not in self._scripts:
            try:
                await self._ref_of(base)
            except ModelNotFound:
                return name, ""
        return base, adapter

    async def _ref_of(self, name: str) -> ModelRef:
        """Find a model by name. A request cannot name a file: only models of the store and `paths`."""
        if name in self._paths:
            return self._paths[name]
        if not name or parse_ref(name, disk=False).kind == "path":
            raise ModelNotFound(f"no model is named {name!r}", "GET /v1/models lists the names")
        return await asyncio.to_thread(self._store.resolve, name, disk=False)

    def _known(self, alias: str, name: str) -> EngineHandle:
        if len(self._aliases) >= MAX_SPELLINGS:
            self._aliases.clear()  # they are looked up again
        self._aliases[alias] = name
        if name not in self._handles:
            self._handles[name] = EngineHandle(
                name, self._admit, keep_alive_s=self._options.keep_alive_s, hung_s=self._options.hung_s
            )
        return self._handles[name]

    # --- memory ------------------------------------------------------------------------------------

    async def _admit(self, handle: EngineHandle, refused: CapacityExceeded | None) -> Open:
        """Make room for a model and return how to load it. Raises CapacityExceeded with the numbers.

        `refused`: the engine's own, which knows what a token costs; then one idle model more is unloaded.
        """
        if handle.name in self._scripts:
            return Open(PROTOCOL, __version__, None, script=self._scripts[handle.name])
        ref = await self._ref_of(handle.name)
        for note in ref.notes:
            if note not in self._noted:  # each change once, not at each load
                self._noted.add(note)
                log.warning("%s", note)
        ref, eyes = await asyncio.to_thread(self._eyes, ref)
        draft = await self._draft(ref)
        lent = {name: path for name, path in self._lent.get(handle.name, {}).items() if path.exists()}
        adapters = {**self._adapters.get(handle.name, {}), **lent}
        both = [ref] if draft is None else [ref, draft]
        weights = await asyncio.to_thread(self._weight_bytes, both) + sum(map(size, adapters.values()))
        cache = await self._memory.reserve(handle, weights, refused)
        asked = self._options
        options: ServedModelOptions = {
            # Answers that a new engine continues need the context they had in the old one.
            "context": handle.info.context if handle.in_flight and handle.was_loaded else asked.context,
            "kv_type": asked.kv_type,
            "threads": asked.threads,
            "speculate": asked.speculate,
            "allow_paging": asked.allow_paging,
            "eyes": eyes,
            "image_tokens": asked.image_tokens,
            "cache_bytes": cache,
            "adapters": {name: str(path) for name, path in adapters.items()},
            **asked.engine,
        }
        return Open(
            PROTOCOL, __version__, ref, {**options}, draft=draft, packs=self._store.packs, disk=asked.disk
        )

    def _eyes(self, ref: ModelRef) -> tuple[ModelRef, str]:
        """Return a model with the tower that the server was given, where that fits it, and when to load it."""
        chosen = self._options.eyes
        if chosen in EYES:
            return ref, chosen
        first = next(iter(ref.files), ref.path)
        why = misfit(first, Path(chosen))
        if not why:
            return replace(ref, eyes=Path(chosen)), EYES[0]
        note = f"{ref.name} keeps its own eyes, if it has any: {why}"
        if note not in self._noted:
            self._noted.add(note)
            log.warning("%s", note)
        return ref, EYES[0]

    async def _draft(self, ref: ModelRef) -> ModelRef | None:
        if self._options.draft is None:
            return None
        draft = await self._ref_of(self._options.draft)
        return None if draft.name == ref.name else draft


def _loaded(handle: EngineHandle) -> LoadedInfo:
    return LoadedInfo(
        handle.name,
        handle.info,
        handle.stats,
        handle.keep_alive.expires_at,
        handle.in_flight,
        handle.restarts,
        handle.slow_readers,
        handle.pid,
        tuple(handle.deaths),
    )


def size(path: Path) -> int:
    """Return the bytes of a file or folder beside a model; 0 for a missing one, which loading reports."""
    try:
        files = [each.stat() for each in path.iterdir()] if path.is_dir() else [path.stat()]
    except OSError:
        return 0
    return sum(file.st_size for file in files)


def _seconds(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0


# --- what tells whether the files that make a model are the same as they were -----------------------
# The store's own files were compared with their digests when they were found, so the digest is enough. Others
# may change where they lie: their sizes and times count too, and a file that was only touched counts as
# changed.


def stamp(ref: ModelRef, adapter: Path | None, overlay: Overlay | None) -> str:
    """Return the digest of a model's files, of its adapter's and of its record."""
    parts = [ref.digest, ref.rounding]
    if ref.owner != "freehold" or not ref.digest:
        parts += _files(ref.files or (ref.path,))
    parts += [f"{name} {_one(path)}" for name, path in sorted(ref.extras.items())]
    parts += [] if ref.eyes is None else _files([ref.eyes])
    if adapter is not None:
        parts += _files([adapter])
    overlay = overlay or ref.overlay
    if overlay is not None:
        parts.append(repr(overlay))
        parts += _files([Path(overlay.adapter)] if overlay.adapter else [])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(paths: Iterable[Path]) -> list[str]:
    files = [each for path in paths for each in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [f"{path.name} {_one(path)}" for path in files]


def _one(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


# --- a model made from another ----------------------------------------------------------------------
# Answering through the other's engine: jobs are changed on their way in.
# Its name, statistics and memory are those of its base.


class OverlaidHandle(DelegatingHandle):
    """One overlay over a loaded model; made anew for each request."""

    def __init__(self, handle: ModelHandle, overlay: Overlay) -> None:
        super().__init__(handle)
        self._overlay = overlay

    @property
    def tokenizer(self) -> TokenizerFace | None:
        inner = self.handle.tokenizer
        return None if inner is None else OverlaidTokenizer(inner, self._overlay)

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(overlaid(job, self._overlay), keep_alive)

    async def count(self, job: Job) -> int:
        return await self.handle.count(overlaid(job, self._overlay))

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        adapter = job.adapter or self._overlay.adapter_name  # all that an overlay changes about embeddings
        return await self.handle.embed(replace(job, adapter=adapter), keep_alive, computed)


class OverlaidTokenizer(DelegatingTokenizer):
    """A tokenizer whose chats begin with an overlay's messages."""

    def __init__(self, tokenizer: TokenizerFace, overlay: Overlay) -> None:
        super().__init__(tokenizer)
        self._overlay = overlay

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        begun = with_messages(tuple(messages), self._overlay)
        return await self.inner.render(begun, think, turn, client)


# --- a loaded model under the name of one of its adapters: `base+adapter` ---------------------------
# So no protocol knows of adapters: EngineModels.use returns a handle for such a name like any other.


class AdaptedHandle(DelegatingHandle):
    """A model that computes every job with `adapter`."""

    def __init__(self, handle: ModelHandle, adapter: str) -> None:
        super().__init__(handle)
        self.adapter = adapter

    @property
    def name(self) -> str:
        return f"{self.handle.name}+{self.adapter}"

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(replace(job, adapter=self.adapter), keep_alive)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        return await self.handle.embed(replace(job, adapter=self.adapter), keep_alive, computed)

"""The vector stores of a server: collections of documents, a folder for each key, filled in the background.

A store is the file of a collection (serve/documents), so what the command line makes without a key is here too. An
upload that is to be indexed is a row of the store's file until it is done: a restarted server continues it. Documents
are read in children, embedded by an engine process with what interactive requests leave, and put in one transaction.
Knows stores, rows and their order; knows no field of a request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.regular import read_regular
from freehold.base.serving import EmbedJob, ModelDirectory, Priority
from freehold.run.store import space
from freehold.serve.documents.collection import (
    CutDocument,
    DocumentFile,
    collection_names,
    collection_path,
    collections_folder,
    cut_document,
    new_document,
)
from freehold.serve.documents.reading import ReaderProcesses
from freehold.serve.documents.store import CollectionStore, UploadRow, checked_labels
from freehold.serve.documents.types import F32, MAX_FILE
from freehold.serve.http.batches.desk import Desk
from freehold.serve.http.batches.filestore import Files, tenant_folder
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.problems import Refused, without_paths

MAX_STORES = 1_000  # of a key
MAX_OPEN = 32  # stores whose files and vectors are in memory, beside those in use
TOGETHER = 64  # chunks of a job of embeddings
WAITING = 10_000  # uploads of all stores that wait to be indexed
_log = logging.getLogger("freehold.serve.http")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class OpenVectorStore:
    """A store that is open. `users`: what is done with it now; one without any may be closed."""

    id: str
    tenant: str
    store: CollectionStore
    users: int = 0
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class WaitingUpload:
    """An upload to be indexed. `models`: as its request sees them, with the labels of the store."""

    store: str
    file: str
    tenant: str
    client: str
    models: ModelDirectory


@dataclass(slots=True)
class VectorDesk:
    """Every vector store of a server; its methods run in the loop, and the disk is read in threads."""

    home: Path
    files: Files
    _open: OrderedDict[tuple[str, str], OpenVectorStore] = field(default_factory=OrderedDict)
    _queue: asyncio.Queue[WaitingUpload] = field(default_factory=lambda: asyncio.Queue(WAITING))
    _waiting: set[tuple[str, str, str]] = field(default_factory=set)  # tenant, store, file
    _task: asyncio.Task[None] | None = None
    _readers: ReaderProcesses = field(default_factory=ReaderProcesses)

    @classmethod
    def of(cls, call: HttpCall) -> VectorDesk:
        """Return the server's; made with the first request for a vector store."""
        desk = call.server.part(cls)
        if desk is None:
            home = call.server.home
            if home is None:
                raise Refused(503, "this server has no folder for vector stores", code="no_files")
            files = call.part(Desk, 503, "this server has no folder for files", "no_files").files
            desk = call.server.parts[cls] = cls(home, files)
            call.server.ending.append(desk.aclose)
        return desk

    # --- stores

    async def create(
        self, call: HttpCall, title: str, embedder: str, meta: Mapping[str, str]
    ) -> OpenVectorStore:
        """Make an empty store with the request's labels. Raises Refused (400)."""
        folder, id = self._folder(call.tenant), f"vs_{secrets.token_hex(12)}"
        labels = checked_labels(call.labels)

        def make() -> CollectionStore:
            if len(collection_names(folder)) >= MAX_STORES:
                raise Refused(
                    400, f"there are {MAX_STORES:,} vector stores; delete some first", code="stores_full"
                )
            self._check_disk()
            store = CollectionStore(collection_path(folder, id), create=id, embedder=embedder, labels=labels)
            store.set_meta(title=title, **meta)
            return store

        open_store = OpenVectorStore(id, call.tenant, await call.in_thread(make), resumed=True)
        self._open[call.tenant, id] = open_store
        return open_store

    async def ids(self, call: HttpCall) -> list[str]:
        """Return the ids of a key's stores."""
        return await call.in_thread(collection_names, self._folder(call.tenant))

    async def find(self, call: HttpCall, id: str) -> OpenVectorStore:
        """Return a key's store; what it had still to index continues. Raises Refused (404)."""
        open_store = self._open.get((call.tenant, id)) or await self._opened(call, id)
        self._open.move_to_end((call.tenant, id))
        await self._close_idle(call)
        call.inherited = tuple(dict.fromkeys((*call.inherited, *(await self.run(call, open_store, _labels)))))
        if not open_store.resumed:
            open_store.resumed = True
            for row in await self.run(call, open_store, CollectionStore.uploads):
                if row.status == "in_progress":
                    self.enqueue(call, open_store, row.id)
        return open_store

    async def run(
        self,
        call: HttpCall,
        open_store: OpenVectorStore,
        work: Callable[Concatenate[CollectionStore, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run work on a store's file in a thread, in the caller's turn."""
        open_store.users += 1
        try:
            return await call.in_thread(lambda: work(open_store.store, *args, **kwargs))
        finally:
            open_store.users -= 1

    async def delete(self, call: HttpCall, open_store: OpenVectorStore) -> None:
        """Remove a store; its files stay."""
        self._open.pop((open_store.tenant, open_store.id), None)
        store = open_store.store

        def remove() -> None:
            for suffix in ("", "-wal", "-shm"):
                store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
            if not open_store.users:
                store.close()

        await call.in_thread(remove)

    async def _opened(self, call: HttpCall, id: str) -> OpenVectorStore:
        try:
            path = collection_path(self._folder(call.tenant), id)
            store = await call.in_thread(CollectionStore, path)
        except UsageError:
            message = f"there is no vector store {id[:80]!r}; GET /v1/vector_stores lists them"
            raise Refused(404, message, param="vector_store_id", code="no_vector_store") from None
        known = self._open.get((call.tenant, id))
        if known is not None:  # another request was quicker
            await call.in_thread(store.close)
            return known
        open_store = self._open[call.tenant, id] = OpenVectorStore(id, call.tenant, store)
        return open_store

    async def _close_idle(self, call: HttpCall) -> None:
        """Close the stores that were used least recently, beyond MAX_OPEN."""
        for key in list(self._open):
            if len(self._open) <= MAX_OPEN:
                return
            if not self._open[key].users and next(reversed(self._open)) != key:
                await call.in_thread(self._open.pop(key).store.close)

    def _folder(self, tenant: str) -> Path:
        return collections_folder(self.home, tenant_folder(tenant) if tenant else "")

    def _check_disk(self) -> None:
        if space.left_for_uploads(self.home) < 0:
            raise Refused(
                507, "the server's disk is full; try again when its owner has freed space", code="disk_full"
            )

    # --- uploads into stores

    async def check_files(self, call: HttpCall, ids: Sequence[str]) -> None:
        """Raise Refused (404) unless all of these are files of the key's: nothing is begun that cannot be done."""

        def look() -> None:
            for id in ids:
                self.files.get(call.tenant, id)

        await call.in_thread(look)

    async def attach(
        self,
        call: HttpCall,
        open_store: OpenVectorStore,
        file_id: str,
        attributes: Mapping[str, Any],
        chunking: str = "",
        batch: str = "",
    ) -> UploadRow:
        """Have a file of the key's indexed by a store. Raises Refused (404) for no such file."""

        def note(store: CollectionStore) -> UploadRow:
            record = self.files.get(call.tenant, file_id)
            row = UploadRow(
                record.id, time.time(), record.filename, record.bytes, "in_progress", "", "", dict(attributes)
            )
            labels = checked_labels((*store.facts().labels, *record.labels))
            store.put_upload(row, chunking, batch)
            store.set_meta(labels=json.dumps(labels))
            return row

        row = await self.run(call, open_store, note)
        call.inherited = tuple(dict.fromkeys((*call.inherited, *(await self.run(call, open_store, _labels)))))
        self.enqueue(call, open_store, row.id)
        return row

    def enqueue(self, call: HttpCall, open_store: OpenVectorStore, file_id: str) -> None:
        """Have an upload indexed after those that wait. Raises Refused (429) where too many do."""
        key = (open_store.tenant, open_store.id, file_id)
        if key in self._waiting:
            return
        upload = WaitingUpload(open_store.id, file_id, open_store.tenant, call.caller, call.models)
        try:
            self._queue.put_nowait(upload)
        except asyncio.QueueFull:
            message = f"{WAITING:,} files wait to be indexed; ask again later"
            raise Refused(429, message, code="overloaded") from None
        self._waiting.add(key)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while not self._queue.empty():
            upload = self._queue.get_nowait()
            key = (upload.tenant, upload.store, upload.file)
            self._waiting.discard(key)
            open_store = self._open.get(key[:2])
            if open_store is None:  # closed meanwhile: its next use continues the upload
                continue
            open_store.users += 1
            try:
                await self._index(open_store, upload)
            except asyncio.CancelledError:
                raise
            except Exception as e:  # the next upload is not to suffer from this one
                _log.error("an upload was not indexed", exc_info=e)
                with suppress(FreeholdError):
                    await asyncio.to_thread(open_store.store.end_upload, upload.file, "failed", *_failure(e))
            finally:
                open_store.users -= 1

    async def _index(self, open_store: OpenVectorStore, upload: WaitingUpload) -> None:
        """Read, embed and put one upload, unless it was cancelled or removed meanwhile."""
        store = open_store.store
        row = await asyncio.to_thread(store.upload, upload.file)
        if row is None or row.status != "in_progress":
            return
        try:
            embedder, document = await asyncio.to_thread(self._cut, store, upload, row)
            texts = [chunk.indexed for chunk in document.chunks]
            vectors, cut = await self._vectors(embedder, texts, upload)
            note = (f"{cut:,} chunks are longer than the embedder's context",) if cut else ()
            await asyncio.to_thread(store.put_if_wanted, new_document(document, vectors), note)
        except (FreeholdError, Refused, OSError) as e:
            await asyncio.to_thread(store.end_upload, upload.file, "failed", *_failure(e))

    def _cut(self, store: CollectionStore, upload: WaitingUpload, row: UploadRow) -> tuple[str, CutDocument]:
        """Return the store's embedder, and a document that waits for its vectors."""
        data = read_regular(self.files.path(upload.tenant, upload.file), MAX_FILE)
        name = row.filename.replace("/", "_")[:255] or upload.file
        file = DocumentFile(upload.file, name, lambda: data, attributes=row.attributes)
        document = cut_document(file, data, readers=self._readers, size=chunk_size(row.chunking))
        return store.facts().embedder, document

    async def _vectors(self, embedder: str, texts: Sequence[str], upload: WaitingUpload) -> tuple[F32, int]:
        rows: list[F32] = []
        cut = 0
        for at in range(0, len(texts), TOGETHER):
            part = texts[at : at + TOGETHER]
            vectors, shortened = await embedded(
                upload.models, embedder, part, upload.tenant, upload.client, "batch"
            )
            rows.append(vectors)
            cut += shortened
        return np.concatenate(rows), cut

    async def aclose(self) -> None:
        """End: what waits continues with the next server."""
        self._readers.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for open_store in self._open.values():
            open_store.store.close()
        self._open.clear()


async def embedded(
    models: ModelDirectory,
    embedder: str,
    texts: Sequence[str],
    tenant: str,
    client: str,
    priority: Priority = "interactive",
) -> tuple[F32, int]:
    """Return unit vectors of texts, float32 [len(texts), width], and how many texts were cut."""
    served = await models.use(embedder)
    job = EmbedJob(tuple(texts), None, True, None, tenant, priority, client=client)
    vectors = await served.embed(job)
    return np.frombuffer(vectors.data, "<f4").reshape(-1, vectors.width), len(vectors.cut)


def chunk_size(chunking: str) -> int:
    """Return the characters of a chunk by a kept strategy; 0: the usual."""
    return int(json.loads(chunking).get("tokens", 0)) * 4 if chunking else 0


def _labels(store: CollectionStore) -> tuple[str, ...]:
    return store.facts().labels


def _failure(e: Exception) -> tuple[str, str]:
    """Return OpenAI's code of a failure, and a sentence without paths."""
    if isinstance(e, UsageError):
        unknown = "format is not known" in e.message or "archive" in e.message
        return "unsupported_file" if unknown else "invalid_file", without_paths(e.message)
    if isinstance(e, Refused):
        return "invalid_file", e.message
    if isinstance(e, FreeholdError):
        return "server_error", without_paths(e.message)
    return "server_error", "the server failed at this file; its log says why"

"""/v1/vector_stores: made, listed, changed, removed; their files and batches of files; and searched.

Knows OpenAI's fields and answers; vector_desk.py keeps the stores.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from freehold.base.errors import UsageError
from freehold.serve.documents.chunking import SIZE
from freehold.serve.documents.searching import RRF, SearchQuery, checked_query, ranked
from freehold.serve.documents.store import CollectionFacts, CollectionStore, UploadRow
from freehold.serve.documents.types import DEFAULT_EMBEDDER, MAX_RESULTS, DocumentPassage
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import doc
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.fields.chat import unknown_fields
from freehold.serve.http.openai.responses.fields import Key, Value
from freehold.serve.http.openai.shape import page, query
from freehold.serve.http.openai.vector_desk import OpenVectorStore, VectorDesk, embedded

MAX_FILES, MAX_BATCH = 500, 2_000  # that a new store names, and a batch
STATUSES = ("in_progress", "completed", "failed", "cancelled")
_DEEPEST = 8  # filters within filters
_MOST_FILTERS = 100
_DAY_S = 24 * 3600
_SEEN_S = 60.0  # between two notes that a store was used
_POLL = (b"openai-poll-after-ms", b"250")

Attributes = Annotated[dict[Key, Annotated[str, Meta(max_length=512)] | float | bool], Meta(max_length=16)]
FileId = Annotated[str, Meta(max_length=128)]


class ExpiresAfter(Struct, kw_only=True):
    """When a store expires: this many days after its last use."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Meta(ge=1, le=365)]


class StaticChunking(Struct, kw_only=True):
    """The size of chunks in tokens, estimated. An overlap is accepted and not used: neighbours are joined instead."""

    max_chunk_size_tokens: Annotated[int, Meta(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Meta(ge=0, le=2048)] = 0


class ChunkingStrategy(Struct, kw_only=True):
    """How files are cut."""

    type: Literal["auto", "static"]
    static: StaticChunking | None = None


class VectorStoreRequest(Struct, kw_only=True):
    """POST /v1/vector_stores: a collection of files to search."""

    name: Annotated[Annotated[str, Meta(max_length=256)] | None, doc("What people call it.")] = None
    description: Annotated[Annotated[str, Meta(max_length=512)] | None, doc("Comes back with the store.")] = (
        None
    )
    file_ids: Annotated[
        Annotated[list[FileId], Meta(max_length=MAX_FILES)] | None, doc("Files to index.")
    ] = None
    chunking_strategy: Annotated[ChunkingStrategy | None, doc("How its files are cut. Default: auto.")] = None
    expires_after: Annotated[ExpiresAfter | None, doc("Default: never.")] = None
    metadata: Annotated[
        Annotated[dict[Key, Value], Meta(max_length=16)] | None, doc("Comes back with the store.")
    ] = None
    embedding_model: Annotated[
        Annotated[str, Meta(max_length=256)] | None,
        doc(f"The model that makes the vectors; Freehold's own field. Default: {DEFAULT_EMBEDDER}."),
    ] = None


class VectorStoreChange(Struct, kw_only=True):
    """POST /v1/vector_stores/{id}: what is named is changed."""

    name: Annotated[str, Meta(max_length=256)] | None = None
    expires_after: ExpiresAfter | UnsetType | None = UNSET
    metadata: Annotated[dict[Key, Value], Meta(max_length=16)] | None = None


class StoreFileRequest(Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/files: a file to index."""

    file_id: Annotated[FileId, doc("An uploaded file.")]
    attributes: Annotated[Attributes | None, doc("Values that a search can filter by.")] = None
    chunking_strategy: Annotated[ChunkingStrategy | None, doc("How it is cut. Default: auto.")] = None


class StoreFileChange(Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/files/{file_id}: new attributes."""

    attributes: Annotated[Attributes | None, doc("All of them; null removes them.")]


class FileBatchRequest(Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/file_batches: files to index."""

    file_ids: Annotated[list[FileId], Meta(max_length=MAX_BATCH)] | None = None
    files: Annotated[
        Annotated[list[StoreFileRequest], Meta(max_length=MAX_BATCH)] | None,
        doc("Files with attributes and a strategy of their own, in the place of file_ids."),
    ] = None
    attributes: Annotated[Attributes | None, doc("Of all file_ids.")] = None
    chunking_strategy: Annotated[ChunkingStrategy | None, doc("Of all file_ids.")] = None


class RankingOptions(Struct, kw_only=True):
    """How results are ranked."""

    ranker: Annotated[str, Meta(max_length=64)] | None = None
    score_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None


class StoreSearchRequest(Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/search: passages that match a query."""

    query: Annotated[str | list[str], doc("A query, or several that are searched together.")]
    filters: Annotated[dict[str, Any] | None, doc("Comparisons of attributes, as OpenAI nests them.")] = None
    max_num_results: Annotated[Annotated[int, Meta(ge=1, le=MAX_RESULTS)] | None, doc("Default: 10.")] = None
    ranking_options: Annotated[RankingOptions | None, doc("The least score, from 0 to 1.")] = None
    rewrite_query: Annotated[bool | None, doc("Accepted and not used: a query is searched as it is.")] = None


# --- stores


async def create(call: HttpCall) -> None:
    """Make a vector store; its files are indexed in the background."""
    request, raw = await call.struct(VectorStoreRequest)
    warnings = [*unknown_fields(raw, VectorStoreRequest), *_overlap(request.chunking_strategy)]
    desk, strategy = VectorDesk.of(call), _kept(request.chunking_strategy)
    ids = list(dict.fromkeys(request.file_ids or ()))
    await desk.check_files(call, ids)
    meta = {
        "metadata": json.dumps(request.metadata or {}),
        "description": request.description or "",
        "expires_days": str(request.expires_after.days) if request.expires_after else "",
        "last_active": repr(time.time()),
    }
    store = await desk.create(call, request.name or "", request.embedding_model or DEFAULT_EMBEDDER, meta)
    for id in ids:
        await desk.attach(call, store, id, {}, strategy)
    await call.answer({**await _shown(call, store), "freehold": {"warnings": warnings}})


async def stores(call: HttpCall) -> None:
    """List vector stores, the newest first."""
    desk, params = VectorDesk.of(call), query(call)
    entries: list[ListedStore] = []
    for id in await desk.ids(call):
        entries.append(ListedStore(id, await _shown(call, await desk.find(call, id))))
    entries.sort(
        key=lambda entry: (-entry.body["created_at"], entry.id), reverse=params.get("order") == "asc"
    )
    await call.answer(page(entries, params, lambda entry: entry.body))


async def store(call: HttpCall) -> None:
    """Describe a vector store and how far its files are."""
    await call.answer(await _shown(call, await _store_of(call)))


async def change(call: HttpCall) -> None:
    """Change a vector store's name, metadata or expiry."""
    request, _ = await call.struct(VectorStoreChange)
    open_store = await _store_of(call)
    values: dict[str, str] = {"last_active": repr(time.time())}
    if request.name is not None:
        values["title"] = request.name
    if request.metadata is not None:
        values["metadata"] = json.dumps(request.metadata)
    if not isinstance(request.expires_after, UnsetType):
        values["expires_days"] = str(request.expires_after.days) if request.expires_after else ""
    await VectorDesk.of(call).run(call, open_store, CollectionStore.set_meta, **values)
    await call.answer(await _shown(call, open_store))


async def delete(call: HttpCall) -> None:
    """Remove a vector store; its files stay."""
    open_store = await _store_of(call)
    await VectorDesk.of(call).delete(call, open_store)
    await call.answer({"id": open_store.id, "object": "vector_store.deleted", "deleted": True})


async def search(call: HttpCall) -> None:
    """Search a vector store by words and vectors."""
    request, _ = await call.struct(StoreSearchRequest)
    queries = [request.query] if isinstance(request.query, str) else request.query
    open_store = await _store_of(call)
    options = request.ranking_options or RankingOptions()

    async def work() -> None:
        wanted = StoreSearch(
            tuple(queries),
            request.filters,
            request.max_num_results or 10,
            options.score_threshold or 0.0,
        )
        hits = await search_in(call, open_store, wanted)
        data = [
            {
                "file_id": hit.source,
                "filename": hit.name,
                "score": round(hit.score, 6),
                "attributes": hit.attributes,
                "content": [{"type": "text", "text": hit.text}],
            }
            for hit in hits
        ]
        head = {"object": "vector_store.search_results.page", "search_query": queries}
        await call.answer({**head, "data": data, "has_more": False, "next_page": None})

    await call.while_here(work())


@dataclass(frozen=True, slots=True)
class StoreSearch:
    """What a request searches for. `least`: the score from 0 to 1 that a result must have."""

    queries: tuple[str, ...]
    filters: Mapping[str, Any] | None = None
    limit: int = 10
    least: float = 0.0


async def search_in(
    call: HttpCall, open_store: OpenVectorStore, wanted: StoreSearch
) -> list[DocumentPassage]:
    """Return a store's chunks that match, the best first, with scores from 0 to 1. Raises Refused, FreeholdErrors."""
    if not 1 <= len(wanted.queries) <= 8:
        raise Refused(400, f"query has {len(wanted.queries)} texts; expected 1 to 8", param="query")
    for text in wanted.queries:
        try:
            checked_query(text, wanted.limit)
        except UsageError as e:
            raise Refused(400, e.message, param="query", code="invalid_value") from None
    keeps = compiled_filter(wanted.filters) if wanted.filters else None
    desk = VectorDesk.of(call)
    facts = await desk.run(call, open_store, CollectionStore.facts)
    if _expired(await desk.run(call, open_store, _meta)):
        raise Refused(400, f"the vector store {open_store.id} has expired", code="vector_store_expired")
    if not facts.chunks:
        return []
    vectors, _ = await embedded(call.models, facts.embedder, wanted.queries, call.tenant, call.caller)
    call.work.model = facts.embedder

    def look(store: CollectionStore) -> list[DocumentPassage]:
        _note_use(store)
        documents = None
        if keeps is not None:
            documents = tuple(each.id for each in store.documents() if keeps(each.attributes))
        scores: dict[int, float] = {}
        for text, vector in zip(wanted.queries, vectors, strict=True):
            for id, score in ranked(store, SearchQuery(text, vector, "hybrid", documents)):
                scores[id] = max(scores.get(id, 0.0), min(1.0, score * (RRF + 1) / 2))  # 1: first by both
        best = sorted(scores, key=lambda id: (-scores[id], id))[: wanted.limit]
        return _passages(store, [id for id in best if scores[id] >= wanted.least], scores)

    return await desk.run(call, open_store, look)


def _passages(
    store: CollectionStore, ids: Sequence[int], scores: Mapping[int, float]
) -> list[DocumentPassage]:
    chunks = store.chunks(ids)
    documents = store.documents_by_id(each.document for each in chunks)
    out: list[DocumentPassage] = []
    for each in chunks:
        if (record := documents.get(each.document)) is not None:
            chunk = each.chunk
            out.append(
                DocumentPassage(
                    record.source,
                    record.name,
                    chunk.place,
                    chunk.text,
                    scores[each.id],
                    chunk.context,
                    record.attributes,
                )
            )
    return out


# --- files of a store


async def attach(call: HttpCall) -> None:
    """Have a file indexed by a vector store."""
    request, raw = await call.struct(StoreFileRequest)
    warnings = [*unknown_fields(raw, StoreFileRequest), *_overlap(request.chunking_strategy)]
    open_store = await _store_of(call)
    kept = _kept(request.chunking_strategy)
    row = await VectorDesk.of(call).attach(call, open_store, request.file_id, request.attributes or {}, kept)
    shown = _shown_file(open_store.id, row, kept)
    await call.answer({**shown, "freehold": {"warnings": warnings}}, headers=(_POLL,))


async def files(call: HttpCall) -> None:
    """List the files of a vector store, the newest first."""
    await _listed(call, "")


async def file(call: HttpCall) -> None:
    """Describe a file of a vector store, and why it was not indexed if so."""
    open_store = await _store_of(call)
    row = await _row(call, open_store)
    await call.answer(_shown_file(open_store.id, row, row.chunking), headers=(_POLL,))


async def change_file(call: HttpCall) -> None:
    """Change the attributes of a file of a vector store."""
    request, _ = await call.struct(StoreFileChange)
    open_store = await _store_of(call)
    row = await _row(call, open_store)
    desk = VectorDesk.of(call)
    await desk.run(call, open_store, CollectionStore.set_attributes, row.id, request.attributes or {})
    row = await _row(call, open_store)
    await call.answer(_shown_file(open_store.id, row, row.chunking))


async def content(call: HttpCall) -> None:
    """Give the text of a file of a vector store, as it was read."""
    open_store = await _store_of(call)
    row = await _row(call, open_store)

    def read(store: CollectionStore) -> list[dict[str, str]]:
        record = store.document(row.id)
        chunks = store.chunks_of(record) if record is not None else []
        return [{"type": "text", "text": each.chunk.text} for each in chunks]

    data = await VectorDesk.of(call).run(call, open_store, read)
    head = {"object": "vector_store.file_content.page", "data": data}
    await call.answer({**head, "has_more": False, "next_page": None})


async def detach(call: HttpCall) -> None:
    """Take a file out of a vector store; the file itself stays."""
    open_store = await _store_of(call)
    row = await _row(call, open_store)
    await VectorDesk.of(call).run(call, open_store, CollectionStore.drop_upload, row.id)
    await call.answer({"id": row.id, "object": "vector_store.file.deleted", "deleted": True})


# --- batches of files


async def attach_batch(call: HttpCall) -> None:
    """Have several files indexed by a vector store."""
    request, raw = await call.struct(FileBatchRequest)
    warnings = [*unknown_fields(raw, FileBatchRequest), *_overlap(request.chunking_strategy)]
    if request.files and request.file_ids:
        raise Refused(400, "files and file_ids exclude each other", param="files", code="invalid_value")
    rows = list(request.files or ())
    for row in rows:
        warnings += _overlap(row.chunking_strategy)
    if rows and (request.attributes or request.chunking_strategy):
        warnings.append("attributes and chunking_strategy of a batch with files are those of each file")
    shared = {"attributes": request.attributes, "chunking_strategy": request.chunking_strategy}
    rows += [StoreFileRequest(file_id=id, **shared) for id in request.file_ids or ()]
    if not rows:
        raise Refused(400, "file_ids is missing", param="file_ids", code="missing_required_parameter")
    open_store, batch = await _store_of(call), f"vsfb_{secrets.token_hex(12)}"
    desk = VectorDesk.of(call)
    strategies = {row.file_id: _kept(row.chunking_strategy) for row in rows}
    await desk.check_files(call, list(strategies))
    for row in {row.file_id: row for row in rows}.values():
        await desk.attach(call, open_store, row.file_id, row.attributes or {}, strategies[row.file_id], batch)
    await call.answer(
        {**await _shown_batch(call, open_store, batch), "freehold": {"warnings": warnings}}, headers=(_POLL,)
    )


async def batch(call: HttpCall) -> None:
    """Describe a batch of files and how far it is."""
    open_store = await _store_of(call)
    await call.answer(await _shown_batch(call, open_store, _batch_id(call)), headers=(_POLL,))


async def cancel_batch(call: HttpCall) -> None:
    """Index no more files of a batch; what is indexed stays."""
    open_store = await _store_of(call)

    def cancel(store: CollectionStore) -> None:
        for row in store.uploads(_batch_id(call)):
            store.end_upload(row.id, "cancelled")

    await VectorDesk.of(call).run(call, open_store, cancel)
    await call.answer(await _shown_batch(call, open_store, _batch_id(call)))


async def batch_files(call: HttpCall) -> None:
    """List the files of a batch."""
    await _listed(call, _batch_id(call))


async def _listed(call: HttpCall, batch: str) -> None:
    open_store, params = await _store_of(call), query(call)
    rows = await VectorDesk.of(call).run(call, open_store, CollectionStore.uploads, batch)
    if batch and not rows:
        raise _no_batch(batch)
    if params.get("filter"):
        if params["filter"] not in STATUSES:
            message = f"filter is {params['filter'][:40]!r}; expected {', '.join(STATUSES)}"
            raise Refused(400, message, param="filter", code="invalid_value")
        rows = [row for row in rows if row.status == params["filter"]]
    if params.get("order") == "asc":
        rows.reverse()
    await call.answer(page(rows, params, lambda row: _shown_file(open_store.id, row, row.chunking)))


# --- what answers look like


@dataclass(frozen=True, slots=True)
class ListedStore:
    id: str
    body: dict[str, Any]


async def _store_of(call: HttpCall) -> OpenVectorStore:
    return await VectorDesk.of(call).find(call, call.scope["path_params"]["id"])


async def _row(call: HttpCall, open_store: OpenVectorStore) -> UploadRow:
    id = call.scope["path_params"]["file_id"]
    row = await VectorDesk.of(call).run(call, open_store, CollectionStore.upload, id)
    if row is None:
        message = f"the vector store has no file {id[:80]!r}"
        raise Refused(404, message, param="file_id", code="no_file")
    return row


def _batch_id(call: HttpCall) -> str:
    return call.scope["path_params"]["batch_id"]


def _no_batch(id: str) -> Refused:
    return Refused(404, f"the vector store has no batch {id[:80]!r}", param="batch_id", code="no_batch")


def _meta(store: CollectionStore) -> dict[str, str]:
    return {
        name: store.meta(name) for name in ("title", "description", "metadata", "expires_days", "last_active")
    }


def _note_use(store: CollectionStore) -> None:
    if time.time() - float(store.meta("last_active") or 0) > _SEEN_S:
        store.set_meta(last_active=repr(time.time()))


def _expired(meta: Mapping[str, str]) -> bool:
    return (until := _expires_at(meta)) is not None and until <= time.time()


def _expires_at(meta: Mapping[str, str]) -> int | None:
    if not meta["expires_days"]:
        return None
    return int(float(meta["last_active"] or 0)) + int(meta["expires_days"]) * _DAY_S


async def _shown(call: HttpCall, open_store: OpenVectorStore) -> dict[str, Any]:
    def read(store: CollectionStore) -> dict[str, Any]:
        return _shown_store(open_store.id, store.facts(), _meta(store), store.uploads())

    return await VectorDesk.of(call).run(call, open_store, read)


def _shown_store(
    id: str, facts: CollectionFacts, meta: Mapping[str, str], uploads: Iterable[UploadRow]
) -> dict[str, Any]:
    rows = list(uploads)
    counts = _counts(rows)
    beside = facts.documents - sum(row.status == "completed" for row in rows)  # added by the command line
    counts["completed"] += max(0, beside)
    counts["total"] += max(0, beside)
    status = "expired" if _expired(meta) else "in_progress" if counts["in_progress"] else "completed"
    days = meta["expires_days"]
    return {
        "id": id,
        "object": "vector_store",
        "created_at": int(facts.created),
        "name": meta["title"] or facts.name,
        "description": meta["description"] or None,
        "usage_bytes": facts.bytes,
        "file_counts": counts,
        "status": status,
        "expires_after": {"anchor": "last_active_at", "days": int(days)} if days else None,
        "expires_at": _expires_at(meta),
        "last_active_at": int(float(meta["last_active"] or facts.created)),
        "metadata": json.loads(meta["metadata"] or "{}"),
        "embedding_model": facts.embedder,
        "labels": list(facts.labels),
    }


def _counts(rows: Sequence[UploadRow]) -> dict[str, int]:
    by_status = Counter(row.status for row in rows)
    counts = {name: by_status[name] for name in STATUSES}
    return {**counts, "total": len(rows)}


def _shown_file(store: str, row: UploadRow, chunking: str) -> dict[str, Any]:
    size = json.loads(chunking)["tokens"] if chunking else SIZE // 4
    return {
        "id": row.id,
        "object": "vector_store.file",
        "created_at": int(row.created),
        "vector_store_id": store,
        "usage_bytes": row.bytes if row.status == "completed" else 0,
        "status": row.status,
        "last_error": {"code": row.code, "message": row.message} if row.code else None,
        "attributes": row.attributes,
        "chunking_strategy": {
            "type": "static",
            "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0},
        },
    }


async def _shown_batch(call: HttpCall, open_store: OpenVectorStore, id: str) -> dict[str, Any]:
    rows = await VectorDesk.of(call).run(call, open_store, CollectionStore.uploads, id)
    if not rows:
        raise _no_batch(id)
    counts = _counts(rows)
    status = "in_progress" if counts["in_progress"] else "completed"
    if counts["cancelled"] and status == "completed":
        status = "cancelled"
    return {
        "id": id,
        "object": "vector_store.files_batch",
        "created_at": int(min(row.created for row in rows)),
        "vector_store_id": open_store.id,
        "status": status,
        "file_counts": counts,
    }


def _kept(strategy: ChunkingStrategy | None) -> str:
    """Return a strategy as a store keeps it; "" for the usual. Raises Refused."""
    if strategy is None or strategy.type == "auto":
        return ""
    if strategy.static is None:
        raise Refused(400, "chunking_strategy.static is missing", param="chunking_strategy.static")
    size, overlap = strategy.static.max_chunk_size_tokens, strategy.static.chunk_overlap_tokens
    if overlap > size // 2:
        message = (
            f"chunk_overlap_tokens is {overlap}; expected at most half of max_chunk_size_tokens, {size // 2}"
        )
        raise Refused(
            400, message, param="chunking_strategy.static.chunk_overlap_tokens", code="invalid_value"
        )
    return json.dumps({"tokens": strategy.static.max_chunk_size_tokens})


def _overlap(strategy: ChunkingStrategy | None) -> list[str]:
    if strategy is None or strategy.static is None or not strategy.static.chunk_overlap_tokens:
        return []
    return ["chunk_overlap_tokens was ignored: neighbouring chunks that match are joined in an answer"]


# --- filters: comparisons of a file's attributes

_COMPARES: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda own, value: own == value,
    "ne": lambda own, value: own != value,
    "gt": lambda own, value: own > value,
    "gte": lambda own, value: own >= value,
    "lt": lambda own, value: own < value,
    "lte": lambda own, value: own <= value,
    "in": lambda own, value: own in value,
    "nin": lambda own, value: own not in value,
}
Filter = Callable[[Mapping[str, Any]], bool]


def compiled_filter(raw: object) -> Filter:
    """Return a filter as a function of a file's attributes. Raises Refused (400) for what is none."""
    left = [_MOST_FILTERS]
    return _compiled(raw, "filters", 0, left)


def _compiled(raw: object, at: str, depth: int, left: list[int]) -> Filter:
    left[0] -= 1
    if not isinstance(raw, dict) or depth > _DEEPEST or left[0] < 0:
        message = (
            f"{at} is not a filter, or is one of more than {_MOST_FILTERS} or nests deeper than {_DEEPEST}"
        )
        raise Refused(400, message, param="filters", code="invalid_value")
    kind = raw.get("type")
    if kind in ("and", "or"):
        inner = raw.get("filters")
        if not isinstance(inner, list) or not inner:
            raise Refused(400, f"{at}.filters is empty", param="filters", code="invalid_value")
        parts = [_compiled(each, f"{at}.filters[{i}]", depth + 1, left) for i, each in enumerate(inner)]
        every = all if kind == "and" else any
        return lambda attributes: every(part(attributes) for part in parts)
    compare = _COMPARES.get(kind) if isinstance(kind, str) else None
    key, value = raw.get("key"), raw.get("value")
    if compare is None or not isinstance(key, str) or (kind in ("in", "nin")) != isinstance(value, list):
        known = ", ".join([*_COMPARES, "and", "or"])
        message = f"{at} is not a comparison with type ({known}), key and value"
        raise Refused(400, message, param="filters", code="invalid_value")
    return lambda attributes: _holds(compare, attributes.get(key), value, missing=kind in ("ne", "nin"))


def _holds(compare: Callable[[Any, Any], bool], own: Any, value: Any, *, missing: bool) -> bool:
    if own is None:
        return missing
    try:
        return compare(own, value)
    except TypeError:  # a text and a number have no order
        return False

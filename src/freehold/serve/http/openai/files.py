"""POST /v1/files and POST /v1/batches, and what is asked of files and batches: list, describe, read, delete, cancel.

The files are the inputs and the outputs of batches. Knows OpenAI's words for them; knows no disk.
"""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Literal

from msgspec import Meta, Struct

from freehold.base import private
from freehold.serve.http.batches.desk import Desk, NewBatch
from freehold.serve.http.batches.filestore import FileRecord, Files
from freehold.serve.http.batches.record import Batch
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import doc, seconds
from freehold.serve.http.core.forms import UploadForm, read_form
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.responses.fields import Key, Value
from freehold.serve.http.openai.shape import page, query

MAX_PAGE = 10_000
PURPOSES = (
    "batch",
    "assistants",
    "user_data",
)  # lines of a batch; documents for vector stores, by both of their names
PIECE = 256 << 10
_SECONDS = range(3600, 30 * 24 * 3600 + 1)  # OpenAI's bounds of expires_after
_KNOWN = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


async def upload(call: HttpCall) -> None:
    """Upload a file: a form with `file` and `purpose`, which must be `batch`."""
    files, tenant = _files(call), call.tenant
    most, stated = call.server.limits.upload_bytes, call.headers.get(b"content-length", b"")
    if stated.isdigit():
        most = min(int(stated[:20]), most)
    part = await asyncio.to_thread(files.begin, tenant, most)
    try:
        with (
            call.server.uploads.into(part.parent, call.headers) as coming,
            open(part, "wb", opener=private.opener) as sink,
        ):
            form = await read_form(call.headers.get(b"content-type", b""), call.pieces(), sink, coming.came)
        lifetime = _checked(form)
        name, purpose = form.filename or "", form.fields["purpose"]
        record = await asyncio.to_thread(files.add, tenant, part, name, purpose, lifetime, call.labels)
    finally:
        files.end(part)
    await call.answer(record.shown())


async def files(call: HttpCall) -> None:
    """List files, newest first."""
    params = query(call)
    records = await call.in_thread(_files(call).all, call.tenant)
    if params.get("purpose"):
        records = [f for f in records if f.purpose == params["purpose"]]
    if params.get("order") == "asc":
        records.reverse()
    await call.answer(page(records, params, FileRecord.shown, most=MAX_PAGE))


async def file(call: HttpCall) -> None:
    """Describe a file."""
    await call.answer(_files(call).get(call.tenant, _id(call)).shown())


async def content(call: HttpCall) -> None:
    """Return the contents of a file."""
    with _files(call).path(call.tenant, _id(call)).open("rb") as source:
        length = (b"content-length", b"%d" % os.fstat(source.fileno()).st_size)
        kind = (b"content-type", b"application/octet-stream")
        await call.head(200, [kind, length, (b"x-content-type-options", b"nosniff")])
        data, more = await asyncio.to_thread(source.read, PIECE), True
        while more:
            following = await asyncio.to_thread(source.read, PIECE)
            more = bool(following)
            await call.body(data, more=more)
            data = following


async def delete(call: HttpCall) -> None:
    """Delete a file; a batch that reads it continues."""
    _files(call).delete(call.tenant, _id(call))
    await call.answer({"id": _id(call), "object": "file", "deleted": True})


def _checked(form: UploadForm) -> int | None:
    """Check a whole form; return the seconds its file shall live, if it says so."""
    fields = form.fields
    if form.filename is None:
        raise Refused(400, "file is missing", param="file", code="missing_required_parameter")
    purpose = fields.get("purpose")
    if purpose is None:
        raise Refused(400, "purpose is missing", param="purpose", code="missing_required_parameter")
    if purpose not in PURPOSES:
        message = f"purpose is {purpose[:60]!r}; this server has a use for files of purpose {', '.join(PURPOSES)} only"
        raise Refused(400, message, param="purpose", code="unsupported_purpose")
    for name in fields.keys() - _KNOWN:
        raise Refused(400, f"{name[:60]} is not a field of this form", param=name[:60], code="unknown_field")
    if form.bytes == 0:
        raise Refused(400, "the file is empty", param="file", code="invalid_value")
    return _seconds(fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]"))


def _seconds(anchor: str | None, seconds: str | None) -> int | None:
    if anchor is None and seconds is None:
        return None
    lifetime = int(seconds) if seconds and seconds.isascii() and seconds.isdigit() and len(seconds) < 9 else 0
    if anchor != "created_at" or lifetime not in _SECONDS:
        raise Refused(
            400,
            f"expires_after is {anchor!r:.40}, {seconds!r:.40}; expected the anchor created_at and "
            f"{_SECONDS[0]:,} to {_SECONDS[-1]:,} seconds",
            param="expires_after",
            code="invalid_value",
        )
    return lifetime


def _files(call: HttpCall) -> Files:
    return call.part(Desk, 503, "this server has no folder for files", "no_files").files


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]


# --- batches ----------------------------------------------------------------------------------------

LONGEST_S = 7 * 24 * 3600
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class BatchRequest(Struct, kw_only=True):
    """POST /v1/batches: the lines of a file, to answer on idle capacity."""

    input_file_id: Annotated[
        Annotated[str, Meta(max_length=128)], doc("An uploaded file with one request per line.")
    ]
    endpoint: Annotated[
        Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"],
        doc("The endpoint of all lines."),
    ]
    completion_window: Annotated[
        Annotated[str, Meta(max_length=32)],
        doc("Time after which unfinished lines expire, such as `24h`; at most 7 days."),
    ]
    metadata: Annotated[
        Annotated[dict[Key, Value], Meta(max_length=16)] | None,
        doc("Returned with the batch."),
    ] = None


async def create(call: HttpCall) -> None:
    """Create a batch."""
    try:
        request, raw = await call.struct(BatchRequest)
    except Refused as wrong:
        if wrong.param != "endpoint":
            raise
        message = (
            f"{wrong.message}; batch lines use one of {', '.join(ENDPOINTS)}. A line cannot contain a recording: "
            "send each recording to POST /v1/audio/transcriptions"
        )
        raise Refused(wrong.status, message, param=wrong.param, code=wrong.code) from None
    for name in raw.keys() - set(BatchRequest.__struct_fields__):
        if raw[name] is not None:
            message = f"{name[:60]} is not supported here"
            raise Refused(400, message, param=name[:60], code="unsupported_parameter")
    batch = NewBatch(
        request.endpoint,
        request.input_file_id,
        request.completion_window,
        _window(request.completion_window),
        request.metadata or {},
        call.labels,
    )
    await call.answer((await _desk(call).create(call.tenant, batch)).shown())


async def batches(call: HttpCall) -> None:
    """List batches, newest first."""
    await call.answer(page(_desk(call).all(call.tenant), query(call), Batch.shown))


async def batch(call: HttpCall) -> None:
    """Return a batch and its progress."""
    await call.answer(_desk(call).get(call.tenant, _id(call)).shown())


async def cancel(call: HttpCall) -> None:
    """Cancel a batch; the answers so far become its output."""
    await call.answer((await _desk(call).cancel(call.tenant, _id(call))).shown())


def _window(text: str) -> float:
    try:
        window = seconds(text) or 0.0
    except Refused:
        window = 0.0
    if not 1 <= window <= LONGEST_S:
        message = f"completion_window is {text!r}; expected 1s to {LONGEST_S // 3600}h"
        raise Refused(400, message, param="completion_window", code="invalid_value")
    return window


def _desk(call: HttpCall) -> Desk:
    return call.part(Desk, 503, "this server has no folder for batches", "no_files")

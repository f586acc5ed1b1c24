"""POST /v1/files and what is done with files afterwards: list, describe, read, delete.

The files are the inputs and the outputs of batches. Knows OpenAI's words for them; knows no disk.
Path: Gate -> upload -> read_form -> Files.add; content -> the file's bytes
"""

from __future__ import annotations

import asyncio
import os
from typing import BinaryIO

from freehold.server.batches.desk import Desk
from freehold.server.batches.filestore import FileRecord, Files
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused
from freehold.server.openai.pages import page, query
from freehold.server.openai.upload import UploadForm, read_form

MAX_PAGE = 10_000
PIECE = 256 << 10
_SECONDS = range(3600, 30 * 24 * 3600 + 1)  # OpenAI's bounds of expires_after
_KNOWN = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


async def upload(call: HttpCall) -> None:
    """Take a file: a form with `file` and `purpose`, which is `batch`."""
    files, tenant = _files(call), call.tenant
    part = await asyncio.to_thread(files.begin, tenant, _most_bytes(call))
    try:
        with (
            call.server.uploads.into(part.parent, call.headers) as coming,
            open(part, "wb", opener=_private) as sink,
        ):
            form = await read_form(call.headers.get(b"content-type", b""), call.pieces(), sink, coming.came)
        seconds = _checked(form)
        name = form.filename or ""
        record = await asyncio.to_thread(
            files.add, tenant, part, name, form.fields["purpose"], seconds, call.labels
        )
    finally:
        files.end(part)
    await call.answer(record.shown())


async def files(call: HttpCall) -> None:
    """List files, the newest first."""
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
    """Give a file's bytes."""
    with _files(call).path(call.tenant, _id(call)).open("rb") as source:
        await call.head(
            200,
            [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", b"%d" % os.fstat(source.fileno()).st_size),
                (b"x-content-type-options", b"nosniff"),
            ],
        )
        await _send(call, source)


async def delete(call: HttpCall) -> None:
    """Remove a file; a batch that reads it continues."""
    _files(call).delete(call.tenant, _id(call))
    await call.answer({"id": _id(call), "object": "file", "deleted": True})


async def _send(call: HttpCall, source: BinaryIO) -> None:
    data = await asyncio.to_thread(source.read, PIECE)
    while True:
        following = await asyncio.to_thread(source.read, PIECE)
        await call.body(data, more=bool(following))
        if not following:
            return
        data = following


def _most_bytes(call: HttpCall) -> int:
    """Return how many bytes an upload may have: what its client says, or the limit."""
    stated, limit = call.headers.get(b"content-length", b""), call.server.limits.upload_bytes
    return min(int(stated[:20]), limit) if stated.isdigit() else limit


def _checked(form: UploadForm) -> int | None:
    """Check a whole form; return the seconds its file shall live, if it says so."""
    fields = form.fields
    if form.filename is None:
        raise Refused(400, "file is missing", param="file", code="missing_required_parameter")
    purpose = fields.get("purpose")
    if purpose is None:
        raise Refused(400, "purpose is missing", param="purpose", code="missing_required_parameter")
    if purpose != "batch":
        raise Refused(
            400,
            f"purpose is {purpose[:60]!r}; this server has a use for files of purpose 'batch' only",
            param="purpose",
            code="unsupported_purpose",
        )
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
    desk = call.server.part(Desk)
    if desk is None:
        raise Refused(503, "this server has no folder for files", code="no_files")
    return desk.files


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]

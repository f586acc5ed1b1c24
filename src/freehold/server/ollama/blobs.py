"""HEAD and POST /api/blobs/sha256:HEX: files that a client sends, for create to make a model of.

Knows bytes, digests and one folder: <home>/blobs. A file is written beside and renamed once its digest is right, and
moves into the store when a model is made of it. One that no model can be made of goes with the creation that finds so;
one that none is made of, with the first upload after a day. Path: Gate -> send -> <home>/blobs/sha256-HEX -> model_of
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from freehold import private
from freehold.errors import BadModelFile, FreeholdError, ModelNotFound, UsageError
from freehold.formats import open_lora, open_model_file
from freehold.formats.lora import CONFIG, WEIGHTS
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused
from freehold.server.core.uploads import Upload
from freehold.server.ollama.models import stored
from freehold.store import ModelRef, Store, space
from freehold.store.store import UPLOADED

MAX_BYTES = 512 << 30
BATCH = 4 << 20  # written and hashed at a time, in a thread: about 10 ms
# A blob last asked for so long ago, or what is left of an upload, is deleted by the next upload
STALE_S = 24 * 3600.0
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


async def has(call: HttpCall) -> None:
    """Tell whether a file of this digest is here."""
    digest = _digest(call.scope["path_params"]["digest"])
    present = await asyncio.to_thread(_is_here, stored(call), digest)
    await call.answer(b"", 200 if present else 404)


async def send(call: HttpCall) -> None:
    """Take a file in, whole and of the digest it is said to have; only for the owner."""
    digest, store = _digest(call.scope["path_params"]["digest"]), stored(call)
    stated = call.headers.get(b"content-length", b"")
    size = int(stated[:20]) if stated.isdigit() else 0
    if size > MAX_BYTES:
        message = f"the blob is longer than {MAX_BYTES:,} bytes"
        raise Refused(413, message, code="body_too_large", headers=((b"connection", b"close"),))
    if await asyncio.to_thread(_is_here, store, digest):
        await call.answer(b"", 200)
        return
    folder = _folder(store)
    with space.full_disk(store.settings.home, "nothing of it is kept"):
        await asyncio.to_thread(_swept, folder)
        with call.server.uploads.into(folder, call.headers) as coming:
            await _write(call, folder, digest, coming)
    await call.answer(b"", 201)


def only_gguf(files: Mapping[str, str]) -> str:
    """Return the digest of the one file that a model can be made of."""
    if len(files) != 1:
        raise Refused(400, f"files has {len(files)}; expected one GGUF file", param="files")
    return _digest(next(iter(files.values())))


def model_name(digest: str) -> str:
    """Return the name of the model that a blob becomes."""
    return f"{UPLOADED}{digest[:12]}"


def model_of(store: Store, digest: str) -> ModelRef:
    """Move a blob into the store as a model. Raises UsageError where it is not here, or is none: then it goes."""
    path = _folder(store) / f"sha256-{digest}"
    try:
        open_model_file(path).close()
        return store.take_in(path, digest)
    except BadModelFile as e:
        _drop_refused([path], e)
        raise UsageError(
            f"the blob sha256:{digest[:12]} is not a model this server can read: {e.message}"
        ) from e
    except (ModelNotFound, FileNotFoundError):
        pass
    try:
        return store.resolve(model_name(digest), disk=False)  # another creation took it
    except ModelNotFound:
        raise _no_blob(digest) from None


@contextmanager
def adapter_of(store: Store, files: Mapping[str, str]) -> Iterator[Path | None]:
    """Give the adapter that blobs make, for as long as it takes to keep it: then the blobs go. None for no files.

    Raises Refused for names that make none, UsageError for a blob that is not here, and for those that are no adapter,
    which go at once.
    """
    digests = {Path(name).name: _digest(digest) for name, digest in files.items()}
    sent = {name: _folder(store) / f"sha256-{digest}" for name, digest in digests.items()}
    if len(sent) > 1 and sent.keys() != {CONFIG, WEIGHTS}:
        raise Refused(
            400,
            f"adapters has {len(sent)} files; expected one of GGUF, or {CONFIG} and {WEIGHTS}",
            param="adapters",
        )
    for name, path in sent.items():
        if not path.is_file():
            raise _no_blob(digests[name])
    if not sent:
        yield None
        return
    with TemporaryDirectory(dir=_folder(store)) as folder:
        adapter = Path(folder) if len(sent) > 1 else next(iter(sent.values()))
        for name, path in sent.items() if len(sent) > 1 else ():
            (adapter / name).symlink_to(path)
        try:
            open_lora(adapter)
        except (BadModelFile, ModelNotFound) as e:
            _drop_refused(sent.values(), e)
            raise UsageError(f"the blobs are not an adapter this server can read: {e.message}") from e
        yield adapter
    for path in sent.values():
        path.unlink(missing_ok=True)


def _drop_refused(blobs: Iterable[Path], error: FreeholdError) -> None:
    """Delete blobs that nothing can be made of: no route removes them, and no other file can have their digest.

    One that is a model stays, given as an adapter by mistake, and one that the system did not let be read.
    """
    if isinstance(error.__cause__, OSError):
        return
    for path in blobs:
        try:
            open_model_file(path).close()
        except (BadModelFile, ModelNotFound):
            path.unlink(missing_ok=True)


def _no_blob(digest: str) -> UsageError:
    return UsageError(f"no blob sha256:{digest} is here", "POST /api/blobs/sha256:HEX sends it")


def _digest(text: str) -> str:
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise Refused(
            400, f"{text[:80]!r} is not a digest; expected sha256: and 64 small hex digits", param="digest"
        )
    return match[1]


def _folder(store: Store) -> Path:
    return store.settings.home / "blobs"


def _is_here(store: Store, digest: str) -> bool:
    with suppress(FileNotFoundError):
        os.utime(_folder(store) / f"sha256-{digest}")  # a client that asks for it is about to name it
        return True
    return any(listed.digest == digest and listed.state == "ready" for listed in store.list())


def _swept(folder: Path) -> None:
    private.folder(folder)
    for left in [*folder.glob(".*.new"), *folder.glob("sha256-*")]:
        with suppress(FileNotFoundError):  # another upload deleted it, or a creation took it
            if time.time() - left.stat().st_mtime > STALE_S:
                left.unlink()


async def _write(call: HttpCall, folder: Path, digest: str, coming: Upload) -> None:
    beside = folder / f".{digest[:12]}.{secrets.token_hex(4)}.new"
    hashed = hashlib.sha256()
    try:
        with open(beside, "wb", opener=private.opener) as file:

            def keep(data: bytes) -> None:
                hashed.update(data)
                file.write(data)

            batch = bytearray()
            async for piece in call.pieces(MAX_BYTES):
                coming.came(len(piece))
                batch += piece
                if len(batch) >= BATCH:
                    await asyncio.to_thread(keep, bytes(batch))
                    batch.clear()
            keep(bytes(batch))
        if hashed.hexdigest() != digest:
            raise Refused(
                400,
                f"the digest is sha256:{hashed.hexdigest()}, not the one it was sent under",
                param="digest",
            )
        beside.replace(folder / f"sha256-{digest}")
    finally:
        beside.unlink(missing_ok=True)

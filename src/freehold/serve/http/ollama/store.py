"""The routes of Ollama's protocol that change the store: pull, push, copy, delete, blobs, create.

What takes long works in a thread of its own, its progress a line of JSON a step. A thread ends at its next event once
the client is gone: what it fetched is kept, and the same request continues from there. Knows threads and lines.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.base import private
from freehold.base.errors import BadModelFile, FreeholdError, ModelNotFound, UsageError
from freehold.run.formats import open_lora, open_model_file
from freehold.run.formats.lora import CONFIG, WEIGHTS
from freehold.run.store import ModelRef, Store, parameters, space
from freehold.run.store.contract import Event, Finished, Note, Planned, Progress
from freehold.run.store.create import Recipe, make, parse
from freehold.run.store.create import copy as make_copy
from freehold.run.store.eyes import is_tower, model_and_tower
from freehold.run.store.judging import check_fetch
from freehold.run.store.overlays import MAX_MESSAGES
from freehold.run.store.refs import parse_ref
from freehold.run.store.store import uploaded_name
from freehold.serve.http.core.answering import EventStream
from freehold.serve.http.core.bodies import Upload
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Name, doc
from freehold.serve.http.core.limits import Gone
from freehold.serve.http.core.problems import Refused, problem, without_paths
from freehold.serve.http.ollama.fields import unknown_fields
from freehold.serve.http.ollama.generating import worded
from freehold.serve.http.ollama.models import look_up, stored
from freehold.serve.http.ollama.shape import NDJSON, as_here, ollama_error

MOST = 4  # at a time: each has a thread and connections of its own
EVERY_S = 0.1  # between lines of progress; a download tells of every piece
WARNING = "warning: "  # begins a line that tells of what was not done
Line = dict[str, Any]
Tell = Callable[[Line], None]
Work = Callable[[Tell], None]


class _Stopped(Exception):
    """The client has disconnected."""


async def run(call: HttpCall, name: str, work: Work, *, stream: bool, first: Line) -> None:
    """Run `work` in a thread and answer with its lines, then with success; `first` is the beat until the next one."""
    if call.server.chores >= MOST:
        message = f"{MOST} downloads are in progress; try again later"
        raise Refused(503, message, headers=((b"retry-after", b"10"),))
    call.server.chores += 1
    chore = _Chore(work, first)
    try:
        if stream:
            await _streamed(call, name, chore)
        else:
            await call.while_here(chore.done(None))
            await call.answer({"status": "success", "freehold": {"warnings": chore.warnings}})
    finally:
        call.server.chores -= 1
        chore.stop()


async def _streamed(call: HttpCall, name: str, chore: _Chore) -> None:
    async with EventStream(call, NDJSON, lambda: _line(chore.latest)) as events:

        async def send(line: Line) -> None:
            await events.send(_line(line))

        try:
            await call.while_here(chore.done(send))
            last = _line({"status": "success"})
        except Gone:
            raise
        except Exception as e:
            if not events.begun:
                raise
            last = ollama_error(as_here(problem(e), name)) + b"\n"
        await events.send(last, more=False)


class _Chore:
    """One piece of work: its thread, and the lines to send."""

    def __init__(self, work: Work, first: Line) -> None:
        self.latest = first
        self._work, self._lines, self._stopped = work, [first], False
        self.warnings: list[str] = []  # for an answer that shows no lines
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._end.add_done_callback(lambda end: end.cancelled() or end.exception())

    async def done(self, send: Callable[[Line], Any] | None) -> None:
        """Start, send lines as they come, and return at the work's end; raise what it raised."""
        threading.Thread(target=self._run, name="freehold-chore", daemon=True).start()
        while not (self._end.done() and not self._lines):
            await self._news.wait()
            self._news.clear()
            if self._end.done() and self._end.exception():
                break
            lines, self._lines = self._lines, []
            for line in lines if send else ():
                self.latest = line
                await send(line)  # type: ignore[misc]
            if not self._end.done():
                await asyncio.sleep(EVERY_S)
        await self._end

    def stop(self) -> None:
        """Let the thread end at its next event."""
        self._stopped = True

    def _run(self) -> None:
        try:
            self._work(self._tell)
        except BaseException as e:
            self._call(self._ended, e)
        else:
            self._call(self._ended, None)

    def _tell(self, line: Line) -> None:
        if self._stopped:
            raise _Stopped
        self._call(self._add, line)

    def _call(self, what: Callable[[Any], None], value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, value)

    def _add(self, line: Line) -> None:
        """Keep a line; of two about the same file only the later one counts."""
        if line["status"].startswith(WARNING):
            self.warnings.append(line["status"].removeprefix(WARNING))
        if self._lines and "completed" in line and self._lines[-1].get("status") == line["status"]:
            self._lines.pop()
        self._lines.append(line)
        self._news.set()

    def _ended(self, e: BaseException | None) -> None:
        if e is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(e)
        self._news.set()


def report(event: Event, tell: Tell) -> None:
    """Pass on an event of a pull as lines."""
    for line in lines_of(event):
        tell(line)


def lines_of(event: Event) -> list[Line]:
    """Return an event of a pull as lines of this protocol."""
    if isinstance(event, Planned):
        return [{"status": "pulling manifest"}]
    if isinstance(event, Progress):
        line: Line = {"status": f"pulling {event.sha256[:12] or event.file}"}
        if event.sha256:
            line["digest"] = f"sha256:{event.sha256}"
        if event.total:
            line["total"] = event.total
        return [{**line, "completed": event.done}]
    if isinstance(event, Note):
        return [{"status": without_paths(event.text)}]
    if isinstance(event, Finished) and event.fetched:
        return [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}]
    return []


def _line(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


# --- POST /api/pull and /api/push: fetch a model by name; nothing is ever sent away -----------------


class PullRequest(Struct, kw_only=True):
    """POST /api/pull: download a model and report the progress."""

    model: Annotated[Name | None, doc("A name in the catalogue, or org/repo:QUANT.")] = None
    name: Annotated[Name | None, doc("The name that older clients use.")] = None
    stream: Annotated[bool | None, doc("Send one line of JSON per step. Default true.")] = None
    insecure: Annotated[bool | None, doc("true is not supported: downloads are always verified.")] = None
    username: str | None = None
    password: str | None = None


async def pull(call: HttpCall) -> None:
    """Download a model, or add one that is on this machine; only for the owner."""
    request, raw = await call.struct(PullRequest)
    name = fetchable(request.model or request.name, "model")
    for field in ("insecure", "username", "password"):
        if getattr(request, field):
            message = f"{field} is not supported: a login for the hub is the server's own"
            raise Refused(400, message, param=field)
    store, notes = stored(call), unknown_fields(raw, PullRequest)

    def work(tell: Tell) -> None:
        for note in notes:
            tell({"status": WARNING + note})
        check_fetch(store, name)
        store.pull(name, lambda event: report(event, tell))

    first = {"status": "pulling manifest"}
    await worded(name, lambda: run(call, name, work, stream=request.stream is not False, first=first))


async def push(call: HttpCall) -> None:
    """Not supported: Freehold never uploads models."""
    raise Refused(403, "push is refused: Freehold sends no model anywhere", code="push_refused")


def fetchable(name: str | None, field: str) -> str:
    """Return a name the store may look for elsewhere; 400 for a local file, and for an address."""
    if not name:
        raise Refused(400, f"{field} is missing", param=field, code="missing_required_parameter")
    if parse_ref(name).kind in ("path", "url"):
        raise Refused(
            400,
            f"{field} is {name[:100]!r}; expected a name, or org/repo:QUANT "
            "(files and addresses: freehold pull on the server's machine)",
            param=field,
        )
    return name


# --- POST /api/copy and DELETE /api/delete: another name for a model, and the end of one ------------


class CopyRequest(Struct, kw_only=True):
    """POST /api/copy: give a model another name."""

    source: Annotated[Name, doc("The model.")]
    destination: Annotated[Name, doc("Its other name; no weights are copied.")]


class DeleteRequest(Struct, kw_only=True):
    """DELETE /api/delete: delete a model, or forget another program's."""

    model: Annotated[Name | None, doc("The model's name.")] = None
    name: Annotated[Name | None, doc("The name that older clients use.")] = None


async def copy(call: HttpCall) -> None:
    """Give a model another name; only for the owner."""
    request, _ = await call.struct(CopyRequest)
    source, name = fetchable(request.source, "source"), fetchable(request.destination, "destination")
    await worded(source, lambda: call.in_thread(make_copy, stored(call), source, name))
    await call.server.models.retire(name)
    await call.answer(b"")


async def delete(call: HttpCall) -> None:
    """Delete a model, or remove another program's model from the list; only for the owner."""
    request, _ = await call.struct(DeleteRequest)
    name = fetchable(request.model or request.name, "model")
    listed = await call.in_thread(look_up, stored(call), name)
    await call.in_thread(stored(call).remove, listed.name)
    await call.server.models.retire(listed.name)
    await call.answer(b"")


# --- HEAD and POST /api/blobs/sha256:HEX: files that a client sends, for create to make a model of --
# A file is written beside and renamed once its digest is right, and moves into the store when a model is made
# of it. One that no model can be made of goes with the creation that finds so; one that none is made of, with
# the first upload after a day.

MAX_BYTES = 512 << 30
BATCH = 4 << 20  # written and hashed at a time, in a thread: about 10 ms
# A blob last asked for so long ago, or what is left of an upload, is deleted by the next upload
STALE_S = 24 * 3600.0
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


async def has(call: HttpCall) -> None:
    """Check whether a file with this digest exists."""
    digest = _digest(call.scope["path_params"]["digest"])
    present = await call.in_thread(_is_here, stored(call), digest)
    await call.answer(b"", 200 if present else 404)


async def send(call: HttpCall) -> None:
    """Upload a file and check its digest; only for the owner."""
    digest, store = _digest(call.scope["path_params"]["digest"]), stored(call)
    stated = call.headers.get(b"content-length", b"")
    size = int(stated[:20]) if stated.isdigit() else 0
    if size > MAX_BYTES:
        message = f"the blob is longer than {MAX_BYTES:,} bytes"
        raise Refused(413, message, code="body_too_large", headers=((b"connection", b"close"),))
    if await call.in_thread(_is_here, store, digest):
        await call.answer(b"", 200)
        return
    folder = _folder(store)
    with space.full_disk(store.settings.home, "nothing was stored"):
        await call.in_thread(_swept, folder)
        with call.server.uploads.into(folder, call.headers) as coming:
            await _write(call, folder, digest, coming)
    await call.answer(b"", 201)


def gguf_digests(files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the digests of the files that a model can be made of: a GGUF, or a GGUF and its tower, in any order."""
    if len(files) not in (1, 2):
        message = f"files has {len(files)}; expected a GGUF file, or one and its projector (mmproj)"
        raise Refused(400, message, param="files")
    return tuple(map(_digest, files.values()))


def model_of(store: Store, digests: Sequence[str]) -> ModelRef:
    """Move blobs into the store as a model: one, or two of which one is the other's tower.

    Raises UsageError where one is not here or is none, which then goes, and for two that do not fit each other.
    """
    for order in (digests, digests[::-1]):
        with suppress(ModelNotFound):
            known = store.resolve(uploaded_name(*order), disk=False)  # made before
            for digest in digests:
                (_folder(store) / f"sha256-{digest}").unlink(missing_ok=True)
            return known
    sources = [_source(store, digest) for digest in digests]
    for path, digest in zip(sources, digests, strict=True):
        try:
            open_model_file(path).close()
        except BadModelFile as e:
            _drop_refused([path] if path.parent == _folder(store) else [], e)
            message = f"the blob sha256:{digest[:12]} is not a model this server can read: {e.message}"
            raise UsageError(message) from e
    by_path = dict(zip(sources, digests, strict=True))
    if len(by_path) != len(digests):
        raise UsageError("files names one file twice", "name a GGUF file and its projector (mmproj)")
    if len(sources) == 2:
        model, tower = model_and_tower(*sources)
    else:
        model, tower = sources[0], None
        if is_tower(model):
            raise UsageError(
                "the file is a projector (mmproj) without its model", "name the model's GGUF too"
            )
    try:
        keep = model.parent != _folder(store)
        beside = (tower, by_path[tower]) if tower is not None else None
        return store.take_in(model, by_path[model], beside, keep=keep)
    except FileNotFoundError:  # another creation took it meanwhile
        raise _no_blob(by_path[model]) from None


def _source(store: Store, digest: str) -> Path:
    """Return where a file of this digest is: what was sent, or else the whole of a model that is here."""
    path = _folder(store) / f"sha256-{digest}"
    if path.is_file():
        return path
    for listed in store.list():
        if listed.digest == digest and listed.state == "ready" and listed.kind == "gguf":
            return listed.path
    raise _no_blob(digest)


@contextmanager
def adapter_of(store: Store, files: Mapping[str, str]) -> Iterator[Path | None]:
    """Give the adapter that blobs make, for as long as it takes to keep it: then the blobs go. None for no files.

    Raises Refused for names that make none, UsageError for a blob that is not here, and for those that are no adapter,
    which go at once.
    """
    digests = {Path(name).name: _digest(digest) for name, digest in files.items()}
    sent = {name: _folder(store) / f"sha256-{digest}" for name, digest in digests.items()}
    if len(sent) > 1 and sent.keys() != {CONFIG, WEIGHTS}:
        message = f"adapters has {len(sent)} files; expected one of GGUF, or {CONFIG} and {WEIGHTS}"
        raise Refused(400, message, param="adapters")
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
        message = f"{text[:80]!r} is not a digest; expected sha256: and 64 small hex digits"
        raise Refused(400, message, param="digest")
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
            message = f"the digest is sha256:{hashed.hexdigest()}, not the one it was sent under"
            raise Refused(400, message, param="digest")
        beside.replace(folder / f"sha256-{digest}")
    finally:
        beside.unlink(missing_ok=True)


# --- POST /api/create: a model made from another one, out of fields or of a Modelfile ---------------

Files = Annotated[dict[str, Annotated[str, Meta(max_length=80)]], Meta(max_length=64)]


class OverlayMessage(Struct, kw_only=True):
    """A message that every chat begins with."""

    role: str
    content: str = ""


class CreateRequest(Struct, kw_only=True, rename={"base": "from"}):
    """POST /api/create: create a model from another one."""

    model: Annotated[Name | None, doc("The new model's name.")] = None
    name: Annotated[Name | None, doc("The name that older clients use.")] = None
    base: Annotated[Name | None, doc("The base model; downloaded if it is not installed.")] = None
    files: Annotated[
        Files | None,
        doc(
            "Instead of from: a GGUF file's name and the digest of its blob; for a vision model, also those of its "
            "projector (mmproj)."
        ),
    ] = None
    adapters: Annotated[
        Files | None,
        Meta(
            description="LoRA: a GGUF file's name and the digest of its blob, or those of PEFT's two files, "
            "`adapter_config.json` and `adapter_model.safetensors`."
        ),
    ] = None
    template: Annotated[str | None, doc("A Jinja template; a Go template is ignored.")] = None
    license: Annotated[str | list[str] | None, doc("The licence's text.")] = None
    system: Annotated[str | None, doc("System prompt for chats that have none.")] = None
    parameters: Annotated[dict[str, Any] | None, doc("Default options for requests.")] = None
    messages: Annotated[
        Annotated[list[OverlayMessage], Meta(max_length=MAX_MESSAGES)] | None,
        doc("Messages at the start of every chat."),
    ] = None
    modelfile: Annotated[str | None, doc("All of this as a Modelfile, as older clients send it.")] = None
    stream: Annotated[bool | None, doc("Send one line of JSON per step. Default true.")] = None
    quantize: Annotated[str | None, doc("Not supported: models are stored unchanged.")] = None


async def create(call: HttpCall) -> None:
    """Create a model from another one, replacing an earlier one of the same name; only for the owner."""
    request, raw = await call.struct(CreateRequest)
    name = fetchable(request.model or request.name, "model")
    recipe, digests = await call.in_thread(_recipe, request)
    store = stored(call)
    notes = unknown_fields(raw, CreateRequest)

    models, loop = call.server.models, asyncio.get_running_loop()

    def work(tell: Tell) -> None:
        fetch = (lambda *_: model_of(store, digests)) if digests else None
        with adapter_of(store, request.adapters or {}) as adapter:
            whole = replace(recipe, adapter=str(adapter or ""))
            overlay = make(store, name, whole, lambda event: report(event, tell), fetch)
        # An engine of its own would continue with the template it has. What is refused leaves it as it is.
        asyncio.run_coroutine_threadsafe(models.retire(name), loop).result()
        tell({"status": f"using existing layer {overlay.base}"})
        for note in (*notes, *overlay.notes):
            tell({"status": WARNING + note})
        tell({"status": "writing manifest"})

    first = {"status": "reading model metadata"}
    await worded(
        recipe.base or name, lambda: run(call, name, work, stream=request.stream is not False, first=first)
    )


def _recipe(r: CreateRequest) -> tuple[Recipe, tuple[str, ...]]:
    """Return what is to be made, and the digests of the blobs it is made from, if it is."""
    if r.quantize:
        raise Refused(400, "quantize is not supported", param="quantize", code="unsupported_parameter")
    parsed = parse(r.modelfile) if r.modelfile else Recipe()
    if parsed.adapter:
        message = "ADAPTER names a file; send it as a blob and list it in adapters"
        raise Refused(400, message, param="modelfile")
    if parsed.tower:
        message = "the second FROM names an encoder; send both files as blobs and list them in files"
        raise Refused(400, message, param="modelfile")
    recipe = Recipe(
        base=r.base or parsed.base,
        parameters={**parsed.parameters, **(r.parameters or {})},
        system=parsed.system if r.system is None else r.system,
        template=r.template or parsed.template,
        messages=tuple((m.role, m.content) for m in r.messages or []) or parsed.messages,
        licence=((r.license,) if isinstance(r.license, str) else tuple(r.license))
        if r.license
        else parsed.licence,
        notes=parsed.notes,
    )
    parameters.read(recipe.parameters, strict=True)
    if r.files and recipe.base:
        raise Refused(400, "files and from name two bases; expected one of them", param="files")
    if r.files:
        digests = gguf_digests(r.files)
        return replace(recipe, base=uploaded_name(*digests)), digests
    return replace(recipe, base=fetchable(recipe.base, "from")), ()

"""All batches of a server: accepted, answered with the capacity that interactive requests leave, and ended.

A few batches at a time, a few lines abreast in all, as jobs of priority "batch", which an engine computes with what
interactive ones leave. A batch's folder says what it is and how far it came, so a restarted server continues it.
Knows order, folders and the clock; knows no field of a request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from freehold.base import private
from freehold.serve.http.batches.filestore import Files, link, tenant_folder
from freehold.serve.http.batches.record import (
    ERRORS,
    INPUT,
    OUTPUT,
    Batch,
    BatchLine,
    Journal,
    Status,
    Wrong,
    check_lines,
    load,
    read_lines,
)
from freehold.serve.http.core.call import JSON, LABEL_HEADER, Endpoint, HttpCall, Server
from freehold.serve.http.core.keys import Key
from freehold.serve.http.core.problems import Refused

RUNNING = 4  # batches that are worked on at a time
# Lines, of all of them: enough to fill a step, few enough that their prompts do not fill the queue.
ABREAST = 8
MAX_OPEN = 100  # batches of a tenant that are not over
MAX_KEPT = 1000  # and those that are over, of which the oldest go
PATIENCE = 20  # times that a line is asked again while there is no room for its model
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
DISK_PAUSE_S = 30.0  # until a disk that failed is tried again
_log = logging.getLogger("freehold.serve.http")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """The fields of a new batch."""

    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: float
    metadata: dict[str, str]
    labels: tuple[str, ...] = ()


class Stopping(Exception):
    """The server stops; the next one continues the unfinished lines."""


class Desk:
    """Files and batches under `root`."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self.files = Files(root / "files", now=now, beside=self._open_files)
        self._root, self._now = private.folder(root / "batches"), now
        self.files.sweep()
        self._batches = {batch.id: batch for batch in self._left()}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._abreast, self._saving = asyncio.Semaphore(ABREAST), asyncio.Lock()
        self._asker: Asker | None = None
        self._waiting: dict[str, str] = {}  # batch -> why it waits for the disk

    def waiting(self) -> str:
        """Return a sentence about batches that wait for the disk; "" while none does."""
        why = next(iter(self._waiting.values()), "")
        return why and f"batches wait for the disk: {why}"

    def _disk(self, batch: Batch, e: OSError | None) -> None:
        """Note in a batch's errors that the disk fails, or remove that note."""
        if e is None:
            if self._waiting.pop(batch.id, None):
                batch.errors = ()
                _log.warning("batch %s continues", batch.id)
            return
        if batch.id not in self._waiting:
            _log.error("batch %s waits for the disk: %s", batch.id, e)
        self._waiting[batch.id] = why = e.strerror or str(e)
        message = (
            f"the server cannot write results to its disk ({why}); the batch waits, loses no result, and continues "
            "automatically"
        )
        batch.errors = (Wrong("disk_failed", message),)

    async def run(self, asker: Asker) -> None:
        """Continue the batches of an earlier server, and work until cancelled."""
        self._asker = asker
        self._begin_more()
        try:
            await asyncio.Event().wait()
        finally:
            self._asker = None
            tasks = [*self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- for routes -----------------------------------------------------------------------------------

    async def create(self, tenant: str, request: NewBatch) -> Batch:
        """Accept a batch; 404 for a missing file, 429 for too many open ones, 400 where no file of results has room."""
        mine = self.all(tenant)
        still = sum(not batch.over for batch in mine)
        if still >= MAX_OPEN:
            message = f"{still} batches are not over; expected at most {MAX_OPEN}"
            raise Refused(429, message, code="too_many_batches")
        await asyncio.to_thread(self.files.check_room, tenant)
        now = int(self._now())
        file = await asyncio.to_thread(self.files.get, tenant, request.input_file_id)
        batch = Batch(
            f"batch_{secrets.token_hex(12)}",
            tenant,
            request.endpoint,
            request.input_file_id,
            request.completion_window,
            now,
            now + max(1, round(request.window_s)),
            request.metadata,
            tuple(dict.fromkeys((*request.labels, *file.labels))),
        )
        await asyncio.to_thread(self._place, batch)
        self._batches[batch.id] = batch
        for old in [b for b in mine if b.over][MAX_KEPT - 1 :]:
            del self._batches[old.id]
            await asyncio.to_thread(shutil.rmtree, self._folder(old), True)
        self._begin_more()
        return batch

    def all(self, tenant: str) -> list[Batch]:
        """Return a tenant's batches, the newest first."""
        mine = [batch for batch in self._batches.values() if batch.tenant == tenant]
        return sorted(mine, key=lambda b: (b.created_at, b.id), reverse=True)

    def get(self, tenant: str, id: str) -> Batch:
        """Return one; 404 if this tenant has none by this id."""
        batch = self._batches.get(id)
        if batch is None or batch.tenant != tenant:
            raise Refused(404, f"there is no batch {id[:80]!r}", param="batch_id", code="no_batch")
        return batch

    async def cancel(self, tenant: str, id: str) -> Batch:
        """End a batch; what it has answered is kept. 400 if it is over."""
        batch = self.get(tenant, id)
        if batch.over:
            raise Refused(400, f"the batch is {batch.status}", param="batch_id", code="batch_over")
        if batch.status != "cancelling":
            try:
                await self._enter(batch, "cancelling")
            except OSError as e:  # it is cancelled all the same, and its record follows
                self._disk(batch, e)
            if batch.id in self._tasks:
                self._tasks[batch.id].cancel()
            else:
                self._begin_more()
        return batch

    # --- the work -------------------------------------------------------------------------------------

    def _begin_more(self) -> None:
        """Start waiting batches while there is room, first those of the tenant with the fewest running."""
        while self._asker is not None and len(self._tasks) < RUNNING:
            busy = Counter(self._batches[id].tenant for id in self._tasks)
            waiting = [b for b in self._batches.values() if not b.over and b.id not in self._tasks]
            if not waiting:
                return
            batch = min(waiting, key=lambda b: (busy[b.tenant], b.created_at, b.id))
            task = self._tasks[batch.id] = asyncio.create_task(self._work(batch, self._asker))
            task.add_done_callback(lambda _, id=batch.id: self._ended(id))

    def _ended(self, id: str) -> None:
        del self._tasks[id]
        self._waiting.pop(id, None)
        self._begin_more()

    async def _work(self, batch: Batch, asker: Asker) -> None:
        """Work on a batch until it is over; after a failure of the disk try again."""
        while not batch.over:
            try:
                await self._advance(batch, asker)
            except Stopping:
                await asyncio.Event().wait()  # for the cancellation that comes
            except FileNotFoundError as e:
                await self._fail(batch, "folder_damaged", e)
            except OSError as e:
                self._disk(batch, e)
                await asyncio.sleep(DISK_PAUSE_S)
            except asyncio.CancelledError:
                if batch.status != "cancelling" or self._asker is None:
                    raise
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
            except Exception as e:
                await self._fail(batch, "internal_error", e)

    async def _fail(self, batch: Batch, code: str, e: Exception) -> None:
        _log.error("batch %s failed", batch.id, exc_info=e)
        batch.errors = (Wrong(code, "the server failed at this batch; its log says why"),)
        with suppress(OSError):  # then the next server tries it again
            await self._enter(batch, "failed")

    async def _advance(self, batch: Batch, asker: Asker) -> None:
        folder = self._folder(batch)
        if batch.status == "validating":
            checked = await asyncio.to_thread(check_lines, folder / INPUT, batch.endpoint)
            batch.total, batch.errors = checked.total, checked.errors
            await self._enter(batch, "failed" if checked.errors else "in_progress")
            if checked.errors:
                _clear(folder)
                return
        reserve, wrote = partial(self.files.reserve, batch.tenant, folder), partial(self.files.wrote, folder)
        journal = await asyncio.to_thread(Journal, folder, lambda e: self._disk(batch, e), reserve, wrote)
        try:
            self._count(batch, journal)
            if batch.status == "in_progress":
                await self._answer_all(batch, journal, asker)
            ends: dict[Status, Status] = {"cancelling": "cancelled", "finalizing": "completed"}
            end = ends.get(batch.status, "expired")
            if end == "expired":
                await self._expire(batch, journal)
        except Refused as e:  # its tenant's files leave no room for a result
            message = f"{e.message}; the lines that have no result were not answered"
            batch.errors, end = (Wrong(e.code or "", message),), "failed"
        finally:
            await journal.close()
            self.files.release(folder)
        await self._publish(batch, end)

    async def _answer_all(self, batch: Batch, journal: Journal, asker: Asker) -> None:
        """Answer every line that has no result; then the batch is finalizing, or its time is over."""
        lines, reading = self._unfinished(batch, journal), asyncio.Lock()

        async def following() -> BatchLine | None:
            async with reading:
                return await _following(lines)

        async def work() -> None:
            while (line := await following()) is not None:
                await self._answer(batch, line, journal, asker)

        try:
            async with asyncio.timeout(max(batch.expires_at - self._now(), 0)):
                async with asyncio.TaskGroup() as group:
                    for _ in range(ABREAST):
                        group.create_task(work())
        except TimeoutError:
            return
        except ExceptionGroup as e:
            raise e.exceptions[0] from None
        await self._enter(batch, "finalizing")

    async def _answer(self, batch: Batch, line: BatchLine, journal: Journal, asker: Asker) -> None:
        refusals = 0
        while True:
            async with self._abreast:
                answer = await asker.ask(batch.tenant, batch.endpoint, line, batch.labels)
            if asker.server.health.stopping and answer.status >= 500:
                raise Stopping
            pause = _pause(answer, refusals)
            if pause is None:
                break
            refusals += 1
            await asyncio.sleep(pause)
        await self._note(batch, journal, line, answer)

    async def _expire(self, batch: Batch, journal: Journal) -> None:
        """Write an error for each line that is left."""
        await journal.settle()
        error = {"code": "batch_expired", "message": "this line was not answered in the batch's time"}
        lines = self._unfinished(batch, journal)
        while (line := await _following(lines)) is not None:
            await self._note(batch, journal, line, None, error)

    async def _note(
        self,
        batch: Batch,
        journal: Journal,
        line: BatchLine,
        answer: LineAnswer | None,
        error: object = None,
    ) -> None:
        """Write a line's result: the answer that it got, or an error."""
        id = f"batch_req_{secrets.token_hex(12)}"

        def result() -> object:
            row = {"id": id, "custom_id": line.custom_id, "response": None, "error": error}
            if answer is None:
                return row
            response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
            return {**row, "response": response}

        await journal.add(line.custom_id, result, failed=answer is None or answer.status != 200)
        self._count(batch, journal)

    async def _publish(self, batch: Batch, end: Status) -> None:
        """Make files of the results, and end the batch. Harmless when it was done before."""
        folder = self._folder(batch)
        for name, id, count in (
            (OUTPUT, batch.output_file_id, batch.completed),
            (ERRORS, batch.error_file_id, batch.failed),
        ):
            if count:
                file = f"{batch.id}_{name}"
                await asyncio.to_thread(
                    self.files.adopt, batch.tenant, folder / name, id, file, "batch_output", batch.labels
                )
        await self._enter(batch, end)
        _clear(folder)

    def _unfinished(self, batch: Batch, journal: Journal) -> Iterator[BatchLine]:
        for _, line in read_lines(self._folder(batch) / INPUT):
            if isinstance(line, BatchLine) and line.custom_id not in journal.done:
                yield line

    def _count(self, batch: Batch, journal: Journal) -> None:
        batch.completed, batch.failed = journal.counts[OUTPUT], journal.counts[ERRORS]

    # --- the folders ----------------------------------------------------------------------------------

    def _folder(self, batch: Batch) -> Path:
        return self._root / tenant_folder(batch.tenant) / batch.id

    def _open_files(self, tenant: str) -> list[Path]:
        """Return the input of each batch that is not over, and its results so far: they take the tenant's room."""
        folders = [self._folder(b) for b in [*self._batches.values()] if b.tenant == tenant and not b.over]
        return [folder / name for folder in folders for name in (INPUT, OUTPUT, ERRORS)]

    def _place(self, batch: Batch) -> None:
        """Make a batch's folder. Its input is linked, so that it outlives the file it came from."""
        source = self.files.path(batch.tenant, batch.input_file_id)
        folder = private.folder(self._folder(batch), self._root)
        link(source, folder / INPUT)
        batch.save(folder)

    async def _enter(self, batch: Batch, status: Status) -> None:
        """Set and save a new status; a batch that is being cancelled keeps that status until it is cancelled."""
        if batch.status == "cancelling" and status in ("in_progress", "finalizing"):
            return
        before = batch.status
        batch.status = status
        batch.times.setdefault(status, int(self._now()))
        try:
            await asyncio.shield(self._save(batch))
        except OSError:
            if status in ("completed", "expired", "cancelled"):
                batch.status = before  # it ends once its record can say so
            raise
        if status != "failed":
            self._disk(batch, None)

    async def _save(self, batch: Batch) -> None:
        async with self._saving:
            await asyncio.to_thread(batch.save, self._folder(batch))

    def _left(self) -> list[Batch]:
        """Read the batches of earlier servers; a folder whose record is not whole never was one."""
        unfinished = []
        for folder in self._root.glob("*/batch_*"):
            try:
                batch = load(folder)
                if batch.over:
                    _clear(folder)
                unfinished.append(batch)
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, msgspec.DecodeError) as e:
                _log.warning("the batch in %s cannot be read: %s", folder, e)
        return unfinished


async def _following(lines: Iterator[BatchLine]) -> BatchLine | None:
    """Return the next line; the loop shall not parse it, for it may have 16 MB."""
    return await asyncio.to_thread(next, lines, None)


def _clear(folder: Path) -> None:
    """Remove what a batch needs no more once its record says that it is over."""
    for name in (INPUT, OUTPUT, ERRORS):
        (folder / name).unlink(missing_ok=True)


def _pause(answer: LineAnswer, refusals: int) -> float | None:
    """Return seconds after which to ask again, None where the answer is final. `refusals`: how often it was refused."""
    if answer.status not in (429, 503) or (answer.status == 503 and refusals >= PATIENCE):
        return None
    after = _retry_after(answer.headers)
    return min(max(after, PAUSE_S * 2 ** min(refusals, 10)), max(LONGEST_PAUSE_S, after))


def _retry_after(headers: Mapping[bytes, bytes]) -> float:
    after = headers.get(b"retry-after", b"")
    return min(float(after), 3600.0) if after.isdigit() else 0.0


# --- one line of a batch through the server's own routes, without a connection ----------------------
# The route handles the body as it handles a client's, so a line has the answer that a client would get.


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The answer to a line."""

    status: int
    parts: tuple[bytes, ...]  # of its body, JSON of one line
    request_id: str
    headers: Mapping[bytes, bytes]

    @property
    def body(self) -> msgspec.Raw:
        """The answer's JSON as it came; joined here, so ask for it in a thread."""
        return msgspec.Raw(b"".join(self.parts))


class Asker:
    """The routes a batch may ask, by their paths."""

    def __init__(self, server: Server, endpoints: Mapping[str, Endpoint]) -> None:
        self.server, self._endpoints = server, endpoints

    async def ask(self, tenant: str, path: str, line: BatchLine, labels: Sequence[str] = ()) -> LineAnswer:
        """Request `path` for a tenant, with priority `batch` and the labels of its batch."""
        body, streams = await asyncio.to_thread(line.request)
        exchange = _Exchange(body)
        headers = [JSON, (LABEL_HEADER, ",".join(labels).encode("latin-1"))] if labels else [JSON]
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": headers, "query_string": b""}
        call = scope["freehold.call"] = HttpCall(self.server, scope, exchange.receive, exchange.send)
        call.door = "batch"
        try:
            call.key = self._key(tenant)
            if streams:
                raise Refused(400, "stream is true; a batch has no reader for it", param="stream")
            await self._endpoints[path](scope, exchange.receive, exchange.send)
        except Exception as e:
            await call.refuse(call.problem(e))
        finally:
            call.close()
            del scope["freehold.call"]  # as in Gate: together they would wait for the garbage collector
            self.server.metrics.answered(call.route, call.status or 499)
        return exchange.answer(call)

    def _key(self, tenant: str) -> Key | None:
        """Return the key that the batch was created with; its scope and budget apply to the lines."""
        key = self.server.guard.keys.named(tenant) if tenant else None
        if tenant and key is None:
            raise Refused(401, f"the key {tenant} was revoked", code="invalid_api_key")
        return key


class _Exchange:
    """ASGI's two functions over a given body; collects the answer."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._sent: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    async def receive(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()  # there is no client that could disconnect
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self._headers |= dict(message.get("headers", ()))
        self._sent.append(message.get("body", b""))

    def answer(self, call: HttpCall) -> LineAnswer:
        return LineAnswer(call.status, tuple(self._sent), call.request_id.decode(), self._headers)

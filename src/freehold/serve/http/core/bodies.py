"""Request bodies, received and parsed within memory limits, and uploads; callers take turns at threads and at the loop.

A body is charged by its bytes while it comes and by what it becomes once it is whole, until its request is answered.
Beyond LOOP_BYTES it is parsed in a thread apart, one body of each caller at a time, so that the loop continues and no
caller waits for all the bodies of another; one whose client has left by then is dropped unparsed.
Knows bytes, seconds and callers; knows no field of any protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sys import getrefcount
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive

from freehold.run.store import space
from freehold.serve.http.core.limits import Gone, ServerLimits, parse, typed
from freehold.serve.http.core.longjson import structure_of, values_beside, weight
from freehold.serve.http.core.problems import Refused

# --- turns at what all callers share: of each caller at threads, and of requests at the loop --------


class CallerTurns:
    """`most`: turns that one caller has at a time; its other requests wait, in order."""

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._gates: dict[str, tuple[asyncio.Semaphore, int]] = {}  # caller -> (gate, requests that it knows)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Hold a turn of a caller."""
        gate, wanted = self._gates.get(caller) or (asyncio.Semaphore(self._most), 0)
        self._gates[caller] = (gate, wanted + 1)
        try:
            async with gate:
                yield
        finally:
            gate, wanted = self._gates.pop(caller)
            if wanted > 1:
                self._gates[caller] = (gate, wanted - 1)


class LoopTurns:
    """Lets pieces of work run in one turn of the loop for `seconds`; the others wait, in order, `most` a turn.

    A hundred requests that come at once took 50 to 100 ms of one turn, and what came then, /health too, waited for all.
    How long those that wait will take is not known, so a turn wakes few of them.
    """

    def __init__(self, most: int = 4, seconds: float = 0.003) -> None:
        self._most, self._seconds, self._counting, self._until = most, seconds, False, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def free(self, *, ending: bool = False) -> bool:
        """Return whether this turn of the loop has time for one more: then it has it, and need not await `mine`.

        `ending`: an answer that is done goes before the requests that wait to begin.
        """
        now = time.perf_counter()
        if self._counting:
            return now < self._until and (ending or not self._waiting)
        self._counting, self._until = True, now + self._seconds
        asyncio.get_running_loop().call_soon(self._next)
        return True

    async def mine(self) -> None:
        """Return in a turn of the loop that has time for more work."""
        if self.free():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        """Begin another turn with those that wait."""
        woken = 0
        while self._waiting and woken < self._most:
            waiter = self._waiting.popleft()
            if not waiter.done():  # it is where its request was cancelled
                waiter.set_result(None)
                woken += 1
        self._counting = bool(woken)
        if woken:  # who comes in their turn has what they leave of its time, unless others still wait
            self._until = time.perf_counter() + self._seconds
            asyncio.get_running_loop().call_soon(self._next)


# --- bodies -----------------------------------------------------------------------------------------

_PLAIN = {str, int, float, bool, bytes, type(None)}
_OURS = 2  # references of a value that only the name `value` holds: that one, and getrefcount's own
PIECE = 4096  # plain values that are freed by one call, in a tenth of a millisecond
T = TypeVar("T", bound=msgspec.Struct)
Headers = Mapping[bytes, bytes]
LOOP_BYTES = 8 << 10  # of a body that is parsed on the loop: one that is messages of one character takes 1 ms
NAMES_EACH = 8  # of a list or object, on the average of a body with many
SHORT_BYTES = 256 << 10  # those do not wait for longer ones: there is a thread for each


@dataclass(slots=True)
class Bodies:
    """Memory of all request bodies in progress, per caller and in total."""

    held: int = 0  # bytes
    by_caller: dict[str, int] = field(default_factory=dict)
    _turns: CallerTurns = field(default_factory=CallerTurns)
    _short: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="freehold-bodies-short")
    )
    _long: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="freehold-bodies-long")
    )

    @asynccontextmanager
    async def turn(self, caller: str, size: int) -> AsyncIterator[ThreadPoolExecutor]:
        """Give the thread for `size` bytes, once no other body of this caller has a thread or waits for one."""
        async with self._turns.of(caller):
            yield self._short if size <= SHORT_BYTES else self._long

    def free(self, values: list[Any]) -> None:
        """Free values in the thread of long bodies, a few at a time."""
        with suppress(RuntimeError):  # the server ends: they are freed here
            self._long.submit(dissolve, values)

    def close(self) -> None:
        """End the threads, after what they are at."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)


def dissolve(values: list[Any]) -> None:
    """Empty `values`, and free what they were the last to hold, so that other threads run meanwhile.

    A list of 100,000 messages is freed by one call, which keeps the interpreter to its end. So the content of a
    container is put in `values` before the container is freed, and a long list is freed in pieces.
    """
    while values:
        value = values.pop()
        kind = type(value)
        if kind is dict:
            values += [each for each in value.values() if type(each) not in _PLAIN]
        elif kind is list or kind is tuple:
            values += [each for each in value if type(each) not in _PLAIN]
        else:
            names = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", ())
            values += [each for name in names if type(each := getattr(value, name)) not in _PLAIN]
        if kind is list and getrefcount(value) == _OURS:
            while value:
                del value[-PIECE:]


class Holding:
    """What one request's body holds."""

    def __init__(self, bodies: Bodies, caller: str, limits: ServerLimits) -> None:
        self.bodies, self.caller, self._limits = bodies, caller, limits
        self.bytes = 0

    def set(self, size: int, small: int) -> None:
        """Hold `size` bytes from now on; refuse where there is no room, unless that is no more than `small`.

        429 where the caller holds too much already, 503 where all of them together do.
        """
        bodies, limits = self.bodies, self._limits
        more, self.bytes = size - self.bytes, size
        bodies.held += more
        mine = bodies.by_caller[self.caller] = bodies.by_caller.get(self.caller, 0) + more
        if size <= small or more <= 0:
            return
        if mine > limits.caller_bytes:
            raise _no_room(
                429, f"your requests and their answers hold more than {limits.caller_bytes:,} bytes"
            )
        if bodies.held > limits.bodies_bytes:
            raise _no_room(
                503, f"all requests and their answers hold more than {limits.bodies_bytes:,} bytes"
            )

    def close(self) -> None:
        """Release all of it."""
        self.bodies.held -= self.bytes
        left = self.bodies.by_caller.get(self.caller, 0) - self.bytes
        self.bytes = 0
        if left > 0:
            self.bodies.by_caller[self.caller] = left
        else:
            self.bodies.by_caller.pop(self.caller, None)


async def json_body(
    receive: Receive,
    headers: Headers,
    limits: ServerLimits,
    holding: Holding,
    kind: type[T],
    gone: Callable[[], bool],
    *,
    arrived: bool = False,
) -> tuple[T, dict[str, Any]]:
    """Return the body as `kind`, and as it came. Raises Refused: 415 for what is not called JSON, 413, 408, 400.

    `arrived`: all of it is there. `gone` tells whether the client has left, after which a body that waited for its
    turn is not parsed: Gone.
    """
    _check_kind(headers)
    parts = await read_body(receive, headers, limits, holding, arrived=arrived)
    size = sum(map(len, parts))
    if size <= LOOP_BYTES:
        body = b"".join(parts)
        holding.set(weigh(body, limits), limits.small_weight)
        return _read(body, kind)
    loop = asyncio.get_running_loop()
    async with holding.bodies.turn(holding.caller, size) as pool:
        body = await loop.run_in_executor(pool, _joined, parts, gone)
        parts.clear()
        holding.set(await loop.run_in_executor(pool, weigh, body, limits), limits.small_weight)
        return await loop.run_in_executor(pool, _read, body, kind)


def _joined(parts: list[bytes], gone: Callable[[], bool]) -> bytes:
    """Join a body in its turn. Raises Gone where its client did not wait for it."""
    if gone():
        raise Gone
    return b"".join(parts)


def weigh(body: bytes, limits: ServerLimits) -> int:
    """Return about what `body` will take of memory; 413 for one that holds more than a limit."""
    structure = structure_of(body)
    beside = structure.values
    if limits.body_values < beside <= limits.body_numbers:
        beside = values_beside(body)
    flat = (
        structure.names - NAMES_EACH * structure.containers if structure.names > limits.body_flat_names else 0
    )
    for has, limit, what in (
        (structure.containers, limits.body_containers, "lists and objects"),
        (structure.names, limits.body_names, "names in objects"),
        (structure.values, limits.body_numbers, "values in lists and objects"),
        (beside, limits.body_values, "values beside lists of numbers"),
        (flat, limits.body_flat_names, f"names beside {NAMES_EACH} for each list and object"),
        (structure.escapes, limits.body_escapes, "backslashes"),
    ):
        if has > limit:
            message = f"the body holds more than {limit:,} {what}; send less at a time"
            raise Refused(413, message, code="body_too_complex")
    return weight(body, structure)


def _read(body: bytes, kind: type[T]) -> tuple[T, dict[str, Any]]:
    raw = parse(body)
    return typed(raw, kind), raw


async def read_body(
    receive: Receive, headers: Headers, limits: ServerLimits, holding: Holding, *, arrived: bool = False
) -> list[bytes]:
    """Return the whole body in its pieces; 413 for one too long (by its header or its bytes), 408 for one too slow.

    503 or 429 for a long one that comes while others hold all that bodies may. `arrived`: all of it is there.
    """
    _check_stated(headers, limits.body_bytes)
    if arrived:  # nothing to wait for, and a timer costs more than reading it
        return await _whole(receive, limits, holding)
    try:
        async with asyncio.timeout(limits.body_s):
            return await _whole(receive, limits, holding)
    except TimeoutError:
        raise _too_slow(f"the body did not arrive within {limits.body_s:g} seconds") from None


async def body_pieces(
    receive: Receive, headers: Headers, limits: ServerLimits, most: int | None = None
) -> AsyncIterator[bytes]:
    """Give a body that is never whole in memory; 413 for one too long, 408 for a pause in it or a trickle."""
    most, size, more = limits.upload_bytes if most is None else most, 0, True
    _check_encoding(headers)
    _check_stated(headers, most)
    loop = asyncio.get_running_loop()
    began = loop.time()
    while more:
        try:
            async with asyncio.timeout(limits.upload_pause_s):
                message = await receive()
        except TimeoutError:
            raise _too_slow(f"nothing of the body came for {limits.upload_pause_s:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise Gone
        data, more = message.get("body", b""), bool(message.get("more_body"))
        size += len(data)
        if size > most:
            raise _too_long(most)
        if more and size < (loop.time() - began - limits.body_s) * limits.upload_rate:
            raise _too_slow(f"the body came slower than {limits.upload_rate:,} bytes a second")
        yield data


def _check_kind(headers: Headers) -> None:
    """Refuse what is not called JSON: a page in a browser may send anything else to another origin unasked."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        problem = f"it is {media_type.decode('latin-1')[:60]!r}" if media_type else "there is none"
        message = f"the body must come with the header Content-Type: application/json; {problem}"
        raise Refused(415, message, code="not_json", headers=((b"accept", b"application/json"),))
    _check_encoding(headers)


def _check_encoding(headers: Headers) -> None:
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"identity", b""):
        message = f"the body is encoded as {coding.decode('latin-1')[:40]!r}; send it as it is"
        raise Refused(415, message, code="encoded_body", headers=((b"accept-encoding", b"identity"),))


def _check_stated(headers: Headers, most: int) -> None:
    stated = headers.get(b"content-length", b"")
    if stated.isdigit() and int(stated[:20]) > most:
        raise _too_long(most)


async def _whole(receive: Receive, limits: ServerLimits, holding: Holding) -> list[bytes]:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limits.body_bytes:
            raise _too_long(limits.body_bytes)
        holding.set(size, limits.small_bytes)
        if not message.get("more_body"):
            return parts


def _no_room(status: int, why: str) -> Refused:
    message = f"{why}; try again in a moment"
    # Not closed: what still comes would reset it before this is read.
    return Refused(status, message, code="bodies_too_many", headers=((b"retry-after", b"1"),))


def _too_long(most: int) -> Refused:
    message = f"the body is longer than {most:,} bytes"
    return Refused(413, message, code="body_too_large", headers=((b"connection", b"close"),))


def _too_slow(message: str) -> Refused:
    return Refused(408, message, headers=((b"connection", b"close"),))


# --- uploads leave the disk its reserve: accounts, sessions, chats and the ledger are written there too
# What uploads say they still have to write counts from their start, so that many at once fit together; of one
# that does not say, and of a disk that others fill meanwhile, the room is looked at while it is written.

EVERY = 4 << 20  # bytes of an upload between two looks at the disk


@dataclass(slots=True)
class Uploads:
    """Bytes that uploads in progress have announced and not yet sent."""

    coming: int = 0

    @contextmanager
    def into(self, folder: Path, headers: Mapping[bytes, bytes]) -> Iterator[Upload]:
        """Begin an upload to `folder`. Raises Refused (507) where it would leave the disk less than its reserve."""
        stated = headers.get(b"content-length", b"")
        upload = Upload(self, folder, int(stated[:20]) if stated.isdigit() else 0)
        self.coming += upload.coming
        try:
            upload.look()
            yield upload
        finally:
            self.coming -= upload.coming


@dataclass(slots=True)
class Upload:
    """One of them. `coming`: what it has announced and not yet sent."""

    _all: Uploads
    _folder: Path
    coming: int
    _since: int = 0  # bytes since the last look

    def came(self, size: int) -> None:
        """Count `size` bytes that are written next. Raises Refused (507) where the disk has no room for them."""
        known = min(size, self.coming)
        self.coming -= known
        self._all.coming -= known
        self._since += size
        if self._since >= EVERY:
            self.look()

    def look(self) -> None:
        """Raise Refused (507) unless the disk has room for what uploads announced, beside its reserve."""
        left = space.left_for_uploads(self._folder)
        if left < self._all.coming or left <= 0:
            raise Refused(
                507,
                f"the server's disk has {space.human(max(left, 0))} for uploads, and those in progress announced "
                f"{space.human(self._all.coming)} more; send less, or try again when its owner has freed space",
                code="disk_full",
                headers=((b"connection", b"close"),),
            )
        self._since = 0

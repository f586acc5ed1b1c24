"""One connection to one server of tools: started, asked for its tools, asked to call one, ended with its children.

The SDK's session lives in a task of its own, since its scopes must be left where they were entered. A request that
takes too long, or whose caller is gone, ends the server: nothing else makes sure that it stops.
Knows the SDK's session; knows no permission.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from freehold.base.errors import DeadlineExceeded, EngineLost, FreeholdError, UpstreamFailed, UsageError
from freehold.base.sandbox.children import spawn
from freehold.base.types import Image
from freehold.serve.tools.mcp.configured import MAX_MESSAGE, ToolServer
from freehold.serve.tools.mcp.guard import NOT_STARTED

START_S = 30.0
CALL_S = 60.0
_END_KNOWN_S = 2.0
MAX_PAGES, MAX_TOOLS = 20, 256
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CalledTool:
    """What came of a call. `failed`: the tool says so. `images`: data URLs."""

    text: str
    failed: bool = False
    images: tuple[str, ...] = ()


class ToolConnection:
    """A started server. Made and used within one event loop; several calls may be in progress."""

    def __init__(self, server: ToolServer) -> None:
        self.server = server
        self.used_at = 0.0  # by the pool
        self.calls = 0  # in progress
        self._child = ChildServer(server) if server.command else None
        self._session: Any = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[FreeholdError] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._session is not None and not self._broken.done() and not self._closing.is_set()

    @property
    def lines(self) -> list[str]:
        """The last lines that the server wrote for people."""
        return [*self._child.written.lines] if self._child else []

    async def start(self) -> None:
        """Start the server and greet it. Raises EngineLost, UpstreamFailed, DeadlineExceeded, UsageError."""
        sdk()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(ready), name=f"mcp {self.server.name}")
        await self._within(ready, START_S, "start")

    async def listed(self) -> list[dict[str, Any]]:
        """Return the server's tools as it describes them. Raises as `start`."""
        return await self._within(self._list(), CALL_S, "list its tools")

    async def call(self, tool: str, arguments: dict[str, Any]) -> CalledTool:
        """Call a tool. Raises as `start`; if it is cancelled, the server is ended."""
        return await self._within(self._call(tool, arguments), CALL_S, "answer the call")

    async def close(self, why: str = "", *, now: bool = False) -> None:
        """End the server and wait until it is gone."""
        self._closing.set()
        if self._child is not None and now:
            await self._child.close(why, now=True)
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._task)

    async def _run(self, ready: asyncio.Future[None]) -> None:
        from mcp import ClientSession
        from mcp_types import Implementation

        from freehold.base.version import __version__

        about = Implementation(name="freehold", version=__version__)
        try:
            if self._child is not None:
                await self._child.start()
            streams = over_stdio(self._child) if self._child else over_http(self.server)
            async with streams as (read, write), ClientSession(read, write, client_info=about) as session:
                await _greeted(session)
                self._session = session
                if not ready.done():
                    ready.set_result(None)
                await self._closing.wait()
        except BaseException as e:
            self._break(e)
        else:
            self._break(EngineLost(f"the server {self.server.name} was closed"))
        finally:
            if self._child is not None:
                await self._child.close()

    def _break(self, e: BaseException) -> None:
        if not self._broken.done():
            self._broken.set_result(self._named(_cause(e)))

    def _named(self, e: BaseException) -> FreeholdError:
        if self._child is not None and self._child.why:
            return EngineLost(self._child.ending())
        if isinstance(e, FreeholdError):
            return e
        return UpstreamFailed(f"the server {self.server.name} does not answer as it must: {str(e)[:300]}")

    async def _within(self, operation: Awaitable[T], limit_s: float, what: str) -> T:
        """Wait for an answer, the end of the server or of the time, whichever comes first."""
        work = asyncio.ensure_future(operation)
        if self._child is not None:
            self._child.count_anew()
        self.calls += 1
        try:
            await asyncio.wait({work, self._broken}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not self._broken.done():
                return work.result()
            if self._broken.done():
                raise self._broken.result()
        except asyncio.CancelledError:
            await self._abandon(work, "its call was cancelled")
            raise
        except FreeholdError:
            await self._abandon(work, "")
            raise
        except Exception as e:
            # A closed connection fails the call first; how the server ended is known a moment later.
            await asyncio.wait({self._broken}, timeout=_END_KNOWN_S if self._closed(e) else 0)
            raise (self._broken.result() if self._broken.done() else self._named(e)) from e
        finally:
            self.calls -= 1
        name = self.server.name
        await self._abandon(work, f"it did not {what} within {limit_s:g} s")
        last = self._child.written.last if self._child else ""
        raise DeadlineExceeded(f"the server {name} did not {what} within {limit_s:g} s and was ended{last}")

    @staticmethod
    def _closed(e: Exception) -> bool:
        from mcp_types import CONNECTION_CLOSED

        return getattr(e, "code", None) == CONNECTION_CLOSED

    async def _abandon(self, work: asyncio.Future[Any], why: str) -> None:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work
        await asyncio.shield(self.close(why, now=True))

    async def _list(self) -> list[dict[str, Any]]:
        import mcp_types as types

        tools: list[dict[str, Any]] = []
        cursor = None
        for _ in range(MAX_PAGES):
            params = types.PaginatedRequestParams(cursor=cursor) if cursor else None
            # Not by the session's own method, which keeps state per tool and reads schemas in ways of its own.
            page = await self._session.send_request(
                types.ListToolsRequest(params=params), types.ListToolsResult
            )
            tools += [tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in page.tools]
            cursor = page.next_cursor
            if not cursor or len(tools) >= MAX_TOOLS:
                break
        return tools[:MAX_TOOLS]

    async def _call(self, tool: str, arguments: dict[str, Any]) -> CalledTool:
        import mcp_types as types

        params = types.CallToolRequestParams(name=tool, arguments=arguments)
        # Not by the session's own method, which checks answers against the server's schema: patterns can take hours.
        result = await self._session.send_request(types.CallToolRequest(params=params), types.CallToolResult)
        dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return CalledTool(shown(dumped), bool(result.is_error), tuple(pictures(dumped)))


async def _greeted(session: Any) -> None:
    """Agree on the protocol: by the handshake that all servers know, else by the newer question."""
    from mcp import MCPError
    from mcp_types import METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION

    try:
        await session.initialize()
    except MCPError as e:
        if e.code not in (METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION):
            raise
        await session.discover()


def _cause(e: BaseException) -> BaseException:
    """Return the first failure within groups, a named one before others."""
    if not isinstance(e, BaseExceptionGroup):
        return e
    causes = [_cause(each) for each in e.exceptions]
    return next((each for each in causes if isinstance(each, FreeholdError)), causes[0])


# --- from a configured server to the two streams on which the SDK's session speaks ------------------
# What a server says of its own accord is dropped here: notices of progress, logs, changed lists (lists are
# read again before each call). Its requests, for sampling, roots or a form, reach the session, which refuses
# them all.

Streams = tuple[Any, Any]  # the SDK's: what comes, what goes


def sdk() -> Any:
    """Return the SDK. Raises UsageError where it is not installed."""
    try:
        import mcp
    except ImportError as e:
        raise UsageError(
            "tools need the MCP SDK, which is not installed", "pip install 'freehold[mcp]'"
        ) from e
    return mcp


@asynccontextmanager
async def over_stdio(child: ChildServer) -> AsyncIterator[Streams]:
    """Yield the streams of a process that runs. What breaks them is raised: EngineLost."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import JSONRPCNotification, jsonrpc_message_adapter

    arrived, incoming = anyio.create_memory_object_stream[Any](0)
    outgoing, left = anyio.create_memory_object_stream[Any](0)

    async def read() -> None:
        async with arrived:
            async for line in child.messages():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    child.written.add(b"on stdout: " + line)
                    continue
                if not isinstance(message, JSONRPCNotification):
                    await arrived.send(SessionMessage(message))
        raise EngineLost(child.ending())

    async def write() -> None:
        async for each in left:
            data = each.message.model_dump_json(by_alias=True, exclude_unset=True)
            await child.write(data.encode() + b"\n")

    async with anyio.create_task_group() as group, incoming, outgoing, left:
        group.start_soon(read)
        group.start_soon(write)
        yield incoming, outgoing
        group.cancel_scope.cancel()


@asynccontextmanager
async def over_http(server: ToolServer) -> AsyncIterator[Streams]:
    """Yield the streams of a server at an address."""
    import anyio
    import httpx2
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared.message import SessionMessage
    from mcp_types import JSONRPCNotification

    from freehold.serve.tools.mcp.transport import CheckedTransport

    arrived, incoming = anyio.create_memory_object_stream[Any](0)

    async def pass_on(source: Any) -> None:
        async with arrived:
            async for each in source:
                dropped = isinstance(each, SessionMessage) and isinstance(each.message, JSONRPCNotification)
                if not dropped:
                    await arrived.send(each)

    client = httpx2.AsyncClient(
        transport=CheckedTransport(server.url, private=server.private),
        headers=dict(server.headers),
        timeout=httpx2.Timeout(30, read=60),
        trust_env=False,
    )
    async with (
        client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=MAX_MESSAGE) as (
            read,
            write,
        ),
        anyio.create_task_group() as group,
        incoming,
    ):
        group.start_soon(pass_on, read)
        yield incoming, write
        group.cancel_scope.cancel()


# --- what a tool answered, as text for a model: cut at 64 kB, and other content is named ------------

MAX_RESULT = 64_000  # bytes of UTF-8
MAX_PICTURES = 16  # of one result


def shown(result: dict[str, Any]) -> str:
    """Return the text of a result, in which its pictures are named."""
    parts, left = [], MAX_PICTURES
    for block in result.get("content") or []:
        carried = left > 0 and bool(_picture(block))
        left -= carried
        parts.append(_block(block, "" if carried else ": not shown"))
    if not parts and (whole := result.get("structuredContent")) is not None:
        parts = [json.dumps(whole, ensure_ascii=False)]
    return cut("\n".join(parts))


def pictures(result: dict[str, Any]) -> list[str]:
    """Return the pictures of a result as data URLs; those of another kind than a model sees are only named."""
    return [url for each in result.get("content") or [] if (url := _picture(each))][:MAX_PICTURES]


def _picture(block: dict[str, Any]) -> str:
    """Return the picture of a block as a data: URL; "" for none."""
    match block.get("type"):
        case "image":
            data = block.get("data")
        case "resource":  # a file that the result holds
            data = (block.get("resource") or {}).get("blob")
        case _:
            return ""
    with suppress(UsageError):
        return Image.in_base64(str(data or "")).as_url  # its first bytes say what it is
    return ""


def cut(text: str, most: int = MAX_RESULT) -> str:
    """Return `text`, or its beginning and a word that says what is missing."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode("utf-8")
    kept = data[:most].decode("utf-8", "ignore")
    return f"{kept}\n[cut here: {most:,} of {len(data):,} bytes are shown]"


def _block(block: dict[str, Any], unseen: str) -> str:
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio" as kind:
            size = len(block.get("data") or "") * 3 // 4
            return f"[{kind} of type {str(block.get('mimeType'))[:60]}, {size:,} bytes{unseen}]"
        case "resource_link":
            return f"[{str(block.get('name'))[:200]}: {str(block.get('uri'))[:1000]}]"
        case "resource":
            inside = block.get("resource") or {}
            if "text" in inside:
                return str(inside["text"])
            size = len(inside.get("blob") or "") * 3 // 4
            return f"[{str(inside.get('uri'))[:1000]}, {size:,} bytes{unseen}]"
        case kind:
            return f"[content of type {str(kind)[:60]}: not shown]"


# --- a server as a process of ours: without our environment, read in bounds, ended with its children
# Its stdout is the protocol, one message a line; a line that is none is kept with those of stderr and
# otherwise ignored. What it writes is limited: 4 MB a message, and 16 MB and 10,000 lines between two
# requests of ours, beyond which it is ended.

COMMAND = (sys.executable, "-P", "-m", "freehold.serve.tools.mcp.guard")
# What a program needs to run and find its files. No key of ours is among them, and none that a shell exports.
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME")
MAX_BYTES, MAX_LINES = 16 << 20, 10_000
KEPT_LINES, KEPT_CHARACTERS = 50, 300
CLOSE_S = 2.0  # for a server whose stdin was closed; the protocol asks for a while
KILL_S = 8.0
_READ = 1 << 16
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def environment(server: ToolServer, ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all that a server finds in its environment."""
    ours = os.environ if ours is None else ours
    return {**{name: ours[name] for name in PASSED if name in ours}, **server.env}


class WrittenLines(asyncio.Protocol):
    """A ring of the last lines that a server wrote for people, without what a terminal would obey."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Take lines; of one without an end, the beginning."""
        *whole, self._held = (self._held + data[-_READ:]).split(b"\n")
        for line in whole[-KEPT_LINES:]:
            self.add(line)
        self._held = self._held[: 4 * KEPT_CHARACTERS]

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what had no line end."""
        self.add(self._held)

    def add(self, raw: bytes) -> None:
        """Keep a line."""
        text = _CONTROL.sub("", raw[: 4 * KEPT_CHARACTERS].decode("utf-8", "replace")).strip()
        if text:
            self.lines.append(text[:KEPT_CHARACTERS])

    @property
    def last(self) -> str:
        """The last line, as the end of a sentence."""
        return f"; its last line: {self.lines[-1]}" if self.lines else ""


class ChildServer:
    """One running process. Made and used within one event loop."""

    def __init__(self, server: ToolServer) -> None:
        self.server, self.written = server, WrittenLines()
        self.why = ""  # it was ended by us
        self._bytes = self._lines = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._pipes: list[asyncio.ReadTransport] = []

    async def start(self) -> None:
        """Start it. Raises EngineLost: no process could be made. A wrong command is found when it is read from."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        # It starts in the user's own folder, not that of whatever we were started in.
        folder = os.environ.get("HOME") or tempfile.gettempdir()
        job = {"argv": list(self.server.command), "env": environment(self.server), "cwd": folder}
        try:
            self._guard = guard = spawn(
                (*COMMAND, str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as e:
            ours.close()
            raise EngineLost(f"the server {self.server.name} was not started: {e}") from e
        finally:
            theirs.close()
        self._orders = ours
        ours.sendall(json.dumps(job).encode() + b"\n")
        assert guard.stdin and guard.stdout and guard.stderr
        self._reader = asyncio.StreamReader(limit=_READ)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._pipes = [
            (await loop.connect_read_pipe(lambda: protocol, guard.stdout))[0],
            (await loop.connect_read_pipe(lambda: self.written, guard.stderr))[0],
        ]
        os.set_blocking(guard.stdin.fileno(), False)

    def count_anew(self) -> None:
        """Count bytes and lines from here on: a request was made."""
        self._bytes = self._lines = 0

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield lines that look like messages, to the end of its output. Raises EngineLost beyond the limits."""
        held = bytearray()
        while part := await self._reader.read(_READ):
            self._count(part)
            held += part
            if b"\n" not in part:
                if len(held) > MAX_MESSAGE:
                    raise self._flood(f"a message of more than {MAX_MESSAGE:,} bytes")
                continue
            *whole, rest = held.split(b"\n")
            held = bytearray(rest)
            for line in whole:
                if line.lstrip()[:1] == b"{":
                    yield bytes(line)
                elif line.strip():
                    self.written.add(b"on stdout: " + line[: 4 * KEPT_CHARACTERS])

    async def write(self, line: bytes) -> None:
        """Write a message. Raises EngineLost: it has ended."""
        pipe = self._guard.stdin if self._guard else None
        left = memoryview(line)
        while left:
            if pipe is None or pipe.closed:
                raise EngineLost(self.ending())
            try:
                left = left[os.write(pipe.fileno(), left) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)  # it does not read; the request's own time ends this
            except OSError:
                raise EngineLost(self.ending()) from None

    def ending(self) -> str:
        """Return a sentence that says how it ended."""
        name = f"the server {self.server.name}"
        if self.why:
            return f"{name} was ended: {self.why}"
        status = self._guard.poll() if self._guard else None
        if status == NOT_STARTED and self.written.lines:
            return f"{name} does not start: {self.written.lines[-1]}"
        how = f" with status {status}" if status else ""
        return f"{name} ended{how}{self.written.last}"

    async def close(self, why: str = "", *, now: bool = False) -> None:
        """Close its stdin, wait a little, then end it and all below it. `now`: without waiting."""
        self.why = self.why or why
        guard, orders = self._guard, self._orders
        if guard is None or orders is None:
            return
        assert guard.stdin is not None
        with suppress(OSError):
            guard.stdin.close()
        if not now:
            await _ended(guard, CLOSE_S)
        orders.close()
        if not await _ended(guard, KILL_S):
            guard.kill()
            await _ended(guard, KILL_S)
        for pipe in self._pipes:
            pipe.close()

    def _count(self, part: bytes) -> None:
        self._bytes += len(part)
        self._lines += part.count(b"\n")
        if self._bytes > MAX_BYTES:
            raise self._flood(f"more than {MAX_BYTES:,} bytes for one request")
        if self._lines > MAX_LINES:
            raise self._flood(f"more than {MAX_LINES:,} lines for one request")

    def _flood(self, what: str) -> EngineLost:
        self.why = self.why or f"it wrote {what}"
        return EngineLost(self.ending())


async def _ended(guard: subprocess.Popen[bytes], within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while guard.poll() is None:
        if loop.time() > until:
            return False
        await asyncio.sleep(0.01)
    return True

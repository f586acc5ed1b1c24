"""From a configured server to the two streams on which the SDK's session speaks.

What a server says of its own accord is dropped here: notices of progress, logs, changed lists (lists are read again
before each call). Its requests, for sampling, roots or a form, reach the session, which refuses them all.
Knows the SDK's messages; knows no tool. Path: ToolConnection -> over_stdio, over_http -> ChildServer, CheckedTransport
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from freehold.errors import EngineLost, UsageError
from freehold.tools.mcp.child import ChildServer
from freehold.tools.mcp.configured import MAX_MESSAGE, ToolServer

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
                    child.said.add(b"on stdout: " + line)
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

    from freehold.tools.mcp.transport import CheckedTransport

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

"""The load client itself, against a server of twenty lines: what it times, counts and calls an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from benches.server.load import Answer, ask, completion
from benches.server.scenarios import percentile

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SILENT_S = 0.3
Handler = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


def against(handler: Handler, **how: Any) -> Answer:
    """Ask a server that answers as `handler` does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await handler(writer)
            await writer.drain()
        writer.close()

    async def run() -> Answer:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answer = await ask(port, "/v1/completions", completion("m", "Hi", 2), **how)
            await asyncio.sleep(SILENT_S)  # handlers end before their loop does
            return answer

    return asyncio.run(run())


def framed(raw: bytes) -> bytes:
    """One part of a chunked body."""
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def event(**fields: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def piece(text: str, **fields: Any) -> bytes:
    """An event with a piece of text."""
    return event(choices=[{"index": 0, "text": text, **fields}])


async def whole(writer: asyncio.StreamWriter) -> None:
    """Two pieces, the second cut in the middle of its event, then usage and the end."""
    writer.write(HEAD + framed(b": alive\n\n" + piece("a")))
    await writer.drain()
    await asyncio.sleep(0.02)
    last = piece("b", finish_reason="length")
    writer.write(framed(last[:9]) + framed(last[9:]))
    writer.write(
        framed(event(choices=[], usage={"completion_tokens": 2}) + b"data: [DONE]\n\n") + b"0\r\n\r\n"
    )


async def cut(writer: asyncio.StreamWriter) -> None:
    """A stream that ends in the middle."""
    writer.write(HEAD + framed(piece("a")))


async def failing(writer: asyncio.StreamWriter) -> None:
    """A stream that ends with an error of the protocol."""
    writer.write(HEAD + framed(piece("a") + event(error={"message": "lost"})) + b"0\r\n\r\n")


async def silent(writer: asyncio.StreamWriter) -> None:
    """A stream that never ends."""
    writer.write(HEAD + framed(piece("a")))
    await writer.drain()
    await asyncio.sleep(SILENT_S)


def test_whole_stream_is_counted_and_timed_piece_by_piece():
    answer = against(whole)
    assert (answer.text, answer.tokens, answer.finish, answer.done) == ("ab", 2, {0: "length"}, True)
    assert len(answer.pieces) == 2 and answer.gaps[0] >= 0.02
    assert answer.ok and answer.explicit


def test_stream_cut_off_is_no_explicit_end():
    answer = against(cut)
    assert answer.text == "a" and not answer.complete and not answer.explicit


def test_error_within_a_stream_is_an_explicit_end_but_no_answer():
    answer = against(failing)
    assert answer.explicit and not answer.ok and answer.error == {"message": "lost"}


def test_stream_without_end_is_said_to_hang():
    answer = against(silent, limit_s=0.1)
    assert answer.hung and not answer.complete


def test_client_leaves_after_the_piece_it_was_told():
    answer = against(silent, leave_after=1)
    assert answer.left and len(answer.pieces) == 1 and not answer.hung


def test_slow_reader_still_gets_everything():
    assert against(whole, pause_s=0.01).text == "ab"


@pytest.mark.parametrize("percent, value", [(50, 2), (95, 4), (99, 4), (25, 1)])
def test_percentile_is_a_value_that_was_measured(percent: int, value: int):
    assert percentile([4, 1, 3, 2], percent) == value

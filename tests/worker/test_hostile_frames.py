"""Frames that no end may send: each ends the process with a named failure, and none leaves it deaf or waiting."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from freehold import __version__
from freehold.serve.worker import client, wire
from freehold.serve.worker.process.__main__ import Process
from freehold.serve.worker.wire import (
    PROTOCOL,
    Cancel,
    EngineReady,
    Failed,
    Frame,
    FromEngine,
    Hello,
    Open,
    Reader,
    Script,
    Submit,
    Writer,
)

OPEN = Writer().frame(Open(PROTOCOL, __version__, None, script=Script()))
RAW = msgspec.Raw(msgspec.msgpack.encode({"prompt": "x"}))
DEEP = b"\x91" * 100_000
EARLY = {
    "a length beyond the limit": ((wire.MAX_FRAME + 1).to_bytes(4, "little"), "a frame of 67,108,865 bytes"),
    "the longest length there is": (b"\xff" * 8, "a frame of 4,294,967,295 bytes"),
    "nothing in a frame": (bytes(4), "not a message"),
    "garbage": (b"\x03\0\0\0abc", "not a message"),
    "nested without end": (len(DEEP).to_bytes(4, "little") + DEEP, "not a message"),
    "the other direction's": (Writer().frame(Hello(PROTOCOL, __version__, 1)), "not a message"),
    "a job before its model": (Writer().frame(Submit(1, RAW)), "before the model is loaded"),
    "half a frame": (OPEN[:-1], ""),
    "half a length": (OPEN[:3], ""),
}
LATE = {name: EARLY[name] for name in ("a length beyond the limit", "garbage", "half a frame")}


def until_it_ends(sent: bytes, *, loaded: bool) -> list[Any]:
    """Send bytes to an engine process, before its model is loaded or then, and close; return what it answered."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = client._process_with(ours, theirs)
        try:
            theirs.close()
            ours.settimeout(60)
            reader, messages = Reader(FromEngine), list[Any]()
            if loaded:
                ours.sendall(OPEN)
                while not any(isinstance(each, EngineReady) for each in messages):
                    messages += reader.push(ours.recv(1 << 16))
            ours.sendall(sent)
            ours.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while data := ours.recv(1 << 16):
                    messages += reader.push(data)
            assert process.wait(60) == 0
            return messages
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", EARLY)
def test_an_engine_that_hears_nonsense_says_so_and_ends(name: str):
    sent, part = EARLY[name]
    failures = [each.message for each in until_it_ends(sent, loaded=False) if isinstance(each, Failed)]
    assert len(failures) == bool(part) and all(part in each for each in failures)


@pytest.mark.parametrize("name", LATE)
def test_an_engine_that_answers_and_hears_nonsense_says_so_and_ends(name: str):
    sent, part = LATE[name]
    failures = [each.message for each in until_it_ends(sent, loaded=True) if isinstance(each, Failed)]
    assert len(failures) == bool(part) and all(part in each for each in failures)


def test_an_engine_whose_reader_fails_ends(monkeypatch: pytest.MonkeyPatch):
    """Its thread ended alone: the process lived on, and heard neither jobs nor the end of its server."""

    class Failing:
        def take(self, messages: list[Any]) -> None:
            raise KeyError("a mistake of ours")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        process, ended = Process(theirs), list[bool]()
        monkeypatch.setattr(process, "_leave", lambda: ended.append(True))
        process._intake = Failing()  # type: ignore[assignment]
        ours.sendall(Writer().frame(Cancel(1)))
        process._read()
        [failed] = Reader(FromEngine).push(ours.recv(1 << 16))
    assert ended and failed.message == "internal error: KeyError"


def test_a_part_of_a_message_is_no_sign_of_life():
    """An engine that sends a byte a second was waited for without end."""

    async def main() -> None:
        engine = client.EngineProcess(lambda frame: None)
        engine.heard = 0.0
        frame = Writer().frame(Hello(PROTOCOL, __version__, 1))
        for at in range(len(frame) - 1):
            engine.data_received(frame[at : at + 1])
        assert engine.heard == 0.0
        engine.data_received(frame[-1:])
        assert engine.heard > 0.0

    asyncio.run(main())


def test_a_message_that_cannot_be_used_ends_its_process(caplog: pytest.LogCaptureFixture):
    """asyncio closed the socket then, and the server waited twelve seconds for a process that need not end."""

    async def main() -> None:
        def failing(frame: Frame) -> None:
            raise AttributeError("value")

        ours, theirs = socket.socketpair()
        engine = client.EngineProcess(failing)
        engine._process = process = client._process_with(ours, theirs)
        theirs.close()
        await asyncio.get_running_loop().create_unix_connection(lambda: engine, sock=ours)
        engine.data_received(Writer().frame(Frame([], None)))
        assert await asyncio.wait_for(engine.gone, 60) == "a message of it could not be used: AttributeError"
        assert process.returncode is not None

    asyncio.run(main())
    assert "a message of the engine process" in caplog.text

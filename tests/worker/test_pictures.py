"""Jobs with pictures on their way to an engine process: the same there, bounded, and never in the loop's way."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import pytest

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import MAX_PICTURE_BYTES, Image, Message
from freehold.serve.worker import client, wire
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.process.scripted import VOCAB, scripted_tokens
from freehold.serve.worker.wire import FromServer, ModelCall, Reader, Script, Submit, Writer, decode, packed
from tests.worker.conftest import tokens

HEAD = b"\x89PNG\r\n\x1a\n"
SMALL = Image.of(HEAD + bytes(50), "low")
LARGE = Image.of(HEAD.ljust(MAX_PICTURE_BYTES, b"\x07"))  # 14 MB on the wire
SCRIPTS = {"sees": Script(words=8, sees=True), "reads": Script(words=8), "slow": Script(60, 0.02, sees=True)}


def seen(image: Image) -> int:
    return crc32(image.decoded()) % VOCAB


def shown(*parts: str | Image) -> Job:
    return Job(messages=(Message("user", parts=parts),), sampling={"seed": 5})


JOBS = [
    shown(SMALL, "what?"),
    shown("left", LARGE, "right", SMALL),
    Job(messages=(*shown(LARGE, "a").messages * 2, Message("assistant", "b"), *shown(SMALL).messages)),
    Job(messages=(Message("user", "a"), Message("assistant", "b"), *shown("c", SMALL).messages) * 40),
]  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("method", ["", "count"])
def test_job_with_pictures_crosses_as_it_is(job: Job, method: str):
    raw = asyncio.run(packed(job))
    message = ModelCall(3, method, [raw], "me") if method else Submit(3, raw)
    pieces = Writer().pieces(message)
    assert b"".join(pieces) == Writer().frame(message)
    data, reader, got = b"".join(pieces) * 2, Reader(FromServer), []
    for at in range(0, len(data), 1 << 18):
        got += reader.push(data[at : at + (1 << 18)])
    for each in got:
        if method:
            assert (each.method, each.client) == ("count", "me") and wire.read(each.args[0], Job) == job
        else:
            assert decode(each.job, Job) == job
    assert len(got) == 2


def test_pictures_are_packed_beside_the_loop_and_not_through_one_call(monkeypatch: pytest.MonkeyPatch):
    threads, sizes, real = list[threading.Thread](), list[int](), wire._MEASURE.encode

    class Noting:
        def encode(self, value: object) -> bytes:
            threads.append(threading.current_thread())
            sizes.append(len(encoded := real(value)))
            return encoded

    monkeypatch.setattr(wire, "_MEASURE", Noting())
    asyncio.run(packed(JOBS[2]))
    assert max(sizes) < 10_000 and threading.main_thread() not in threads


def test_pictures_of_a_job_are_bounded_by_name():
    assert asyncio.run(packed(shown(*[LARGE] * 4)))
    with pytest.raises(UsageError, match="the 5 pictures of the chat have 52,428,800 bytes") as e:
        asyncio.run(packed(shown(*[LARGE] * 5)))
    assert "41,943,040" in e.value.message and e.value.hint and e.value.field == "messages"
    with pytest.raises(UsageError, match="not base64"):
        asyncio.run(packed(shown(Image("image/png", "ä" * 100_000))))


def test_the_whole_way_of_pictures_to_an_engine(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("sees")
        assert served.info.can_see and not (await models.use("reads")).info.can_see
        job = shown("a", SMALL, LARGE, "b")
        (a, b) = await served.tokenizer.tokenize("a b")
        ids = [a, seen(SMALL), seen(LARGE), b]
        stream = await served.start(job)
        assert stream.begin.prompt_ids == tuple(ids)
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 8)
        assert await served.count(job) == 4
        assert await served.tokenizer.render(job.messages or ()) == ids

    serve(body, scripts=SCRIPTS)


def test_a_bad_picture_fails_alone_with_its_place(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("sees")
        bad = Image("image/png", "aGVsbG8=", place="messages[1].content[0]")
        with pytest.raises(UsageError, match=r"^messages\[1\]") as e:
            await served.start(shown(SMALL, bad))
        assert e.value.field == "messages[1].content[0]"
        assert await served.count(shown(SMALL)) == 1

    serve(body, scripts=SCRIPTS)


def test_an_engine_that_takes_over_gets_the_pictures_again(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        stream = await served.start(shown("a", LARGE))
        got = []
        async for _, chunk in stream:
            got.append(chunk)
            if len(got) == 10:
                os.kill(served.pid, signal.SIGKILL)
        assert tokens(got) == scripted_tokens(5, 0, 60) and served.restarts == 1
        assert got[-1].usage is not None and got[-1].usage.prompt_tokens == 2

    serve(body, scripts=SCRIPTS)


@contextmanager
def longest_turn() -> Iterator[list[float]]:
    """Measure the longest that the loop keeps another task waiting; the list has it at the end."""
    out: list[float] = []

    async def look() -> None:
        longest, last = 0.0, time.perf_counter()
        try:
            while True:
                await asyncio.sleep(0)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
        finally:
            out.append(longest)

    task = asyncio.get_running_loop().create_task(look())
    yield out
    task.cancel()


@pytest.mark.heavy
def test_the_loop_waits_for_no_picture(serve):
    """56 MB, of which each copy in one call takes 30 ms; 9 ms were the longest turn on two quiet cores."""

    async def body(models: EngineModels) -> None:
        served = await models.use("sees")
        best = 1.0
        for _ in range(10):  # another process may hold the processor
            with longest_turn() as longest:
                await asyncio.sleep(0)
                assert await served.count(shown(*[LARGE] * 4)) == 4
            await asyncio.sleep(0.01)
            best = min(best, *longest)
        assert best < 0.05

    serve(body, scripts=SCRIPTS)


def test_small_messages_behind_a_large_one_keep_their_order(monkeypatch: pytest.MonkeyPatch):
    """The transport has room for little, and asks to wait in between."""

    class Transport:
        def __init__(self) -> None:
            self.got, self.paused = bytearray(), 0

        def is_closing(self) -> bool:
            return False

        def get_write_buffer_size(self) -> int:
            return 0

        def write(self, data: bytes) -> None:
            self.got += data
            assert len(data) <= client.PIECE
            if len(self.got) // (1 << 20) > self.paused:
                self.paused += 1
                process.pause_writing()
                asyncio.get_running_loop().call_soon(process.resume_writing)

    async def main() -> None:
        nonlocal process
        process = client.EngineProcess(lambda frame: None)
        transport = Transport()
        process._transport = transport  # type: ignore[assignment]
        raw = await packed(shown(LARGE))
        messages = [wire.Cancel(1), Submit(2, raw), wire.Cancel(3), Submit(4, raw), wire.Cancel(5)]
        for message in messages:
            process.send(message)
        while process._out:
            await asyncio.sleep(0)
        got = Reader(FromServer).push(bytes(transport.got))
        assert [each.id for each in got] == [1, 2, 3, 4, 5] and transport.paused > 20
        assert process._out_bytes == 0 and decode(got[3].job, Job) == shown(LARGE)

    process: client.EngineProcess
    asyncio.run(main())

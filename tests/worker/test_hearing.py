"""Recordings over the very wire: pulled part by part, continued after a death, stopped when their reader leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from freehold.base.errors import EngineLost, Overloaded, UnsupportedModel, UsageError
from freehold.base.serving import Job, SpeechJob
from freehold.serve.worker import stream as streams
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.process.intake import MOST, Recordings
from freehold.serve.worker.process.scripted import ScriptedModel
from freehold.serve.worker.stream import EngineHearing, RecordingTurns
from freehold.serve.worker.wire import HearBegin, HearBytes, Script
from tests.worker.test_handle import until

SCRIPTS = {
    "ears": Script(hears=True),
    "slow": Script(hears=True, step_s=0.05),
    "stuck": Script(hears=True, step_s=2.0),
    "early": Script(hears=True, step_s=0.01, poison="poison"),
    "text": Script(words=4),
}


@dataclass
class Kept:
    """A recording in memory."""

    data: bytes
    reads: int = 0

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, at: int, most: int) -> bytes:
        self.reads += 1
        return self.data[at : at + most]


def sound(seconds: int, first: int = 1) -> Kept:
    """A recording of which each second has a text of its own."""
    return Kept(b"".join(bytes([first + i]) * 1000 for i in range(seconds)))


def texts_of(recording: Kept) -> list[str]:
    data = recording.data
    return [f"w{sum(data[at : at + 1000])}" for at in range(0, len(data), 1000)]


async def transcript(stream: EngineHearing, kill: tuple[EngineHandle, int] | None = None) -> list[str]:
    """Read all texts; `kill` an engine after some."""
    texts: list[str] = []
    async for part in stream:
        texts += [segment.text for segment in part.segments]
        if kill is not None and len(texts) == kill[1]:
            os.kill(kill[0].pid, signal.SIGKILL)
    return texts


async def opened(models: EngineModels, name: str, recording: Kept, **job: Any) -> EngineHearing:
    handle = await models.use(name)
    return await handle.hear(SpeechJob(**job), recording)  # type: ignore[return-value]


def engine(models: EngineModels, name: str) -> EngineHandle:
    return models._handles[name]


def test_a_recording_is_sent_opened_and_heard_part_by_part(serve):
    async def body(models: EngineModels) -> None:
        recording = sound(5)
        stream = await opened(models, "ears", recording)
        assert (stream.facts.duration_s, stream.facts.speech_s, stream.facts.chunks) == (5.0, 5.0, 5)
        part = await anext(stream)
        (segment,) = part.segments
        assert (segment.start, segment.end, part.starts, part.language) == (0, 1, (0.0,), "en")
        assert [segment.text, *await transcript(stream)] == texts_of(recording)
        await until(lambda: engine(models, "ears").idle)

    serve(body, scripts=SCRIPTS)


def test_a_recording_of_many_messages_is_whole(serve):
    async def body(models: EngineModels) -> None:
        recording = Kept(os.urandom(900_000))
        assert await transcript(await opened(models, "ears", recording)) == texts_of(recording)
        assert recording.reads == 4

    serve(body, scripts=SCRIPTS)


@pytest.mark.parametrize("at", [1, 9])
def test_a_killed_engine_s_recording_goes_on_with_the_chunks_that_are_left(serve, at: int):
    async def body(models: EngineModels) -> None:
        recording = sound(10)
        stream = await opened(models, "slow", recording)
        handle = engine(models, "slow")
        assert await transcript(stream, (handle, at)) == texts_of(recording)
        assert handle.restarts == 1 and recording.reads == 2

    serve(body, scripts=SCRIPTS)


def test_the_language_stays_that_of_the_first_speech_after_a_death(serve):
    async def body(models: EngineModels) -> None:
        stream = await opened(models, "slow", sound(3))
        await anext(stream)
        assert stream._job.language == "en", "what a new engine is given"
        await stream.aclose()

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_a_recording_that_ends_every_engine_ends_with_an_error_and_others_go_on(serve, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LOST", 1)

    async def body(models: EngineModels) -> None:
        poisoned = Kept(b"a" * 1000 + b"poison".ljust(1000))
        stream = await opened(models, "early", poisoned)
        with pytest.raises(EngineLost, match="2 engines died one after another with this recording"):
            await transcript(stream)
        await stream.aclose()
        fine = sound(3)
        assert await transcript(await opened(models, "early", fine)) == texts_of(fine)

    serve(body, scripts=SCRIPTS)


def test_a_reader_that_leaves_stops_the_work_at_once(serve):
    async def body(models: EngineModels) -> None:
        stream = await opened(models, "stuck", sound(100))
        handle = engine(models, "stuck")
        pulling = asyncio.ensure_future(anext(stream))
        await until(lambda: handle.in_flight == 1)
        pulling.cancel()
        await asyncio.wait([pulling])
        await stream.aclose()
        assert handle.idle and handle.in_flight == 0
        await asyncio.sleep(0.5)  # in which the part would go on, and count its pieces as steps
        before = handle.stats.steps
        await asyncio.sleep(1.5)
        assert handle.stats.steps == before

    serve(body, scripts=SCRIPTS)


def test_a_recording_that_is_not_read_is_refused_by_the_engine(serve):
    async def body(models: EngineModels) -> None:
        with pytest.raises(UsageError, match="the recording is broken") as error:
            await opened(models, "ears", Kept(b"broken"))
        assert error.value.field == "file" and engine(models, "ears").idle

    serve(body, scripts=SCRIPTS)


def test_a_model_hears_or_reads_and_says_so(serve):
    async def body(models: EngineModels) -> None:
        with pytest.raises(UnsupportedModel, match="text cannot transcribe recordings"):
            await opened(models, "text", sound(1))
        ears = await models.use("ears")
        with pytest.raises(UnsupportedModel, match="only transcribes recordings"):
            await ears.start(Job(prompt="a"))

    serve(body, scripts=SCRIPTS)


def test_a_model_is_not_unloaded_between_two_parts(serve):
    async def body(models: EngineModels) -> None:
        handle = await models.use("ears")
        recording = sound(3)
        stream = await handle.hear(SpeechJob(), recording, keep_alive=0)
        texts = []
        async for part in stream:
            texts += [segment.text for segment in part.segments]
            await asyncio.sleep(0.05)
        assert texts == texts_of(recording) and recording.reads == 1
        await until(lambda: not engine(models, "ears").awake)

    serve(body, scripts=SCRIPTS)


def test_an_engine_whose_reader_is_slow_owes_nothing_and_is_not_idle(serve):
    """One that owes something and says nothing is killed as hung; one that is idle may be unloaded."""

    async def body(models: EngineModels) -> None:
        stream = await opened(models, "ears", sound(2))
        handle = engine(models, "ears")
        await anext(stream)
        assert not handle.idle and not handle._owes and handle.in_flight == 0
        await stream.aclose()
        assert handle.idle

    serve(body, scripts=SCRIPTS)


def test_more_recordings_than_are_open_wait_for_their_turn(serve):
    async def body(models: EngineModels) -> None:
        recordings = [sound(2, first) for first in range(1, 13)]
        streams = await asyncio.gather(
            *(heard_whole(models, each, client=f"key {i % 2}") for i, each in enumerate(recordings))
        )
        assert streams == [texts_of(each) for each in recordings]

    async def heard_whole(models: EngineModels, recording: Kept, client: str) -> list[str]:
        return await transcript(await opened(models, "ears", recording, client=client))

    serve(body, scripts=SCRIPTS)


# --- turns, without a process --------------------------------------------------------------------------


def test_turns_go_to_the_client_with_fewest_open_and_then_to_the_oldest():
    async def body() -> None:
        turns, order = RecordingTurns("m", most=3), list[str]()

        async def one(name: str, client: str) -> None:
            turn = await turns.mine(client)
            order.append(name)
            await asyncio.sleep(0)
            turn.end()
            turn.end()  # twice does nothing

        first = [await turns.mine(client) for client in ("a", "a", "c")]
        waiting = [asyncio.ensure_future(one(n, c)) for n, c in (("a1", "a"), ("a2", "a"), ("b1", "b"))]
        await asyncio.sleep(0)
        for turn in first:
            turn.end()
        await asyncio.gather(*waiting)
        assert order == ["b1", "a1", "a2"]

    asyncio.run(body())


def test_a_client_with_long_recordings_leaves_one_turn_to_others():
    async def body() -> None:
        turns = RecordingTurns("m", most=4)
        long = [await turns.mine("a") for _ in range(3)]
        fourth = asyncio.ensure_future(turns.mine("a"))
        await asyncio.sleep(0)
        (await asyncio.wait_for(turns.mine("b"), 5)).end()  # at once, though one of a waits
        assert not fourth.done()
        long[0].end()
        (await asyncio.wait_for(fourth, 5)).end()

    asyncio.run(body())


def test_a_turn_that_is_waited_for_no_more_goes_to_the_next():
    async def body() -> None:
        turns = RecordingTurns("m", most=1)
        first = await turns.mine("a")
        left, stays = (asyncio.ensure_future(turns.mine("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.end()
        left.cancel()  # its turn has come, and it does not know yet
        await asyncio.wait([left])
        (await asyncio.wait_for(stays, 5)).end()
        (await asyncio.wait_for(turns.mine("a"), 5)).end()

    asyncio.run(body())


def test_a_client_beyond_its_part_of_the_queue_is_refused_and_another_is_not():
    async def body() -> None:
        turns = RecordingTurns("m", most=1, waiting=4)
        await turns.mine("a")
        waiting = [asyncio.ensure_future(turns.mine("a")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="4 recordings are waiting for m; the limit is 4") as error:
            await turns.mine("a")
        assert error.value.wait_s > 0
        waiting.append(asyncio.ensure_future(turns.mine("b")))
        await asyncio.sleep(0)
        assert not waiting[-1].done()
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)

    asyncio.run(body())


# --- what a process does with calls that no server of ours makes ----------------------------------------

JOB = SpeechJob()


def held(script: Script | None = None) -> Recordings:
    return Recordings(ScriptedModel(script or Script(hears=True)), lambda: None)


def plain(value: Any) -> list[Any]:
    return [msgspec.to_builtins(value, builtin_types=(bytes,))]


@pytest.mark.parametrize(
    "begin, words",
    [
        (HearBegin(1, 0, JOB), "0 bytes"),
        (HearBegin(1, 2 << 30, JOB), "2,147,483,648 bytes"),
        (HearBegin(1, 5, replace(JOB, task="sing")), "not a request"),  # type: ignore[arg-type]
    ],
)
def test_a_begin_beyond_its_bounds_is_refused(begin: HearBegin, words: str):
    with pytest.raises(UsageError, match=words):
        held().call("hear_begin", plain(begin))


@pytest.mark.parametrize("piece", [HearBytes(1, 4, b"abc"), HearBytes(1, 0, b"abcdef")])
def test_bytes_out_of_place_are_refused(piece: HearBytes):
    recordings = held()
    recordings.call("hear_begin", plain(HearBegin(1, 5, JOB)))
    with pytest.raises(UsageError, match="of a recording came where 0 of 5"):
        recordings.call("hear_bytes", plain(piece))
    with pytest.raises(UsageError, match="0 of a recording's 5 bytes are there"):
        recordings.next(1)


def test_a_recording_that_is_not_here_is_none():
    recordings = held()
    assert recordings.call("hear_bytes", plain(HearBytes(7, 0, b"a"))) is None
    assert recordings.next(7) is None and recordings.call("hear_end", [7]) == 0


def test_a_process_keeps_no_more_recordings_than_it_may():
    recordings = held()
    for number in range(MOST):
        recordings.call("hear_begin", plain(HearBegin(number, 5, JOB)))
    with pytest.raises(UsageError, match=f"{MOST} recordings are open"):
        recordings.call("hear_begin", plain(HearBegin(MOST, 5, JOB)))
    recordings.call("hear_end", [0])
    recordings.call("hear_begin", plain(HearBegin(MOST, 5, JOB)))

"""What of a prompt is read crosses from an engine process to a stream, once for each change."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from freehold.base.serving import Begin, EngineStats, Job
from freehold.base.types import Chunk, SamplingParams, Usage
from freehold.serve.worker.process.intake import Channel, HostedModel, LiveJobs
from freehold.serve.worker.stream import EngineStream
from freehold.serve.worker.wire import Frame, FromEngine, Piece, Prefilled, Reader, Writer

BEGIN = Begin(100, (1, 2), SamplingParams(seed=1), 10)


class ReadingJob:
    """A job whose prompt a test reads step by step."""

    begin, done = BEGIN, False

    def __init__(self) -> None:
        self.prefill: tuple[int, int] | None = (0, 90)
        self.pieces: list[tuple[int, Chunk]] = []

    def enter(self) -> None: ...
    def cancel(self) -> None: ...

    def take(self) -> list[tuple[int, Chunk]]:
        taken, self.pieces = self.pieces, []
        return taken


def test_each_change_is_sent_once_and_none_while_the_job_waits():
    sent: list[Any] = []
    channel = SimpleNamespace(send_events=lambda events, stats: sent.extend(events))
    live = LiveJobs(cast(HostedModel, SimpleNamespace(stats=EngineStats())), cast(Channel, channel))
    job = ReadingJob()
    live.expect([7])
    live.enter([(7, job)])
    for read in ((0, 90), (40, 90), (40, 90), (80, 90)):
        job.prefill = read
        live.deliver(True)
    job.prefill, job.pieces = None, [(0, Chunk("a", token_ids=(5,)))]
    live.deliver(True)
    reports = [(e.done, e.total) for e in sent if isinstance(e, Prefilled)]
    assert reports == [(40, 90), (80, 90)]
    (frame,) = Reader(FromEngine).push(
        Writer().frame(Frame([e for e in sent if isinstance(e, Prefilled | Piece)]))
    )
    assert frame.events[0] == Prefilled(7, 40, 90)


def test_a_stream_knows_its_prefill_until_its_first_chunk():
    async def main() -> None:
        stream = EngineStream(1, Job(prompt="x"), lambda stream, working: None)
        stream.began(BEGIN)
        stream.prefill = (40, 90)
        stream.gain(0, Chunk("a", token_ids=(5,), finish_reason="stop", usage=Usage(90, 1)))
        assert stream.prefill is None

    asyncio.run(main())

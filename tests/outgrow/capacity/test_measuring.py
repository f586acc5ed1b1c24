"""Step times are recovered from what an engine's answers show of them, and a broken answer is not a measurement."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from freehold.base.errors import ServerUnreachable, UpstreamFailed, UsageError
from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.outgrow.capacity.measuring import EngineDoor, MeasurePlan, StepSamples, fit, measure, rules
from tests.outgrow.engines import synchronous

TRUE = StepTime((0, 1, 4, 16), (0.004, 0.006, 0.008, 0.02), 4e-7, 3e-4, 2e-8, beside=1.4, arrival=3e-3)


def samples_of(time: StepTime) -> StepSamples:
    """What an engine with these step times shows, without noise."""
    found = StepSamples()
    for tokens in (16, 256, 1024, 2048):
        found.prompts.append((tokens, time.arrival + time.seconds(0, 0, tokens)))
    for batch in (1, 4, 16):
        for depth in (64, 1024):
            found.steps.append((batch, batch * depth, time.seconds(batch, batch * depth)))
    for batch in (1, 4):  # a step gives a prompt 1.2 times its own time
        step = time.of_batch(batch)
        cost = (time.seconds(0, 0, 1024) - time.of_batch(0)) * time.beside
        made = cost / (1.2 * step)
        found.beside.append((batch, 1024, time.arrival + made * 2.2 * step, made))
    return found


def test_an_engines_step_times_are_recovered_from_its_answers():
    found = fit(samples_of(TRUE), rules("vllm"))
    time = found.time
    assert time.depth == pytest.approx(TRUE.depth, rel=0.01)
    assert time.prompt == pytest.approx(TRUE.prompt, rel=0.01)
    assert time.positions == pytest.approx(TRUE.positions, rel=0.05)
    assert time.beside == pytest.approx(TRUE.beside, rel=0.05)
    assert found.limits.pace == pytest.approx(2.2, rel=0.05)
    for batch in (1, 2, 4, 16, 20):
        assert time.of_batch(batch) == pytest.approx(TRUE.of_batch(batch), rel=0.01)
    assert time.arrival + time.of_batch(0) == pytest.approx(TRUE.arrival + TRUE.of_batch(0), rel=0.02)
    assert time.spread < 0.01


def test_noise_becomes_spread_and_no_term_falls_below_zero():
    noisy = samples_of(TRUE)
    noisy.steps = [(b, d, s * (1.3 if n % 2 else 0.8)) for n, (b, d, s) in enumerate(noisy.steps)]
    noisy.prompts = [(16, 0.2), (256, 0.19), (1024, 0.21), (2048, 0.2)]  # prompts that cost nothing
    time = fit(noisy, rules("vllm")).time
    assert time.spread > 0.1
    assert min(time.depth, time.prompt, time.positions, time.arrival) >= 0


@pytest.mark.parametrize("limits", [{"chunk": "x"}, {"room": -1}, {"streams": 1.5}, {"pace": float("nan")}])
def test_limits_that_bound_nothing_are_refused(limits: dict):
    with pytest.raises(UsageError):
        EngineLimits(**limits)


def test_too_little_is_refused():
    with pytest.raises(UsageError, match="too little"):
        fit(StepSamples(prompts=[(10, 0.1), (20, 0.2)]), rules("vllm"))
    with pytest.raises(UsageError):
        MeasurePlan(batches=())
    with pytest.raises(UsageError):
        MeasurePlan(tokens=2)
    for wrong in ({"batches": (10**9,)}, {"clients": (0,)}, {"depths": (10**9,)}):
        with pytest.raises(UsageError, match="cannot be measured"):
            MeasurePlan(**wrong)


def test_a_model_of_an_engine_survives_its_file_and_a_wrong_file_is_named(tmp_path: Path):
    model = EngineModel(TRUE, EngineLimits(streams=16, room=9000), {"model": "tiny"})
    (tmp_path / "a.json").write_text(json.dumps(model.as_json()))
    assert EngineModel.load(tmp_path / "a.json") == model
    for text in (
        "",
        "[]",
        "{}",
        '{"schema": 9}',
        '{"a": ' + "[" * 100_000,
        '{"schema": 1, "time": {"batches": [0], "fixed": [1]}, "limits": {"x": 1}}',
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UsageError, match=r"b\.json"):
            EngineModel.load(tmp_path / "b.json")
    with pytest.raises(UsageError, match="cannot be read"):
        EngineModel.load(tmp_path / "gone.json")


def test_step_times_that_cannot_be_are_refused():
    for batches, fixed in (
        ((1, 2), (1.0, 1.0)),
        ((0, 4, 2), (1.0, 1.0, 1.0)),
        ((0,), (0.0,)),
        ((0, 1), (1.0, -1.0)),
        ((0, 1), (1.0, 1e300)),
        ((0, 1), (1.0, float("nan"))),
    ):
        with pytest.raises(UsageError):
            StepTime(batches, fixed)


@asynccontextmanager
async def engine(fail: str = "") -> AsyncIterator[str]:
    """A server that makes a token a millisecond; `fail`: status, event, cut."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(v) for k, _, v in (x.partition(": ") for x in head.split("\r\n")) if k == "Content-Length"
        )
        body = json.loads(await reader.readexactly(length) or b"{}")
        if head.startswith("GET"):
            text = json.dumps({"data": [{"id": "tiny", "owned_by": "vllm"}]})
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        elif fail == "status":
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for _ in range(body["max_tokens"]):
                writer.write(b'data: {"choices": [{"text": "a"}]}\n\n')
                await asyncio.sleep(0.001)
            if fail == "event":
                writer.write(b'data: {"error": {"message": "the engine ended"}}\n\n')
            used = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
            writer.write(f"data: {json.dumps({'choices': [], 'usage': used})}\n\ndata: [DONE]\n\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@synchronous
async def test_an_engine_is_measured_through_its_api():
    plan = MeasurePlan((1, 2), depths=(16,), prompts=(8, 64), beside=(), clients=(2,), tokens=12, rounds=1)
    async with engine() as url:
        door = EngineDoor(url, "tiny")
        assert await door.models() == {"tiny": "vllm"}
        answer = await door.ask("one two three", 5)
        assert (answer.tokens, answer.prompt_tokens, answer.error) == (5, 3, "")
        assert 1 <= len(answer.pieces) <= 5 and answer.pieces[0] >= answer.sent
        samples = await measure(door, plan)
    assert {b for b, _, _ in samples.steps} == {1, 2} and len(samples.prompts) == 4
    assert [len(run) for run in samples.runs] == [16]
    assert fit(samples, rules("vllm")).time.of_batch(1) > 0


@synchronous
async def test_an_answer_that_breaks_is_not_a_measurement():
    for fail in ("status", "event"):
        async with engine(fail) as url:
            answer = await EngineDoor(url, "tiny").ask("one two", 3)
            assert answer.error
            with pytest.raises(UpstreamFailed):
                await measure(EngineDoor(url, "tiny"), MeasurePlan(batches=(1,), rounds=1))
    with pytest.raises(ServerUnreachable):
        await EngineDoor("http://127.0.0.1:9/v1", "tiny").ask("one", 1)
    with pytest.raises(UsageError):
        await EngineDoor("ftp://127.0.0.1", "tiny").ask("one", 1)


def test_a_doors_key_is_not_shown():
    assert "secret" not in repr(EngineDoor("http://127.0.0.1:1/v1", "tiny", "secret"))

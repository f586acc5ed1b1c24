"""Frames: cut anywhere they read the same, and nothing that is none gets through."""

from __future__ import annotations

import asyncio
import itertools
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.base.errors import BadModelFile, FreeholdError, Overloaded, UsageError
from freehold.base.serving import Begin, EngineStats, Job
from freehold.base.types import Chunk, Message, SamplingParams, TokenLogprob, ToolCall, Usage
from freehold.serve.worker import wire
from freehold.serve.worker.wire import (
    BadFrame,
    Began,
    CallReply,
    Cancel,
    Failed,
    Frame,
    FromEngine,
    FromServer,
    Piece,
    Reader,
    Submit,
    Writer,
    decode,
)


def packed(job: Job) -> msgspec.Raw:
    return asyncio.run(wire.packed(job))


LOGPROB = TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.0)), b"\xe2\x82", (b"\xe2\x82", b"x"))
FRAME = Frame(
    [
        Began(1, Begin(64, (1, 2), SamplingParams(logit_bias={3: 1.5}, seed=7), 9, 2, (None, LOGPROB))),
        Piece(1, 0, Chunk("a", "b", (5,), (LOGPROB,))),
        Piece(1, 1, Chunk(finish_reason="stop", usage=Usage(2, 3))),
        Failed(2, "Overloaded", "full", "wait", 1.5),
        CallReply(3, [b"\xff", 4, "x"]),
    ],
    EngineStats(steps=3, progress_at=1.25),
)


@given(cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_frames_cut_anywhere_are_the_same_messages(cuts: list[int]):
    data = Writer().frame(FRAME) + Writer().frame(Frame([], None)) + Writer().frame(FRAME)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = Reader(FromEngine)
    got = [m for a, b in itertools.pairwise(edges) for m in reader.push(data[a:b])]
    assert got == [FRAME, Frame([], None), FRAME]


def test_length_beyond_the_limit_is_refused_before_it_is_read():
    with pytest.raises(BadFrame, match="a frame of 67,108,865 bytes; the limit is 67,108,864"):
        Reader(FromServer).push((wire.MAX_FRAME + 1).to_bytes(4, "little"))


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_is_a_message(payload: bytes):
    reader = Reader(FromServer)
    try:
        reader.push(len(payload).to_bytes(4, "little") + payload)
    except BadFrame as e:
        assert "not a message" in str(e)


def test_deeply_nested_garbage_is_refused():
    payload = b"\x91" * 100_000
    with pytest.raises(BadFrame):
        Reader(FromServer).push(len(payload).to_bytes(4, "little") + payload)


def test_message_of_the_other_direction_is_refused():
    with pytest.raises(BadFrame):
        Reader(FromEngine).push(Writer().frame(Cancel(1)))


def test_job_with_a_wrong_field_is_refused_alone():
    raw = msgspec.Raw(msgspec.msgpack.encode({"prompt": "x", "n": "three"}))
    [submit] = Reader(FromServer).push(Writer().frame(Submit(1, raw)))
    with pytest.raises(UsageError, match=r"Expected `int`, got `str` - at `\$.n`"):
        decode(submit.job, Job)


def test_job_crosses_as_it_is():
    job = Job(
        messages=(Message("user", "é🙂"),),
        n=2,
        sampling={"logit_bias": {7: -1.0}, "seed": 2**63},
        resume=((1, 2), ()),
        timeout_s=1.5,
    )
    assert decode(Writer().raw(job), Job) == job


CALLS = tuple(ToolCall(f"c{i}", "f", '{"a": 1}') for i in range(wire.SHORT_CHAT + 1))


@pytest.mark.parametrize(
    "job",
    [
        Job(messages=(Message("user", "é🙂"),) * (wire.SHORT_CHAT + 1), n=2),
        Job(messages=(Message("assistant", "", tool_calls=CALLS),)),
        Job(messages=(Message("user", "x" * (wire.SHORT_TEXT + 1)),)),
        Job(prompt=tuple(range(wire.SHORT_TEXT + 1)), suffix="y"),
    ],
)
def test_long_job_is_packed_beside_the_loop_and_crosses_as_it_is(monkeypatch, job: Job):
    threads: list[threading.Thread] = []
    real = wire.encoded
    monkeypatch.setattr(
        wire, "encoded", lambda job: (threads.append(threading.current_thread()), real(job))[1]
    )
    assert decode(packed(job), Job) == job
    assert threads[0] is not threading.main_thread()
    assert decode(packed(Job(prompt="short")), Job) == Job(prompt="short")
    assert threads[1] is threading.main_thread()


def test_no_call_of_the_encoder_takes_a_long_chat_whole(monkeypatch: pytest.MonkeyPatch):
    """One call of 10,000 messages held the interpreter for 15 ms."""
    encoded: list[object] = []

    class Noting:
        def encode(self, value: object) -> bytes:
            encoded.append(value)
            return msgspec.msgpack.encode(value)

    monkeypatch.setattr(wire, "_MEASURE", Noting())
    packed(Job(messages=(Message("user", "hi"),) * 1000))
    *messages, job = encoded
    assert len(messages) == 1000 and all(isinstance(each, Message) for each in messages)
    assert isinstance(job, Job) and isinstance(job.messages, msgspec.Raw)


@pytest.mark.parametrize("value", [object(), 1 << 64])
def test_value_without_a_form_is_a_usage_error(value: object):
    with pytest.raises(UsageError, match="cannot be sent"):
        Writer().raw(Job(prompt="x", sampling={"seed": value}))
    with pytest.raises(UsageError, match="cannot be sent"):
        packed(Job(prompt="x", sampling={"seed": value}))


def test_message_too_large_is_a_usage_error_and_the_next_one_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "MAX_FRAME", 4000)
    writer = Writer()
    with pytest.raises(UsageError, match="the limit is 4,000"):
        writer.frame(CallReply(1, "x" * 4001))
    assert Reader(FromEngine).push(writer.frame(FRAME)) == [FRAME]


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", "wait", 3.0),
        UsageError("no schema", "write one", field="format"),
        BadModelFile("broken", "fetch it again"),
    ],
)
def test_error_crosses_by_its_name(error: FreeholdError):
    got = Failed.of(4, error).error
    assert (type(got), got.message, got.hint) == (type(error), error.message, error.hint)
    assert vars(got) == vars(error)


def test_our_own_mistake_keeps_its_details_in_the_log(capfd: pytest.CaptureFixture[str]):
    got = Failed.of(4, KeyError("/secret/path")).error
    assert type(got) is FreeholdError and got.message == "internal error: KeyError"
    assert "/secret/path" in capfd.readouterr().err


def test_error_of_no_known_class_is_still_an_error():
    assert type(Failed(1, "os", "x").error) is FreeholdError

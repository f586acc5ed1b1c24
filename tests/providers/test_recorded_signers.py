"""Documented requests and answers of the wires that sign reasoning, Anthropic's and Gemini's, both ways.

The recordings are minimal JSON written from the shapes that each page in `source` documents. An answer that is read
and sent back is the documented block again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic.types import Message as ClaudeMessage
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message, SignedThinking, ToolCall, Usage
from freehold.route.providers.contract import Kind, Piece, Provider, RemoteModel
from freehold.route.providers.upstream import EventSplitter, wire_of
from tests.providers.sending import calls, joined
from tests.providers.standin.anthropic import AnthropicStandIn
from tests.providers.standin.gemini import GeminiStandIn

FOLDER = Path(__file__).parent / "recordings"
KINDS: tuple[Kind, ...] = ("anthropic", "gemini")
RECORDED: list[tuple[Kind, dict[str, Any]]] = [
    (kind, case)
    for kind in KINDS
    for case in json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
]


def those(wanted: Callable[[Kind, dict[str, Any]], bool] = lambda kind, case: True) -> list[Any]:
    """The recordings that are wanted, as parameters of a test."""
    return [pytest.param(k, case, id=f"{k}: {case['name']}") for k, case in RECORDED if wanted(k, case)]


CASES = those()
STREAMS = those(lambda kind, case: "events" in case)
WHOLE = those(lambda kind, case: "answer" in case)
CLAUDES = those(lambda kind, case: kind == "anthropic")
SENT_BACK = those(lambda kind, case: "answer" in case and case["expect"]["finish_reason"] != "content_filter")
CLAUDE_EVENT = TypeAdapter(RawMessageStreamEvent)


def model_of(kind: Kind, case: dict[str, Any]) -> RemoteModel:
    return RemoteModel(Provider("far", kind, "https://far.example/v1"), case["model"])


def job_of(case: dict[str, Any]) -> Job:
    return msgspec.convert(case["job"], Job)


def check(pieces: list[Piece], expect: dict[str, Any]) -> None:
    made = [ToolCall(**call) for call in expect.get("tool_calls", ())]
    rest = {k: v for k, v in expect.items() if k not in ("tool_calls", "usage", "signed")}
    signed = tuple(SignedThinking(**block) for block in expect.get("signed", ()))
    assert joined(pieces) == Chunk(usage=Usage(**expect["usage"]), signed=signed, **rest)
    assert calls(pieces) == made


@pytest.mark.parametrize("kind, case", CASES)
def test_a_job_becomes_the_documented_request(kind: Kind, case: dict[str, Any]):
    sent = wire_of(kind).request(model_of(kind, case), job_of(case), stream="events" in case)
    assert json.loads(sent.body) == case["request"]
    assert sent.warnings == ()


@pytest.mark.parametrize("kind, case", CLAUDES)
def test_the_vendors_own_types_take_the_recordings(kind: Kind, case: dict[str, Any]):
    if "answer" in case:
        ClaudeMessage.model_validate(case["answer"], strict=True)
    for event in case.get("events", ()):
        if event["type"] != "ping":
            CLAUDE_EVENT.validate_python(event)


@pytest.mark.parametrize("kind, case", WHOLE)
def test_a_documented_answer_is_read_whole(kind: Kind, case: dict[str, Any]):
    answer = wire_of(kind).whole(json.dumps(case["answer"]).encode(), job_of(case))
    assert answer.answer_id == case["answer"].get("id", case["answer"].get("responseId"))
    check([*answer.pieces], case["expect"])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("kind, case", STREAMS)
def test_a_documented_stream_is_read_wherever_it_is_cut(kind: Kind, case: dict[str, Any], line_end: bytes):
    names = [b"event: " + e["type"].encode() + line_end if "type" in e else b"" for e in case["events"]]
    lines = [b"data: " + json.dumps(event, ensure_ascii=False).encode() for event in case["events"]]
    whole = b"".join(name + line + line_end * 2 for name, line in zip(names, lines, strict=True))
    for cuts in range(1, 30):
        places = sorted(random.Random(cuts).sample(range(len(whole)), cuts))
        splitter, reader = EventSplitter(), wire_of(kind).reader(job_of(case))
        pieces: list[Piece] = []
        for start, end in zip([0, *places], [*places, len(whole)], strict=True):
            for event, data in splitter.feed(whole[start:end]):
                assert not reader.ended
                pieces += reader.push(event, data)
        assert reader.ended
        check(pieces, case["expect"])


@pytest.mark.parametrize("kind, case", STREAMS)
def test_a_documented_stream_without_its_last_event_has_not_ended(kind: Kind, case: dict[str, Any]):
    reader = wire_of(kind).reader(job_of(case))
    pieces = [p for e in case["events"][:-1] for p in reader.push(e.get("type", ""), json.dumps(e).encode())]
    assert not reader.ended
    assert all(chunk.finish_reason is None for _, chunk in pieces)


@pytest.mark.parametrize("kind, case", SENT_BACK)
def test_an_answer_sent_back_is_what_was_read(kind: Kind, case: dict[str, Any]):
    pieces = [*wire_of(kind).whole(json.dumps(case["answer"]).encode(), job_of(case)).pieces]
    got = joined(pieces)
    said = Message("assistant", got.text, tool_calls=tuple(calls(pieces)), signed=got.signed)
    answers = [Message("tool", "1", tool_call_id=call.id) for call in calls(pieces)] or [
        Message("user", "And?")
    ]
    back = Job(messages=(Message("user", "x"), said, *answers), max_tokens=2000, tools=job_of(case).tools)
    body = json.loads(wire_of(kind).request(model_of(kind, case), replace(back), stream=False).body)
    if kind == "anthropic":
        blocks = [{k: v for k, v in block.items() if k != "citations"} for block in case["answer"]["content"]]
        assert body["messages"][1]["content"] == blocks
    else:
        assert body["contents"][1]["parts"] == case["answer"]["candidates"][0]["content"]["parts"]


@pytest.mark.parametrize("kind, case", CASES)
def test_the_stand_in_knows_the_documented_requests(kind: Kind, case: dict[str, Any]):
    """It refuses only signatures, which are not its own."""
    headers = {"x-api-key": "k", "x-goog-api-key": "k", "anthropic-version": "2023-06-01"}
    body = json.dumps(case["request"]).encode()
    if kind == "anthropic":
        wrong = AnthropicStandIn().check("/anthropic/v1/messages", headers, body)
    else:
        wrong = GeminiStandIn().check(f"/gemini/v1beta/models/{case['model']}:generateContent", headers, body)
    assert wrong == "" or "ignature" in wrong

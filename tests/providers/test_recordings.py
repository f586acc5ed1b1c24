"""Documented requests and answers of OpenAI's wire and its dialects, both ways.

The recordings are minimal JSON written from the shapes that each page in `source` documents.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

from freehold.base.serving import Job
from freehold.base.types import Chunk, ToolCall, Usage
from freehold.route.providers.contract import Abilities, Kind, Piece, Provider, RemoteModel, UpstreamFault
from freehold.route.providers.upstream import EventSplitter, wire_of
from tests.providers.sending import calls, joined

FOLDER = Path(__file__).parent / "recordings"
KINDS: dict[str, Kind] = {
    "openai": "openai",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "compatible": "openai-compatible",
}
CASES = [
    pytest.param(kind, case, id=f"{name}: {case['name']}")
    for name, kind in KINDS.items()
    for case in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
]
CAN = Abilities(logprobs=True, several=True, seed=True)


def model_of(kind: Kind, case: dict[str, Any]) -> RemoteModel:
    return RemoteModel(Provider("far", kind, "https://far.example/v1"), case["model"], abilities=CAN)


def job_of(case: dict[str, Any]) -> Job:
    return msgspec.convert(case["job"], Job)


def wanted(expect: dict[str, Any]) -> tuple[Chunk, list[ToolCall]]:
    made = [ToolCall(**call) for call in expect.get("tool_calls", ())]
    usage = Usage(**expect["usage"])
    rest = {k: v for k, v in expect.items() if k not in ("tool_calls", "usage", "logprobs")}
    return Chunk(usage=usage, **rest), made


@pytest.mark.parametrize("kind, case", CASES)
def test_a_job_becomes_the_documented_request(kind: Kind, case: dict[str, Any]):
    sent = wire_of(kind).request(model_of(kind, case), job_of(case), stream="events" in case)
    body = json.loads(sent.body)
    assert body == case["request"]
    assert sent.path == ("/completions" if "prompt" in body else "/chat/completions")


@pytest.mark.parametrize("kind, case", [c for c in CASES if c.values[0] == "openai"])
def test_openai_s_own_types_take_the_requests_and_the_recordings(kind: Kind, case: dict[str, Any]):
    streams = "events" in case
    params = CompletionCreateParamsStreaming if streams else CompletionCreateParamsNonStreaming
    assert case["request"].keys() <= params.__required_keys__ | params.__optional_keys__
    TypeAdapter(params).validate_python(case["request"])
    for event in case.get("events", ()):
        ChatCompletionChunk.model_validate(event, strict=True)
    if not streams:
        ChatCompletion.model_validate(case["answer"], strict=True)


@pytest.mark.parametrize("kind, case", [c for c in CASES if "answer" in c.values[1]])
def test_a_documented_answer_is_read_whole(kind: Kind, case: dict[str, Any]):
    answer = wire_of(kind).whole(json.dumps(case["answer"]).encode(), job_of(case))
    assert answer.answer_id == case["answer"]["id"]
    check([*answer.pieces], case["expect"])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("kind, case", [c for c in CASES if "events" in c.values[1]])
def test_a_documented_stream_is_read_wherever_it_is_cut(kind: Kind, case: dict[str, Any], line_end: bytes):
    lines = [b"data: " + json.dumps(e, ensure_ascii=False).encode() for e in case["events"]]
    whole = b"".join(line + line_end * 2 for line in (b": a comment", *lines, b"data: [DONE]"))
    for cuts in range(1, 40):
        places = sorted(random.Random(cuts).sample(range(len(whole)), min(cuts, len(whole) - 1)))
        splitter, reader = EventSplitter(), wire_of(kind).reader(job_of(case))
        pieces: list[Piece] = []
        for start, end in zip([0, *places], [*places, len(whole)], strict=True):
            for event, data in splitter.feed(whole[start:end]):
                pieces += reader.push(event, data)
        assert reader.ended
        check(pieces, case["expect"])
        if "second" in case:
            check(pieces, case["second"], answer=1)


def check(pieces: list[Piece], expect: dict[str, Any], answer: int = 0) -> None:
    chunk, made = wanted(expect)
    got = joined(pieces, answer)
    logged = [[t.token.decode(), t.logprob] for t in got.logprobs]
    assert logged == expect.get("logprobs", [])
    assert replace(got, logprobs=()) == chunk
    if answer == 0:
        assert calls([p for p in pieces if p[0] == 0]) == made


ODD: list[Any] = [None, True, -1, 0, 2**70, 1.5, "", "x", [], [None], {}, {"text": 7}]


@pytest.mark.parametrize("kind, case", CASES)
def test_a_changed_value_is_read_or_a_fault_and_nothing_else(kind: Kind, case: dict[str, Any]):
    events = case.get("events") or [case["answer"]]
    places = [(n, *place) for n, event in enumerate(events) for place in _places(event)]
    for place in places:
        for odd in ODD:
            sent = json.loads(json.dumps(events))
            _put(sent, place, odd)
            bodies = [json.dumps(event).encode() for event in sent]
            try:
                if "answer" in case:
                    wire_of(kind).whole(bodies[0], job_of(case))
                else:
                    reader = wire_of(kind).reader(job_of(case))
                    for body in (*bodies, b"[DONE]"):
                        reader.push("", body)
            except UpstreamFault as e:
                assert e.cause in ("invalid", "broken", "server", "rate")


def _places(value: Any) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, inner in items for rest in [(), *_places(inner)]]


def _put(value: Any, place: tuple[Any, ...], odd: Any) -> None:
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = odd

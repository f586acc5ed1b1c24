"""What a client puts into any field of a protocol, and that reaches a model, is read by the gateway's detectors."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from freehold.route.providers.texts import texts_of
from freehold.route.router.detect import Sieve
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.router.detect.lists import must_find

CANARY = "canary-7141"
ARGUMENTS = json.dumps({"to": "x"})
SCHEMA = {"type": "object", "title": "x", "properties": {"to": {"type": "string", "description": "x"}}}
FUNCTION = {"name": "send", "description": "x", "parameters": SCHEMA}
CHAT = {
    "model": "fake:1b",
    "messages": [
        {"role": "system", "content": "x"},
        {"role": "user", "name": "x", "content": [{"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "content": "x",
            "reasoning_content": "x",
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "send", "arguments": ARGUMENTS}}
            ],
        },
        {"role": "tool", "tool_call_id": "x", "content": "x"},
        {"role": "user", "content": "x"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "stop": ["x"],
    "user": "x",
    "metadata": {"x": "x"},
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat with a schema": (
        "/v1/chat/completions",
        {
            "model": "fake:1b",
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    "completions": (
        "/v1/completions",
        {"model": "fake:1b", "prompt": "x", "suffix": "x", "stop": "x", "user": "x"},
    ),
    "embeddings": ("/v1/embeddings", {"model": "fake:1b", "input": ["x", "x"], "user": "x"}),
    "responses": (
        "/v1/responses",
        {
            "model": "fake:1b",
            "instructions": "x",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
                {"type": "function_call", "call_id": "c", "name": "send", "arguments": ARGUMENTS},
                {"type": "function_call_output", "call_id": "c", "output": "x"},
                {"role": "user", "content": "x"},
            ],
            "tools": [{"type": "function", "strict": False, **FUNCTION}],
            "metadata": {"x": "x"},
        },
    ),
    "messages": (
        "/v1/messages",
        {
            "model": "fake:1b",
            "max_tokens": 50,
            "system": [{"type": "text", "text": "x"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "x", "signature": "x"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "x"},
                        {"type": "tool_use", "id": "t", "name": "send", "input": {"to": "x", "x": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "text", "text": "x"}],
                        }
                    ],
                },
                {"role": "user", "content": "x"},
            ],
            "tools": [{"name": "send", "description": "x", "input_schema": SCHEMA}],
            "stop_sequences": ["x"],
            "metadata": {"user_id": "x"},
        },
    ),
    "count_tokens": (
        "/v1/messages/count_tokens",
        {"model": "fake:1b", "system": "x", "messages": [{"role": "user", "content": "x"}]},
    ),
    "ollama chat": (
        "/api/chat",
        {
            "model": "fake:1b",
            "stream": False,
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "content": "x",
                    "thinking": "x",
                    "tool_calls": [{"function": {"name": "send", "arguments": {"to": "x"}}}],
                },
                {"role": "tool", "tool_name": "send", "content": "x"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "options": {"stop": ["x"]},
        },
    ),
    "ollama generate": (
        "/api/generate",
        {"model": "fake:1b", "stream": False, "prompt": "x", "suffix": "x"},
    ),
    "ollama generate with a template": (
        "/api/generate",
        {"model": "fake:1b", "stream": False, "prompt": "x", "system": "x"},
    ),
    "ollama embed": ("/api/embed", {"model": "fake:1b", "input": ["x"]}),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text in a body that a client may write freely."""
    if isinstance(value, str):
        if value == "x" or value == ARGUMENTS:
            yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def planted(body: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """Return the body with the canary at a place."""
    body = copy.deepcopy(body)
    at: Any = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = json.dumps({"to": CANARY}) if at[path[-1]] == ARGUMENTS else CANARY
    return body


def reached(running: Running) -> list[Any]:
    """Return the jobs that reached a model, whichever way."""
    served = [*running.models.served.values()]
    return [job for each in served for job in (*each.jobs, *each.counted, *each.embeddings)]


FIELDS = [(name, path) for name, (_, body) in BODIES.items() for path in places(body)]
ITEMS = must_find()
SIEVE = Sieve()


def test_the_bodies_have_fields_of_every_kind():
    assert len(FIELDS) > 60


@pytest.mark.parametrize(("name", "path"), FIELDS, ids=[f"{n}-{'.'.join(map(str, p))}" for n, p in FIELDS])
def test_a_text_in_any_field_that_reaches_a_model_is_read(serving, name: str, path: tuple[Any, ...]):
    running = serving(Script(calls=()))
    door, body = BODIES[name]
    answer = running.client.post(door, json=planted(body, path))
    jobs = [job for job in reached(running) if CANARY in repr(job)]
    assert answer.status_code == 200 or not reached(running), answer.text
    for job in jobs:
        texts = [text for text in texts_of(job) if CANARY in text]
        assert texts, f"{name} {path} reaches the model unread"
        for item in ITEMS:
            found = SIEVE.find([text.replace(CANARY, item.text) for text in texts])
            assert item.name in {finding.name for finding in found}, (name, path, item)


def test_most_fields_reach_a_model(serving):
    """The test above would be empty if the server refused the bodies."""
    dropped = set()
    for name, path in FIELDS:
        running = serving(Script())
        door, body = BODIES[name]
        running.client.post(door, json=planted(body, path))
        if not any(CANARY in repr(job) for job in reached(running)):
            dropped.add((name, path[-1] if isinstance(path[-1], str) else path[-2]))
    unsent = {"user", "metadata", "x", "user_id", "name", "title"}
    paired = {"id", "tool_call_id"}  # one without the other is refused
    opaque = {"signature", "data"}  # of a provider's reasoning
    assert {last for _, last in dropped} <= unsent | paired | opaque, dropped

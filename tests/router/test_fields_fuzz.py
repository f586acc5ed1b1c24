"""Every field of every route that a gateway has, with any value, on routes that cache, retry and limit time.

None makes the server fail, and none of one key takes a target from another: no breaker is opened by a caller.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from freehold.route.router.opening import ProviderModels
from freehold.serve.http.app import document, routes
from tests.providers.standin import Answer, StandIn
from tests.providers.standin.server import Received
from tests.router.house import House, at_standin, open_house

# FREEHOLD_FUZZ: requests to each kind of provider; every field with every value takes some 12,000.
REQUESTS = int(os.environ.get("FREEHOLD_FUZZ", "500"))
KINDS = ["openai", "anthropic", "gemini"] if "FREEHOLD_FUZZ" in os.environ else ["openai"]
ROUTES = """
[labels.personal]
stay = ["far", "box"]
detect = ["pii", "secrets"]
[routes.cached]
targets = ["big", "own"]
cache = "60s"
retries = 1
breaker = { failures = 1, cooldown = "60s" }
[routes.lone]
targets = ["big"]
cache = "60s"
retries = 1
timeout = "10s"
breaker = { failures = 1, cooldown = "60s" }
[routes.owned]
targets = ["own"]
cache = "60s"
retries = 1
breaker = { failures = 1, cooldown = "60s" }
"""
KEYS = {"mallory": "fh-" + "m" * 32, "alice": "fh-" + "a" * 32}
CHAT = [{"role": "user", "content": "What is two and two?"}]
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "two and two"},
    "/v1/messages": {"messages": CHAT, "max_tokens": 16},
    "/v1/messages/count_tokens": {"messages": CHAT},
    "/v1/embeddings": {"input": "two"},
    "/v1/rerank": {"query": "two", "documents": ["two", "three"]},
    "/v1/score": {"text_1": "two", "text_2": "three"},
    "/v1/responses": {"input": "two and two", "store": False},
    "/tokenize": {"prompt": "two"},
    "/detokenize": {"tokens": [1, 2]},
    "/api/chat": {"messages": CHAT, "stream": False},
    "/api/generate": {"prompt": "two", "stream": False},
    "/api/embed": {"input": "two"},
    "/api/embeddings": {"prompt": "two"},
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"const": 10**30}, "b": {"enum": [4539148803436467, "\ud800"]}},
}
TOOL = {"name": "f", "description": "\ud800", "parameters": SCHEMA}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNiAAAABgADNjd8qAAAAABJRU5ErkJggg=="
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 8, -1, 0.001, 0.5, 1e308, 10**30, "", "auto", "none", "required"),
    *("\ud800", "a" * 5000),
    *([], {}, ["a"], [1, 2], [[1, 2], [3]], {"5": 1}, {"5": 100.0, "7": -100}, {"a": {"b": [10**30, None]}}),
    *({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, SCHEMA, "json"),
    *([{"type": "function", "function": TOOL}], [{"type": "function", **TOOL}], [{**TOOL, "input_schema": SCHEMA}]),
    *({"type": "enabled", "budget_tokens": 1024}, {"effort": "high"}, {"include_usage": True}, {"user_id": "x"}),
    [{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]}],
    [{"role": "user", "content": "phone 212-555-0123 "}, {"role": "assistant", "content": "\ud800"}, *CHAT],
    [{"role": "assistant", "tool_calls": [CALLED]}],
]  # fmt: skip


def fields() -> list[tuple[str, str]]:
    """Return every field of every route of BASE, as the server's own document has them."""
    found = document(routes())
    schemas, listed = found["components"]["schemas"], []
    for path in BASE:
        schema = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        listed += [(path, name) for name in schema["properties"] if name not in ("model", "keep_alive")]
    return listed


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn() as running:
        running.checks = False
        running.behave = _as_asked
        yield running


def _as_asked(received: Received) -> Answer:
    wanted = received.asked.body if received.asked is not None else {}
    n = wanted.get("n") or wanted.get("generationConfig", {}).get("candidateCount")
    return Answer(answers=n or 1)


@pytest.fixture(scope="module", params=KINDS)
def house(
    request: pytest.FixtureRequest, standin: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("fuzzed")
    base = at_standin(standin.url(request.param), request.param)
    running = open_house(folder, ROUTES, base=base, rent=ProviderModels, keys=KEYS, console=False)
    yield running
    running.end()


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Draw bodies: one or two fields of a route, each with any value."""
    draw, every = random.Random(REQUESTS), fields()
    assert len({path for path, _ in every}) == len(BASE) and len(every) > 150
    for number in range(REQUESTS):
        path, name = every[number % len(every)]
        more = draw.sample([other for where, other in every if where == path], draw.randrange(2))
        body = {**BASE[path], "model": draw.choice(("cached", "lone", "owned"))}
        yield path, body | {each: draw.choice(VALUES) for each in (name, *more)}


def test_no_field_fails_the_server_or_takes_a_target_from_another_key(house: House):
    breakers = house.models.parts.breakers
    failed = []
    for path, body in bodies():
        headers = {"Authorization": f"Bearer {KEYS['mallory']}", "Content-Type": "application/json"}
        answer = house.client.post(path, content=json.dumps(body).encode(), headers=headers)
        late = answer.status_code == 504 and body.get("timeout") is not None
        rests = [name for name in ("big", "own", "small") if breakers.why_not(name)[0]]
        if rests or (answer.status_code >= 500 and not late):
            failed.append((path, str(body)[:300], answer.status_code, answer.text[:300], rests))
            for name in rests:
                breakers.answered(name)
    assert failed == []
    for model in ("cached", "lone", "owned"):
        alice = house.chat(model, headers={"Authorization": f"Bearer {KEYS['alice']}"})
        assert alice.status_code == 200

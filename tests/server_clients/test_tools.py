"""Tools and a format in one request, by each protocol's own client, streamed and whole, with a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model

ASK: Any = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
WEATHER: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ADD: Any = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = {"get_weather": ("Get the weather of a city", WEATHER), "add": ("Add a number", ADD)}
ANSWER: Any = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}}, "required": ["a"]}

Said = tuple[str | None, list[tuple[str, Any]]]  # text, and calls with their arguments


class OpenAI:
    """Chat completions; what a stream's helper puts together must be what comes whole."""

    def __init__(self, served: Served) -> None:
        self.client, self.model = openai.OpenAI(base_url=served.url, api_key="none"), served.model

    def ask(self, choice: str) -> Said:
        functions = [{"name": n, "description": d, "parameters": p} for n, (d, p) in TOOLS.items()]
        named = {"type": "function", "function": {"name": choice}}
        asked: Any = {
            "model": self.model,
            "messages": ASK,
            "tools": [{"type": "function", "function": f} for f in functions],
            "tool_choice": named if choice in TOOLS else choice,
            "parallel_tool_calls": False,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}},
            "temperature": 0,
            "max_tokens": 80,
        }
        whole = self.client.chat.completions.create(**asked).choices[0].message
        with self.client.chat.completions.stream(**asked) as stream:
            kinds = {event.type for event in stream}
            message: Any = stream.get_final_completion().choices[0].message
        assert (message.content or None) == (whole.content or None)
        calls = [(c.function.name, c.function.arguments) for c in whole.tool_calls or []]
        assert [(c.function.name, c.function.arguments) for c in message.tool_calls or []] == calls
        assert ("tool_calls.function.arguments.done" in kinds) == bool(calls)
        return whole.content or None, [(name, json.loads(arguments)) for name, arguments in calls]


class Responses(OpenAI):
    def ask(self, choice: str) -> Said:
        tools = [
            {"type": "function", "name": n, "description": d, "parameters": p} for n, (d, p) in TOOLS.items()
        ]
        asked: Any = {
            "model": self.model,
            "input": ASK,
            "tools": tools,
            "tool_choice": {"type": "function", "name": choice} if choice in TOOLS else choice,
            "parallel_tool_calls": False,
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": ANSWER}},
            "temperature": 0,
            "max_output_tokens": 80,
        }
        whole = self.client.responses.create(**asked)
        with self.client.responses.stream(**asked) as stream:
            list(stream)
            final = stream.get_final_response()
        assert final.output_text == whole.output_text
        calls = [(i.name, i.arguments) for i in whole.output if i.type == "function_call"]
        assert [(i.name, i.arguments) for i in final.output if i.type == "function_call"] == calls
        return whole.output_text or None, [(name, json.loads(arguments)) for name, arguments in calls]


class Anthropic:
    def __init__(self, served: Served) -> None:
        self.client = anthropic.Anthropic(base_url=served.url.removesuffix("/v1"), api_key="none")
        self.model = served.model

    def ask(self, choice: str) -> Said:
        kind = {"type": "tool", "name": choice} if choice in TOOLS else {"type": choice}
        kind = {"type": "any"} if choice == "required" else kind
        asked: Any = {
            "model": self.model,
            "messages": ASK,
            "tools": [{"name": n, "description": d, "input_schema": p} for n, (d, p) in TOOLS.items()],
            "tool_choice": kind if choice == "none" else {**kind, "disable_parallel_tool_use": True},
            "max_tokens": 80,
            "extra_body": {
                "temperature": 0,
                "output_config": {"format": {"type": "json_schema", "schema": ANSWER}},
            },
        }
        whole = self.client.messages.create(**asked)
        with self.client.messages.stream(**asked) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_message()
        calls = [(b.name, b.input) for b in whole.content if b.type == "tool_use"]
        assert [(b.name, b.input) for b in final.content if b.type == "tool_use"] == calls
        assert ("input_json" in kinds) == bool(calls)
        return "".join(b.text for b in whole.content if b.type == "text") or None, calls


class Ollama:
    """It has no tool_choice: the model decides, or there are no tools."""

    def __init__(self, served: Served) -> None:
        self.client, self.model = ollama.Client(served.url.removesuffix("/v1")), served.model

    def ask(self, choice: str) -> Said:
        functions = [{"name": n, "description": d, "parameters": p} for n, (d, p) in TOOLS.items()]
        asked: Any = {"model": self.model, "messages": ASK, "format": ANSWER}
        asked |= {"options": {"temperature": 0, "num_predict": 80}}
        if choice != "none":
            asked["tools"] = [{"type": "function", "function": f} for f in functions]
        whole = self.client.chat(**asked).message
        pieces = [piece.message for piece in self.client.chat(**asked, stream=True)]
        calls = [(c.function.name, dict(c.function.arguments)) for c in whole.tool_calls or ()]
        streamed = [c for piece in pieces for c in piece.tool_calls or ()]
        assert [(c.function.name, dict(c.function.arguments)) for c in streamed] == calls
        assert "".join(piece.content or "" for piece in pieces) == (whole.content or "")
        return whole.content or None, calls


@pytest.fixture(params=[OpenAI, Responses, Anthropic, Ollama], ids=lambda kind: kind.__name__)
def surface(request: pytest.FixtureRequest, coder: Served) -> Iterator[Any]:
    made = request.param(coder)
    yield made
    getattr(made.client, "close", lambda: None)()


@pytest.mark.heavy
def test_an_answer_is_calls_or_fits_the_format_on_every_surface(surface: Any):
    text, calls = surface.ask("auto")
    assert (text, calls) == (None, [("get_weather", {"city": "Paris"})])
    text, calls = surface.ask("none")
    assert text and json.loads(text).keys() == {"a"} and not calls
    if isinstance(surface, Ollama):
        return
    text, calls = surface.ask("add")  # what the model would not have called
    assert text is None and [name for name, _ in calls] == ["add"] and isinstance(calls[0][1]["a"], int)
    text, calls = surface.ask("required")
    assert text is None and [name for name, _ in calls] == ["get_weather"]

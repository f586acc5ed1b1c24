"""Writes a chat as a request of OpenAI's chat completions: messages, tools, formats, pictures.

Where providers differ, their wires override a method. Knows no answer. Path: OpenAIWire.request -> ChatAsker
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.providers.demands import Demands
from freehold.serving import Job
from freehold.types import Format, Image, Message, Tool


class ChatAsker:
    """Writes one chat. `warn` of the demands collects what the provider will not see."""

    tool_names = False  # whether a tool's result says which tool was called
    thinks_back = False  # whether the reasoning of earlier turns is sent

    def __init__(self, demands: Demands) -> None:
        self.demands = demands

    @property
    def job(self) -> Job:
        """The job that is asked for."""
        return self.demands.job

    def message(self, message: Message) -> dict[str, Any]:
        """Write one turn."""
        turn: dict[str, Any] = {"role": message.role, "content": self.content(message)}
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self.call_id(c.id),
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments},
                }
                for c in message.tool_calls
            ]
            turn["content"] = turn["content"] or None
        if message.role == "tool":
            turn["tool_call_id"] = self.call_id(message.tool_call_id)
            if self.tool_names and message.name:
                turn["name"] = message.name
            if message.failed:
                self.demands.warn(
                    "this provider has no field for a tool that failed: its result says so, or nothing does"
                )
        if message.role == "assistant" and (message.thinking or message.signed):
            self.thoughts(message, turn)
        return turn

    def call_id(self, id: str) -> str:
        """Return a call's id as the provider takes it."""
        return id

    def thoughts(self, message: Message, turn: dict[str, Any]) -> None:
        """Put an earlier turn's reasoning into what is said, or warn."""
        if self.thinks_back and message.thinking:
            turn["reasoning_content"] = message.thinking
        else:
            self.demands.warn("the reasoning of earlier turns is not sent to this provider")

    def content(self, message: Message) -> Any:
        """Return the content of a turn: a text, or parts where there are pictures."""
        if not any(isinstance(part, Image) for part in message.parts):
            return message.content
        if message.role != "user":
            self.demands.lacks(
                f"takes no pictures in a turn of role {message.role}", "put them into the user's"
            )
        return [
            self.picture(part) if isinstance(part, Image) else {"type": "text", "text": part}
            for part in message.parts
        ]

    def picture(self, image: Image) -> dict[str, Any]:
        """Write a picture; an address is the provider's to fetch, never ours."""
        url = image.url or f"data:{image.media_type};base64,{image.data}"
        return {
            "type": "image_url",
            "image_url": {"url": url} | ({"detail": image.detail} if image.detail else {}),
        }

    def tools(self) -> dict[str, Any]:
        """Write the tools, and how they are chosen."""
        job = self.job
        if not job.tools:
            return {}
        body: dict[str, Any] = {"tools": [self.tool(tool) for tool in job.tools]}
        if job.tool_name:
            body["tool_choice"] = {"type": "function", "function": {"name": job.tool_name}}
        elif job.tool_choice != "auto":
            body["tool_choice"] = self.choice(job.tool_choice)
        if not job.parallel_tool_calls:
            body["parallel_tool_calls"] = False
        return body

    def choice(self, choice: str) -> str:
        """Return the word for a choice of tools."""
        return choice

    def tool(self, tool: Tool) -> dict[str, Any]:
        """Write one tool."""
        function: dict[str, Any] = {"name": tool.name, "description": tool.description}
        function = {key: value for key, value in function.items() if value}
        function["parameters"] = dict(tool.parameters) or {"type": "object", "properties": {}}
        if tool.strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    def format(self, format: Format | None) -> dict[str, Any]:
        """Write what the answer's text must be."""
        if format is None:
            return {}
        if format.kind == "json":
            return {"response_format": {"type": "json_object"}}
        schema: Mapping[str, Any] = {"name": "answer", "schema": format.source, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

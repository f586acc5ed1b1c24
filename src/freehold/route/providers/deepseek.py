"""DeepSeek's chat completions: OpenAI's, with thinking as a switch, and cached tokens by hit and miss.

The reasoning of turns that called tools must be sent back, also an empty one, or the request is refused; that of other
turns is ignored there, and not sent. Written from api-docs.deepseek.com.
"""

from __future__ import annotations

from typing import Any

from freehold.base.types import Message
from freehold.route.providers.contract import Demands
from freehold.route.providers.openai.wire import ChatAsker, OpenAIWire


class _DeepSeekAsker(ChatAsker):
    def message(self, message: Message) -> dict[str, Any]:
        turn = super().message(message)
        if message.role == "assistant" and message.tool_calls:
            turn["reasoning_content"] = message.thinking
        return turn

    def thoughts(self, message: Message, turn: dict[str, Any]) -> None:
        """Send nothing here: what must go back goes with the calls, and what need not changes no answer."""

    def tools(self) -> dict[str, Any]:
        body = super().tools()
        if body.pop("parallel_tool_calls", True) is False:
            self.demands.unused("parallel_tool_calls", "the provider may make several calls an answer")
        return body


class DeepSeekWire(OpenAIWire):
    """Implements contract.Wire."""

    asker = _DeepSeekAsker
    formats = ("json",)
    most_field = "max_tokens"
    max_stops = 16
    without_sampling = None  # while it thinks it ignores sampling, and refuses none

    def think(self, body: dict[str, Any], demands: Demands) -> None:
        """Write thinking as its switch, and its effort; models think unless the switch is off."""
        job = demands.job
        if job.think is not None:
            body["thinking"] = {"type": "enabled" if job.think else "disabled"}
        if job.effort and job.think is not False:
            body["reasoning_effort"] = job.effort
        if job.think_tokens is not None:
            demands.unused("think_tokens", "the provider limits reasoning only by effort")

"""Mistral's chat completions: OpenAI's with other names, ids of nine characters, and reasoning inside the content.

Written from docs.mistral.ai.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from freehold.base.serving import EmbedJob
from freehold.base.types import Message
from freehold.route.providers.contract import Demands, Outgoing, RemoteModel
from freehold.route.providers.openai.wire import ChatAsker, OpenAIWire, embed_body

_ID = re.compile(r"[A-Za-z0-9]{9}")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class _MistralAsker(ChatAsker):
    tool_names = True

    def call_id(self, id: str) -> str:
        """Return the id, or nine letters and digits that stand for it: no other is taken."""
        if _ID.fullmatch(id):
            return id
        number = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
        digits = []
        for _ in range(9):
            number, digit = divmod(number, 62)
            digits.append(_ALPHABET[digit])
        return "".join(digits)

    def choice(self, choice: str) -> str:
        return "any" if choice == "required" else choice

    def thoughts(self, message: Message, turn: dict[str, Any]) -> None:
        """Send reasoning back as the part of the content that it was."""
        if not message.thinking:
            self.demands.warn("signed reasoning of other providers is not sent")
            return
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": message.thinking}]}
        turn["content"] = [thought, {"type": "text", "text": message.content}]


class MistralWire(OpenAIWire):
    """Implements contract.Wire."""

    asker = _MistralAsker
    most_field = "max_tokens"
    max_stops = None
    without_sampling = None
    seed_field = "random_seed"
    asks_usage = False  # it comes with the last event

    def end_of(self, messages: Any, body: dict[str, Any], demands: Demands) -> None:
        """Mark a begun answer as the prefix that it is."""
        if demands.job.turn == "continue":
            body["messages"][-1]["prefix"] = True

    def think(self, body: dict[str, Any], demands: Demands) -> None:
        """Write thinking as the mode of the prompt, for those that have one."""
        job = demands.job
        if demands.model.model.startswith("magistral"):
            if job.think is not None:
                body["prompt_mode"] = "reasoning" if job.think else None
        elif job.think:
            demands.unused("think", f"{demands.model.model} does not think")
        for name, value in (("effort", job.effort), ("think_tokens", job.think_tokens)):
            if value:
                demands.unused(name)

    def embed(self, model: RemoteModel, job: EmbedJob) -> Outgoing:
        """Translate texts to be embedded; the vectors come as numbers."""
        body = embed_body(model, job, packed=False)
        if "dimensions" in body:
            body["output_dimension"] = body.pop("dimensions")
        return Outgoing("/embeddings", msgspec.json.encode(body))

"""Writes a chat in Anthropic's blocks: system, turns of users with results of tools first, turns of assistants.

A blank text becomes no block there. Reasoning goes back only as the provider signed it, and where it was.
Knows no model's limits.
Path: AnthropicWire.request -> MessagesWriter -> system, messages
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from freehold.errors import UsageError
from freehold.providers.demands import Demands, object_text, reminder
from freehold.types import CacheTime, Image, Message, SignedThinking

BREAKPOINTS = 4  # of the cache, in one request
_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_MEDIA = ("image/jpeg", "image/png", "image/gif", "image/webp")

Item = dict[str, Any]


class MessagesWriter:
    """One request's chat. After `write`, `system` and `turns` are what the wire sends."""

    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self.system: list[Item] = []
        self.turns: list[Item] = []
        self._marked: list[Item] = []  # blocks with a breakpoint, in order
        self._results = 0  # blocks of the open user's turn that are results of tools

    def write(self, messages: Sequence[Message]) -> None:
        """Write all messages. Raises UsageError or UnsupportedModel."""
        for message in messages:
            if message.role == "system":
                self._system(message)
            elif message.role == "assistant":
                self._assistant(message)
            else:
                self._user(message)
        if not self.turns or self.turns[0]["role"] != "user":
            self._demands.lacks("answers chats that begin with a user's turn")
        for block in self._marked[:-BREAKPOINTS]:
            del block["cache_control"]
            self._demands.warn(f"cache: of {len(self._marked)} breakpoints the last {BREAKPOINTS} were kept")
        for turn in self.turns:
            if not turn["content"]:
                raise UsageError("a turn of the chat is empty", field="messages")

    @property
    def thinks_first(self) -> bool:
        """Whether thinking may be on: calls of tools that now get their results began with signed reasoning."""
        if not self._results:
            return True
        last_turn = next((turn for turn in reversed(self.turns) if turn["role"] == "assistant"), None)
        return last_turn is None or last_turn["content"][0]["type"] in ("thinking", "redacted_thinking")

    def _turn(self, role: str) -> list[Any]:
        if not self.turns or self.turns[-1]["role"] != role:
            self.turns.append({"role": role, "content": []})
            self._results = 0
        return self.turns[-1]["content"]

    def _system(self, message: Message) -> None:
        if any(isinstance(part, Image) for part in message.parts):
            self._demands.lacks("takes no pictures in a system message")
        if not message.content.strip():
            return
        if not self.turns:
            self.system.append({"type": "text", "text": message.content})
            self.mark(self.system, message.cache)
            return
        self._demands.warn("a system message within the chat was sent as a part of the user's turn")
        content = self._turn("user")
        content.append({"type": "text", "text": reminder(message.content)})
        self.mark(content, message.cache)

    def _user(self, message: Message) -> None:
        content = self._turn("user")
        if message.role == "tool":
            block = self._result(message)
            content.insert(self._results, block)  # a text before them is refused
            self._results += 1
            self.mark([block], message.cache)
            return
        content += self._parts(message)
        self.mark(content, message.cache)

    def _result(self, message: Message) -> Item:
        block: Item = {"type": "tool_result", "tool_use_id": _safe(message.tool_call_id)}
        parts = self._parts(message)
        if parts:
            block["content"] = message.content if not message.parts else parts
        if message.failed:
            block["is_error"] = True
        return block

    def _parts(self, message: Message) -> list[Item]:
        parts = message.parts or (message.content,)
        return [
            self._image(p) if isinstance(p, Image) else {"type": "text", "text": p} for p in parts if _says(p)
        ]

    def _image(self, image: Image) -> Item:
        if image.detail not in ("", "auto"):
            self._demands.unused("detail of a picture")
        if image.url:
            return {"type": "image", "source": {"type": "url", "url": image.url}}
        if image.media_type not in _MEDIA:
            self._demands.lacks("sees no pictures of this type", "it sees: " + ", ".join(_MEDIA))
        source = {"type": "base64", "media_type": image.media_type, "data": image.data}
        return {"type": "image", "source": source}

    def _assistant(self, message: Message) -> None:
        if any(isinstance(part, Image) for part in message.parts):
            self._demands.lacks("takes no pictures in an assistant's turn")
        if message.thinking and not message.signed:
            self._demands.warn("reasoning of earlier answers that this provider did not sign was left out")
        blocks = [*_blocks(message)]
        if blocks:
            content = self._turn("assistant")
            content += blocks
            self.mark(content, message.cache)

    def mark(self, blocks: list[Item], cache: CacheTime) -> None:
        """Put a breakpoint of the cache on the last block, or tool, that can have one."""
        if not cache:
            return
        block = next(
            (b for b in reversed(blocks) if b.get("type") not in ("thinking", "redacted_thinking")), None
        )
        if block is None:
            return
        if "cache_control" not in block:
            self._marked.append(block)
        block["cache_control"] = (
            {"type": "ephemeral"} if cache == "5m" else {"type": "ephemeral", "ttl": cache}
        )


def _blocks(message: Message) -> Iterator[Item]:
    """Yield an assistant's blocks: its text cut where reasoning was, then its calls, with reasoning between them."""
    text, at, calls = message.content, 0, 0

    def signed_at(until: int) -> Iterator[Item]:
        nonlocal at
        if text[at:until].strip():
            yield {"type": "text", "text": text[at:until]}
        at = max(at, until)

    def called(until: int) -> Iterator[Item]:
        nonlocal calls
        if until > calls:
            yield from signed_at(len(text))
        for call in message.tool_calls[calls:until]:
            yield {"type": "tool_use", "id": _safe(call.id), "name": call.name, "input": object_text(call)}
        calls = max(calls, until)

    for block in message.signed:
        yield from signed_at(block.text_before)
        yield from called(block.calls_before)
        yield _thought(block)
    yield from signed_at(len(text))
    yield from called(len(message.tool_calls))


def _says(part: str | Image) -> bool:
    return isinstance(part, Image) or bool(part.strip())


def _thought(block: SignedThinking) -> Item:
    if block.redacted:
        return {"type": "redacted_thinking", "data": block.redacted}
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}


def _safe(id: str) -> str:
    """Return the id of a call in the letters that this API takes, the same for its result."""
    if _ID.fullmatch(id):
        return id
    return f"toolu_{hashlib.sha256(id.encode()).hexdigest()[:24]}"

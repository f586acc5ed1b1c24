"""Cuts an answer's chunks into Anthropic's content blocks: thinking, text, and a block for each call of a tool.

A stream sends the events as they come, and a whole answer is folded from the same ones, so the two cannot differ.
Knows chunks and blocks; knows no request and no bytes.
Path: MessageShape -> Blocks.push -> events -> folded
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from freehold.types import Chunk, SignedThinking, ToolPiece

Event = dict[str, Any]
_CARRIED = "text-"


class Blocks:
    """One answer's blocks. `show_thinking` False: the text of thinking is in its block's signature only."""

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show = show_thinking
        self._index = -1  # of the block that is open or was last
        self._open = ""  # its type, or nothing
        self._call = -1  # index of the call that was last
        self._thought: list[str] = []

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """Return what a chunk opens, adds and closes."""
        if chunk.thinking:
            yield from self._in("thinking", {"thinking": "", "signature": ""})
            self._thought.append(chunk.thinking)
            if self._show:
                yield self._delta("thinking_delta", thinking=chunk.thinking)
        for block in chunk.signed:
            yield from self._signed(block)
        if text := chunk.text + chunk.refusal:
            yield from self._in("text", {"text": ""})
            yield self._delta("text_delta", text=text)
        for piece in chunk.tool_calls:
            yield from self._called(piece)

    def close(self) -> Iterator[Event]:
        """End the block that is open."""
        if self._open == "thinking":
            yield self._delta("signature_delta", signature=_signature("".join(self._thought), self._show))
            self._thought = []
        yield from self._stopped()

    def _stopped(self) -> Iterator[Event]:
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _signed(self, block: SignedThinking) -> Iterator[Event]:
        """End a block of thinking with its provider's own signature; a redacted one is a block of its own."""
        if block.redacted:
            yield from self._in("redacted_thinking", {"data": block.redacted})
            yield from self.close()
            return
        if self._open != "thinking":
            yield from self._in("thinking", {"thinking": "", "signature": ""})
            if block.text and self._show:
                yield self._delta("thinking_delta", thinking=block.text)
        yield self._delta("signature_delta", signature=block.signature)
        self._thought = []
        yield from self._stopped()

    def _called(self, piece: ToolPiece) -> Iterator[Event]:
        if piece.index != self._call:
            yield from self.close()
            self._call = piece.index
            yield from self._in("tool_use", {"id": piece.id, "name": piece.name, "input": {}})
        if piece.arguments:
            yield self._delta("input_json_delta", partial_json=piece.arguments)

    def _in(self, kind: str, begun: dict[str, Any]) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self.close()
        self._open, self._index = kind, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **begun}}

    def _delta(self, kind: str, **gained: str) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **gained}}


def _signature(thought: str, shown: bool) -> str:
    """Return a signature for clients that require one; it is not checked. A thought that is not shown is inside it."""
    if shown:
        return "sha256-" + hashlib.sha256(thought.encode()).hexdigest()[:32]
    return _CARRIED + base64.urlsafe_b64encode(thought.encode()).decode()


def thought_in(signature: str) -> str:
    """Return the thought inside a signature, or "": a model continues from its reasoning before a call."""
    if not signature.startswith(_CARRIED):
        return ""
    try:
        return base64.urlsafe_b64decode(signature[len(_CARRIED) :].encode()).decode()
    except ValueError:
        return ""


def folded(events: Iterable[Event]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the blocks that events describe, and the arguments of calls that were cut off before they were JSON."""
    blocks: list[dict[str, Any]] = []
    gained: list[dict[str, list[str]]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
            gained.append({})
        elif event["type"] == "content_block_delta":
            for name, text in event["delta"].items():
                if name != "type":
                    gained[-1].setdefault(name, []).append(text)
    cut: list[str] = []
    for block, parts in zip(blocks, gained, strict=True):
        texts = {name: "".join(pieces) for name, pieces in parts.items()}
        if block["type"] == "tool_use":
            block["input"] = _input(texts.get("partial_json", ""), cut)
        else:
            block.update(texts)
    return blocks, cut


def _input(arguments: str, cut: list[str]) -> dict[str, Any]:
    """Return a call's arguments; {} for those that are not an object, which are added to `cut`."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        cut.append(arguments)
        return {}

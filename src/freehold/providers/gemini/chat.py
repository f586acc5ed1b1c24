"""Writes a chat in Gemini's contents and parts, with its signatures on the parts that had them.

Calls of tools may have no ids there: those that were made here (OWN_ID) are not sent, and results name the tool. Knows
parts; knows no options. Path: GeminiWire.request -> ContentWriter -> system, contents
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from freehold.errors import UsageError
from freehold.providers.demands import Demands, object_text, reminder
from freehold.types import Image, Message

OWN_ID = "gcall_"  # begins the ids of calls that Gemini sent without one
# What Google names for histories whose calls another model made (docs/thought-signatures, FAQ).
UNSIGNED = "skip_thought_signature_validator"
_MEDIA = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")

Part = dict[str, Any]


class ContentWriter:
    """One request's chat. After `write`, `system` and `contents` are what the wire sends."""

    def __init__(self, demands: Demands, gemini: Gemini) -> None:
        self._demands, self._gemini = demands, gemini
        self.system: list[Part] = []
        self.contents: list[Part] = []
        self._names: dict[str, str] = {}  # id of a call -> its tool

    def write(self, messages: Sequence[Message]) -> None:
        """Write all messages. Raises UsageError or UnsupportedModel."""
        self._demands.sells_no_cache()
        for message in messages:
            if message.role == "system":
                self._system(message)
            elif message.role == "assistant":
                self._assistant(message)
            elif message.role == "tool":
                self._add("user", [self._result(message)])
            elif not (parts := self._parts(message)):
                raise UsageError("a user's turn of the chat is empty", field="messages")
            else:
                self._add("user", parts)
        if not self.contents or self.contents[0]["role"] != "user":
            self._demands.lacks("answers chats that begin with a user's turn")
        if self._gemini.signs:
            self._sign_current()

    def _add(self, role: str, parts: list[Part]) -> None:
        """Add to the open turn; results of tools have a turn of their own."""
        last = self.contents[-1] if self.contents else None
        kind = "functionResponse" in parts[0]
        if last is not None and last["role"] == role and ("functionResponse" in last["parts"][0]) == kind:
            last["parts"] += parts
        else:
            self.contents.append({"role": role, "parts": parts})

    def _system(self, message: Message) -> None:
        if any(isinstance(part, Image) for part in message.parts):
            self._demands.lacks("takes no pictures in a system message")
        if message.content and not self.contents:
            self.system.append({"text": message.content})
        elif message.content:
            self._demands.warn("a system message within the chat was sent as a part of the user's turn")
            self._add("user", [{"text": reminder(message.content)}])

    def _parts(self, message: Message) -> list[Part]:
        parts = message.parts or (message.content,)
        return [self._picture(p) if isinstance(p, Image) else {"text": p} for p in parts if p]

    def _picture(self, image: Image) -> Part:
        if image.detail not in ("", "auto"):
            self._demands.unused("detail of a picture")
        if image.url:
            self._demands.lacks("takes no picture by its address", "send its bytes")
        if image.media_type not in _MEDIA:
            self._demands.lacks("sees no pictures of this type", "it sees: " + ", ".join(_MEDIA))
        return {"inlineData": {"mimeType": image.media_type, "data": image.data}}

    def _result(self, message: Message) -> Part:
        name = message.name or self._names.get(message.tool_call_id, "")
        if not name:
            raise UsageError("the result of a tool belongs to no call of the chat", field="messages")
        answer: Part = {"name": name, "response": {"error" if message.failed else "output": message.content}}
        if _is_theirs(message.tool_call_id):
            answer["id"] = message.tool_call_id
        pictures = [self._picture(part) for part in message.parts if isinstance(part, Image)]
        if pictures and not self._gemini.pictures_in_results:
            self._demands.lacks("sees no pictures in the results of tools")
        if pictures:
            answer["parts"] = pictures
        return {"functionResponse": answer}

    def _assistant(self, message: Message) -> None:
        if any(isinstance(part, Image) for part in message.parts):
            self._demands.lacks("takes no pictures in an assistant's turn")
        parts = [*_text_parts(message)]
        for call in message.tool_calls:
            self._names[call.id] = call.name
            function_call: Part = {"name": call.name, "args": object_text(call)}
            if _is_theirs(call.id):
                function_call["id"] = call.id
            parts.append(
                {
                    "functionCall": function_call,
                    **({"thoughtSignature": call.signature} if call.signature else {}),
                }
            )
        if parts:
            self._add("model", parts)

    def _sign_current(self) -> None:
        """Mark the calls of the current turn that another model made: their signatures cannot be had."""
        for content in reversed(self.contents):
            if content["role"] == "user" and "functionResponse" not in content["parts"][0]:
                return
            first = next((part for part in content["parts"] if "functionCall" in part), None)
            if first is not None and "thoughtSignature" not in first:
                first["thoughtSignature"] = UNSIGNED
                self._demands.warn("calls of tools that another model made were sent without its reasoning")


def _text_parts(message: Message) -> list[Part]:
    """Return an assistant's text in the parts that were signed, and its signed thoughts between them."""
    parts: list[Part] = []
    blocks = [block for block in message.signed if block.signature]  # what is redacted is another API's
    text, at = message.content, 0
    ends = [block.text_before for block in blocks[1:]] + [len(text)]
    for block, until in zip(blocks, ends, strict=False):
        if text[at : block.text_before]:
            parts.append({"text": text[at : block.text_before]})
        at = max(at, block.text_before)
        if block.text:
            parts.append({"text": block.text, "thought": True, "thoughtSignature": block.signature})
            continue
        parts.append({"text": text[at:until], "thoughtSignature": block.signature})
        at = max(at, until)
    if text[at:]:
        parts.append({"text": text[at:]})
    return parts


def _is_theirs(id: str) -> bool:
    return bool(id) and not id.startswith(OWN_ID)


# --- what each generation of Gemini takes, by the version in its name -------------------------------
# From ai.google.dev/gemini-api/docs (thinking, thought signatures, function calling; read 2026-11-27). A name
# without a version is taken for the newest.

_NAME = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?")


@dataclass(frozen=True, slots=True)
class Gemini:
    """What a model does. `least`: the least it thinks when asked not to, in tokens (2.5) or as a level."""

    thinks: Literal["no", "budget", "level"]
    least: int | str
    medium: bool  # knows the level between low and high
    signs: bool  # refuses calls of tools in the current turn whose signature is missing
    formats_with_tools: bool
    pictures_in_results: bool


@lru_cache(maxsize=256)
def gemini_of(name: str) -> Gemini:
    """Return what a model of this name does."""
    version = _version(name)
    old = version < (3, 0) or "gemini" not in name
    pro = "pro" in name
    return Gemini(
        thinks="no" if version < (2, 5) or "gemini" not in name else "budget" if old else "level",
        least=(128 if pro else 0) if old else ("LOW" if pro else "MINIMAL"),
        medium=not (pro and version == (3, 0)),
        signs=not old,
        formats_with_tools=not old,
        pictures_in_results=not old,
    )


def _version(name: str) -> tuple[int, int]:
    match = _NAME.search(name)
    return (99, 0) if match is None else (int(match[1]), int(match[2] or 0))

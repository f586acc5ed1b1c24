"""A chat's branch as a job: its messages, with files before their text, and what its settings ask for.

Knows a chat, its pictures and a job's fields; knows no run.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.base.errors import StoreError, UsageError
from freehold.base.serving import Job
from freehold.base.types import MAX_SEED, Image, Message, Tool, ToolCall
from freehold.serve.chats.pictures import ChatPictures, is_reference
from freehold.serve.chats.types import ChatSettings, SavedChat, SavedMessage
from freehold.serve.http.core.fields import Count, Pictures, Share, parts_of
from freehold.serve.http.core.limits import typed
from freehold.serve.http.core.problems import Refused
from freehold.serve.tools.pictures import left_out, tool_message
from freehold.serve.worker.wire import MAX_PICTURES_BYTES

SEED_BITS = 32  # of a seed that is drawn here: a page's numbers have 53
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingFields(Struct, kw_only=True, omit_defaults=True):
    """The sampling that a chat may ask for; the engine checks what the bounds here leave open."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    penalty_window: Count | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None


@dataclass(slots=True)
class RunPlan:
    """What one run computes: of which model, from which messages, by which settings."""

    model: str
    messages: list[Message]
    settings: ChatSettings
    sampling: dict[str, Any]
    pictures: Pictures = field(default_factory=Pictures)
    extends: Message | None = None  # an answer that was cut off, which the next one continues

    @classmethod
    def of(
        cls, chat: SavedChat, leaf: str, model: str, settings: ChatSettings, stored: ChatPictures
    ) -> RunPlan:
        """Plan the answer to the branch that ends at `leaf`, whose pictures are read from the disk. Raises Refused."""
        sampling = sampling_of(settings)
        sampling.setdefault("seed", secrets.randbits(SEED_BITS))
        if settings.max_tokens is not None and settings.max_tokens < 1:
            raise Refused(400, f"max_tokens is {settings.max_tokens}; expected 1 or more", param="max_tokens")
        pictures = BranchPictures(stored)
        messages = messages_of(chat.branch(leaf), settings.system, pictures)
        return cls(model, messages, settings, sampling, pictures.sent)

    def job(self, tenant: str, tools: Sequence[Tool] = (), again: Sequence[Message] = ()) -> Job:
        """Return the job of the next answer. `again`: turns after the chat's, which it does not keep."""
        begun = (self.extends,) if self.extends is not None else ()
        return Job(
            messages=(*self.messages, *again, *begun),
            turn="continue" if begun else "new",
            max_tokens=self.settings.max_tokens,
            sampling=self.sampling,
            think=self.settings.think,
            overflow=self.settings.overflow,
            tools=tuple(tools),
            tenant=tenant,
        )


def sampling_of(settings: ChatSettings) -> dict[str, Any]:
    """Return the fields of SamplingParams that settings state. Raises Refused for wrong or unknown ones."""
    unknown = sorted(settings.sampling.keys() - set(SamplingFields.__struct_fields__))
    if unknown:
        names = ", ".join(SamplingFields.__struct_fields__)
        message = f"settings.sampling has the unknown field {unknown[0][:60]!r}; known are {names}"
        raise Refused(400, message, param="settings.sampling")
    fields = typed(settings.sampling, SamplingFields, "settings.sampling")
    return {name: v for name, v in msgspec.to_builtins(fields).items() if v is not None}


class BranchPictures:
    """Reads the pictures of a branch from the disk, up to what one job may have."""

    def __init__(self, stored: ChatPictures) -> None:
        self.sent = Pictures()  # the user's: no answer is made without them, while a tool's may be left out
        self._stored = stored
        self._urls: dict[str, str] = {}  # by reference
        self._bytes = self._tools_bytes = 0

    def of_user(self, name: str, where: str) -> Image:
        """Return a picture that the user sent; `name` is what the message has of it. Raises Refused."""
        try:
            self._bytes += self._size(name)
            if self._bytes > MAX_PICTURES_BYTES:
                raise self._too_large()
            return self.sent.at_url(self._url(name), where, "image")
        except StoreError as e:
            raise Refused(400, f"{where}: {e.message}; {e.hint}", param="images", code="no_picture") from None

    def of_tool(self, name: str, where: str) -> Image | None:
        """Return a picture of a tool's result, None for one that is lost or beyond what one job may have.

        Raises Refused for an address.
        """
        try:
            self._tools_bytes += self._size(name)
            if self._tools_bytes > MAX_PICTURES_BYTES:
                return None
            return Image.at(self._url(name), place=where)
        except (StoreError, UsageError):
            return None

    def _size(self, name: str) -> int:
        """Return how many bytes a picture has. Raises Refused for an address, StoreError for one that is lost."""
        if is_reference(name):
            return self._stored.size(name)
        if not name.startswith("data:"):  # an engine would fetch what no page shows
            message = f"the picture {name[:80]!r} is an address; a chat has references and data: URLs"
            raise Refused(400, message, param="images")
        return len(name) * 3 // 4

    def _url(self, name: str) -> str:
        """Return a picture as a data: URL. Raises StoreError for one that is lost."""
        if is_reference(name) and name not in self._urls:
            self._urls[name] = self._stored.url(name)
        return self._urls.get(name, name)

    @staticmethod
    def _too_large() -> Refused:
        most = f"more than {MAX_PICTURES_BYTES:,} bytes, the limit of a request"
        hint = "delete a message with pictures, or start another chat"
        message = f"the pictures of this chat have {most}; {hint}"
        return Refused(400, message, param="images", code="pictures_too_large")


def messages_of(branch: Sequence[SavedMessage], system: str, pictures: BranchPictures) -> list[Message]:
    """Return a branch as a chat."""
    names = {call.id: call.name for message in branch for call in message.calls}
    begin = [Message("system", system)] if system else []
    results = {  # the newest first: of too many pictures, those of old results are left out
        i: _result(m, i, names, pictures) for i, m in reversed([*enumerate(branch)]) if m.role == "tool"
    }
    return [*begin, *(results.get(i) or _message(m, i, pictures) for i, m in enumerate(branch))]


def _result(m: SavedMessage, place: int, names: dict[str, str], pictures: BranchPictures) -> Message:
    seen = [pictures.of_tool(name, f"messages[{place}].images[{i}]") for i, name in enumerate(m.images)]
    kept = [image for image in seen if image is not None]
    lost = left_out(len(seen) - len(kept), "lost, or too much for one request") if None in seen else ""
    failed = m.outcome in ("denied", "failed")
    return tool_message(m.content + lost, m.call, names.get(m.call, ""), kept, failed=failed)


def _message(m: SavedMessage, place: int, pictures: BranchPictures) -> Message:
    if m.role == "assistant":
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in m.calls)
        return Message("assistant", m.content, m.thinking, calls)
    where = f"messages[{place}].images"
    text = with_files(m)
    sent = [pictures.of_user(name, f"{where}[{i}]") for i, name in enumerate(m.images)]
    return Message(m.role, text, parts=parts_of([*sent, text]))


def with_files(m: SavedMessage) -> str:
    """Return a message's text with its files before it, as the terminal puts them."""
    parts = [f"File {file.name}:\n```\n{file.text.rstrip()}\n```\n\n" for file in m.files]
    return "".join([*parts, m.content])

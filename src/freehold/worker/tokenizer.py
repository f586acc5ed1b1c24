"""The tokenizer and chat template of a model in an engine process, as calls over the socket.

Knows the names of calls and their arguments; knows no socket and no process.
Path: server/openai/tokens.py -> EngineTokenizer.tokenize -> EngineHandle.call -> ModelCall
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from freehold.types import Message, Turn


class EngineTokenizer:
    """A TokenizerFace that asks an engine process; `call` sends a method's name and its arguments."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self._call("tokenize", text, special, client=client)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self._call("detokenize", list(ids), client=client)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        return await self._call("token_texts", list(ids))

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        listed = [(m.role, m.content, m.thinking) for m in messages]
        return await self._call("render", listed, think, turn, client=client)

    async def template(self) -> dict[str, Any]:
        return await self._call("template")

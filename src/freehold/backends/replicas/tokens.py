"""A deployed model's tokenizer, as its engine shows it: any replica can be asked, they have the same.

Path: handle.py -> DeployedTokenizer -> EngineCalls.tokenize
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from freehold.backends.replicas.calls import EngineCalls
from freehold.errors import UnsupportedModel
from freehold.serving import Job
from freehold.types import Message, Turn

MOST_TEXTS = 4096  # tokens that are asked for one by one


class DeployedTokenizer:
    """Implements serving.TokenizerFace. `calls` returns a replica that answers, or raises; it knows no client."""

    def __init__(self, name: str, calls: Callable[[], EngineCalls]) -> None:
        self._name, self._calls = name, calls

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self._calls().tokenize(text, special=special)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self._calls().detokenize(ids)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        if len(ids) > MOST_TEXTS:
            raise UnsupportedModel(
                f"the engine of {self._name} gives the texts of {MOST_TEXTS:,} tokens at a time, not {len(ids):,}"
            )
        return [(await self._calls().detokenize([i])).encode() for i in ids]

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        return await self._calls().render(Job(messages=tuple(messages), think=think, turn=turn))

    async def template(self) -> dict[str, Any]:
        raise UnsupportedModel(f"the engine of {self._name} does not show its chat template")

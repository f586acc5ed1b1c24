"""What the HTTP side asks of whoever holds the models: three asynchronous faces.

Structural types only: worker/ implements them and does not know this file; tests/server/fakes.py plays them.
Path: openai/chat.py -> Models.use -> Served.start -> Stream -> chunks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from freehold.types import Begin, Chunk, EmbedJob, EngineStats, Job, Message, ModelInfo, Turn, Vectors


class Held(Protocol):
    """A model that lies in the store, loaded or not."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def modified(self) -> float:
        """Return when it came into the store, in seconds since 1970; 0 if nobody knows."""
        ...

    @property
    def parent(self) -> str:
        """Return the model that an adapter's name `base+adapter` begins with; "" for a model."""
        ...

    @property
    def digest(self) -> str:
        """Return the sha256 of its file, of its files' digests, or of its record; "" if nobody made one."""
        ...


class Loaded(Protocol):
    """A model that an engine process holds, or will again when it is back from the dead."""

    @property
    def name(self) -> str: ...
    @property
    def info(self) -> ModelInfo: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def expires_at(self) -> float | None:
        """Return when it leaves memory if nobody asks, in seconds since 1970; None: never."""
        ...

    @property
    def in_flight(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def slow_readers(self) -> int: ...
    @property
    def pid(self) -> int: ...


class Stream(Protocol):
    """One job's answers while they are made. Ends by itself after each answer's chunk with `finish_reason`.

    Raises FreeholdErrors from `__anext__`. The buffer behind it is bounded: a reader that falls too far behind
    loses its stream, with an error.
    """

    @property
    def begin(self) -> Begin: ...
    @property
    def more(self) -> bool:
        """Return whether the next chunk is here already, so that `__anext__` does not wait."""
        ...

    def __aiter__(self) -> Stream: ...
    async def __anext__(self) -> tuple[int, Chunk]:
        """Return (number of the answer, its next chunk)."""
        ...

    async def aclose(self) -> None:
        """Cancel what is unfinished; harmless after the end."""
        ...


class Served(Protocol):
    """One loaded model."""

    @property
    def name(self) -> str: ...
    @property
    def info(self) -> ModelInfo: ...
    @property
    def stats(self) -> EngineStats: ...
    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        """Hand a job in; return once the engine took it. Cancelled while it waits, it drops the job.

        `keep_alive`: seconds the model stays in memory after its last job; negative: for ever; None: as set.
        """
        ...

    async def tokenize(self, text: str, special: bool = False) -> list[int]: ...
    async def detokenize(self, ids: Sequence[int]) -> str: ...
    async def token_texts(self, ids: Sequence[int]) -> list[bytes]: ...
    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new"
    ) -> list[int]: ...
    async def count(self, job: Job) -> int:
        """Return how many tokens a job's prompt has, also where there is no room for them."""
        ...

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, read: Callable[[int], None] | None = None
    ) -> Vectors:
        """Turn texts into unit vectors; errors name a text by its number from 0.

        `read` is called with tokens as they are computed: a caller that is cancelled has had those.
        """
        ...

    async def template(self) -> dict[str, Any]:
        """Return what /tokenizer_info shows: chat_template, bos_token, eos_token and so on."""
        ...


class Asking(Protocol):
    """The models that somebody may ask, by name: all of them, or those in a key's scope (scope.py)."""

    async def names(self) -> Sequence[Held]: ...
    async def use(self, name: str, keep_alive: float | None = None) -> Served:
        """Return a model, loading it if need be; ModelNotFound, CapacityExceeded and others say why not."""
        ...

    async def name_of(self, name: str) -> str:
        """Return the name under which a model is loaded when `name` is asked for; raise ModelNotFound."""
        ...

    def loaded(self) -> Sequence[Loaded]: ...


class Models(Asking, Protocol):
    """Every model this server may hold, and what only its owner may do with them."""

    def loading(self) -> Mapping[str, tuple[int, int]]:
        """Return (bytes done, bytes in all) of each model on its way into memory."""
        ...

    async def unload(self, name: str) -> None: ...
    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        """Put an adapter beside a model, loaded or not."""
        ...

    async def remove_adapter(self, name: str, adapter: str) -> None: ...
    async def close(self, drain_s: float) -> None: ...

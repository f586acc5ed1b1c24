"""Sends jobs to a stand-in through the hop, for tests; reads what comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message, ToolCall
from freehold.route.providers import upstream
from freehold.route.providers.contract import HOUSE, Abilities, Cleared, Kind, Provider, RemoteModel, Secret
from freehold.route.providers.hop import Hop
from tests.providers.standin import StandIn

KINDS: tuple[Kind, ...] = get_args(Kind)
FAMILY: tuple[Kind, ...] = ("openai", "mistral", "deepseek", "openai-compatible")
DIALECTS = {"openai-compatible": "compatible"}
KEY = "sk-standin-0123456789abcdefghij"
ALL = Abilities(logprobs=True, several=True, seed=True)
HELLO = Job(messages=(Message("user", "Hello"),))


def provider(standin: StandIn, kind: Kind = "openai", **more: Any) -> Provider:
    return Provider("far", kind, standin.url(DIALECTS.get(kind, kind)), Secret(KEY), **more)


def remote(standin: StandIn, kind: Kind = "openai", model: str = "m", **more: Any) -> RemoteModel:
    return RemoteModel(provider(standin, kind), model, **{"abilities": ALL, **more})


def cleared(work: Any = HELLO, *places: str) -> Cleared[Any]:
    return Cleared(work, frozenset(places or (HOUSE, "far")))


async def chunks(
    hop: Hop,
    model: RemoteModel,
    job: Job = HELLO,
    *,
    stream: bool = True,
    first: float = 5.0,
    whole: float = 10.0,
) -> list[tuple[int, Chunk]]:
    coming = await upstream.start(
        hop, cleared(job), model, first_token_s=first, timeout_s=whole, stream=stream
    )
    try:
        return [piece async for piece in coming]
    finally:
        await coming.aclose()


def joined(pieces: list[tuple[int, Chunk]], answer: int = 0) -> Chunk:
    """One answer's chunks as one: its texts joined, its last chunk's end."""
    mine = [chunk for number, chunk in pieces if number == answer]
    ends = [chunk for chunk in mine if chunk.finish_reason is not None]
    assert ends == mine[-1:], "an answer ends once, with its last chunk"
    return replace(
        mine[-1],
        text="".join(c.text for c in mine),
        thinking="".join(c.thinking for c in mine),
        refusal="".join(c.refusal for c in mine),
        logprobs=tuple(p for c in mine for p in c.logprobs),
        tool_calls=(),
        signed=tuple(s for c in mine for s in c.signed),
    )


def calls(pieces: list[tuple[int, Chunk]]) -> list[ToolCall]:
    made: list[ToolCall] = []
    for _, chunk in pieces:
        for piece in chunk.tool_calls:
            piece.join(made)
    return made

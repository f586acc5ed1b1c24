"""Another Freehold as a provider of the gateway: our own server, asked over the wire of compatible servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import ContextOverflow, EngineLost, Overloaded
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Chunk, Format, Message, Tool
from freehold.route.providers import upstream
from freehold.route.providers.contract import Abilities, Cleared, Provider, RemoteModel, UpstreamFault
from freehold.route.providers.hop import Hop
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.providers.sending import calls, joined

USER = Message("user", "Hello")
EVERYTHING = Job(
    messages=(Message("system", "Be brief."), USER),
    max_tokens=9,
    sampling={
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 4,
        "repetition_penalty": 1.1,
    },
    stop=("\n",),
    logprobs=1,
    think=True,
    format=Format("json_schema", {"type": "object"}),
)


def house(running: Running) -> RemoteModel:
    url = f"{running.url}/v1"
    provider = Provider("box", "openai-compatible", url, owned=True)
    return RemoteModel(provider, "fake:1b", abilities=Abilities(logprobs=True, several=True, seed=True))


def ask(running: Running, job: Job, *, stream: bool) -> list[tuple[int, Chunk]]:
    async def work() -> list[tuple[int, Chunk]]:
        hop = Hop()
        try:
            cleared = Cleared(job, frozenset({"box"}))
            coming = await upstream.start(
                hop, cleared, house(running), first_token_s=20, timeout_s=30, stream=stream
            )
            return [piece async for piece in coming]
        finally:
            await hop.close()

    return asyncio.run(work())


@pytest.mark.parametrize("stream", [True, False])
def test_every_field_of_a_job_arrives_as_it_was_given(serving: Callable[..., Running], stream: bool):
    running = serving(Script(thinking="Let me see.", cached=2))
    got = joined(ask(running, EVERYTHING, stream=stream))
    assert (got.text, got.thinking, got.finish_reason) == ("Hello there, world.", "Let me see.", "stop")
    assert got.usage is not None and got.usage.cached_tokens == 2
    (arrived,) = running.models.served["fake:1b"].jobs
    for name in ("messages", "max_tokens", "stop", "logprobs", "think", "format"):
        assert getattr(arrived, name) == getattr(EVERYTHING, name), name
    assert EVERYTHING.sampling.items() <= dict(arrived.sampling).items()


@pytest.mark.parametrize("stream", [True, False])
def test_calls_and_a_begun_answer_pass(serving: Callable[..., Running], stream: bool):
    running = serving(Script(text="", calls=(("f", '{"a":1}'), ("g", "{}"))))
    tools = (Tool("f", "one", {"type": "object"}), Tool("g"))
    pieces = ask(running, Job(messages=(USER,), tools=tools), stream=stream)
    assert [(c.name, c.arguments) for c in calls(pieces)] == [("f", '{"a":1}'), ("g", "{}")]
    assert joined(pieces).finish_reason == "tool_calls"
    begun = Job(messages=(USER, Message("assistant", "Hel")), turn="continue")
    ask(serving(), begun, stream=stream)
    assert running.models.served["fake:1b"].jobs[-1].turn == "continue"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("raised, at, cause", [
    (ContextOverflow("9,000 tokens; room for 8,192"), "start", "context"),
    (Overloaded("the queue is full", wait_s=3.0), "start", "rate"),
    (EngineLost("gone"), 2, "server"),
])  # fmt: skip
def test_its_failures_have_their_causes(
    serving: Callable[..., Running], raised: Any, at: Any, cause: str, stream: bool
):
    running = serving(Script(fail=raised, fail_at=at))
    with pytest.raises(UpstreamFault) as caught:
        ask(running, Job(messages=(USER,)), stream=stream)
    assert caught.value.cause == cause
    assert cause != "rate" or caught.value.retry_after_s == 4.0  # rounded up


def test_its_embeddings_are_unit_vectors(serving: Callable[..., Running]):
    running = serving()

    async def work() -> Any:
        hop = Hop()
        try:
            cleared = Cleared(EmbedJob(("a cab", "a back")), frozenset({"box"}))
            return await upstream.embed(hop, cleared, house(running), timeout_s=20)
        finally:
            await hop.close()

    got = asyncio.run(work())
    rows = np.frombuffer(got.data, "<f4").reshape(2, got.width)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)

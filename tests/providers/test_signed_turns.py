"""Conversations with tools through providers that sign their reasoning and refuse a turn without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message, Tool, ToolCall
from freehold.route.providers import upstream
from freehold.route.providers.contract import Cleared, Kind, RemoteModel, UpstreamFault
from freehold.route.providers.hop import Hop
from freehold.route.providers.signatures import Signatures
from tests.providers.sending import calls, cleared, joined, remote
from tests.providers.standin import Answer, StandIn, Tokens
from tests.providers.standin.anthropic import AnthropicStandIn
from tests.providers.standin.gemini import GeminiStandIn
from tests.providers.standin.script import Call

Hopping = Callable[[Callable[[Hop], Coroutine[Any, Any, Any]]], Any]
TOOLS = (Tool("get_weather", "", {"type": "object", "properties": {"city": {"type": "string"}}}),)
MODELS: tuple[tuple[Kind, str], ...] = (
    ("anthropic", "claude-haiku-4-5"),
    ("anthropic", "claude-opus-4-8"),
    ("gemini", "gemini-2.5-flash"),
    ("gemini", "gemini-3.8-flash"),
)
STRICT: tuple[tuple[Kind, str], ...] = (MODELS[0], MODELS[3])
ASKED = Job(messages=(Message("user", "Weather in Paris?"),), tools=TOOLS, think=True, max_tokens=4096)


def step(city: str, number: int, *more: str) -> Answer:
    """An answer that thinks and calls a tool, once for each city."""
    made = (
        Call(f"toolu_{number}_{i}", "get_weather", f'{{"city": "{name}"}}')
        for i, name in enumerate((city, *more))
    )
    return Answer(("I look. ",), thinking=("Let me", " see."), calls=tuple(made), finish="tool_calls")


async def turn(
    hop: Hop, model: RemoteModel, asked: Cleared[Job], signatures: Signatures, *, stream: bool
) -> list[tuple[int, Chunk]]:
    """One request as a route makes it: signatures put back before, kept and stamped after."""
    sent = signatures.restored(asked, model)
    coming = await upstream.start(hop, sent, model, first_token_s=5, timeout_s=10, stream=stream)
    watch = signatures.watch(asked, model)
    try:
        return [(answer, watch.seen(answer, chunk)) async for answer, chunk in coming]
    finally:
        await coming.aclose()


def answered(asked: Job, pieces: list[tuple[int, Chunk]], *, carried: bool) -> Job:
    """The client's next turn. `carried`: it sends signed blocks back, as Anthropic's do; OpenAI's have only ids."""
    made = [call if carried else ToolCall(call.id, call.name, call.arguments) for call in calls(pieces)]
    signed = joined(pieces).signed if carried else ()
    said = Message("assistant", joined(pieces).text, tool_calls=tuple(made), signed=signed)
    results = (Message("tool", f"{18 + i} C", tool_call_id=call.id) for i, call in enumerate(made))
    return replace(asked, messages=(*(asked.messages or ()), said, *results))


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_tools_over_three_turns_with_signatures(
    standin: StandIn, hopping: Hopping, kind, name, stream, carried
):
    standin.say += [step("Paris", 1, "Oslo"), step("Rome", 2), Answer(("18 C.",), tokens=Tokens(90, 5))]
    model = remote(standin, kind, name)

    async def talk(hop: Hop) -> Chunk:
        asked, pieces = ASKED, []
        signatures = Signatures()
        for _ in range(3):
            kept = Signatures() if carried else signatures
            pieces = await turn(hop, model, cleared(asked), kept, stream=stream)
            asked = answered(asked, pieces, carried=carried)
        return joined(pieces)

    last = hopping(talk)
    assert (last.text, last.finish_reason) == ("18 C.", "stop")
    assert standin.wait_for(lambda: [received.ended for received in standin.received] == ["whole"] * 3)
    raw = standin.received[2].body
    assert raw.count(b'ignature"') >= 2  # a block of each of the two steps


@pytest.mark.parametrize(("kind", "name"), STRICT)
def test_altered_signature_is_the_clients_fault(standin: StandIn, hopping: Hopping, kind, name):
    standin.say += [step("Paris", 1)]
    model = remote(standin, kind, name)

    def alter(chunk: Chunk) -> Chunk:
        signed = tuple(replace(block, text=block.text + "!") for block in chunk.signed)
        pieces = tuple(
            replace(p, signature=p.signature and p.signature[:-4] + "AAA=") for p in chunk.tool_calls
        )
        return replace(chunk, signed=signed, tool_calls=pieces)

    async def talk(hop: Hop) -> None:
        pieces = await turn(hop, model, cleared(ASKED), Signatures(), stream=True)
        altered = [(answer, alter(chunk)) for answer, chunk in pieces]
        back = answered(ASKED, altered, carried=True)
        await turn(hop, model, cleared(back), Signatures(), stream=True)

    with pytest.raises(UpstreamFault, match="ignature") as fault:
        hopping(talk)
    assert (fault.value.cause, fault.value.status) == ("request", 400)


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_turn_begun_by_another_model_is_continued_without_its_signatures(
    standin, hopping: Hopping, kind, name
):
    standin.say += [step("Paris", 1), step("Paris", 2), Answer(("18 C.",))]
    first = remote(standin, "gemini" if kind == "anthropic" else "anthropic", "claude-haiku-4-5")
    other = remote(standin, kind, name)

    async def talk(hop: Hop) -> Chunk:
        signatures = Signatures()
        asked = answered(ASKED, await turn(hop, first, cleared(ASKED), signatures, stream=True), carried=True)
        asked = answered(
            asked, await turn(hop, other, cleared(asked), signatures, stream=True), carried=False
        )
        return joined(await turn(hop, other, cleared(asked), signatures, stream=True))

    assert hopping(talk).text == "18 C."


def test_the_stand_in_refuses_a_missing_block():
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    turns = (("user", "x"), ("assistant", [use]), ("user", [{"type": "tool_result", "tool_use_id": "a"}]))
    asked: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 2000}
    asked["messages"] = [{"role": role, "content": content} for role, content in turns]
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "x-goog-api-key": "k"}
    wrong = AnthropicStandIn().check("/anthropic/v1/messages", headers, json.dumps(asked).encode())
    assert "must start with a thinking block" in wrong
    parts = (
        {"text": "x"},
        {"functionCall": {"name": "f"}},
        {"functionResponse": {"name": "f", "response": {}}},
    )
    contents = [
        {"role": role, "parts": [part]} for role, part in zip(("user", "model", "user"), parts, strict=True)
    ]
    path = "/gemini/v1beta/models/gemini-3.8-flash:generateContent"
    assert "missing a thought_signature" in GeminiStandIn().check(
        path, headers, json.dumps({"contents": contents}).encode()
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("kind", "name"), [MODELS[0], MODELS[3]])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(
            ("Hello", " wörld", "."), tokens=Tokens(2000, 12, cached=1500, thought=4), thinking=("Hm", "m")
        ),
        Answer(("cut",), finish="length", tokens=Tokens(9, 1)),
        Answer(("half",), finish="content_filter", tokens=Tokens(9, 1)),
        Answer((), finish="refusal", refusal="Not this.", tokens=Tokens(9, 1)),
        step("Paris", 1, "Oslo"),
    ],
)
def test_streamed_and_whole_answers_are_the_same_joined(
    standin: StandIn, hopping: Hopping, kind, name, answer, stream
):
    standin.say += [answer]
    pieces = hopping(
        lambda hop: turn(hop, remote(standin, kind, name), cleared(ASKED), Signatures(), stream=stream)
    )
    got = joined(pieces)
    assert (got.text, got.thinking) == (answer.text, answer.thoughts)
    assert [(c.name, c.arguments) for c in calls(pieces)] == [(c.name, c.arguments) for c in answer.calls]
    assert standin.wait_for(lambda: bool(standin.bills))
    (bill,) = standin.bills
    assert got.usage is not None
    used = (
        got.usage.prompt_tokens,
        got.usage.completion_tokens,
        got.usage.cached_tokens,
        got.usage.thought_tokens,
    )
    assert used == (bill.tokens.prompt, bill.tokens.output, bill.tokens.cached, bill.tokens.thought)
    ends = {"anthropic": {"content_filter": "refusal"}, "gemini": {"refusal": "content_filter"}}
    assert got.finish_reason == ends[kind].get(answer.finish, answer.finish)


def test_written_tokens_are_told_apart_by_their_time(standin: StandIn, hopping: Hopping):
    standin.say += [Answer(tokens=Tokens(1000, 5, cached=100, written=200, written_hour=300))]
    model = remote(standin, "anthropic", "claude-haiku-4-5")
    usage = joined(hopping(lambda hop: turn(hop, model, cleared(ASKED), Signatures(), stream=True))).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.written_tokens, usage.written_hour_tokens) == (
        *(1000, 100),
        *(200, 300),
    )


@pytest.mark.parametrize(("kind", "name"), [MODELS[0], MODELS[3]])
def test_count_and_embeddings_have_their_doors(standin: StandIn, hopping: Hopping, kind, name):
    model = remote(standin, kind, name)
    standin.say += [Answer(tokens=Tokens(77, 0))]
    assert hopping(lambda hop: upstream.count(hop, cleared(ASKED), model, timeout_s=5)) == 77


@pytest.mark.parametrize(("kind", "name"), STRICT)
def test_a_count_sends_signatures_to_their_own_model_only(standin: StandIn, hopping: Hopping, kind, name):
    standin.say += [step("Paris", 1)]
    model, other = remote(standin, kind, name), remote(standin, kind, name + "-9")

    async def talk(hop: Hop) -> tuple[int | None, int | None]:
        pieces = await turn(hop, model, cleared(ASKED), Signatures(), stream=True)
        back = cleared(answered(ASKED, pieces, carried=True))
        counts = [await upstream.count(hop, back, each, timeout_s=5) for each in (model, other)]
        return counts[0], counts[1]

    assert all(hopping(talk))
    signed = [received.body.count(b'gnature":') for received in standin.received]
    assert signed[1] >= 1
    assert b"fh1." not in standin.bytes_received


@pytest.mark.parametrize("stream", [True, False])
def test_signed_texts_return_as_the_parts_they_were(standin: StandIn, hopping: Hopping, stream):
    standin.say += [Answer(("I look", "ed."), signature="yes"), Answer(("18 C.",))]
    model = remote(standin, "gemini", "gemini-3.8-flash")

    async def talk(hop: Hop) -> Chunk:
        pieces = await turn(hop, model, cleared(ASKED), Signatures(), stream=stream)
        said = Message("assistant", joined(pieces).text, signed=joined(pieces).signed)
        back = replace(ASKED, messages=(*(ASKED.messages or ()), said, Message("user", "And?")))
        return joined(await turn(hop, model, cleared(back), Signatures(), stream=stream))

    assert hopping(talk).text == "18 C."
    assert standin.received[1].body.count(b"thoughtSignature") == 1


def test_redacted_blocks_return(standin: StandIn, hopping: Hopping):
    standin.say += [replace(step("Paris", 1), thinking=(), redacted="secret"), Answer(("18 C.",))]
    model = remote(standin, "anthropic", "claude-haiku-4-5")

    async def talk(hop: Hop) -> Chunk:
        signatures = Signatures()
        pieces = await turn(hop, model, cleared(ASKED), signatures, stream=True)
        back = answered(ASKED, pieces, carried=False)
        return joined(await turn(hop, model, cleared(back), signatures, stream=True))

    assert hopping(talk).text == "18 C."
    assert b"redacted_thinking" in standin.received[1].body

"""Streams through a real server to a provider that breaks: unseen before a token, an error to the client after it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from freehold.base.errors import FreeholdError, UpstreamFailed
from freehold.route.providers.contract import UpstreamFault
from freehold.route.router.opening import ProviderModels
from tests.http.fakes import Script
from tests.providers.standin import Answer, Fault, StandIn
from tests.providers.standin.server import Received
from tests.router.house import House, at_standin, gateway_of, job, open_house, within

ROUTES = """
[routes.chat]
targets = ["big", "own"]
first_token = "300ms"
retries = 0
breaker = { failures = 1000, cooldown = "1s" }
[routes.late]
targets = ["big", "own"]
first_token = "20s"
retries = 0
breaker = { failures = 1000, cooldown = "1s" }
"""
OWN = "Hello there, world."
PIECES = ("From", " far", " away", ".")
FAR = "".join(PIECES)
SLOW = Answer(PIECES, event_s=0.03)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(standin: StandIn) -> None:
    standin.say.clear()
    standin.behave = None


@pytest.fixture(scope="module")
def served(standin: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    running = open_house(folder, ROUTES, base=at_standin(standin.url("openai")), rent=ProviderModels)
    yield running
    running.end()


@pytest.fixture
def house(served: House) -> House:
    served.models.parts.breakers.answered("big")
    return served


def events(text: str) -> list[str]:
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]


def said(text: str) -> str:
    """The text of a stream of OpenAI's chat route."""
    chunks = [json.loads(event) for event in events(text) if event != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


EARLY = [
    Fault("status", status=500),
    Fault("status", status=429, retry_after="30"),
    Fault("status", status=401),
    Fault("status", status=529),
    Fault("hang"),
    Fault("reset"),
    Fault("html"),
    Fault("redirect"),
    Fault("garbage"),
    Fault("cut", at=0),
    Fault("cut", at=30),
    Fault("cut_reset", at=10),
    Fault("stall", at=20),
    Fault("bad_utf8", at=12),
    Fault("error_event", at=0),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", EARLY, ids=lambda f: f"{f.kind}-{f.status}-{f.at}")
def test_break_before_the_first_token_is_not_seen_by_the_client(
    fault, stream, house: House, standin: StandIn
):
    standin.say.append(fault)
    reply = house.chat("chat", stream=stream)
    assert reply.status_code == 200
    if stream:
        assert said(reply.text) == OWN and events(reply.text)[-1] == "[DONE]"
    else:
        assert reply.json()["choices"][0]["message"]["content"] == OWN
    row = house.rows[-1]
    assert row.outcome == "whole" and row.target == "own"
    assert row.attempts[0].target == "big" and row.attempts[0].cause


LATE = [
    Fault("cut", at=420),
    Fault("cut_reset", at=420),
    Fault("bad_utf8", at=430),
    Fault("endless"),
    Fault("error_event", at=3),
]


PATHS = {
    "openai": "/v1/chat/completions",
    "responses": "/v1/responses",
    "anthropic": "/v1/messages",
    "ollama": "/api/chat",
    "generate": "/api/generate",
}


def asked(door: str) -> dict[str, object]:
    """A streamed request of a door, with a question of its protocol."""
    text = "What is two and two?"
    body: dict[str, object] = {"model": "late", "stream": True}
    if door == "generate":
        return {**body, "prompt": text}
    if door == "responses":
        return {**body, "input": text, "max_output_tokens": 50}
    return {**body, "messages": [{"role": "user", "content": text}], "max_tokens": 50}


def told(door: str, text: str) -> str:
    """What of an answer came in a door's own words; it must end with an error and nothing that says it was whole."""
    if door == "openai":
        *_, error, done = events(text)
        assert json.loads(error)["error"]["message"] and done == "[DONE]"
        assert '"finish_reason":"' not in text
        return said(text)
    if door == "anthropic":
        found = [json.loads(event) for event in events(text)]
        assert found[-1]["type"] == "error" and not any(e["type"] == "message_stop" for e in found)
        return "".join(e["delta"].get("text", "") for e in found if e["type"] == "content_block_delta")
    if door == "responses":
        found = [json.loads(event) for event in events(text) if event != "[DONE]"]
        assert found[-1]["type"] == "response.failed" and found[-1]["response"]["error"]["message"]
        assert not any(e["type"] == "response.completed" for e in found)
        return "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["error"] and not any(line.get("done") for line in lines)
    texts = (line.get("response") or line.get("message", {}).get("content", "") for line in lines)
    return "".join(texts)


@pytest.mark.parametrize("door", PATHS)
@pytest.mark.parametrize("fault", LATE, ids=lambda f: f.kind)
def test_break_after_the_first_token_is_told_and_booked(fault, door, house: House, standin: StandIn):
    standin.say.append(Fault(fault.kind, at=fault.at, answer=Answer(PIECES, event_s=0.01)))
    version = {"anthropic-version": "2023-06-01"} if door == "anthropic" else {}
    reply = house.client.post(PATHS[door], json=asked(door), headers=version)
    assert reply.status_code == 200
    came = told(door, reply.text)
    assert came and FAR.startswith(came)
    row = house.rows[-1]
    assert (row.outcome, row.estimated, row.finish_reason) == ("broken", True, "")
    assert row.nano > 0 and [a.target for a in row.attempts] == ["big"]


def test_cut_at_any_byte_gives_another_targets_whole_answer_or_tells_the_break(
    standin: StandIn, tmp_path: Path
):
    """Any byte of a streamed answer: the client has a whole answer of one target, or a beginning and an error."""
    ends: dict[str, int] = {}

    async def ask(gateway, fault: Fault | None) -> str:
        if fault is not None:
            standin.say.append(fault)
        came = ""
        try:
            stream = await gateway.start("late")
            try:
                async for _, chunk in stream:
                    came += chunk.text
            finally:
                await stream.aclose()
        except UpstreamFailed:
            assert came and FAR.startswith(came), came
            return "told"
        assert came in (OWN, FAR), came
        return "other" if came == OWN else "whole"

    async def main() -> None:
        rented = ProviderModels()
        async with within(tmp_path, ROUTES, base=at_standin(standin.url("openai")), rented=rented) as gateway:
            for at in range(0, 1400, 7):
                kind = ("cut", "cut_reset", "cut", "bad_utf8")[at % 4]
                how = await ask(gateway, Fault(kind, at=at, answer=Answer(PIECES)))
                ends[how] = ends.get(how, 0) + 1
            outcomes = [row.outcome for row in gateway.rows]
            assert outcomes.count("broken") == ends["told"]
            assert len(outcomes) == sum(ends.values())
        await rented.close()

    asyncio.run(main())
    assert ends["told"] > 20 and ends["other"] > 20


def test_stream_that_ends_without_its_end_is_never_finished_for_the_provider(
    standin: StandIn, tmp_path: Path
):
    async def main() -> None:
        rented = ProviderModels()
        async with within(tmp_path, "", base=at_standin(standin.url("openai")), rented=rented) as gateway:
            standin.say.append(Fault("endless", answer=Answer(PIECES)))
            stream = await gateway.start("big")
            with pytest.raises(UpstreamFault) as e:
                async for _, chunk in stream:
                    assert chunk.finish_reason is None
            assert e.value.cause == "broken"
            await stream.aclose()
        await rented.close()

    asyncio.run(main())


def test_client_that_leaves_ends_the_providers_stream_within_a_second(house: House, standin: StandIn):
    standin.say.append(Answer(("word ",) * 400, event_s=0.02))
    before = len(house.rows)
    body = {"model": "big", "messages": [{"role": "user", "content": "count"}], "stream": True}
    with house.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        seen = ""
        for text in reply.iter_text():
            seen += text
            if seen.count("word") >= 5:
                break
    left = time.monotonic()
    received = standin.received[-1]
    assert standin.wait_for(lambda: received.ended != "", 5)
    assert received.ended == "left" and received.ended_s - left < 1.0
    assert standin.wait_for(lambda: len(house.rows) == before + 1, 5)
    row = house.rows[-1]
    assert (row.outcome, row.estimated) == ("left", True)
    assert 5 <= row.usage.completion_tokens <= 100


def echo(received: Received) -> Answer:
    """Say the last word of the request twenty times, slowly enough for all streams to be open at once."""
    assert received.asked is not None
    word = received.asked.last.split()[-1]
    return Answer(tuple(f"{word} " for _ in range(20)), event_s=0.01)


@pytest.mark.heavy
@pytest.mark.long
def test_two_hundred_streams_at_once_keep_their_texts_apart(house: House, standin: StandIn):
    standin.behave = echo

    async def one(client: httpx2.AsyncClient, i: int) -> str:
        body = {"model": "big", "messages": [{"role": "user", "content": f"say mark{i}"}], "stream": True}
        return said((await client.post("/v1/chat/completions", json=body)).text)

    async def main() -> list[str]:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(base_url=house.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, i) for i in range(200)))

    for i, text in enumerate(asyncio.run(main())):
        assert text == f"mark{i} " * 20


def slow_streams(house: House, count: int) -> tuple[list[threading.Thread], list[str]]:
    """Begin streams that take a second, and return when all have begun."""
    texts: list[str] = []

    def read() -> None:
        texts.append(house.chat("late", stream=True).text)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, texts


def test_reload_in_the_middle_drops_no_stream(standin: StandIn, tmp_path: Path):
    standin.behave = lambda _: SLOW
    base = at_standin(standin.url("openai"))
    house = open_house(tmp_path, ROUTES, base=base, rent=ProviderModels)
    try:
        before = len(standin.received)
        threads, texts = slow_streams(house, 10)
        assert standin.wait_for(lambda: len(standin.received) == before + 10)
        # The provider moves, so that its connections are given up, each once its answer has ended.
        house.gateway = gateway_of(
            "", base=base.replace("/openai/v1", "/mistral/v1").replace('"openai"', '"mistral"')
        )
        assert house.chat("big").status_code == 200
        assert house.chat("chat").status_code == 404  # the route is gone
        for thread in threads:
            thread.join(30)
        assert [said(text) for text in texts] == [FAR] * 10
        assert all(events(text)[-1] == "[DONE]" for text in texts)
    finally:
        house.end()


def test_drain_lets_every_stream_end_with_its_row(standin: StandIn, tmp_path: Path):
    standin.behave = lambda _: SLOW
    house = open_house(tmp_path, ROUTES, base=at_standin(standin.url("openai")), rent=ProviderModels)
    before = len(standin.received)
    threads, texts = slow_streams(house, 10)
    assert standin.wait_for(lambda: len(standin.received) == before + 10)
    house.loop.call_soon_threadsafe(house.doors.stop)
    for thread in threads:
        thread.join(30)
    house.thread.join(30)
    assert not house.thread.is_alive() and house.doors.drained
    assert [said(text) for text in texts] == [FAR] * 10
    assert [row.outcome for row in house.rows] == ["whole"] * 10


def test_engine_that_is_lost_before_its_first_token_is_replaced_unseen(standin: StandIn, tmp_path: Path):
    async def main() -> None:
        rented = ProviderModels()
        base = at_standin(standin.url("openai"))
        script = Script(fail=FreeholdError("gone"), fail_at=0)
        text = '[routes.back]\ntargets = ["own", "big"]\nretries = 0\n'
        async with within(tmp_path, text, base=base, rented=rented, script=script) as gateway:
            standin.say.append(Answer(PIECES))
            assert await gateway.text("back", job("hello")) == FAR
        await rented.close()

    asyncio.run(main())

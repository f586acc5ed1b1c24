"""A request to a provider and its answer: ends, faults with their causes, limits; nothing goes where it may not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from freehold.base.errors import PolicyRefused
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Message
from freehold.route.providers import upstream
from freehold.route.providers.contract import (
    HOUSE,
    Cause,
    Cleared,
    Kind,
    Provider,
    RemoteModel,
    SetLabel,
    UpstreamFault,
)
from freehold.route.providers.hop import Hop
from tests.providers.sending import (
    FAMILY,
    HELLO,
    KEY,
    chunks,
    cleared,
    joined,
    provider,
    remote,
)
from tests.providers.standin import Answer, Fault, StandIn, Tokens

SECRET = "the merger is called Nightjar and closes on Friday"
LONG = Answer(tuple(f"word{i} " for i in range(50)), tokens=Tokens(10, 50))


def fault_of(hopping: Any, standin: StandIn, job: Job = HELLO, **more: Any) -> UpstreamFault:
    with pytest.raises(UpstreamFault) as caught:
        hopping(lambda hop: chunks(hop, remote(standin), job, **more))
    return caught.value


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", FAMILY)
def test_an_answer_arrives_with_its_end_and_its_usage(standin: StandIn, hopping, kind, stream):
    standin.say.append(Answer(("One", " and", " two"), tokens=Tokens(100, 7, cached=40)))
    got = joined(hopping(lambda hop: chunks(hop, remote(standin, kind), stream=stream)))
    assert (got.text, got.finish_reason) == ("One and two", "stop")
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.cached_tokens, got.usage.completion_tokens) == (100, 40, 7)
    assert standin.received[0].ended == "whole"


BEFORE: list[tuple[Fault, Cause]] = [
    (Fault("status", 400), "request"),
    (Fault("status", 400, code="context_length_exceeded"), "context"),
    (Fault("status", 400, "This model's maximum context length is 8192 tokens."), "context"),
    (Fault("status", 401), "auth"),
    (Fault("status", 402), "auth"),
    (Fault("status", 403), "auth"),
    (Fault("status", 404), "request"),
    (Fault("status", 422), "request"),
    (Fault("status", 429), "rate"),
    (Fault("status", 429, code="insufficient_quota"), "auth"),
    (Fault("status", 500), "server"),
    (Fault("status", 503), "server"),
    (Fault("status", 529), "rate"),
    (Fault("html"), "invalid"),
    (Fault("redirect"), "redirect"),
    (Fault("reset"), "connect"),
    (Fault("garbage"), "invalid"),
    (Fault("cut", at=0), "broken"),
    (Fault("cut_reset", at=40), "broken"),
    (Fault("bad_utf8", at=20), "invalid"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fault, cause", BEFORE, ids=lambda v: v if isinstance(v, str) else f"{v.kind}{v.status}"
)
def test_a_fault_before_the_first_token_has_its_cause(standin: StandIn, hopping, fault, cause, stream):
    standin.say.append(fault)
    got = fault_of(hopping, standin, stream=stream)
    assert got.cause == cause
    assert got.status == (
        fault.status if fault.kind == "status" else 307 if fault.kind == "redirect" else got.status
    )
    assert got.__cause__ is None
    assert len(standin.received) == 1, "nothing is asked again, nowhere"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_cut_at_any_byte_is_never_finished(standin: StandIn, hopping, stream):
    answer = Answer(("One", " two"), tokens=Tokens(5, 2))
    size = _size(standin, hopping, answer, stream)

    async def all_cuts(hop: Hop) -> list[str]:
        causes = []
        for at in range(size):
            standin.say.append(Fault("cut", at=at, answer=answer))
            try:
                await chunks(hop, remote(standin), stream=stream)
                causes.append("finished")
            except UpstreamFault as e:
                causes.append(e.cause)
        return causes

    assert set(hopping(all_cuts)[: -len(b"\n") if stream else None]) == {"broken"}


@pytest.mark.parametrize("kind, missing", [
    *[("openai", n) for n in (1, 2, len(b"data: [DONE]\n\n"), len(b"data: [DONE]\n\n") + 1)],
    *[("anthropic", n) for n in (1, 2)],
    *[("gemini", n) for n in (1, 2)],
])  # fmt: skip
def test_a_last_event_without_its_blank_line_is_taken(standin: StandIn, hopping, kind: Kind, missing: int):
    standin.say.append(Fault("short", at=missing, answer=Answer(("One", " two"), tokens=Tokens(5, 2))))
    got = joined(hopping(lambda hop: chunks(hop, remote(standin, kind))))
    assert (got.text, got.finish_reason) == ("One two", "stop")
    assert got.usage is not None and got.usage.completion_tokens == 2


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_a_last_event_that_is_torn_is_broken(standin: StandIn, hopping, kind: Kind):
    standin.say.append(Fault("short", at={"openai": 600, "anthropic": 60, "gemini": 20}[kind], answer=LONG))
    with pytest.raises(UpstreamFault) as caught:
        hopping(lambda hop: chunks(hop, remote(standin, kind)))
    assert caught.value.cause == "broken"


def _size(standin: StandIn, hopping: Any, answer: Answer, stream: bool) -> int:
    from tests.providers.standin.server import WIRES

    standin.say.append(answer)
    hopping(lambda hop: chunks(hop, remote(standin), stream=stream))
    asked = standin.received[-1].asked
    wire = WIRES[0]
    assert asked is not None and answer.tokens is not None
    if stream:
        return sum(len(f.data) for f in wire.events(asked, answer, answer.tokens, "standin-1"))
    return len(wire.whole(asked, answer, answer.tokens, "standin-1"))


@pytest.mark.parametrize("fault, cause", [
    (Fault("cut", at=700, answer=LONG), "broken"),
    (Fault("cut_reset", at=700, answer=LONG), "broken"),
    (Fault("endless", answer=LONG), "broken"),
    (Fault("bad_utf8", at=900, answer=LONG), "invalid"),
    (Fault("wrong_length", answer=Answer(("a", "b"), sends_usage=False)), ""),
    (Fault("error_event", at=5, message=f"overloaded {KEY}", answer=LONG), "server"),
    (Fault("stall", at=900, answer=LONG), "timeout"),
], ids=lambda v: v if isinstance(v, str) else v.kind)  # fmt: skip
def test_a_break_after_the_first_token_is_told_after_what_came(standin: StandIn, hopping, fault, cause):
    standin.say.append(fault)

    async def read(hop: Hop) -> tuple[str, UpstreamFault | None]:
        coming = await upstream.start(hop, cleared(), remote(standin), first_token_s=2, timeout_s=0.5)
        text = ""
        try:
            async for _, chunk in coming:
                text += chunk.text
        except UpstreamFault as e:
            return text, e
        return text, None

    text, broken = hopping(read)
    whole = fault.answer.text
    assert text and whole.startswith(text)
    if cause:
        assert broken is not None and broken.cause == cause
        assert KEY not in broken.message
    else:  # the wire's own end came: the length that HTTP states is no more than that
        assert broken is None and text == whole


def test_a_stated_length_that_does_not_come_breaks_a_whole_answer(standin: StandIn, hopping):
    standin.say.append(Fault("wrong_length"))
    assert fault_of(hopping, standin, stream=False).cause == "broken"


def test_a_redirect_is_followed_nowhere(standin: StandIn, hopping):
    with StandIn() as other:
        standin.say.append(Fault("redirect", to=other.url("openai") + "/chat/completions"))
        assert fault_of(hopping, standin).cause == "redirect"
        assert other.bytes_received == b""


def test_no_proxy_of_the_environment_is_used(standin: StandIn, hopping, monkeypatch):
    with StandIn() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        hopping(lambda hop: chunks(hop, remote(standin)))
        assert proxy.connections == 0 and len(standin.received) == 1


def test_a_provider_s_own_proxy_is_used(standin: StandIn, hopping):
    far = Provider("far", "openai", "http://api.invalid/openai/v1", proxy=f"http://127.0.0.1:{standin.port}")
    standin.checks = False
    hopping(lambda hop: chunks(hop, RemoteModel(far, "m")))  # a proxy is sent the whole URL
    assert standin.received[0].path == "http://api.invalid/openai/v1/chat/completions"


@pytest.mark.parametrize("stream", [True, False])
def test_silence_ends_at_its_limit(standin: StandIn, hopping, stream):
    standin.say.append(Fault("hang"))
    got = fault_of(hopping, standin, stream=stream, first=0.1, whole=0.1 if not stream else 5)
    assert got.cause == "timeout" and "0.1 s" in got.message
    assert standin.wait_for(lambda: bool(standin.received[0].ended_s), 1.0)


def test_an_answer_that_is_too_slow_ends_at_its_limit(standin: StandIn, hopping):
    standin.say.append(Answer(LONG.pieces, event_s=0.05))
    got = fault_of(hopping, standin, first=1, whole=0.3)
    assert got.cause == "timeout"
    assert standin.wait_for(lambda: standin.received[0].ended == "left", 1.0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_leaver_ends_the_provider_s_answer_within_a_second(standin: StandIn, hopping, when):
    standin.say.append(Fault("hang") if when == "before" else Answer(LONG.pieces * 20, event_s=0.02))

    async def leave(hop: Hop) -> float:
        task = asyncio.create_task(chunks(hop, remote(standin), whole=30, first=30))
        while not standin.received:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        left = time.monotonic()
        while not standin.received[0].ended_s and time.monotonic() < left + 5:
            await asyncio.sleep(0.005)
        return standin.received[0].ended_s - left

    assert hopping(leave) < 1.0
    assert standin.received[0].ended in ("left", "hang")
    assert all(not bill.whole for bill in standin.bills)


def test_a_label_is_checked_where_the_connection_opens(standin: StandIn, hopping):
    private = Cleared(HELLO, frozenset({HOUSE}), (SetLabel("private", "key alice"),))
    texts = private.with_work(EmbedJob(("a",)))

    async def all_doors(hop: Hop) -> None:
        model = remote(standin)
        with pytest.raises(PolicyRefused, match="private may not go to far"):
            await upstream.start(hop, private, model, first_token_s=1, timeout_s=1)
        with pytest.raises(PolicyRefused):
            await upstream.start(hop, private, model, first_token_s=1, timeout_s=1, stream=False)
        with pytest.raises(PolicyRefused):
            await upstream.embed(hop, texts, model, timeout_s=1)
        with pytest.raises(PolicyRefused):
            await upstream.start(hop, private.only({"far"}), model, first_token_s=1, timeout_s=1)

    hopping(all_doors)
    assert standin.connections == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_that_quotes_key_or_prompt_comes_back_without_them(standin: StandIn, hopping, stream):
    job = Job(messages=(Message("user", f"Note: {SECRET}."),))
    for said in (f"bad key {KEY}", f"bad key {KEY[:12]}***{KEY[-9:]}", "Authorization: Bearer abcdef0123456789xyz",
                 f"cannot parse '{SECRET}'", f"cannot parse: {SECRET[10:40]}"):  # fmt: skip
        standin.say.append(Fault("status", 400, said))
        got = fault_of(hopping, standin, job, stream=stream)
        text = f"{got} {got!r} {got.message} {got.hint}"
        assert KEY[:12] not in text and KEY[-9:] not in text and "abcdef0123456789xyz" not in text
        assert SECRET[10:40] not in text and "Nightjar" not in text
        assert "400" in text


def test_a_retry_after_is_kept(standin: StandIn, hopping):
    standin.say.append(Fault("status", 429, retry_after="7"))
    assert fault_of(hopping, standin).retry_after_s == 7.0


def test_a_connection_is_used_again_and_a_broken_one_is_not(standin: StandIn, hopping):
    async def several(hop: Hop) -> None:
        async def settled() -> None:  # a stream's last bytes may come after its end event
            async with asyncio.timeout(10):
                while any(each._draining for each in hop._channels.values()):
                    await asyncio.sleep(0.005)

        for _ in range(5):
            await chunks(hop, remote(standin))
            await settled()
            await chunks(hop, remote(standin), stream=False)
            await settled()
        assert standin.connections == 1
        for used, fault in enumerate((Fault("cut", at=900, answer=LONG), Fault("endless", answer=LONG)), 2):
            standin.say.append(fault)
            with pytest.raises(UpstreamFault):
                await chunks(hop, remote(standin))
            await settled()
            await chunks(hop, remote(standin))
            assert standin.connections == used

    hopping(several)


def test_two_hundred_streams_keep_their_texts_apart(standin: StandIn, hopping):
    def say(received: Any) -> Answer:
        number = received.asked.last
        return Answer(tuple(f"<{number}:{i}>" for i in range(20)), event_s=0.001)

    standin.behave = say

    async def all_at_once(hop: Hop) -> list[str]:
        jobs = [Job(messages=(Message("user", str(i)),)) for i in range(200)]
        got = await asyncio.gather(*(chunks(hop, remote(standin), job, first=30, whole=60) for job in jobs))
        return [joined(pieces).text for pieces in got]

    texts = hopping(all_at_once)
    assert texts == ["".join(f"<{n}:{i}>" for i in range(20)) for n in range(200)]


def test_an_answer_nobody_asked_for_is_not_the_next_request_s(standin: StandIn, hopping):
    async def ask(hop: Hop) -> list[str]:
        standin.say += [Fault("stray", answer=Answer(("mine",))), Answer(("yours",))]
        mine = joined(await chunks(hop, remote(standin), stream=False)).text
        await asyncio.sleep(0.1)
        return [mine, joined(await chunks(hop, remote(standin), stream=False)).text]

    assert hopping(ask) == ["mine", "yours"]


def test_no_log_holds_key_or_prompt_at_debug_level_too(standin: StandIn, hopping, caplog):
    caplog.set_level("DEBUG")
    job = Job(messages=(Message("user", SECRET),))
    hopping(lambda hop: chunks(hop, remote(standin), job))
    for fault in (Fault("status", 401, f"bad {KEY}: {SECRET}"), Fault("garbage"), Fault("reset")):
        standin.say.append(fault)
        fault_of(hopping, standin, job)
    assert KEY not in caplog.text and SECRET not in caplog.text


def test_connections_of_a_provider_are_limited(standin: StandIn, hopping):
    standin.behave = lambda _: Answer(event_s=0.002)
    few = RemoteModel(provider(standin, connections=3), "m")

    async def many(hop: Hop) -> None:
        await asyncio.gather(*(chunks(hop, few) for _ in range(12)))

    hopping(many)
    assert standin.connections == 3


def test_a_provider_that_left_the_file_ends_its_streams_before_its_connections(standin: StandIn, hopping):
    standin.say.append(Answer(("a", "b", "c"), event_s=0.02))
    model = remote(standin)

    async def reread(hop: Hop) -> str:
        coming = await upstream.start(hop, cleared(), model, first_token_s=5, timeout_s=5)
        hop.keep([])
        return "".join([chunk.text async for _, chunk in coming])

    assert hopping(reread) == "abc"


def test_an_answer_beyond_the_limit_is_refused_by_name(standin: StandIn, hopping, monkeypatch):
    monkeypatch.setattr("freehold.route.providers.upstream.MAX_EVENT", 1000)
    standin.say.append(Answer(("x" * 5000,)))
    got = fault_of(hopping, standin)
    assert got.cause == "invalid" and "1,000 bytes" in got.message
    monkeypatch.setattr("freehold.route.providers.hop.MAX_BODY", 1000)
    standin.say.append(Answer(("x" * 5000,)))
    got = fault_of(hopping, standin, stream=False)
    assert got.cause == "invalid" and "1,000 bytes" in got.message


def test_a_dead_address_is_a_fault_of_connecting(hopping):
    dead = RemoteModel(Provider("far", "openai", "http://127.0.0.1:9/v1"), "m")
    with pytest.raises(UpstreamFault) as caught:
        hopping(lambda hop: chunks(hop, dead))
    assert caught.value.cause == "connect" and "refused" in caught.value.message


def test_embeddings_have_unit_length_and_the_provider_s_count(standin: StandIn, hopping):
    import numpy as np

    for kind in ("openai", "mistral", "openai-compatible"):
        standin.say.append(Answer(tokens=Tokens(17, 0)))
        job = EmbedJob(("one text", "another, longer text", ""))
        got = hopping(
            lambda hop, k=kind, j=job: upstream.embed(hop, cleared(j), remote(standin, k), timeout_s=5)
        )
        rows = np.frombuffer(got.data, "<f4").reshape(3, got.width)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
        assert sum(got.tokens) == 17 and len(got.tokens) == 3

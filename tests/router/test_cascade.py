"""A cascade: an owned answer whose first tokens are unlikely is thrown away, unseen, and the next target is asked."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from freehold.base.errors import UpstreamFailed
from tests.http.fakes import Script
from tests.router.house import job, within
from tests.router.rented import Answers, FakeRented, fault

# FakeModels give every token the log-probability -0.5: a mean probability of 0.607.
UNLIKELY, LIKELY = 0.7, 0.5


def route(below: float, check: int = 64, more: str = "") -> str:
    look = f'escalate = {{ when = "logprob", below = {below}, check = {check} }}'
    return f'[routes.chat]\ntargets = ["own", "big"]\nretries = 0\n{look}\n{more}'


def run(test, folder: Path, text: str, **parts) -> None:
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


def big() -> FakeRented:
    return FakeRented(big=Answers("better"))


def test_unlikely_answer_is_thrown_away_unseen_with_a_row_of_its_own(tmp_path):
    async def test(house):
        stream = await house.start("chat")
        assert "".join([chunk.text async for _, chunk in stream]) == "better "
        await stream.aclose()
        thrown, whole = sorted(house.rows, key=lambda row: row.outcome)
        assert (thrown.outcome, thrown.parent, thrown.target) == ("discarded", whole.id, "own")
        assert thrown.usage.completion_tokens == 3 and thrown.answer_id == ""
        assert (whole.outcome, whole.target) == ("whole", "big")
        assert [(a.target, a.cause) for a in whole.attempts] == [("own", "discarded"), ("big", "")]
        assert any(f"{math.exp(-0.5):.3f}, below 0.7" in w for w in stream.begin.warnings)
        assert house.engines.served["fake:1b"].streams[0].closed

    run(test, tmp_path, route(UNLIKELY), rented=big())


def test_likely_answer_is_sent_and_the_next_target_never_asked(tmp_path):
    async def test(house):
        assert await house.text("chat") == "Hello there, world."
        assert not house.rented.asked and len(house.rows) == 1

    run(test, tmp_path, route(LIKELY), rented=big())


@pytest.mark.parametrize("check", [1, 2, 3, 64])
def test_likely_answer_is_whole_wherever_the_look_ends(check, tmp_path):
    async def test(house):
        chunks = await house.ask("chat")
        assert "".join(chunk.text for chunk in chunks) == "Hello there, world."
        assert chunks[-1].finish_reason == "stop" and chunks[-1].usage is not None

    run(test, tmp_path, route(LIKELY, check))


def test_log_probabilities_are_shown_only_to_a_client_that_asked(tmp_path):
    async def test(house):
        assert not any(chunk.logprobs for chunk in await house.ask("chat"))
        assert house.engines.served["fake:1b"].jobs[-1].logprobs == 0
        asked = await house.ask("chat", job(logprobs=2))
        assert [len(chunk.logprobs[0].top) for chunk in asked if chunk.logprobs] == [2, 2, 2]

    run(test, tmp_path, route(LIKELY))


def test_clients_that_did_not_ask_have_no_log_probabilities_sent_for_them_to_the_next_target(tmp_path):
    async def test(house):
        await house.text("chat")
        assert house.rented.asked[0][1].work.logprobs is None

    run(test, tmp_path, route(UNLIKELY), rented=big())


def test_thinking_and_calls_are_looked_at_too(tmp_path):
    async def test(house):
        chunks = await house.ask("chat")
        assert "".join(chunk.thinking for chunk in chunks) == "so it is"
        assert any(chunk.tool_calls for chunk in chunks)

    script = Script(thinking="so it is", text="", calls=(("add", '{"a": 1}'),))
    run(test, tmp_path, route(LIKELY, check=2), script=script)


def test_several_answers_are_not_looked_at(tmp_path):
    async def test(house):
        await house.ask("chat", job(n=2))
        assert not house.rented.asked

    run(test, tmp_path, route(UNLIKELY))


def test_labelled_request_is_answered_by_the_owned_model_whatever_its_probability(tmp_path):
    """The next target is not allowed, so there is nothing to escalate to, and nothing is looked at."""

    async def test(house):
        assert await house.text("chat", labels=("private",)) == "Hello there, world."
        assert not house.rented.asked

    run(test, tmp_path, route(UNLIKELY))


def test_thrown_away_answer_is_made_again_where_every_later_target_fails(tmp_path):
    async def test(house):
        assert await house.text("chat") == "Hello there, world."
        whole = next(row for row in house.rows if row.outcome == "whole")
        assert [(a.target, a.cause) for a in whole.attempts] == [
            ("own", "discarded"),
            ("big", "server"),
            ("own", ""),
        ]

    run(test, tmp_path, route(UNLIKELY), rented=FakeRented(big=Answers(faults=[fault("server")])))


def test_break_during_the_look_falls_over_unseen(tmp_path):
    async def test(house):
        assert await house.text("chat") == "better "
        assert house.rows[0].attempts[0].cause == "broken"

    script = Script(fail=UpstreamFailed("gone"), fail_at=2)
    run(test, tmp_path, route(LIKELY), script=script, rented=big())


def test_owned_model_elsewhere_without_log_probabilities_is_sent_as_it_is(tmp_path):
    text = route(UNLIKELY).replace('"own", "big"', '"box-70b", "big"')

    async def test(house):
        await house.text("chat")
        assert [model for model, _ in house.rented.asked] == ["box-70b"]

    run(test, tmp_path, text)


def test_rented_model_is_never_looked_at(tmp_path):
    text = route(UNLIKELY).replace('"own", "big"', '"small", "big"')

    async def test(house):
        await house.text("chat")
        assert [model for model, _ in house.rented.asked] == ["small"]

    run(test, tmp_path, text)

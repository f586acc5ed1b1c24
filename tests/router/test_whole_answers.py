"""An answer that the client gets in one piece: nothing of it was seen, so another target may give it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.base.prompts import PromptSize
from freehold.base.types import Usage
from freehold.route.providers.contract import UpstreamFault
from freehold.route.router.price import LEAST, MOST, TokenRatio
from tests.router.house import job, within
from tests.router.rented import Answers, FakeRented, fault

TWO = '[routes.chat]\ntargets = ["big", "small"]\nretries = {retries}\n'
WHOLE = job(whole=True)


def alone(test, folder: Path, text: str, **parts):
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


@pytest.mark.parametrize("how", [{"breaks_at": 2}, {"ends_early": True}])
def test_a_break_in_the_middle_falls_over_where_nothing_was_sent(how: dict[str, object], tmp_path: Path):
    async def test(house):
        assert await house.text("chat", WHOLE) == "small "
        (row,) = house.rows
        assert [(a.target, a.cause) for a in row.attempts] == [("big", "broken"), ("small", "")]
        assert row.outcome == "whole" and row.attempts[0].nano > 0  # it was paid for

    big = Answers("one two three", **how)  # type: ignore[arg-type]
    alone(test, tmp_path, TWO.format(retries=0), rented=FakeRented(big=big, small=Answers("small")))


def test_a_stream_that_broke_after_its_first_token_does_not(tmp_path: Path):
    async def test(house):
        with pytest.raises(UpstreamFault):
            await house.text("chat", job())
        assert [model for model, _ in house.rented.asked] == ["big"]

    big = Answers("one two three", breaks_at=2)
    alone(test, tmp_path, TWO.format(retries=1), rented=FakeRented(big=big, small=Answers("small")))


def test_a_fallback_takes_no_retry_from_a_target_that_broke_in_the_middle(tmp_path: Path):
    async def test(house):
        await house.text("chat", WHOLE)
        assert [model for model, _ in house.rented.asked] == ["big", "big", "small"]

    big = Answers("one two three", breaks_at=2)
    alone(test, tmp_path, TWO.format(retries=1), rented=FakeRented(big=big, small=Answers("small")))


def test_every_answer_of_several_comes_from_one_target(tmp_path: Path):
    async def test(house):
        chunks = await house.ask("chat", job(whole=True, n=2))
        assert "".join(c.text for c in chunks) == "small small "
        assert sum(c.finish_reason is not None for c in chunks) == 2

    big = Answers("one two three", breaks_at=2)
    alone(test, tmp_path, TWO.format(retries=0), rented=FakeRented(big=big, small=Answers("small")))


class Reports(FakeRented):
    """Counts of the prompt come before the answer's text, as Anthropic's do."""

    async def start(self, *given, **limits):
        answer = await super().start(*given, **limits)
        answer.reported = Usage(9000, 1, cached_tokens=6000, written_tokens=2000)
        return answer


@pytest.mark.parametrize("whole", [True, False])
def test_counts_that_came_are_booked_for_an_answer_that_breaks(whole: bool, tmp_path: Path):
    async def test(house):
        with pytest.raises(UpstreamFault):
            await house.text("both", job(whole=whole))
        (row,) = house.rows
        if not whole:
            assert (row.usage.prompt_tokens, row.usage.cached_tokens, row.usage.written_tokens) == (
                9000,
                6000,
                2000,
            )
        (first, *_) = row.attempts
        model = house.gateway.models["big"]
        assert first.nano >= model.price.cost(Usage(9000, 1, cached_tokens=6000, written_tokens=2000), row.at)

    text = '[routes.both]\ntargets = ["big", "small"]\nretries = 0\n'
    small = Answers(faults=[fault("server")])
    alone(test, tmp_path, text, rented=Reports(big=Answers("one two three", breaks_at=2), small=small))


def test_counts_that_came_are_booked_for_an_answer_that_is_left(tmp_path: Path):
    async def test(house):
        stream = await house.start("big")
        await anext(stream)
        await stream.aclose()
        (row,) = house.rows
        assert (row.outcome, row.usage.prompt_tokens, row.usage.cached_tokens) == ("left", 9000, 6000)

    alone(test, tmp_path, "", rented=Reports(big=Answers("one two three")))


def test_a_count_that_no_text_has_teaches_nothing():
    ratio = TokenRatio()
    ratio.learn(PromptSize(4_000_000, 1, 0), 9, 4_000_000, 9)
    ratio.learn(PromptSize(10, 1, 0), 4_000_000, 10, 4_000_000)
    assert ratio.prompt_tokens(PromptSize(4000, 1, 0)) == 1000 and ratio.answer_tokens(4000) == 1000
    for _ in range(100):
        ratio.learn(PromptSize(1100, 1, 0), 100, 100, 99)
    assert LEAST <= ratio.answer <= ratio.prompt <= MOST

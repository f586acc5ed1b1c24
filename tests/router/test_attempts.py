"""Attempts: what falls over, what never does, retries, breakers, time limits, money of several attempts."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from freehold.base.errors import (
    BudgetSpent,
    CapacityExceeded,
    ContextOverflow,
    EngineLost,
    LedgerUnavailable,
    Overloaded,
    PolicyRefused,
    UnsupportedModel,
    UpstreamFailed,
    UsageError,
)
from freehold.base.serving import Job, Origin
from freehold.base.types import Image, Message
from freehold.route.providers.contract import UpstreamFault
from freehold.route.router.gateway import BreakerLimits
from freehold.route.router.routing import Breakers
from tests.http.fakes import Script, failing
from tests.router.house import job, within
from tests.router.rented import Answers, FakeRented, fault

TWO = '[routes.chat]\ntargets = ["big", "small"]\nretries = 0\n'
OWN = '[routes.chat]\ntargets = ["own", "small"]\nretries = 0\n'
PASSING = ["auth", "rate", "server", "redirect", "connect", "timeout", "broken", "invalid"]


def alone(test, folder: Path, text: str = "", **parts):
    """Run a test's coroutine with a gateway."""

    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


@pytest.mark.parametrize("cause", PASSING)
def test_fault_before_the_first_token_falls_over_and_both_attempts_are_in_the_row(cause, tmp_path):
    async def test(house):
        assert await house.text("chat") == "small answer "
        (row,) = house.rows
        assert [(a.target, a.cause) for a in row.attempts] == [("big", cause), ("small", "")]
        assert row.outcome == "whole" and row.target == "small"
        assert [c.reason for c in row.candidates] == ["first of the route that is allowed", "fallback"]

    rented = FakeRented(big=Answers(faults=[fault(cause)]), small=Answers("small answer"))
    alone(test, tmp_path, TWO, rented=rented)


def test_callers_own_fault_is_sent_nowhere_else(tmp_path):
    async def test(house):
        with pytest.raises(UpstreamFault) as e:
            await house.text("chat")
        assert e.value.cause == "request"
        assert [model for model, _ in house.rented.asked] == ["big"]
        assert house.rows[0].outcome == "failed"

    alone(test, tmp_path, TWO, rented=FakeRented(big=Answers(faults=[fault("request", status=400)])))


def test_prompt_too_long_goes_to_a_larger_window_and_not_to_a_smaller(tmp_path):
    text = """
[models.tiny]
provider = "box"
model = "tiny"
context = 1000
[models.wide]
provider = "box"
model = "wide"
context = 100000
[models.mid]
provider = "box"
model = "mid"
context = 4000
[routes.chat]
targets = ["mid", "tiny", "wide"]
"""

    async def test(house):
        assert await house.text("chat") == "wide "
        assert [model for model, _ in house.rented.asked] == ["mid", "wide"]
        house.rented.answers["mid"].faults = [fault("context")]
        house.rented.answers["wide"].faults = [fault("context")]
        with pytest.raises(UpstreamFault) as e:
            await house.text("chat")
        assert e.value.cause == "context"

    rented = FakeRented(mid=Answers(faults=[fault("context")]), wide=Answers("wide"))
    alone(test, tmp_path, text, rented=rented)


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("url", ["", "https://example.com/a.png"])
def test_a_picture_stays_where_a_model_sees_and_its_address_goes_to_a_provider(sees, url, tmp_path):
    image = Image(url=url) if url else Image("image/png", "iVBORw0KGgo=")

    async def test(house):
        asked = Job(messages=(Message("user", parts=(image, "What?")),))
        own = sees and not url
        assert await house.text("chat", asked) == ("Hello there, world." if own else "small ")
        (row,) = house.rows
        assert row.place == ("this machine" if own else "far")
        info = (await house.models.asked_by(Origin()).use("chat")).info
        assert info.can_see and info.can_fetch

    alone(test, tmp_path, OWN, script=Script(sees=sees), rented=FakeRented(small=Answers("small")))


def test_a_route_of_owned_models_takes_no_address(tmp_path):
    async def test(house):
        info = (await house.models.asked_by(Origin()).use("chat")).info
        assert info.can_see and not info.can_fetch  # it may see: its model is not loaded
        asked = Job(messages=(Message("user", parts=(Image(url="https://example.com/a.png"), "What?")),))
        with pytest.raises(UnsupportedModel, match="does not download pictures from URLs"):
            await house.text("chat", asked)

    text = '[routes.chat]\ntargets = ["own"]\n'
    alone(test, tmp_path, text, script=Script(sees=True))


@pytest.mark.parametrize(
    "error", [Overloaded("full", wait_s=9), EngineLost("died"), CapacityExceeded("no memory")], ids=repr
)
@pytest.mark.parametrize("at", ["use", "start", 0])
def test_engine_that_cannot_answer_falls_over_like_a_provider(error, at, tmp_path):
    async def test(house):
        assert await house.text("chat") == "small "
        assert house.rows[0].attempts[0].place == "this machine"

    alone(test, tmp_path, OWN, script=failing(at, error), rented=FakeRented(small=Answers("small")))


def test_engine_that_refuses_the_request_is_not_replaced(tmp_path):
    async def test(house):
        with pytest.raises(UsageError):
            await house.text("chat")
        assert not house.rented.asked

    alone(test, tmp_path, OWN, script=failing("start", UsageError("top_k is -1")))


@pytest.mark.heavy
def test_lone_engines_own_error_is_told_as_it_is(tmp_path):
    async def test(house):
        with pytest.raises(Overloaded) as e:
            await house.text("own")
        assert e.value.wait_s == 9

    alone(test, tmp_path, script=failing("start", Overloaded("full", wait_s=9)))


def test_target_is_asked_again_as_often_as_the_route_says(tmp_path):
    async def test(house):
        await house.text("chat")
        assert [a.cause for a in house.rows[0].attempts] == ["server", "server", ""]

    text = '[routes.chat]\ntargets = ["big", "small"]\nretries = 2\n'
    alone(test, tmp_path, text, rented=FakeRented(big=Answers(faults=[fault("server")] * 2)))


def test_retry_after_is_waited_for_only_where_no_other_target_is_sooner(tmp_path):
    async def test(house):
        assert await house.text("both") == "small "
        started = asyncio.get_running_loop().time()
        assert await house.text("lone") == "big "
        assert asyncio.get_running_loop().time() - started >= 0.05

    text = '[routes.both]\ntargets = ["big", "small"]\n[routes.lone]\ntargets = ["big"]\n'
    faults = [fault("rate", status=429, retry_after_s=30), fault("rate", status=429, retry_after_s=0.05)]
    alone(test, tmp_path, text, rented=FakeRented(big=Answers("big", faults=faults), small=Answers("small")))


def test_retry_after_beyond_the_routes_time_is_told_and_not_waited_for(tmp_path):
    async def test(house):
        with pytest.raises(UpstreamFault) as e:
            await house.text("lone")
        assert e.value.cause == "rate" and e.value.retry_after_s == 3600

    text = '[routes.lone]\ntargets = ["big"]\ntimeout = "2s"\nfirst_token = "1s"\n'
    faults = [fault("rate", status=429, retry_after_s=3600)]
    alone(test, tmp_path, text, rented=FakeRented(big=Answers(faults=faults)))


@pytest.mark.parametrize("silent", ["big", "own"])
def test_silent_target_is_left_after_its_time_for_the_first_token(silent, tmp_path):
    async def test(house):
        assert await house.text("chat") == "small "
        (row,) = house.rows
        assert row.attempts[0].cause == "timeout"

    text = f'[routes.chat]\ntargets = ["{silent}", "small"]\nfirst_token = "50ms"\nretries = 0\n'
    script = failing("never", UsageError(""))
    script.start_delay = 60.0
    rented = FakeRented(big=Answers(silent_at=0), small=Answers("small"))
    alone(test, tmp_path, text, script=script, rented=rented)


def test_answers_that_all_fail_are_told_with_each_targets_reason_and_no_chained_text(tmp_path):
    async def test(house):
        with pytest.raises(UpstreamFault) as e:
            await house.text("chat")
        assert "big" in e.value.message and "small" in e.value.message
        assert e.value.cause == "rate" and e.value.retry_after_s == 7
        assert e.value.__cause__ is None
        assert house.rows[0].outcome == "failed"

    rented = FakeRented(
        big=Answers(faults=[fault("server")]),
        small=Answers(faults=[fault("rate", retry_after_s=7)]),
    )
    alone(test, tmp_path, TWO, rented=rented)


def test_failing_target_is_left_alone_after_so_many_failures_in_a_row(tmp_path):
    async def test(house):
        for _ in range(5):
            assert await house.text("chat") == "small "
        assert [model for model, _ in house.rented.asked].count("big") == 2
        assert "failed 2 times in a row" in house.rows[-1].candidates[0].reason

    text = TWO + 'breaker = { failures = 2, cooldown = "60s" }\n'
    rented = FakeRented(big=Answers(faults=[fault("server")] * 9), small=Answers("small"))
    alone(test, tmp_path, text, rented=rented)


def test_route_of_one_dead_target_fails_at_once_with_the_time_of_the_next_try(tmp_path):
    async def test(house):
        for _ in range(4):
            with pytest.raises(UpstreamFault):
                await house.text("lone")
        assert len(house.rented.asked) == 1
        with pytest.raises(UpstreamFault) as e:
            await house.text("lone")
        assert 0 < (e.value.retry_after_s or 0) <= 60

    text = '[routes.lone]\ntargets = ["big"]\nretries = 0\nbreaker = { failures = 1, cooldown = "60s" }\n'
    alone(test, tmp_path, text, rented=FakeRented(big=Answers(faults=[fault("server")] * 9)))


def test_refused_key_opens_the_breaker_at_once(tmp_path):
    async def test(house):
        await house.text("chat")
        await house.text("chat")
        assert [model for model, _ in house.rented.asked] == ["big", "small", "small"]

    alone(test, tmp_path, TWO, rented=FakeRented(big=Answers(faults=[fault("auth", status=401)] * 2)))


def test_one_request_alone_tries_a_target_after_its_cooldown():
    now = [0.0]
    breakers = Breakers(lambda: now[0])
    limits = BreakerLimits(1, 30.0)

    async def test() -> None:
        assert await breakers.turn("big", 60) == ("", 0.0)
        breakers.begin("big")
        breakers.failed("big", limits)
        assert breakers.why_not("big")[0] and (await breakers.turn("big", 60))[1] == 30.0
        now[0] = 31.0
        assert await breakers.turn("big", 0) == ("", 0.0)
        breakers.begin("big")
        assert (await breakers.turn("big", 0))[1] == 1.0, "a second request asked beside the one that tries"
        waiting = [asyncio.create_task(turn()) for _ in range(3)]
        await asyncio.sleep(0)
        assert tries == []
        breakers.dropped("big")  # its client left: the next one tries
        for _ in range(5):
            await asyncio.sleep(0)
        assert tries == [("", 0.0)]
        breakers.failed("big", limits)
        await asyncio.gather(*waiting)
        assert tries[1:] == [(tries[1][0], 30.0)] * 2
        now[0] = 62.0
        breakers.begin("big")
        waiting = [asyncio.create_task(turn()) for _ in range(3)]
        await asyncio.sleep(0)
        breakers.good("big")  # its first token: all may ask
        await asyncio.gather(*waiting)
        assert tries[3:] == [("", 0.0)] * 3

    tries: list[tuple[str, float]] = []

    async def turn() -> None:
        tries.append(await breakers.turn("big", 60))
        if not tries[-1][0]:
            breakers.begin("big")

    asyncio.run(test())


def test_target_that_always_breaks_later_is_left_alone_and_one_that_recovers_is_open_to_all():
    now = [0.0]
    breakers = Breakers(lambda: now[0])
    limits = BreakerLimits(2, 30.0)
    for _ in range(2):  # a good first token, and no end
        breakers.begin("big")
        breakers.good("big")
        breakers.failed("big", limits)
    assert breakers.why_not("big")[0]
    now[0] = 31.0
    breakers.begin("big")
    breakers.good("big")
    assert not breakers.why_not("big")[0], "others wait for the whole of the first answer"


def test_fault_of_ours_gives_its_reservation_back(tmp_path):
    class Broken(FakeRented):
        async def start(self, *args, **kwargs):
            raise ZeroDivisionError

    async def test(house):
        with pytest.raises(ZeroDivisionError):
            await house.text("big", job(max_tokens=100), key="alice")
        (row,) = house.rows
        assert row.outcome == "failed"
        assert (await house.ledger.spent("alice", house.gateway.keys["alice"].budget, row.at))[1] == 0

    alone(test, tmp_path, BUDGET, rented=Broken())


def test_end_of_an_answer_that_cannot_be_booked_is_withheld_and_waits_once(tmp_path):
    async def test(house):
        booked = []

        async def refuse(row):
            booked.append(row.outcome)
            raise LedgerUnavailable("locked")

        house.models.parts.books._books.book = refuse
        stream = await house.start("big")
        with pytest.raises(LedgerUnavailable):
            async for _, chunk in stream:
                assert chunk.finish_reason is None
        await stream.aclose()
        assert booked == ["whole"] and house.rented.open == 0

    alone(test, tmp_path)


BUDGET = '[keys.alice]\nbudget = { usd = 0.01, per = "day" }\n'


def test_fallback_to_a_dearer_model_is_reserved_before_it_is_asked(tmp_path):
    """The dearest target is reserved at first, so that a fault of the cheap one cannot overspend."""

    async def test(house):
        assert await house.text("chat", job(max_tokens=100), key="alice") == "big "
        held = await house.ledger.spent("alice", house.gateway.keys["alice"].budget, house.rows[0].at)
        assert held == (300_000, 0)

    text = BUDGET + '[routes.chat]\ntargets = ["small", "big"]\nretries = 0\n'
    rented = FakeRented(small=Answers(faults=[fault("server")]), big=Answers("big"))
    alone(test, tmp_path, text, rented=rented)


def test_budget_that_covers_the_cheap_target_alone_asks_it_alone(tmp_path):
    async def test(house):
        assert await house.text("chat", job(max_tokens=2000), key="alice") == "small "
        (row,) = house.rows
        assert "budget of key alice" in row.candidates[0].reason

    text = BUDGET + '[routes.chat]\ntargets = ["big", "small"]\n'
    alone(test, tmp_path, text, rented=FakeRented(small=Answers("small")))


def test_spent_budget_leaves_free_targets_open_and_refuses_priced_ones(tmp_path):
    async def test(house):
        assert await house.text("chat", job(max_tokens=9000), key="alice") == "Hello there, world."
        with pytest.raises(BudgetSpent):
            await house.text("big", job(max_tokens=9000), key="alice")
        assert not house.rented.asked
        assert [row.outcome for row in house.rows] == ["whole", "refused"]

    alone(test, tmp_path, BUDGET + '[routes.chat]\ntargets = ["big", "own"]\n')


def test_money_of_dearer_targets_comes_back_once_a_cheaper_one_answers(tmp_path):
    async def test(house):
        limit = house.gateway.keys["alice"].budget
        held = []
        for route in ("small", "chat", "free"):
            stream = await house.start(route, job(max_tokens=100), key="alice")
            held.append((await house.ledger.spent("alice", limit, time.time()))[1])
            await stream.aclose()
        assert held[0] == held[1] > 0 == held[2]

    text = BUDGET + '[routes.chat]\ntargets = ["small", "big"]\n[routes.free]\ntargets = ["own", "big"]\n'
    alone(test, tmp_path, text, rented=FakeRented(small=Answers("small")))


@pytest.mark.parametrize("route, charged", [("free", False), ("small", True)])
def test_killed_request_costs_its_key_only_what_a_provider_may_have_charged(tmp_path, route, charged):
    async def test(house):
        sent = []
        book = house.ledger.sent

        async def noted(row_id):
            sent.append(row_id)
            await book(row_id)

        house.ledger.sent = noted
        stream = await house.start(route, job(max_tokens=100), key="alice")
        with sqlite3.connect(house.ledger.path) as db:
            (said,) = db.execute("SELECT sent FROM reservations").fetchone()
        db.close()
        assert bool(said) is charged and not sent  # no statement more where nothing changes
        await stream.aclose()

    text = BUDGET + '[routes.free]\ntargets = ["own", "small"]\n'
    alone(test, tmp_path, text, rented=FakeRented(small=Answers("small")))


def test_request_waits_for_money_of_answers_in_flight_where_nothing_else_can_answer(tmp_path):
    """Each answer may cost 0.0094 dollars and costs 0.0003: the second and the third fit once the first has ended."""

    async def test(house):
        asked = job(max_tokens=900)
        texts = await asyncio.gather(*(house.text("big", asked, key="alice") for _ in range(3)))
        assert texts == ["big "] * 3
        assert sum(row.nano for row in house.rows) == 900_000

    alone(test, tmp_path, BUDGET, rented=FakeRented(big=Answers("big", delay=0.02)))


def test_answer_without_a_limit_gets_one_where_a_budget_has_to_hold(tmp_path):
    async def test(house):
        stream = await house.start("small", key="alice")
        assert house.rented.asked[0][1].work.max_tokens == 8192
        assert any("max_tokens was set to 8,192" in w for w in stream.begin.warnings)
        await stream.aclose()

    alone(test, tmp_path, BUDGET)


def test_prompt_that_a_provider_may_have_charged_without_an_answer_is_booked_as_estimated(tmp_path):
    async def test(house):
        await house.text("chat")
        (row,) = house.rows
        assert row.estimated and row.attempts[0].nano > 0 and row.nano == sum(a.nano for a in row.attempts)

    alone(test, tmp_path, TWO, rented=FakeRented(big=Answers(faults=[fault("timeout")])))


def test_labelled_request_is_refused_with_every_targets_reason(tmp_path):
    async def test(house):
        with pytest.raises(PolicyRefused) as e:
            await house.text("chat", labels=("private",))
        assert "big: label private" in e.value.message and "small: label private" in e.value.message
        assert not house.rented.asked
        assert house.rows[0].outcome == "refused" and not house.rows[0].left_house

    alone(test, tmp_path, TWO)


def test_prompt_beyond_every_window_is_told_as_such(tmp_path):
    text = '[models.tiny]\nprovider = "box"\nmodel = "tiny"\ncontext = 1000\n'

    async def test(house):
        with pytest.raises(ContextOverflow):
            await house.text("tiny", job("word " * 4000))

    alone(test, tmp_path, text)


def test_client_that_leaves_before_the_first_token_has_its_row(tmp_path):
    async def test(house):
        asking = asyncio.create_task(house.start("big"))
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await house.models.parts.background.settled()
        (row,) = house.rows
        assert row.outcome == "left" and row.estimated and row.left_house and row.nano > 0
        assert house.rented.open == 0

    alone(test, tmp_path, rented=FakeRented(big=Answers(silent_at=0)))


def test_break_after_the_first_token_never_falls_over(tmp_path):
    async def test(house):
        with pytest.raises(UpstreamFailed):
            await house.text("chat")
        assert [model for model, _ in house.rented.asked] == ["big"]

    alone(test, tmp_path, TWO, rented=FakeRented(big=Answers(breaks_at=2)))

"""What a caller cuts or gets wrong says nothing of a target; one that is tried again is waited for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.base.errors import DeadlineExceeded, FreeholdError, UpstreamFailed
from freehold.base.types import Chunk
from freehold.route.providers.contract import UpstreamFault
from freehold.route.router.gateway import BreakerLimits
from freehold.serve.http.core.problems import problem
from tests.http.fakes import failing
from tests.router.house import Within, job, within
from tests.router.rented import Answers, FakeAnswer, FakeRented, fault

LONE = """
[routes.lone]
targets = ["big"]
retries = 1
breaker = { failures = 1, cooldown = "60s" }
[routes.own-lone]
targets = ["own"]
retries = 0
breaker = { failures = 1, cooldown = "60s" }
"""


def alone(test, folder: Path, text: str = LONE, **parts):
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


def rests(house: Within, target: str = "big") -> bool:
    return bool(house.models.parts.breakers.why_not(target)[0])


@pytest.mark.parametrize("whole", [True, False])
def test_a_callers_own_timeout_opens_no_breaker(whole: bool, tmp_path: Path):
    async def test(house):
        for _ in range(3):
            with pytest.raises(UpstreamFault) as e:
                await house.text("lone", job(timeout_s=0.001, whole=whole), key="mallory")
            assert e.value.cause == "timeout"
        assert not rests(house)
        house.rented.answers["big"].delay = 0.0
        assert await house.text("lone", key="alice") == "big "

    alone(test, tmp_path, rented=FakeRented(big=Answers("big", delay=0.05)))


def test_a_callers_timeout_in_the_middle_of_an_answer_opens_no_breaker(tmp_path: Path):
    class Expires(FakeRented):
        """Ends a stream at its time, as HopReply does."""

        async def start(self, *given, timeout_s, **limits):
            answer = await super().start(*given, timeout_s=timeout_s, **limits)
            make = FakeAnswer.__anext__

            class Expiring(FakeAnswer):
                async def __anext__(self) -> tuple[int, Chunk]:
                    try:
                        async with asyncio.timeout(timeout_s):
                            return await make(self)
                    except TimeoutError:
                        raise fault("timeout") from None

            answer.__class__ = Expiring
            return answer

    async def test(house):
        with pytest.raises(UpstreamFault):
            await house.text("lone", job(timeout_s=0.02))
        assert house.rows[-1].outcome == "broken" and not rests(house)

    alone(test, tmp_path, rented=Expires(big=Answers("one two", silent_at=1)))


def test_an_engine_that_a_callers_deadline_ended_stays_open_to_others(tmp_path: Path):
    async def test(house):
        for _ in range(2):
            with pytest.raises(FreeholdError):
                await house.text("own-lone", job(timeout_s=0.001))
        assert not rests(house, "own")

    alone(test, tmp_path, script=failing("start", DeadlineExceeded("too late")))


@pytest.mark.parametrize("cause", ["request", "context"])
def test_a_refused_request_opens_no_breaker(cause, tmp_path: Path):
    async def test(house):
        for _ in range(3):
            with pytest.raises(UpstreamFault):
                await house.text("lone")
        assert not rests(house)

    alone(test, tmp_path, rented=FakeRented(big=Answers(faults=[fault(cause, status=400)] * 3)))


def test_a_client_that_leaves_opens_no_breaker(tmp_path: Path):
    async def test(house):
        asked = asyncio.create_task(house.text("lone"))
        while not house.rented.asked:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        stream = await house.start("lone")
        await stream.aclose()
        assert not rests(house)

    alone(test, tmp_path, rented=FakeRented(big=Answers("one two three", delay=0.01)))


def test_a_target_that_is_silent_for_the_routes_own_time_still_opens_one(tmp_path: Path):
    async def test(house):
        with pytest.raises(UpstreamFault):
            await house.text("lone", job(timeout_s=30.0))
        assert rests(house)

    text = LONE.replace('targets = ["big"]', 'targets = ["big"]\nfirst_token = "10ms"')
    alone(test, tmp_path, text, rented=FakeRented(big=Answers(silent_at=0)))


def test_others_wait_for_the_first_token_of_the_request_that_tries_a_target_again(tmp_path: Path):
    async def test(house):
        breakers = house.models.parts.breakers
        breakers.failed("big", BreakerLimits(1, 0.0))
        tries = asyncio.create_task(house.text("lone"))
        while not house.rented.asked:
            await asyncio.sleep(0)
        others = [asyncio.create_task(house.text("lone", key=f"k{i}")) for i in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(house.rented.asked) == 1, "they asked beside the one that tries"
        assert await asyncio.gather(tries, *others) == ["big "] * 4

    alone(test, tmp_path, rented=FakeRented(big=Answers("big", delay=0.05)))


def test_a_request_with_another_target_does_not_wait_for_one_that_is_tried(tmp_path: Path):
    async def test(house):
        house.models.parts.breakers.failed("big", BreakerLimits(1, 0.0))
        tries = asyncio.create_task(house.text("chat"))
        while not house.rented.asked:
            await asyncio.sleep(0)
        assert await house.text("chat") == "small "
        tries.cancel()

    text = '[routes.chat]\ntargets = ["big", "small"]\n'
    alone(test, tmp_path, text, rented=FakeRented(big=Answers(silent_at=0), small=Answers("small")))


def test_an_open_breaker_is_503_with_the_time_of_the_next_try(tmp_path: Path):
    async def test(house):
        with pytest.raises(UpstreamFault):
            await house.text("lone")
        with pytest.raises(UpstreamFailed) as e:
            await house.text("lone")
        told = problem(e.value)
        assert (told.status, told.code) == (503, "upstream_unavailable")
        assert 0 < int(dict(told.headers)[b"retry-after"]) <= 60
        assert b"x-should-retry" not in dict(told.headers)

    alone(test, tmp_path, rented=FakeRented(big=Answers(faults=[fault("server")] * 2)))

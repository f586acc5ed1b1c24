"""spread = "least-busy": requests in progress decide which target is asked first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.route.router.gateway import GatewayModel
from freehold.route.router.routing import TargetLoad
from freehold.route.router.toml.table import BadGateway
from tests.router.house import gateway_of, within
from tests.router.rented import Answers, FakeRented, fault

SPREAD = '[routes.chat]\ntargets = ["big", "small"]\nspread = "least-busy"\nretries = 0\n'


def alone(test, folder: Path, text: str = SPREAD, **parts):
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


def targets(house) -> list[str]:
    return [model for model, _ in house.rented.asked]


def test_requests_one_after_another_take_turns(tmp_path):
    async def test(house):
        for _ in range(4):
            await house.text("chat")
        assert targets(house) == ["big", "small", "big", "small"]
        assert {c.reason for row in house.rows for c in row.candidates if c.taken} == {"the least busy"}

    alone(test, tmp_path)


def test_a_target_with_answers_in_progress_is_asked_after_an_idle_one(tmp_path):
    async def test(house):
        first = await house.start("chat")  # big
        second = await house.start("chat")  # small
        await second.aclose()
        third = await house.start("chat")  # small again: big still answers
        assert targets(house) == ["big", "small", "small"]
        await first.aclose()
        await third.aclose()
        load = house.models.parts.load
        assert (load.running("big"), load.running("small")) == (0, 0)

    alone(test, tmp_path)


def test_requests_at_once_are_shared_before_any_has_begun(tmp_path):
    async def test(house):
        streams = await asyncio.gather(*(house.start("chat") for _ in range(8)))
        assert sorted(targets(house)) == ["big"] * 4 + ["small"] * 4
        for stream in streams:
            await stream.aclose()

    alone(test, tmp_path)


def test_a_target_that_fails_is_counted_off_and_the_other_answers(tmp_path):
    async def test(house):
        assert await house.text("chat") == "small answer "
        load = house.models.parts.load
        assert (load.running("big"), load.running("small")) == (0, 0)

    rented = FakeRented(big=Answers(faults=[fault("server")]), small=Answers("small answer"))
    alone(test, tmp_path, rented=rented)


def test_without_a_spread_the_first_target_answers_all(tmp_path):
    async def test(house):
        for _ in range(3):
            await house.text("chat")
        assert targets(house) == ["big"] * 3

    alone(test, tmp_path, SPREAD.replace("least-busy", "in-order"))


def test_ties_go_to_the_one_chosen_longest_ago():
    load, (a, b, c) = TargetLoad(), (GatewayModel(name, local=name) for name in "abc")
    assert [load.sorted([a, b, c])[0].name for _ in range(4)] == ["a", "b", "c", "a"]
    load.begin(b)
    assert load.sorted([a, b, c])[0].name == "c"
    load.end(b)
    assert load.sorted([a, b, c])[0].name == "b"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('spread = "random"', "is not a known spread"),
        ('spread = "least-busy"\nescalate = { when = "logprob", below = 0.2 }', "tries targets in order"),
    ],
)
def test_a_spread_that_cannot_be_is_refused(line: str, says: str):
    with pytest.raises(BadGateway) as caught:
        gateway_of(SPREAD.replace('spread = "least-busy"', line))
    assert says in str(caught.value)

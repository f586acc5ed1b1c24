"""A count sends the prompt: the ledger says so whatever becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.base.errors import LedgerUnavailable
from freehold.base.serving import Job, Origin
from freehold.route.providers.contract import Cleared, RemoteModel
from tests.router.house import job, within
from tests.router.rented import Answers, FakeRented


class Slow(FakeRented):
    """Counts, but not soon."""

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        self.counted.append((model.model, cleared))
        await asyncio.sleep(60)
        return 1


def test_a_count_whose_client_left_is_in_the_ledger(tmp_path: Path):
    async def body() -> None:
        async with within(tmp_path, rented=Slow()) as house:
            handle = await house.models.asked_by(Origin(key="alice")).use("big")
            counting = asyncio.create_task(handle.count(job()))
            while not house.rented.counted:
                await asyncio.sleep(0)
            counting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await counting
            (row,) = house.rows
            assert (row.outcome, row.left_house, row.place) == ("left", True, "far")

    asyncio.run(body())


def test_a_count_that_could_not_be_booked_is_not_sent(tmp_path: Path):
    async def body() -> None:
        async with within(tmp_path, rented=FakeRented(big=Answers(counts=7))) as house:
            house.ledger.path.rename(tmp_path / "kept")
            house.ledger._look_at_disk()
            handle = await house.models.asked_by(Origin()).use("big")
            with pytest.raises(LedgerUnavailable):
                await handle.count(job())
            assert house.rented.counted == []

    asyncio.run(body())

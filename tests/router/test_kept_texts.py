"""keep = "text": texts of whole answers to requests without a label, and of nothing else."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from pathlib import Path

import pytest

from freehold.route.router import handle
from freehold.route.router.answers import texts_beside
from tests.router.house import job, within

KEEP = '[routes.chat]\ntargets = ["own"]\nkeep = "text"\n[routes.quiet]\ntargets = ["own"]\n'


def texts(folder: Path) -> list[tuple]:
    path = texts_beside(folder / "ledger.sqlite")
    if not path.exists():
        return []
    db = sqlite3.connect(path)
    try:
        return db.execute("SELECT id, route, target, prompt, answers FROM texts ORDER BY at").fetchall()
    finally:
        db.close()


def run(test, folder: Path) -> None:
    async def main() -> None:
        async with within(folder, KEEP) as house:
            await test(house)
            await house.models.parts.background.settled()

    asyncio.run(main())


def test_whole_answers_texts_are_kept_under_the_rows_id(tmp_path: Path):
    rows = []

    async def test(house):
        await house.text("chat", job("the question"))
        rows.extend(house.rows)

    run(test, tmp_path)
    ((id, route, target, prompt, answers),) = texts(tmp_path)
    assert (id, route, target) == (rows[0].id, "chat", "own")
    assert json.loads(prompt)["messages"][0]["content"] == "the question"
    assert json.loads(answers)[0]["text"] == "Hello there, world."
    assert json.loads(answers)[0]["finish_reason"] == "stop"
    assert stat.S_IMODE(texts_beside(tmp_path / "ledger.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["label", "other route", "left"])
def test_nothing_is_kept_of(how, tmp_path: Path):
    async def test(house):
        if how == "label":
            await house.text("chat", job("secret"), labels=("private",))
        elif how == "other route":
            await house.text("quiet", job("secret"))
        else:
            stream = await house.start("chat", job("secret"))
            await anext(stream)
            await stream.aclose()

    run(test, tmp_path)
    assert texts(tmp_path) == []
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())


def test_file_that_cannot_be_written_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    texts_beside(tmp_path / "ledger.sqlite").mkdir()

    async def test(house):
        assert await house.text("chat", job("the question")) == "Hello there, world."

    run(test, tmp_path)
    assert "were not kept" in caplog.text and "question" not in caplog.text


def test_an_answer_without_an_end_is_not_gathered_without_bound(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(handle, "MOST_KEPT", 10)

    async def test(house):
        assert await house.text("chat", job("the question")) == "Hello there, world."

    run(test, tmp_path)
    assert texts(tmp_path) == []

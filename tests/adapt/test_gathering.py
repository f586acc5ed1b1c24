"""Kept texts become data: nothing labelled, nothing personal, nothing twice, test items apart."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from freehold.adapt.finetune import read_samples
from freehold.adapt.gathering import GatheredItem, from_ledger, gathered, write_data
from freehold.adapt.settings import GatherSettings
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.route.providers.contract import SetLabel
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.ledger.store import Ledger
from tests.router.ledger.rows import NOON, row

KEEP = GatherSettings(personal="keep")


def job(text: str) -> Job:
    return Job(messages=(Message("user", text),))


async def booked(path: Path, entries: list[tuple[str, str, tuple[SetLabel, ...], str]]) -> None:
    """Write rows and their texts: id, question, labels, outcome."""
    ledger, texts = Ledger.open(path), KeptTexts(texts_beside(path))
    for n, (name, question, labels, outcome) in enumerate(entries):
        await ledger.book(row(name, NOON + n, labels=labels, outcome=outcome))
        texts.keep(name, NOON + n, "tickets", "big", job(question), [(0, Chunk("yes", finish_reason="stop"))])
    await ledger.close()


def test_of_two_thousand_mixed_requests_no_labelled_text_is_taken(tmp_path: Path):
    """A text beside a labelled row is put there by hand: the gateway keeps none."""
    draw, path = random.Random(1), tmp_path / "ledger.sqlite"
    label = (SetLabel("private", "header"),)
    entries = []
    for n in range(2000):
        labelled = draw.random() < 0.3
        word = "SECRET" if labelled else "plain"
        entries.append((f"{n:06x}", f"{word} question number {n}", label if labelled else (), "whole"))
    asyncio.run(booked(path, entries))
    texts = KeptTexts(texts_beside(path))
    texts.keep("without-row", NOON, "tickets", "big", job("SECRET orphan"), [(0, Chunk("a"))])
    data = from_ledger(path, "tickets", KEEP)
    labelled_count = sum(bool(entry[2]) for entry in entries)
    assert data.left_out == {"a label": labelled_count, "no row in the ledger": 1}
    assert len(data.examples) + len(data.tests) == 2000 - labelled_count
    record = write_data(data, tmp_path / "out", "tickets", KEEP)
    files = sorted((tmp_path / "out").glob("*.jsonl"))
    assert [f.name for f in files] == ["examples-test.jsonl", "examples.jsonl"]
    assert not any("SECRET" in f.read_text() for f in files)
    assert record["left_out"]["a label"] == labelled_count and record["makers"] == {
        "big": len(entries) - labelled_count
    }
    taught, tested = ({s.key for s in read_samples(f).items} for f in reversed(files))
    assert not taught & tested and 0.05 < len(tested) / len(taught) < 0.2
    assert (files[0].stat().st_mode & 0o77) == 0


def test_doubles_broken_answers_and_test_files_are_left_out(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    long = "please tell me in which of the three towers the red lamp was lit yesterday"
    entries = [
        ("01", "a", (), "whole"),
        ("02", "a", (), "whole"),
        ("03", "b", (), "broken"),
        ("04", long, (), "whole"),
    ]
    asyncio.run(booked(path, entries))
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({"prompt": f"Now: {long}!", "exact": "x"}) + "\n")
    data = from_ledger(path, "tickets", GatherSettings(personal="keep", test_share=0, apart=(cases,)))
    assert [item.id for item in data.examples] == ["02"]
    assert data.left_out == {"in a test file": 1, "no whole answer": 1, "there twice": 1}
    with pytest.raises(UsageError, match="no text of the route 'other'"):
        from_ledger(path, "other", KEEP)
    with pytest.raises(FreeholdError):
        from_ledger(tmp_path / "none.sqlite", "tickets", KEEP)


def test_personal_data_is_left_out_and_shown(tmp_path: Path):
    pytest.importorskip("re2")
    items = [
        GatheredItem("1", (Message("user", "write to ann.smith@example.org"),), "ok"),
        GatheredItem("2", (Message("user", "what is two and two"),), "four"),
    ]
    data = gathered(items, GatherSettings(test_share=0))
    assert [item.id for item in data.examples] == ["2"] and data.left_out == {"personal data": 1}
    assert data.shown[0].id == "1" and data.shown[0].findings and "ann" not in str(data.shown[0].findings)
    kept = gathered(items, GatherSettings(test_share=0, personal="keep"))
    assert len(kept.examples) == 2
    with pytest.raises(UsageError, match="there is nothing to train on"):
        write_data(gathered(items[:1], GatherSettings()), tmp_path / "out", "chats")
    assert not (tmp_path / "out").exists()

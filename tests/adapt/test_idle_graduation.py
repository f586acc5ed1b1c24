"""Which routes a server teaches by itself, and when: the process is run in tests/cli/test_graduate.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.adapt.graduation import GraduationState, keep_state
from freehold.adapt.idle_graduation import due
from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.bar import BarResult, Bars, BarStore, MeasuredModel, file_digest
from freehold.route.router.gateway import Gateway
from freehold.route.router.graduation import (
    DATA,
    IdleTry,
    folder_of,
    graduand,
    kept_count,
    path_of,
    unfinished,
)
from freehold.route.router.reading import read
from freehold.route.router.toml.table import Outside
from tests.router.ledger.rows import NOON

FILE = """\
[providers.seller]
kind = "openai"
key = "env:SELLER_KEY"
[models.big]
provider = "seller"
model = "gpt-test"
price = { input = 2.0, output = 8.0 }
[models.house]
local = "house"
[tasks.tickets]
bar = 0.8
file = "cases.jsonl"
[routes.tickets]
targets = ["house", "big"]
task = "tickets"
keep = "text"
graduate = { student = "tiny", at = 18, idle = "5s" }
"""
IDENTITY = MeasuredModel("house", "ab" * 32, "Q8_0")


def gateway(folder: Path, text: str = FILE) -> Gateway:
    (folder / "cases.jsonl").write_text('{"prompt": "2+2?", "exact": "4"}\n')
    (folder / "gateway.toml").write_text(text)
    return read(folder / "gateway.toml", Outside(environment={"SELLER_KEY": "k"}))


def keep_texts(home: Path, first: int, count: int, route: str = "tickets") -> None:
    texts = KeptTexts(texts_beside(home / "ledger.sqlite"))
    for n in range(first, first + count):
        job = Job(messages=(Message("user", f"n {n}?"),))
        texts.keep(f"{n:06x}", NOON + n, route, "big", job, [(0, Chunk("yes", finish_reason="stop"))])


def result(home: Path, low: float, at: str = "2026-12-01T00:00:00+00:00") -> BarResult:
    cases = home / "cases.jsonl"
    return BarResult("tickets", IDENTITY, str(cases), file_digest(cases), 9, 0.95, low, 0.99, "wilson", at)


def state(home: Path, low: float, stage: str = "proposed") -> GraduationState:
    own = result(home, low)
    return GraduationState(
        *("tickets", stage, "d" * 12, 18, "model", {"terms": "ours"}, 0, own, None, 1.0),
        *({"requests": 1}, "house reaches 0.95; move?", own.at),
    )


def test_a_route_is_taught_from_its_texts_on_and_after_its_quiet_time(tmp_path: Path):
    read_file = gateway(tmp_path)
    assert kept_count(tmp_path / "ledger.sqlite", "tickets") == 0 and due(tmp_path, read_file) is None
    keep_texts(tmp_path, 0, 19)  # a tenth is set apart: 20 are needed for 18 that teach
    keep_texts(tmp_path, 100, 50, route="another")
    assert due(tmp_path, read_file) is None
    keep_texts(tmp_path, 19, 1)
    assert due(tmp_path, read_file) == ("tickets", 20)
    assert due(tmp_path, read_file, 4.0) is None and due(tmp_path, read_file, 5.0) == ("tickets", 20)
    alone = gateway(tmp_path, FILE.replace('idle = "5s"', "by_itself = false"))
    assert due(tmp_path, alone) is None


def test_a_try_that_ended_waits_for_more_texts_and_one_that_was_cut_off_does_not(tmp_path: Path):
    read_file = gateway(tmp_path)
    keep_texts(tmp_path, 0, 20)
    IdleTry(20, True, "no terms").keep(tmp_path, "tickets")
    assert due(tmp_path, read_file) is None
    keep_texts(tmp_path, 20, 5)
    assert due(tmp_path, read_file) == ("tickets", 25)
    IdleTry(25, False).keep(tmp_path, "tickets")
    assert due(tmp_path, read_file) == ("tickets", 25)
    (folder_of(tmp_path, "tickets") / "idle.json").write_text('{"texts": "x"}')
    assert due(tmp_path, read_file) == ("tickets", 25)  # a damaged note is none


def test_a_student_that_reached_the_bar_is_its_owners_to_move(tmp_path: Path):
    read_file = gateway(tmp_path)
    keep_texts(tmp_path, 0, 40)
    keep_state(tmp_path, state(tmp_path, 0.5))
    assert due(tmp_path, read_file) == ("tickets", 40)
    keep_state(tmp_path, state(tmp_path, 0.9))
    assert due(tmp_path, read_file) is None


def test_the_path_leads_from_rented_over_teaching_and_measured_to_owned(tmp_path: Path):
    plan, bars = graduand(gateway(tmp_path), "tickets"), Bars(tmp_path, lambda _: IDENTITY)

    def stage(note: str = "") -> tuple[str, str]:
        if note:
            IdleTry(7, True, note).keep(tmp_path, "tickets")
        path = path_of(tmp_path, plan, Bars(tmp_path, lambda _: IDENTITY), 7)
        assert json.dumps(path.as_json()) and (path.texts, path.at, path.teacher) == (7, 18, "big")
        return path.stage, path.message

    assert stage("no terms") == ("rented", "no terms")
    data = folder_of(tmp_path, "tickets") / ("a" * 12) / DATA
    data.mkdir(parents=True)
    (data / "receipt.json").write_text("{}")
    assert stage()[0] == "teaching" and unfinished(tmp_path, "tickets") == data.parent
    keep_state(tmp_path, state(tmp_path, 0.9))
    assert stage() == ("measured", "house reaches 0.95; move?")
    BarStore(tmp_path).keep(replace(result(tmp_path, 0.9), agreement=0.8))
    keep_state(tmp_path, state(tmp_path, 0.9, "moved"))
    assert stage()[0] == "owned"
    bars.fall(plan.task, plan.student, 0, 3, "passed over since today")
    assert stage()[0] == "rented" and "passed over since today" in stage()[1]


@pytest.mark.parametrize(
    ("wrong", "message"), [('idle = "5"', "is not a duration"), ('by_itself = "no"', "by_itself")]
)
def test_wrong_times_are_mistakes_of_the_file(tmp_path: Path, wrong: str, message: str):
    with pytest.raises(Exception, match=message):
        gateway(tmp_path, FILE.replace('idle = "5s"', wrong))

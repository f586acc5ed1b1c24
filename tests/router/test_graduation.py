"""A student in service: which comparisons with its teacher send a route back, and which do not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.route.providers.contract import Cleared
from freehold.route.router.bar import BarResult, Bars, BarStore, MeasuredModel, file_digest
from freehold.route.router.gateway import GatewayModel, GatewayRoute, Graduation, QualityTask
from freehold.route.router.graduation import StudentWatch, contradicted, same_answer
from freehold.route.router.routing import PlannedRoute


@pytest.mark.parametrize(("floor", "misses"), [(0.95, 2), (0.85, 3), (0.8, 3), (0.7, 4)])
def test_a_change_of_every_answer_is_seen_after_few_comparisons(floor: float, misses: int):
    before = [True] * 100
    assert not contradicted([*before, *[False] * (misses - 1)], floor)
    assert contradicted([*before, *[False] * misses], floor) == misses


def test_a_student_that_agrees_as_it_must_rarely_goes_back():
    draw, fallen = random.Random(0), 0
    for _ in range(100):  # 100 comparisons each, which are 5,000 requests at 2 %
        agreed: list[bool] = []
        for _ in range(100):
            agreed.append(draw.random() < 0.97)
            if contradicted(agreed, 0.85):
                fallen += 1
                break
    assert fallen <= 5


def test_answers_are_compared_as_json_or_without_white_space():
    assert same_answer('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    assert same_answer(" yes\n", "yes") and not same_answer("yes", "no")


# --- a server that starts again ---------------------------------------------------------------------

TASK = QualityTask("tickets", 0.8)
STUDENT, TEACHER = GatewayModel("house", local="house"), GatewayModel("big", local="big")
IDENTITY = MeasuredModel("house", "ab" * 32, "Q4_K_M")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cases.jsonl").write_text('{"prompt": "2+2?", "exact": "4"}\n')
    BarStore(tmp_path).keep(taken_over(tmp_path, "2026-12-01T00:00:00+00:00"))
    return tmp_path


def taken_over(home: Path, at: str) -> BarResult:
    cases = home / "cases.jsonl"
    return BarResult(
        *("tickets", IDENTITY, str(cases), file_digest(cases), 40, 0.95, 0.85, 0.99, "wilson", at),
        agreement=0.8,
    )


class Server:
    """One server's watch over the student, whose teacher answers at once."""

    def __init__(self, home: Path, share: float = 0.02) -> None:
        self.words: list[str] = []
        self.teacher = "yes"
        self.bars = Bars(home, lambda _: IDENTITY)
        self.watch = StudentWatch(self._ask, self.bars)
        settings = Graduation("tiny", share=share)
        route = GatewayRoute("tickets", ("house", "big"), task="tickets", graduate=settings)
        self._planned = PlannedRoute(route, (STUDENT, TEACHER), TASK)

    def _ask(self, route: Any, target: Any, cleared: Any, record: Any, compare: Any) -> None:
        if self.teacher:
            self.words.append(compare(self.teacher))

    def answers(self, count: int, text: str = "yes") -> int:
        """Have the student answer; return how many answers were compared."""
        cleared, before = Cleared(Job(messages=(Message("user", "?"),)), frozenset()), len(self.words)
        for _ in range(count):
            if self.watch.due(self._planned, cleared, STUDENT):
                self.watch.begin(self._planned, cleared, cast(Any, None), [(0, Chunk(text))])
        return len(self.words) - before


def test_comparisons_survive_a_restart(home: Path):
    for _ in range(2):  # each server sees one difference, and is then killed
        server = Server(home)
        assert server.answers(50, "no") == 1
        assert server.bars.passes(TASK, STUDENT)[0]
    last = Server(home)
    assert last.answers(50, "no") == 1
    assert "0 of its newest 3 answers agree with big" in last.words[-1]
    assert not Bars(home, lambda _: IDENTITY).passes(TASK, STUDENT)[0]


def test_answers_are_counted_on_after_a_server_that_ended(home: Path):
    first = Server(home)
    assert first.answers(30) == 0
    first.watch.keep()
    assert Server(home).answers(19) == 0
    first.watch.keep()
    assert Server(home).answers(20) == 1


def test_a_comparison_that_a_servers_end_cut_off_is_made_by_the_next_one(home: Path):
    first = Server(home)
    first.answers(20)
    first.teacher = ""  # it never answers
    assert first.answers(40) == 0
    first.watch.keep()
    assert Server(home).answers(1) == 1


def test_comparisons_of_an_earlier_student_do_not_count(home: Path):
    server = Server(home)
    server.answers(100, "no")
    BarStore(home).keep(taken_over(home, "2026-12-02T00:00:00+00:00"))  # --move of another student
    for same in (server, Server(home)):
        assert same.answers(50, "no") == 1
        assert "passed over" not in same.words[-1]


def test_damaged_comparisons_are_none(home: Path):
    Server(home).answers(100, "no")
    (kept,) = (home / "bars").glob("*.compared")
    for text in ("", "[]", '{"at": 1}', '{"at": "2026-12-01T00:00:00+00:00", "agreed": "00", "answers": 3}'):
        kept.write_text(text)
        server = Server(home)
        assert server.answers(50, "no") == 1 and "passed over" not in server.words[-1]
    assert len(BarStore(home).all()) == 1

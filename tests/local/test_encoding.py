"""Pictures of several clients before one tower: each gets its part, each picture is computed once, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freehold.base.errors import CapacityExceeded, EngineClosed, NonFiniteLogits, Overloaded, UsageError
from freehold.base.stopping import Stopped, stops_when
from freehold.run.local import encoding
from freehold.run.local.encoding import (
    EncodeQueue,
    EncodeRun,
    EncodeTurns,
    EncodeWork,
    FeatureCache,
    Seeing,
    WantedPicture,
)
from freehold.run.models.seeing import BATCH_ROWS, LIVE_ROWS, SMALL_RUNS, Picture, TowerRun
from freehold.run.models.tower import PicturePlan
from freehold.run.pictures.opening import Resize

WIDTH = 4
SECTION_ROWS = 512.0  # of a picture, that one section of the machine's tower computes


def plan(patches: int, tokens: int = 2) -> PicturePlan:
    return PicturePlan(((Resize(16, 16 * patches, "bicubic"),),), patches, tokens, (tokens,), None, tokens)


def work(client: str, name: str, patches: int) -> EncodeWork:
    seeing = Seeing(None, [("", name.encode())], {})  # type: ignore[arg-type]
    return EncodeWork(("", name.encode()), client, plan(patches), WIDTH, b"x" * 10, seeing=[seeing])


class TurnsMachine(RuleBasedStateMachine):
    """Clients send pictures and leave, two threads open them, one computes sections: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns, self.opening = EncodeTurns(), list[EncodeWork]()
        self.left: dict[int, float] = {}  # rows of a run, by its id, that are not computed
        self.sent = 0
        self.over: set[bytes] = set()

    @rule(client=st.sampled_from("abcd"), patches=st.sampled_from([16, 256, 700, 1024, 4096, 9000]))
    def send(self, client: str, patches: int) -> None:
        self.sent += 1
        self.turns.add(work(client, f"{client}{self.sent}", patches))

    @rule()
    def begin_to_open(self) -> None:
        if len(self.opening) < encoding.OPENERS and (next_work := self.turns.next_to_open()) is not None:
            assert next_work.state == "opening" and next_work not in self.opening
            self.opening.append(next_work)

    @precondition(lambda self: self.opening)
    @rule(data=st.data(), damaged=st.booleans())
    def end_opening(self, data: st.DataObject, damaged: bool) -> None:
        opened = self.opening.pop(data.draw(st.integers(0, len(self.opening) - 1)))
        self.turns.opened(opened)
        if damaged:
            self.turns.end(opened)

    @rule()
    def compute(self) -> None:
        run = self.turns.turn()
        if run is None:
            assert not any(each.state in ("open", "running") for each in self.turns.works.values())
            return
        left = self.left.setdefault(id(run), float(run.rows)) - SECTION_ROWS
        self.turns.charge(run, min(run.rows, SECTION_ROWS))
        self.left[id(run)] = left
        run.steps = run.steps or iter(())  # type: ignore[assignment]
        if left <= 0:
            self.finish(run)

    @rule()
    def lack_memory(self) -> None:
        new = [run for run in self.turns.runs if run.steps is None]
        if new and len(self.turns.runs) > 1:
            self.turns.put_back(new[0])

    @precondition(lambda self: self.turns.works)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([*self.turns.works.values()]))
        if chosen.state != "running":
            self.turns.end(chosen)

    def finish(self, run: EncodeRun) -> None:
        del self.left[id(run)]
        self.turns.end_run(run)

    @invariant()
    def runs_are_bounded_and_of_one_client_each(self) -> None:
        rows = [run.rows for run in self.turns.runs]
        assert sum(rows) - max(rows, default=0) <= LIVE_ROWS
        assert sum(each <= BATCH_ROWS for each in rows) <= SMALL_RUNS
        assert all(run.rows <= BATCH_ROWS or len(run.works) == 1 for run in self.turns.runs)
        clients = Counter(each for run in self.turns.runs for each in {w.client for w in run.works})
        assert max(clients.values(), default=0) <= 1

    @invariant()
    def pixels_are_bounded(self) -> None:
        held = [each.pixel_bytes for each in self.turns.works.values() if each.state in ("opening", "open")]
        assert sum(held) - max(held, default=0) <= encoding.PIXEL_BYTES

    def teardown(self) -> None:
        """Everything comes to its end: no picture waits for ever."""
        for _ in range(20 * self.sent + 100):
            if not self.turns.works:
                break
            self.begin_to_open()
            if self.opening:
                self.turns.opened(self.opening.pop())
            self.compute()
        assert not self.turns.works and not self.turns.runs


TurnsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTurns = TurnsMachine.TestCase


def drained(turns: EncodeTurns, until: Callable[[], bool]) -> Counter[str]:
    """Open at once, compute sections by turns until something holds; return rows that each client was computed."""
    computed: Counter[str] = Counter()
    left: dict[int, float] = {}
    while not until():
        while (opened := turns.next_to_open()) is not None:
            turns.opened(opened)
        run = turns.turn()
        assert run is not None
        rows = min(SECTION_ROWS, left.setdefault(id(run), float(run.rows)))
        turns.charge(run, rows)
        for each in run.works:
            computed[each.client] += round(rows * each.plan.patches / run.rows)
        left[id(run)] -= rows
        if left[id(run)] <= 0:
            del left[id(run)]
            turns.end_run(run)
    return computed


@pytest.mark.parametrize("before", [0, 3, 5])
@pytest.mark.parametrize("patches, others", [(4096, 4096), (256, 4096), (4096, 256), (1024, 1024)])
def test_a_hundred_pictures_of_one_client_cost_another_s_its_own_time_again(
    patches: int, others: int, before: int
):
    turns = EncodeTurns()
    for i in range(100):
        turns.add(work("many", f"m{i}", others))
    ended = len(turns.works) - before
    drained(turns, lambda: len(turns.works) <= ended)
    mine = work("one", "o", patches)
    turns.add(mine)
    computed = drained(turns, lambda: mine.state == "over")
    assert computed["one"] == patches
    assert computed["many"] <= patches + 2 * SECTION_ROWS  # one before it, one that it shares


def test_of_four_clients_none_waits_longer_than_four_times_its_own():
    turns = EncodeTurns()
    for client in "abc":
        for i in range(50):
            turns.add(work(client, f"{client}{i}", 2048))
    drained(turns, lambda: len(turns.works) <= 147)
    mine = work("d", "d", 2048)
    turns.add(mine)
    computed = drained(turns, lambda: mine.state == "over")
    assert all(computed[client] <= 2048 + 2 * SECTION_ROWS for client in "abc")


def test_seconds_of_a_decoder_are_service_of_its_client():
    """Pictures that take long to open and are damaged then do not go before another client's again and again."""
    turns = EncodeTurns()
    for i in range(20):
        for client in "ab":
            turns.add(work(client, f"{client}{i}", 256))
    turns.add(mine := work("c", "c", 256))
    opened = 0
    while mine.state == "waiting":
        chosen = turns.next_to_open()
        assert chosen is not None
        chosen.opening_s = 10.0
        turns.opened(chosen)
        turns.end(chosen)  # it was damaged
        opened += 1
    assert opened <= 3


def test_small_pictures_of_several_clients_share_a_run():
    turns = EncodeTurns()
    for client in "abcdef":
        turns.add(work(client, client, 256))
    drained_run: list[EncodeRun] = []
    while (opened := turns.next_to_open()) is not None:
        turns.opened(opened)
    run = turns.turn()
    assert run is not None
    drained_run.append(run)
    assert sorted(each.client for each in run.works) == [*"abcd"]
    assert sum(each.plan.patches for each in run.works) == BATCH_ROWS


# --- the threads ------------------------------------------------------------------------------------------------


class CountingTower:
    """Makes features of a picture's bytes in sections; each waits for `gate`."""

    feature_width = WIDTH

    def __init__(self, sections: int = 3) -> None:
        self.sections = sections
        self.gate = threading.Semaphore(1 << 20)
        self.computed: list[int] = []  # pictures of each run that ended
        self.closed = 0
        self.errors: list[Exception] = []

    def run(self, batch: Sequence[Picture]) -> TowerRun:
        if self.errors:
            raise self.errors.pop(0)
        ended = False
        try:
            for _ in range(self.sections):
                self.gate.acquire()
                yield
            ended = True
        finally:
            self.closed += not ended
        self.computed.append(len(batch))
        return [np.full((each.tokens, WIDTH), pixels[0].mean(), np.float32) for each, pixels in batch]


def shade(data: bytes, _: PicturePlan) -> Sequence[np.ndarray]:
    if data == b"bad":
        raise UsageError("the PNG is damaged", "send another")
    return [np.full((1, 1, 3), data[0], np.uint8)]


def wanted(name: str, patches: int = 64, tenant: str = "") -> WantedPicture:
    return WantedPicture((tenant, name.encode()), name.encode(), plan(patches), f"messages[0].{name}")


@pytest.fixture
def tower() -> CountingTower:
    return CountingTower()


@pytest.fixture
def queue(tower: CountingTower) -> Iterator[EncodeQueue]:
    held = EncodeQueue(tower, FeatureCache(1 << 20), shade)
    yield held
    tower.gate.release(1000)
    held.close()
    assert not held._threads.total()


def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it never came")


def shades(seeing: Seeing) -> list[int]:
    seeing.wait()
    return [int(each[0, 0]) for each in seeing.features()]


def test_features_come_in_the_order_of_the_prompt_and_equal_pictures_are_computed_once(
    queue: EncodeQueue, tower: CountingTower
):
    a, b = wanted("a"), wanted("b")
    assert shades(queue.see([a, b, a])) == [97, 98, 97]
    assert sum(tower.computed) == 2 and queue.cache.computed == 2
    assert shades(queue.see([b, a])) == [98, 97] and sum(tower.computed) == 2
    assert queue.cache.hits == 2


def test_two_clients_that_show_one_picture_at_once_wait_for_one_run(queue: EncodeQueue, tower: CountingTower):
    tower.gate = threading.Semaphore(0)
    first, second = queue.see([wanted("a")], "x"), queue.see([wanted("a")], "y")
    until(lambda: bool(queue._turns.runs))
    first.cancel()  # the other still wants it
    tower.gate.release(100)
    assert shades(second) == [97] and tower.computed == [1] and not tower.closed


def test_tenants_share_no_features(queue: EncodeQueue, tower: CountingTower):
    assert (
        shades(queue.see([wanted("a", tenant="x")])) == shades(queue.see([wanted("a", tenant="y")])) == [97]
    )
    assert sum(tower.computed) == 2


def test_work_that_nothing_waits_for_ends_within_a_section(queue: EncodeQueue, tower: CountingTower):
    tower.gate = threading.Semaphore(1)
    seeing = queue.see([wanted("a", 4096), wanted("b", 4096)])
    until(lambda: bool(queue._turns.runs))
    seeing.cancel()
    tower.gate.release(1)
    until(lambda: not queue._turns.works)
    assert tower.closed == 1 and not tower.computed
    tower.gate.release(100)
    assert shades(queue.see([wanted("c")])) == [99]


def test_a_caller_that_is_stopped_leaves(queue: EncodeQueue, tower: CountingTower):
    tower.gate = threading.Semaphore(0)
    seeing = queue.see([wanted("a")])
    with stops_when(lambda: True), pytest.raises(Stopped):
        seeing.wait()
    tower.gate.release(100)
    until(lambda: not queue._turns.works)


def test_a_bad_picture_is_named_in_its_own_request_alone(queue: EncodeQueue):
    good, bad = queue.see([wanted("a")], "x"), queue.see([wanted("b"), wanted("bad")], "y")
    bad.wait()
    with pytest.raises(UsageError, match=r"^messages\[0\]\.bad: the PNG is damaged") as e:
        bad.features()
    assert e.value.field == "messages[0].bad"
    assert shades(good) == [97]


def test_an_error_of_the_tower_ends_the_run_and_not_the_queue(queue: EncodeQueue, tower: CountingTower):
    tower.errors = [NonFiniteLogits("the tower computed NaN")]
    seeing = queue.see([wanted("a")])
    seeing.wait()
    with pytest.raises(NonFiniteLogits):
        seeing.features()
    assert shades(queue.see([wanted("a")])) == [97]


def test_a_run_that_memory_does_not_hold_waits_for_those_that_have_begun(
    queue: EncodeQueue, tower: CountingTower
):
    tower.gate = threading.Semaphore(1)
    first = queue.see([wanted("a", 4096)], "x")
    until(lambda: tower.gate._value == 0)
    tower.errors = [CapacityExceeded("no memory")]
    second = queue.see([wanted("b", 4096)], "y")
    tower.gate.release(100)
    assert shades(first) == [97] and shades(second) == [98]
    tower.errors = [CapacityExceeded("no memory at all")]
    alone = queue.see([wanted("c", 4096)])
    alone.wait()
    with pytest.raises(CapacityExceeded):
        alone.features()


def test_what_waits_ends_with_the_queue(queue: EncodeQueue, tower: CountingTower):
    tower.gate = threading.Semaphore(0)
    seeing, later = queue.see([wanted("a")], "x"), queue.see([wanted("b", 4096)], "y")
    closing = threading.Thread(target=queue.close)
    closing.start()
    tower.gate.release(100)
    closing.join()
    for each in (seeing, later):
        with pytest.raises(EngineClosed):
            each.features()
    with pytest.raises(EngineClosed):
        queue.see([wanted("c")])


def test_bytes_that_wait_are_counted_by_client(
    queue: EncodeQueue, tower: CountingTower, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "WAITING_BYTES", 20)
    tower.gate = threading.Semaphore(0)
    names = [f"{i:05}" for i in range(9)]
    queue.see([wanted(name, 4096) for name in names[:6]], "x")  # one is computed, one opened ahead
    until(lambda: sum(len(w.data) for w in queue._turns.works.values()) == 20)
    with pytest.raises(Overloaded, match="20 bytes wait to be opened, 20 of them yours") as e:
        queue.see([wanted(names[6], 4096)], "x")
    assert e.value.wait_s > 0
    queue.see([wanted(names[7], 4096)], "y")  # another client is not refused for what the first sent
    queue.see([wanted(names[8], 4096)], "x", admitted=True)  # nor is an answer that is continued


def test_a_wake_is_called_once_all_are_there(queue: EncodeQueue, tower: CountingTower):
    woken = threading.Event()
    queue.see([wanted("a"), wanted("b", 4096)]).wakes(woken.set)
    assert woken.wait(20)
    again = threading.Event()
    queue.see([wanted("a")]).wakes(again.set)
    assert again.is_set()


# --- files ------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, tower: CountingTower, **options: int) -> EncodeQueue:
    return EncodeQueue(tower, FeatureCache(1 << 20, folder, **options), shade)


def test_a_later_process_finds_features_on_the_disk(tmp_path: Path):
    first, second = CountingTower(), CountingTower()
    queue = on_disk(tmp_path / "pictures", first)
    assert shades(queue.see([wanted("a"), wanted("b", tenant="x")])) == [97, 98]
    queue.close()
    assert len([*(tmp_path / "pictures").iterdir()]) == 2
    queue = on_disk(tmp_path / "pictures", second)
    assert shades(queue.see([wanted("a")])) == [97] and not second.computed
    assert (queue.cache.disk_hits, queue.cache.computed) == (1, 0)
    assert shades(queue.see([wanted("b")])) == [98] and second.computed == [
        1
    ]  # another tenant's is not found
    queue.close()


@pytest.mark.parametrize("at", [0, 9, 45, 80, -1])
def test_a_file_with_one_wrong_byte_is_computed_again(tmp_path: Path, at: int):
    queue = on_disk(tmp_path, CountingTower())
    shades(queue.see([wanted("a")]))
    queue.close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    tower = CountingTower()
    queue = on_disk(tmp_path, tower)
    assert shades(queue.see([wanted("a")])) == [97] and tower.computed == [1]
    queue.close()


def test_a_folder_keeps_to_its_bytes(tmp_path: Path):
    tower = CountingTower()
    queue = on_disk(tmp_path, tower, budget=1600)
    for i in range(30):
        shades(queue.see([wanted(f"{i:03}")]))
    queue.close()
    files = [*tmp_path.iterdir()]
    assert files and sum(path.stat().st_size for path in files) <= 1600
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_memory_forgets_what_was_unused_for_longest():
    cache = FeatureCache(3 * 2 * WIDTH * 4)
    for name in "abc":
        cache.add(("", name.encode()), np.zeros((2, WIDTH), np.float32))
    assert cache.get(("", b"a")) is not None
    cache.add(("", b"d"), np.zeros((2, WIDTH), np.float32))
    assert cache.get(("", b"b")) is None and cache.get(("", b"a")) is not None
    cache.add(("", b"e"), np.zeros((50, WIDTH), np.float32))  # one picture at least
    assert cache.get(("", b"e")) is not None and cache.nbytes == 50 * WIDTH * 4

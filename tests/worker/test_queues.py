"""The threads that prepare messages are shared by clients: none waits for all that another sent."""

from __future__ import annotations

import os
import queue
import sys
import threading

import pytest

from freehold.serve.worker.process.intake import NICE, IntakeQueue


class Held:
    """Messages whose work lasts until it is let go."""

    def __init__(self, threads: int) -> None:
        self.begun, self._go = queue.SimpleQueue[str](), threading.Event()
        self.work = IntakeQueue[str]("test", threads, self._run)

    def _run(self, message: str) -> None:
        self.begun.put(message)
        assert self._go.wait(60)

    def let_go(self) -> None:
        self._go.set()


def test_client_waits_for_no_message_of_another_that_holds_its_threads():
    held = Held(threads=2)
    for i in range(6):
        held.work.put(i, f"a{i}", "a")
    assert {held.begun.get(timeout=60) for _ in range(2)} == {"a0", "a1"}
    held.work.put(6, "b0", "b")
    assert held.begun.get(timeout=60) == "b0"
    held.let_go()
    assert [held.begun.get(timeout=60)[0] for _ in range(4)] == ["a"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_messages_are_prepared_below_the_priority_of_steps():
    priorities = queue.SimpleQueue[int]()
    work = IntakeQueue[str]("test", 1, lambda _: priorities.put(os.getpriority(os.PRIO_PROCESS, 0)))
    work.put(1, "a")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities.get(timeout=60) == min(own + NICE, 19)


def test_clients_take_turns():
    begun, names = queue.SimpleQueue[str](), ["a0", "a1", "a2", "b0", "c0"]
    over = {name: threading.Event() for name in [*names, "b1"]}

    def run(name: str) -> None:
        begun.put(name)
        assert over[name].wait(60)

    work = IntakeQueue[str]("test", 1, run)
    for number, name in enumerate(names):
        work.put(number, name, name[0])
    assert {begun.get(timeout=60) for _ in range(2)} == {"a0", "b0"}
    over["b0"].set()
    assert begun.get(timeout=60) == "c0"  # not a1: a has a thread
    work.put(5, "b1", "b")
    over["a0"].set()
    assert begun.get(timeout=60) == "a1"  # it came before b1
    over["c0"].set()
    assert begun.get(timeout=60) == "b1"
    over["a1"].set()
    assert begun.get(timeout=60) == "a2"
    for each in over.values():
        each.set()


def test_message_that_fails_leaves_those_that_wait():
    done = queue.SimpleQueue[int]()

    def run(number: int) -> None:
        if number == 0:
            raise RuntimeError
        done.put(number)

    work = IntakeQueue[int]("test", 1, run)
    for number in range(3):
        work.put(number, number, "a")
    assert [done.get(timeout=60) for _ in range(2)] == [1, 2]


def test_message_that_fails_has_left_its_turn_before_those_that_wait_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
):
    looks, failed = queue.SimpleQueue[int](), threading.Event()

    def run(number: int) -> None:
        if number == 0:
            assert failed.wait(60)
            raise RuntimeError

    work = IntakeQueue[int]("test", 1, run)
    for number in range(2):
        work.put(number, number, "a")
    submit = work._pool.submit
    monkeypatch.setattr(work._pool, "submit", lambda *args: looks.put(work._working["a"]) or submit(*args))
    failed.set()
    assert looks.get(timeout=60) == 0

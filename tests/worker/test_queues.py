"""The threads that prepare messages are shared by clients: none waits for all that another sent."""

from __future__ import annotations

import queue
import threading

from freehold.worker.process.queues import IntakeQueue


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


def test_clients_take_turns():
    held = Held(threads=1)
    for i in range(4):
        held.work.put(i, f"a{i}", "a")
    assert held.begun.get(timeout=60) == "a0"
    held.work.put(4, "b0", "b")
    assert held.begun.get(timeout=60) == "b0"
    held.work.put(5, "b1", "b")
    held.let_go()
    order = [held.begun.get(timeout=60) for _ in range(4)]
    assert order.index("b1") <= 2  # not after all of a's


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

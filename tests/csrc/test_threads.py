"""The worker pool and the number of threads in use: late workers, and machines that change under the steps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from freehold import _native as native

drill, ThreadTuner = native.testing.drill_threads, native.testing.ThreadTuner


@pytest.mark.parametrize(
    ("threads", "jobs", "late_us"), [(1, 50, 0), (2, 5000, 0), (4, 3000, 60), (16, 300, 200)]
)
def test_every_job_returns_with_its_work_done_once_however_late_workers_come(
    threads: int, jobs: int, late_us: int
) -> None:
    visits = drill(threads, jobs, late_us)
    assert 0 <= visits <= (threads - 1) * jobs


def test_a_job_does_not_wait_for_a_worker_that_sleeps_with_nothing_claimed() -> None:
    # Waiting would make every worker visit every job; sleepers of 5 ms miss most of these jobs of microseconds.
    assert drill(3, 400, 5000) < 2 * 400


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_idle_pool_uses_no_processor() -> None:
    pool = native.Threads(4)
    for _ in range(
        100
    ):  # workers spin for a moment after they start, which is late on a machine that is busy
        before = os.times()
        time.sleep(0.2)
        after = os.times()
        if (after.user + after.system) - (before.user + before.system) <= 0.02:  # a tick or two of ours
            break
    else:
        pytest.fail("the pool computes without work")
    assert pool.size == 4


def test_a_forked_child_lets_go_of_the_pool_without_waiting_for_workers_it_lacks() -> None:
    pool = native.Threads(3)
    if (pid := os.fork()) == 0:
        del pool
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


class Machine:
    """Steps that cost what `seconds(threads)` says; counts the time, and what the best number would have taken."""

    def __init__(self, most: int) -> None:
        self.tuner, self.clock = ThreadTuner(most), 0.0

    def steps(self, seconds: Callable[[int], float], *, until: float) -> float:
        """Run until the clock passes `until`; return when the crew last changed its mind."""
        changed, last = self.clock, self.tuner.threads
        while self.clock < until:
            cost = seconds(self.tuner.threads)
            self.clock += cost
            self.tuner.report(cost, cost)
            if self.tuner.threads != last:
                changed, last = self.clock, self.tuner.threads
        return changed


def quiet(threads: int) -> float:
    return 0.04 / threads


def crowded(threads: int) -> float:  # one thread suffers from neighbours, two suffer more
    return 0.06 * threads


def test_a_quiet_machine_pays_less_than_a_hundredth_for_trials() -> None:
    tuner, total, best = ThreadTuner(2), 0.0, 0.0
    for _ in range(5000):
        cost = quiet(tuner.threads)
        total, best = total + cost, best + quiet(2)
        tuner.report(cost, cost)
    assert total < 1.01 * best


def test_four_threads_go_down_step_by_step_beside_neighbours_and_come_back() -> None:
    machine = Machine(4)
    machine.steps(quiet, until=3)
    machine.steps(crowded, until=12)
    assert machine.tuner.threads == 1
    machine.steps(quiet, until=24)
    assert machine.tuner.threads == 4


def test_two_threads_become_one_and_two_again_within_about_a_second() -> None:
    machine = Machine(2)
    machine.steps(quiet, until=3)
    start = machine.clock
    machine.steps(crowded, until=start + 1.6)
    assert machine.tuner.threads == 1
    start = machine.clock
    machine.steps(quiet, until=start + 1)
    assert machine.tuner.threads == 2


def test_one_thread_never_tries_another_number() -> None:
    machine = Machine(1)
    machine.steps(quiet, until=50)
    assert machine.tuner.threads == 1

"""Two threads on cores of unequal speed: does a slow core help a fast one, or hold it up?

`python benches/engine/uneven.py MODEL [--pause 60] [--every 300]... [--rounds 5]`; Linux. A timer of its own
interrupts the worker's thread every so many microseconds, and the signal's handler sleeps: what is left is a core at
a share of its speed. That share is measured, by the calling thread alone under the same timer. Speeds are medians of
rounds in turns: the fast core alone, the slow one alone, both fast, fast and slow.
Progress goes to stderr, a table to stdout, then one JSON line.
Path: uneven.py -> freehold.run.engine.Engine
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.lib import machine
from benches.lib.driver import sample_prompt
from freehold import SamplingParams
from freehold.run.engine import Engine

CONTEXT, PROMPT, DEPTH, STEPS = 1024, 256, 16, 48
SETTLE = 4.0
CLOCK_MONOTONIC, SIGEV_THREAD_ID, PR_SET_TIMERSLACK = 1, 4, 29
LIBC = ctypes.CDLL(None, use_errno=True)


class Speeds:
    """One model, engines that each choose their threads by their own steps, and prompts no cache has seen."""

    def __init__(self, model: str) -> None:
        loaded = freehold.load(model, threads=2, context=CONTEXT, speculate=False)._engine
        self.vocab, self.salt = loaded.model.vocab, 0
        self.engines: dict[str, Engine] = {
            name: Engine(loaded.model, context=CONTEXT, threads=n, speculate=False)
            for name, n in (("one", 1), ("even", 2), ("uneven", 2))
        }

    def prefill(self, engine: str) -> float:
        """Tokens a second of a prompt."""
        job = self._job(engine, PROMPT, 1)
        began = time.perf_counter()
        next(job)
        return PROMPT / (time.perf_counter() - began)

    def decode(self, engine: str) -> float:
        """Tokens a second of an answer."""
        job = self._job(engine, DEPTH, STEPS + 2)
        next(job)
        began = time.perf_counter()
        for _ in range(STEPS):
            next(job)
        rate = STEPS / (time.perf_counter() - began)
        job.close()
        return rate

    def worker(self) -> int:
        """Find the thread that computes beside this one, by the processor time it uses."""
        before = _processor_times()
        self.decode("uneven")
        used = {thread: ns - before.get(thread, 0) for thread, ns in _processor_times().items()}
        del used[threading.get_native_id()]
        return max(used, key=lambda thread: used[thread])

    def _job(self, engine: str, tokens: int, most: int) -> Any:
        self.salt += 1
        prompt = sample_prompt(tokens, self.vocab, self.salt)
        return self.engines[engine].generate(prompt, SamplingParams(temperature=0.0), max_tokens=most)


def _processor_times() -> dict[int, int]:
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0])
        for task in Path("/proc/self/task").iterdir()
    }


@contextmanager
def slowed(thread: int, pause: int, every: int) -> Iterator[None]:
    """Interrupt a thread each `every` microseconds; the signal's number, its handler's argument, is the pause."""
    LIBC.signal(pause, ctypes.cast(LIBC.usleep, ctypes.c_void_p))
    event = (ctypes.c_char * 64)()
    struct.pack_into("qiii", event, 0, 0, pause, SIGEV_THREAD_ID, thread)
    timer = ctypes.c_void_p()
    if LIBC.timer_create(CLOCK_MONOTONIC, event, ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    LIBC.timer_settime(timer, 0, struct.pack("qqqq", 0, 1000 * every, 0, 1000 * every), None)
    try:
        yield
    finally:
        LIBC.timer_delete(timer)


def measure(speeds: Speeds, kind: str, worker: int, args: argparse.Namespace, every: int) -> dict[str, float]:
    """Take turns, once the engine has had SETTLE seconds to choose a step's threads."""
    run = getattr(speeds, kind)
    with slowed(worker, args.pause, every):
        end = time.monotonic() + SETTLE
        while time.monotonic() < end:
            run("uneven")
    got: dict[str, list[float]] = {"fast": [], "slow": [], "fast and fast": [], "fast and slow": []}
    for _ in range(args.rounds):
        got["fast"].append(run("one"))
        got["fast and fast"].append(run("even"))
        with slowed(threading.get_native_id(), args.pause, every):
            got["slow"].append(run("one"))
        with slowed(worker, args.pause, every):
            got["fast and slow"].append(run("uneven"))
    return {name: median(values) for name, values in got.items()}


def main() -> None:
    """Measure prompts and answers at each slowness."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--pause", type=int, default=60, help="microseconds, 34 to 64: a signal's number")
    parser.add_argument("--every", type=int, action="append", help="microseconds; default: 300 and 150")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    about = machine.describe(machine.resolve(args.model))
    speeds = Speeds(args.model)
    worker = speeds.worker()
    LIBC.prctl(PR_SET_TIMERSLACK, 1)
    Path(f"/proc/{worker}/timerslack_ns").write_text("1")
    rows = []
    print(f"{about['model']} on {about['cpu']}, load {about['load_1m']} before; tok/s")
    for kind in ("prefill", "decode"):
        for every in args.every or [300, 150]:
            row = measure(speeds, kind, worker, args, every)
            share, gain = row["slow"] / row["fast"], row["fast and slow"] / row["fast"]
            figures = ", ".join(f"{name} {rate:.1f}" for name, rate in row.items())
            print(
                f"  {kind}, a slow core at {share:.2f} of the fast one: {figures}; {gain:.2f} of the fast alone"
            )
            rows.append({"kind": kind, "every": every, "share": share, "gain": gain, **row})
    print(json.dumps({"bench": "uneven", "pid": os.getpid(), **about, "rows": rows}))


if __name__ == "__main__":
    main()

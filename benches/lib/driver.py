"""The contract of a peer's driver: what peers.py may ask of it, and how time is taken.

A driver runs in the peer's own environment, so this file needs the standard library alone. It answers one
JSON request a line on stdin with one JSON line on stdout; called as `driver.py first PATH` it measures a
fresh process instead. Knows no model and no peer.
Path: peers.py or quality.py -> peer.Child -> main(Driver) in peer_*.py
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

SHORT = 32  # tokens before a decode "at depth 0", as a short question has
FIRST_PROMPT = "Write a function that returns the largest of three numbers, and say in one line how it works."
FIRST_CONTEXT = 2048
FIRST_PREFILL, FIRST_STEPS = 512, 32  # what a fresh process computes before its peak memory is read


class Took(NamedTuple):
    """Wall time, and the processor time this process was given in it: their quotient is cores in use."""

    seconds: float
    cpu_seconds: float


class Clock:
    """Runs from its creation on."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def took(self) -> Took:
        """Tell what has passed."""
        return Took(time.perf_counter() - self._wall, time.process_time() - self._cpu)


class Driver(ABC):
    """One peer, one file. Timed work is greedy and runs on past the end-of-text token.

    `trials` lists, by kind of work, the options worth trying beside the defaults ({}): the peer's best
    setting is found among them. `decode` is work at depth SHORT, `depth` decode at any greater one.
    """

    trials: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    @abstractmethod
    def load(self, path: str, context: int, threads: int | None = None) -> dict[str, Any]:
        """Load a file with room for `context` tokens; `threads` None is the peer's own choice.

        Returns name, version, weights ("as in the file", or what was made of them), vocab, threads, trials;
        and fixed_threads, true where a process cannot change them.
        """

    @abstractmethod
    def use(self, kind: str, threads: int | None, options: dict[str, Any]) -> None:
        """Make ready for work of one kind with so many threads and these options."""

    @abstractmethod
    def prefill(self, tokens: int) -> Took:
        """Time a prompt that no cache can answer, up to its last token's logits."""

    @abstractmethod
    def decode(self, depth: int, steps: int) -> Took:
        """Time `steps` tokens after `depth`; the depth is filled untimed, and once only where that can be."""

    @abstractmethod
    def batch(self, sequences: int, steps: int) -> Took:
        """Time `steps` tokens of each of `sequences` answers to SHORT prompts, computed together."""

    @abstractmethod
    def first(self, text: str) -> None:
        """Compute the first token after `text`."""

    def run(
        self, kind: str, size: int, steps: int, threads: int | None, options: dict[str, Any]
    ) -> dict[str, float]:
        """Answer peers.py: do the work once and tell its seconds."""
        self.use("depth" if kind == "decode" and size > SHORT else kind, threads, options)
        took = self.prefill(size) if kind == "prefill" else getattr(self, kind)(size, steps)
        return took._asdict()


def sample_prompt(tokens: int, vocab: int, salt: int = 0) -> list[int]:
    """Spread ids over the ordinary part of a vocabulary; another `salt` differs from the first id on."""
    usable = min(vocab, 30000) - 1000 if vocab > 2000 else vocab // 2
    return [(vocab - usable) // 4 + (i * 7919 + salt * 104729) % usable for i in range(tokens)]


def physical_cores() -> int:
    """Count the cores this process may use, siblings once: what peers take by default."""
    cores = set()
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def main(kind: type[Driver]) -> None:
    """Serve requests until end of file, or measure this fresh process."""
    answers = _answers()
    if sys.argv[1:2] == ["first"]:
        _fresh(kind(), sys.argv[2], answers)
    else:
        serve(kind(), answers)


def serve(handler: Any, answers: Any = None) -> None:
    """Answer requests on stdin by calling handler's method named by "op", until end of file."""
    answers = answers or _answers()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(handler, request.pop("op"))(**request)
        except Exception as error:  # the parent must hear of it, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


def _answers() -> Any:
    """Keep stdout for answers; what libraries print there goes to stderr. Die with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a stopped child sees no end of file
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _fresh(driver: Driver, path: str, answers: Any) -> None:
    driver.load(path, FIRST_CONTEXT)
    driver.first(FIRST_PROMPT)
    print("{}", file=answers, flush=True)  # the parent's clock stops here
    for kind, size in (("prefill", FIRST_PREFILL), ("decode", SHORT)):
        driver.run(kind, size, FIRST_STEPS, None, {})
    print(json.dumps(_memory()), file=answers, flush=True)


def _memory() -> dict[str, int]:
    """Read peak resident bytes, and of those now resident the private and the mapped ones."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    names = {"peak": "VmHWM", "private": "RssAnon", "mapped": "RssFile"}
    return {name: int(sizes[field].split()[0]) * 1024 for name, field in names.items()}

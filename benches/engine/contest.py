"""Runs the peers: finds each one's best setting by short trials, then lets all take turns, round by round.

Knows children and measures; knows no file format and no report. A peer that fails at something is left out of
it, and the reason is kept.
Path: peers.py -> Contest.run -> peer.Child -> driver.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.lib.dequantise import bf16_copy
from benches.lib.machine import say
from benches.lib.measures import CONTEXT, Measure
from benches.lib.peer import Child, PeerFailed, fresh


@dataclass(frozen=True)
class Setting:
    """How a peer is run; threads None is its own choice."""

    threads: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.options) or "default"


DEFAULT = Setting()
SECONDS = 1.0  # that timed work should last: many times what a scheduler takes away at once


@dataclass
class Peer:
    """A peer with its loaded child, and what was found out about it."""

    name: str
    python: Path
    script: Path
    child: Child
    path: Path  # of the file it reads: the model's, or a copy of it
    facts: dict[str, Any] = field(default_factory=dict)  # the answer to load
    best: dict[str, tuple[Setting, float]] = field(default_factory=dict)  # by trial: setting, its rate

    def rate(self, measure: Measure, setting: Setting) -> tuple[float, float]:
        """Do the work once; return tokens per second and cores in use."""
        took = self.child.ask(
            "run",
            kind=measure.kind,
            size=measure.size,
            steps=measure.steps,
            threads=setting.threads,
            options=dict(setting.options),
        )
        return measure.tokens / took["seconds"], took["cpu_seconds"] / took["seconds"]

    def settings(self, kind: str, threads: list[int]) -> list[Setting]:
        """List what may be better than the defaults: every thread count, with each of the peer's options."""
        options: list[dict[str, Any]] = [{}, *self.facts["trials"].get(kind, [])]
        if self.facts.get("fixed_threads"):
            return [Setting(None, tuple(o.items())) for o in options]
        return [Setting(n, tuple(o.items())) for o in options for n in threads]


@dataclass
class Figure:
    """One row of the result: a measure of a peer under one setting, a value for each round."""

    measure: Measure
    peer: Peer
    setting: Setting
    best: bool  # the peer's best setting; it may also be its default
    busy: int  # spinning processes beside it
    values: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    @property
    def threads(self) -> int:
        """The threads that the setting comes to."""
        return self.setting.threads or self.peer.facts["threads"]


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Keep `count` processes busy meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


class Contest:
    """The peers, the thread counts to try, and how long a measure takes: at most `rounds`, about `budget` seconds."""

    def __init__(self, peers: list[Peer], threads: list[int], rounds: int, budget: float) -> None:
        self.peers, self.threads = peers, threads
        self.rounds, self.budget = rounds, budget
        self.problems: list[str] = []

    def load(self) -> None:
        """Load the file in every child, or its BF16 copy; a peer that can read neither is out."""
        for peer in list(self.peers):
            try:
                self._load(peer)
            except PeerFailed as problem:
                self._note(peer, "load", problem)
                self.peers.remove(peer)

    def _load(self, peer: Peer) -> None:
        try:
            peer.facts = peer.child.ask("load", path=str(peer.path), context=CONTEXT)
        except PeerFailed as problem:
            self._note(peer, f"load {peer.path.name}, so it gets a BF16 copy", problem)
            peer.path = bf16_copy(peer.path)
            peer.facts = peer.child.ask("load", path=str(peer.path), context=CONTEXT)
            peer.facts["weights"] = "dequantised to BF16"
        say(f"{peer.name}: {peer.facts['version']}, weights {peer.facts['weights']}")

    def run(self, measure: Measure, busy: int = 0) -> list[Figure]:
        """Measure every peer, at its defaults and at its best setting."""
        with spinning(busy):
            if measure.kind in ("first", "memory"):
                return self._rounds(measure, [Figure(measure, p, DEFAULT, True, busy) for p in self.peers])
            figures = [figure for peer in self.peers for figure in self._entries(peer, measure, busy)]
            return self._rounds(measure, figures)

    def _entries(self, peer: Peer, measure: Measure, busy: int) -> list[Figure]:
        """Give a peer one row, or two where its best setting is not its default."""
        try:
            best, rate = self._best(peer, measure, busy)
        except PeerFailed as problem:
            self._note(peer, measure.name, problem)
            return []
        measure = measure.lasting(SECONDS, rate)
        plain = Setting(peer.facts["threads"])
        if best in (DEFAULT, plain):
            return [Figure(measure, peer, DEFAULT, True, busy)]
        return [Figure(measure, peer, DEFAULT, False, busy), Figure(measure, peer, best, True, busy)]

    def _best(self, peer: Peer, measure: Measure, busy: int) -> tuple[Setting, float]:
        """Find the setting that does the trial fastest, better of two; a failing option is left out."""
        trial = measure.trial
        key = f"{trial.name} {busy}"
        if key not in peer.best:
            kind = "depth" if measure.name in ("decode-2k", "decode-8k") else measure.kind
            rates: dict[Setting, float] = {}
            settings = peer.settings(kind, self.threads)
            for setting in settings * 2:  # twice over, so that one bad moment spoils no setting
                try:
                    rates[setting] = max(peer.rate(trial, setting)[0], rates.get(setting, 0.0))
                except PeerFailed as problem:
                    self._note(peer, f"{trial.name} with {setting}, {setting.threads} threads", problem)
            if not rates:
                raise PeerFailed("every setting failed")
            best = max(rates, key=lambda s: rates[s])
            peer.best[key] = best, rates[best]
            say(
                f"{trial.name}: {peer.name} "
                + ", ".join(f"{s}/{s.threads} {r:.1f}" for s, r in rates.items())
            )
        return peer.best[key]

    def _rounds(self, measure: Measure, figures: list[Figure]) -> list[Figure]:
        """Take turns, another one first each time; stop early when the budget is spent, but not before two."""
        began = time.monotonic()
        for i in range(self.rounds):
            spent = time.monotonic() - began
            if i >= 2 and spent * (i + 1) / i > self.budget:
                break
            first = i % max(len(figures), 1)
            for figure in figures[first:] + figures[:first]:
                try:
                    self._once(figure)
                except PeerFailed as problem:
                    self._note(figure.peer, measure.name, problem)
                    figures = [other for other in figures if other is not figure]
            say(f"{measure.name}: " + "  ".join(f"{f.peer.name} {f.values[-1]:.4g}" for f in figures))
        return figures

    def _once(self, figure: Figure) -> None:
        measure = figure.measure
        if measure.kind in ("first", "memory"):
            got = fresh(figure.peer.python, figure.peer.script, figure.peer.path)
            figure.values.append(got["seconds"] if measure.kind == "first" else got["peak"] / 1e6)
            return
        rate, cores = figure.peer.rate(measure, figure.setting)
        figure.values.append(rate)
        figure.cores.append(cores)

    def _note(self, peer: Peer, what: str, problem: Exception) -> None:
        self.problems.append(f"{peer.name}: {what}: {problem}")
        say(self.problems[-1])

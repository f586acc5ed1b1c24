"""Freehold's driver: loaded through the public API, measured at its engine, ids in and ids out as the peers'.

Also answers `ceilings` (what this machine's memory and multipliers give) and, for quality.py, `logits` and
`tokenize`.
Path: peers.py or quality.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.lib.driver import SHORT, Clock, Driver, Took, main, sample_prompt
from freehold import SamplingParams, _native
from freehold.run.engine import Engine

GREEDY = SamplingParams(temperature=0.0)


class Freehold(Driver):
    """The loaded model, and an engine for each thread count over the same weights."""

    def __init__(self) -> None:
        self.model: Any = None
        self.engines: dict[int | None, Engine] = {}
        self.engine: Any = None
        self.options: dict[str, Any] = {}
        self.vocab = 0
        self.watches = False  # count each op's time from where the clock starts
        self._salt = 0

    def load(self, path: str, context: int, threads: int | None = None, **_unused: Any) -> dict[str, Any]:
        """Load the file, packed weights and all; the cache is f16, and every token is decoded plainly."""
        self.model = freehold.load(path, threads=threads, context=context, speculate=False)
        self.engine = self.engines[threads] = self.model._engine
        self.vocab = self.engine.model.vocab
        facts = {"name": "freehold", "version": f"freehold {freehold.__version__} ({_native.isa()})"}
        facts |= {"weights": "as in the file", "vocab": self.vocab, "threads": self.engine.threads}
        return {**facts, "trials": self.trials}

    def use(self, kind: str, threads: int | None, options: dict[str, Any]) -> None:
        """Switch to the engine with so many threads, made on first use."""
        if threads not in self.engines:
            loaded = self.engines[None]
            self.engines[threads] = Engine(
                loaded.model, context=loaded.context, threads=threads, speculate=False
            )
        self.engine, self.options = self.engines[threads], options

    @property
    def plan(self) -> Any:
        """The traced plan whose ops by_op.py counts."""
        return self.engine._runner._plan

    def prefill(self, tokens: int) -> Took:
        """Time a prompt, its first token included."""
        self._salt += 1
        clock = self._clock()
        job = self._job(sample_prompt(tokens, self.vocab, self._salt), 1)
        next(job)
        took = clock.took()
        if job.usage.cached_tokens:
            raise RuntimeError(f"{job.usage.cached_tokens} prompt tokens came from the cache")
        return took

    def decode(self, depth: int, steps: int) -> Took:
        """Time steps after a prompt, which the engine keeps from call to call."""
        return self._steps([sample_prompt(depth, self.vocab)], steps)

    def batch(self, sequences: int, steps: int) -> Took:
        """Time steps of several answers."""
        return self._steps([sample_prompt(SHORT, self.vocab, i) for i in range(sequences)], steps)

    def _steps(self, prompts: list[list[int]], steps: int) -> Took:
        """Bring every answer to its first token, then time rounds: each pulls one token of every answer.

        A round is one step: answers that began earlier have tokens waiting, the last has none and drives it.
        """
        jobs = [self._job(prompt, steps + len(prompts) + 1) for prompt in prompts]
        for job in jobs:
            next(job)
        clock = self._clock()
        for _ in range(steps):
            for job in jobs:
                next(job)
        took = clock.took()
        for job in jobs:
            job.close()
        return took

    def _clock(self) -> Clock:
        if self.watches:
            self.plan.watch()
        return Clock()

    def _job(self, prompt: list[int], tokens: int) -> Any:
        return self.engine.generate(prompt, GREEDY, max_tokens=tokens, **self.options)

    def first(self, text: str) -> None:
        """Compute the first token after `text`, to text."""
        next(iter(self.model.stream_text(text, max_tokens=1, temperature=0)))

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        rows = self.model.logits(ids)
        rows.tofile(out)
        return {"rows": rows.shape[0], "vocab": rows.shape[1]}

    def tokenize(self, text: str, special: bool) -> dict[str, Any]:
        """Turn text into ids."""
        return {"ids": list(self.model.tokenize(text, special=special))}

    def ceilings(self, threads: list[int]) -> dict[str, list[float]]:
        """Measure all that _native can measure, for each of `threads`; the best of three, as noise only takes."""
        meters = {name: getattr(_native, name) for name in dir(_native) if name.startswith("measure_")}
        return {name: [max(meter(n) for _ in range(3)) for n in threads] for name, meter in meters.items()}


if __name__ == "__main__":
    main(Freehold)

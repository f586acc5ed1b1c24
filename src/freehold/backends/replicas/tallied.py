"""An engine's counters over its restarts: each new engine begins at nothing, and the sum must not.

Path: Replica -> TalliedNumbers.update -> EngineNumbers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from freehold.backends.contract import EngineNumbers

_COUNTERS = ("_total", "_sum", "_count", "_bucket")  # how Prometheus ends the names of what only grows
_OF_PROCESS = ("process_", "python_", "http_")  # these move by being asked for


def is_counter(series: str) -> bool:
    """Whether a series only grows, by its name without labels."""
    return series.partition("{")[0].endswith(_COUNTERS)


class TalliedNumbers:
    """The counters of one replica."""

    def __init__(self) -> None:
        self._before = EngineNumbers()  # of the engines that ended
        self._now = EngineNumbers()

    @property
    def now(self) -> EngineNumbers:
        """What the engine that runs reported last."""
        return self._now

    @property
    def total(self) -> EngineNumbers:
        """The counters of all its engines; gauges of the one that runs."""
        before, now = self._before, self._now
        return replace(
            now,
            prompt_tokens=before.prompt_tokens + now.prompt_tokens,
            generated_tokens=before.generated_tokens + now.generated_tokens,
            cached_tokens=_plus(before.cached_tokens, now.cached_tokens),
            steps=_plus(before.steps, now.steps),
            series=_summed(before.series, now.series),
        )

    def update(self, numbers: EngineNumbers) -> bool:
        """Take what the engine tells now; return whether any counter has moved."""
        moved = _counted(numbers) != _counted(self._now)
        self._now = numbers
        return moved

    def engine_ended(self) -> None:
        """Keep what the engine counted, and forget its gauges."""
        ended, self._now = self._now, EngineNumbers()
        self.add(ended)

    def add(self, other: EngineNumbers) -> None:
        """Add the counters of an engine that has ended."""
        before = self._before
        counted = {name: n for name, n in other.series.items() if is_counter(name)}
        self._before = EngineNumbers(
            prompt_tokens=before.prompt_tokens + other.prompt_tokens,
            generated_tokens=before.generated_tokens + other.generated_tokens,
            cached_tokens=_plus(before.cached_tokens, other.cached_tokens),
            steps=_plus(before.steps, other.steps),
            series=_summed(before.series, counted),
        )


def _counted(numbers: EngineNumbers) -> tuple[object, ...]:
    grown = {
        name: n for name, n in numbers.series.items() if is_counter(name) and not name.startswith(_OF_PROCESS)
    }
    return numbers.prompt_tokens, numbers.generated_tokens, numbers.cached_tokens, numbers.steps, grown


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


def _summed(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    sums = {name: n + (before.get(name, 0.0) if is_counter(name) else 0.0) for name, n in now.items()}
    return {**{name: n for name, n in before.items() if name not in sums}, **sums}

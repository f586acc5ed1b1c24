"""How far a quantised model is from its source, how large and how fast it is: measured here, beside a prediction.

The text is held out: not what the weights were calibrated on. Knows two model files and a text; knows no recipe.
Path: quantising.quantise -> measured -> evals.side_by_side.diverge, Engine.generate, advisor.fit -> receipt
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold import _native as native
from freehold.adapt.quantize.texts import plain_text
from freehold.adapt.receipt import text_digest
from freehold.advisor.file_anatomy import from_file
from freehold.advisor.fit import Fit, fit
from freehold.choosing import here
from freehold.config import Settings
from freehold.engine import Engine
from freehold.errors import FreeholdError
from freehold.evals.divergence import UNTIL, TextDivergence
from freehold.evals.held_out import held_out_text
from freehold.evals.side_by_side import LogitSource, OnBlock, diverge, tokenizer_of, windows
from freehold.types import SamplingParams

ROUNDS, PROMPT, TOKENS = 3, 32, 48  # of timed decoding
_SURE_BITS = 2.9  # of a layer's matrices; below: see coarse_note
_SMALL_MODEL = 1_000_000_000  # weights


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a report says of a result beside its source."""

    divergence: TextDivergence
    text: str  # where it came from
    text_sha256: str
    speed: Mapping[str, Mapping[str, float]]  # "source" and "result": tokens a second and what they take

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "divergence": self.divergence.as_json() | {"text": self.text, "text_sha256": self.text_sha256},
            "speed": {name: dict(rates) for name, rates in self.speed.items()},
        }


def measured(
    source: Path,
    result: Path,
    settings: Settings,
    *,
    text: Path | None = None,
    until: float = UNTIL,
    limit: int = 0,
    threads: int = 1,
    on_block: OnBlock | None = None,
) -> Measurement:
    """Compare a quantised model with its source.

    `text`: a file to read, None for the package's held-out text; `limit`: most tokens of it, 0 for all. `until`: stop
    once the mean divergence is known to this share; 0: read all. Both models are in memory together; raises
    CapacityExceeded where they do not fit.
    """
    read = held_out_text() if text is None else plain_text(text, "replace")
    blocks = windows(tokenizer_of(source), read, limit)
    pool = native.Threads(threads)
    with LogitSource.open(source, pool) as reference, LogitSource.open(result, pool) as other:
        divergence = diverge(reference, other, blocks, until=until, on_block=on_block)
        rates = _decode_rates({"source": reference.engine, "result": other.engine}, blocks[0][:PROMPT])
    predicted = {"source": predicted_decode(source, settings), "result": predicted_decode(result, settings)}
    return Measurement(
        divergence,
        "held out with the package" if text is None else str(text),
        text_digest(read),
        {name: {**rates[name], **predicted[name]} for name in rates},
    )


def predicted_decode(path: Path, settings: Settings) -> dict[str, float]:
    """Return the decode speed that `freehold fit` predicts here, with its bounds; nothing where it cannot."""
    try:
        prediction = fit(from_file(path), here(settings), PROMPT + TOKENS)
    except FreeholdError:
        return {}
    if not isinstance(prediction, Fit):
        return {}
    bounds = prediction.decode
    return {
        "predicted_tok_s": round(bounds.mid, 2),
        "predicted_low_tok_s": round(bounds.low, 2),
        "predicted_high_tok_s": round(bounds.high, 2),
    }


def _decode_rates(engines: Mapping[str, Engine], prompt: Sequence[int]) -> dict[str, dict[str, float]]:
    """Time greedy decoding in turns, so that other load affects all; return medians."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            rounds[name].append(_decode(engine, prompt))
    return {
        name: {
            "measured_tok_s": round(statistics.median(rate for rate, _ in samples), 2),
            "cpu_s_a_token": round(statistics.median(cpu for _, cpu in samples), 5),
        }
        for name, samples in rounds.items()
    }


def _decode(engine: Engine, prompt: Sequence[int]) -> tuple[float, float]:
    """Return tokens a second, and processor seconds a token, of decoding after a short prompt."""
    answer = engine.generate(prompt, SamplingParams(temperature=0), max_tokens=TOKENS + 1)
    next(answer)
    begun, used = time.perf_counter(), time.process_time()
    count = sum(1 for _ in answer)
    return count / (time.perf_counter() - begun), (time.process_time() - used) / count


def coarse_note(bits: float, weights: int, divergence: TextDivergence | None) -> str:
    """Return a warning for two bits on a small model, with what was measured; empty for others."""
    if bits >= _SURE_BITS or weights >= _SMALL_MODEL:
        return ""
    measured_as = (
        f"here {divergence.mean:.2f} nats per token from its source, "
        f"and the same most probable token in {divergence.same_top:.0%}"
        if divergence is not None
        else "--report measures how much here"
    )
    return f"two bits on a model below 1B lose much ({measured_as}): for fit tests and speed only"

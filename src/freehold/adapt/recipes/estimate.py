"""What a stage takes here: minutes and memory, before it is run.

Of a stage that ran before in this folder, its processor seconds then. Otherwise floating-point operations over this
machine's rate, which a product of matrices measures: 6 for each weight and token of a trained row (forward, backward,
and activations that are computed again), 2 for each weight and token of a sampled or scored one. Measured against
runs of smollm2 and qwen2.5-coder, such an estimate is within a factor of two.

Knows files, settings and rates; runs no model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freehold.adapt.recipes.recipe import RecipeStage
from freehold.adapt.settings import (
    AlignSettings,
    DistilSettings,
    FinetuneSettings,
    QuantizeSettings,
    ReinforceSettings,
)
from freehold.base.machine import default_threads

if TYPE_CHECKING:
    from freehold.run.store import ModelRef

BYTES_A_TOKEN = 4.0  # of English text; a template adds TEMPLATE tokens to a row
TEMPLATE = 30
TRAINED, SAMPLED = 6.0, 2.0  # operations for each weight and token
SHARE = 0.5  # of the product's rate that training reaches: unpacking weights, attention and the loss take the rest
INT8 = 2.5  # times that rate: products of the engine that samples
PROMPT = 70  # tokens of a prompt that is not in a file
REPLAYED = 60  # tokens of a replayed row
OVERHEAD = 20.0  # processor seconds: imports, loading, facts and the held-out text
ACTIVATIONS = 1 << 30  # bytes that a training keeps at most
RUNTIME = 400 << 20  # bytes of Python and torch
_SIZE, _TIMES = 512, 8


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """Processor seconds and bytes of memory. `measured`: from an earlier run of the stage."""

    cpu_seconds: float
    memory: int
    measured: bool

    @property
    def minutes(self) -> float:
        """Minutes on this machine's cores, if nothing else runs."""
        return self.cpu_seconds / 60 / max(default_threads(), 1)


@cache
def rate() -> float:
    """Return floating-point operations that a product of matrices does in a processor second here."""
    a = np.ones((_SIZE, _SIZE), np.float32)
    np.dot(a, a)
    began = time.process_time()
    for _ in range(_TIMES):
        np.dot(a, a)
    return 2 * _SIZE**3 * _TIMES / max(time.process_time() - began, 1e-6)


def estimated(stage: RecipeStage, ref: ModelRef, earlier: float | None) -> StageEstimate:
    """Return what a stage takes. `earlier`: processor seconds of its newest run, None where it never ran."""
    weights = _weights(ref)
    memory = RUNTIME + ref.bytes + (ACTIVATIONS if stage.verb.trains else ref.bytes)
    if earlier is not None:
        return StageEstimate(earlier, memory, True)
    trained, sampled = _tokens(stage)
    seconds = weights * (TRAINED * trained / SHARE + SAMPLED * sampled / INT8) / rate()
    if isinstance(stage.settings, QuantizeSettings):
        seconds += weights / 12e6  # the encoder's weights a processor second, factoring included
    return StageEstimate(OVERHEAD + seconds, memory, False)


def _weights(ref: ModelRef) -> float:
    """Return about how many weights a model has: most files hold some 4.5 to 8.5 bits each, floats 16."""
    from freehold.run.formats import open_model_file

    if ref.kind != "gguf":
        return ref.bytes / 2
    file = open_model_file(ref.path)
    try:
        return float(sum(math.prod(tensor.shape) for tensor in file.tensors.values()))
    finally:
        file.close()


def _tokens(stage: RecipeStage) -> tuple[float, float]:
    """Return the tokens that a stage trains on, and those that it samples or scores."""
    files, settings = stage.files, stage.settings
    if isinstance(settings, FinetuneSettings):
        rows, tokens = _lines(files.data)
        steps = settings.epochs * -(-rows // settings.batch)
        return (
            settings.epochs * tokens + steps * settings.replay * REPLAYED,
            steps * settings.replay * REPLAYED,
        )
    if isinstance(settings, AlignSettings):
        rows, tokens = _lines(files.pairs)
        steps = settings.epochs * -(-rows // settings.batch)
        return 2 * settings.epochs * tokens + steps * settings.replay * REPLAYED, tokens
    if isinstance(settings, DistilSettings):
        rows, tokens = _lines(files.prompts)
        answers = rows * settings.max_tokens / 2
        return settings.epochs * (tokens + answers), settings.tries * (tokens + answers)
    if isinstance(settings, ReinforceSettings):
        prompts, answers = (
            settings.steps * settings.prompts,
            settings.steps * settings.prompts * settings.group,
        )
        ahead = (settings.shots + 1) * PROMPT + TEMPLATE  # once for all answers of a group
        tokens = prompts * ahead + answers * settings.max_tokens
        return tokens, tokens + 4 * settings.unseen * (ahead + settings.max_tokens)
    if isinstance(settings, QuantizeSettings):
        return 0.0, float(settings.tokens)
    limit = getattr(files, "limit", None) or 100
    return 0.0, limit * 300.0


def _lines(path: Path) -> tuple[int, float]:
    """Return a file's lines, and about how many tokens they hold."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1 << 20)
    lines = max(head.count(b"\n") + (not head.endswith(b"\n")), 1)
    rows = max(round(lines * size / max(len(head), 1)), 1)
    return rows, size / BYTES_A_TOKEN + rows * TEMPLATE


def estimates_json(estimate: StageEstimate) -> Mapping[str, Any]:
    """Return plain values."""
    return {
        "minutes": round(estimate.minutes, 2),
        "cpu_seconds": round(estimate.cpu_seconds, 1),
        "memory_bytes": estimate.memory,
        "measured": estimate.measured,
    }

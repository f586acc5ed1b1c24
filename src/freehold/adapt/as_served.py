"""What the engine that serves makes of a trained adapter: log-probabilities beside the trainer's own.

The trainer multiplies floats and the engine 8-bit activations, so the two differ by some hundredths of a nat per token;
a difference far above that is a mistake: another template, other rows, a wrong order of heads.
Knows token rows; knows no loss. The adapter goes from memory to the engine, as it is after the last step.
Path: align, distil -> served_log_probs, mismatch -> SamplingModel.answer_logits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.rows import AnswerRow
from freehold.adapt.sampling import SamplingModel
from freehold.adapt.training.trainee import Trainee
from freehold.models.lora import Adapter

F32 = NDArray[np.float32]


def served_log_probs(model: SamplingModel, rows: Sequence[AnswerRow], adapter: Adapter | None) -> list[F32]:
    """Return the engine's log-probability of each token of each answer."""
    log_probs = []
    for row in rows:
        logits = model.answer_logits(row.ids[: row.prompt], row.answer, adapter)
        most = logits.max(1, keepdims=True)
        sums = np.log(np.exp(logits - most).sum(1)) + most[:, 0]
        log_probs.append(logits[np.arange(len(row.answer)), list(row.answer)] - sums)
    return log_probs


def mismatch(trainee: Trainee, rows: Sequence[AnswerRow], served: Sequence[F32]) -> dict[str, Any]:
    """Return how far the trainer's log-probabilities are from those served, in nats per token."""
    import torch

    with torch.no_grad():
        own = trainee.log_probs([row.ids for row in rows], wanted=[row.wanted for row in rows])
    gap = torch.cat(own).numpy() - np.concatenate(served)
    return {
        "tokens": len(gap),
        "mean_absolute": float(np.abs(gap).mean()),
        "mean": float(gap.mean()),
        "p99": float(np.quantile(np.abs(gap), 0.99)),
    }

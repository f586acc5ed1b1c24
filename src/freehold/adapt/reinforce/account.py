"""The account of a run: each step's line in steps.jsonl, and what the receipt says of all steps.

Knows scores, advantages and updates as numbers; knows no model and no verifier.
Path: adapt/reinforce/course.py -> step_line; -> summary -> receipt
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from freehold.adapt.reinforce.policy import PolicyUpdate
from freehold.adapt.reinforce.watch import AnswerLooks, failures
from freehold.evals.verifier import RewardScore

STAGES = ("sample", "score", "train")
SHOWN = 3  # answers that two verifiers score apart: in a step's line, and of the latest in the receipt


def step_line(
    scores: Sequence[Sequence[RewardScore]],
    passes_at: float,
    looks: AnswerLooks,
    update: PolicyUpdate,
    dropped: int,
    spent: Mapping[str, float],
) -> dict[str, Any]:
    """Return a step's line. `dropped`: groups whose scores were equal; `spent`: processor seconds by stage."""
    every = [each for group in scores for each in group]
    mismatch = update.mismatch
    return {
        "score": sum(each.value for each in every) / len(every),
        "passed": sum(each.value >= passes_at for each in every) / len(every),
        "groups": len(scores),
        "dropped": dropped,
        "failures": failures(every),
        "tokens": looks.tokens,
        "cut": looks.cut,
        "repetition": looks.repetition,
        "distinct": looks.distinct,
        "mismatch": mismatch.mean_size if mismatch else None,
        "mismatch_mean": mismatch.mean if mismatch else None,
        "mismatch_p99": mismatch.p99_size if mismatch else None,
        "trained_tokens": mismatch.tokens if mismatch else 0,
        "capped": update.capped,
        "gradient": update.norm,
        "rate": update.rate,
        "cpu": {stage: round(spent[stage], 3) for stage in STAGES},
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the receipt's parts on a run's steps: mismatch, groups, failures, speed."""
    spent = {stage: round(sum(line["cpu"][stage] for line in lines), 2) for stage in STAGES}
    kinds: Counter[str] = Counter()
    for line in lines:
        kinds.update(line["failures"])
    measured = [line for line in lines if line["trained_tokens"]]
    parted = [line["parted"] for line in lines if "parted" in line]
    shown = [each for line in lines for each in line.get("parted_shown", ())]
    return {
        "steps": {
            "count": len(lines),
            "groups": sum(line["groups"] for line in lines),
            "dropped": sum(line["dropped"] for line in lines),
            "failures": dict(kinds),
            "score_first": lines[0]["score"] if lines else None,
            "score_last": lines[-1]["score"] if lines else None,
            "parted": sum(parted) / len(parted) if parted else None,
            "parted_shown": shown[-SHOWN:],
        },
        "mismatch": {
            "mean_size": _mean(measured, "mismatch"),
            "mean": _mean(measured, "mismatch_mean"),
            "p99_size": max((line["mismatch_p99"] for line in measured), default=None),
            "most": max((line["mismatch"] for line in measured), default=None),
            "capped": _mean(measured, "capped"),
            "unit": "nats per token, trainer less sampler",
        },
        "speed": {
            "cpu_seconds": spent,
            "sampling_share": round(spent["sample"] / max(sum(spent.values()), 1e-9), 4),
        },
    }


def _mean(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over trained tokens; None without any."""
    total, tokens = 0.0, 0
    for line in lines:
        total += line[key] * line["trained_tokens"]
        tokens += line["trained_tokens"]
    return total / tokens if tokens else None

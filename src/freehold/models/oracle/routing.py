"""The oracle's router: how a row's logits become chosen experts and their weights, in NumPy.

Knows rows of logits and the rules of routers; knows no matrix and no model.
Path: oracle.NumpyOps.route -> chosen_experts -> ChosenExperts -> oracle.NumpyOps.experts
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.models.oracle.arithmetic import softmax

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]


class ChosenExperts(NamedTuple):
    """What `route` decides for each row: experts, the greatest first, and their weights."""

    ids: Ids  # [rows, chosen]
    weights: F32  # [rows, chosen]
    margin: F64  # [rows]: how far what is compared of the last one is above the best that was left out


class ScoreOrder(NamedTuple):
    """How scores are compared: with what added, and among which groups."""

    correction: F32 | None
    groups: int
    kept: int
    group_score: str


def chosen_experts(
    logits: F32,
    top_k: int,
    scoring: str,
    by: ScoreOrder,
    *,
    renormalise: bool,
    epsilon: float,
    least: float,
    scale: float,
    jitter: float,
) -> ChosenExperts:
    """Choose each row's experts and weigh them by a rule's name and its numbers."""
    logits64 = logits.astype(np.float64)
    if scoring == "sparsemixer":
        return _sparse_mixer(logits64, jitter)
    with np.errstate(over="ignore"):
        scores = softmax(logits64) if scoring == "softmax" else 1 / (1 + np.exp(-logits64))
    plain = by.correction is None and by.group_score == "best"
    compared = logits64 if plain else scores + (0 if by.correction is None else by.correction)
    ids, margin = _best(compared, top_k, by)
    weights = np.take_along_axis(scores, ids, -1)
    if renormalise:
        weights /= np.maximum(weights.sum(-1, keepdims=True) + epsilon, least)
    return ChosenExperts(ids, (weights * scale).astype(np.float32), margin)


def _best(compared: F64, top_k: int, by: ScoreOrder) -> tuple[Ids, F64]:
    """Ids of the greatest among the groups that are kept, of equals the lowest; and the narrowest margin."""
    margin = np.full(len(compared), np.inf)
    if by.kept < by.groups:
        grouped = compared.reshape(len(compared), by.groups, -1)
        ranked = -np.sort(-grouped, axis=-1)
        of_group = ranked[..., 0] + (ranked[..., 1] if by.group_score == "top2" else 0)
        kept, margin = _greatest(of_group, by.kept)
        open_ = np.zeros(of_group.shape, bool)
        np.put_along_axis(open_, kept, True, -1)
        compared = np.where(open_[..., None], grouped, -np.inf).reshape(compared.shape)
    ids, narrow = _greatest(compared, top_k)
    return ids, np.minimum(margin, narrow)


def _greatest(values: F64, count: int) -> tuple[Ids, F64]:
    order = np.argsort(-values, axis=-1, kind="stable")
    ranked = np.take_along_axis(values, order, -1)
    rest = ranked[:, count] if count < ranked.shape[1] else np.full(len(values), -np.inf)
    return order[:, :count], ranked[:, count - 1] - rest


def _sparse_mixer(logits: F64, jitter: float) -> ChosenExperts:
    """Take the greatest twice; weigh it by a softmax over those within a relative distance of 2 * jitter."""
    left, ids, weights = logits.copy(), [], []
    margin = np.full(len(logits), np.inf)
    for _ in range(2):
        best, gap = _greatest(left, 1)
        most = np.take_along_axis(left, best, -1)
        far = (most - logits) / np.maximum(np.abs(logits), most) > 2 * jitter
        weights.append(np.take_along_axis(softmax(np.where(far, -np.inf, left)), best, -1))
        np.put_along_axis(left, best, -np.inf, -1)
        ids.append(best)
        margin = np.minimum(margin, gap)
    return ChosenExperts(np.concatenate(ids, -1), np.concatenate(weights, -1).astype(np.float32), margin)

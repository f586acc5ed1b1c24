"""The preference loss (DPO, Rafailov 2023) with a likelihood term on what was chosen.

    margin = beta * [(log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))]
    loss = -(1 - smoothing) * log sigmoid(margin) - smoothing * log sigmoid(-margin) - nll * mean log p(chosen)

p is the model with its adapter, r the reference: the model without. Log-probabilities are sums over an answer's
tokens: a mean would pay for length. The first margin is 0, so the first loss without its last term is ln 2. The loss
falls also where both answers become unlikely, the chosen one less so; the likelihood term is against that. Smoothing
is the share of labels taken to be wrong (Chowdhury 2024, without its bias term).
Knows sums and counts of tokens; knows no model.
Path: align -> preference_loss -> PreferenceLoss
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """What some pairs add to the loss of their batch. `loss` is differentiable, `margins` [pairs] are not scaled."""

    loss: Tensor
    preference: float  # summed over the pairs, without the likelihood term: ln 2 a pair before the first step
    nll: float  # of the chosen answers, summed over their tokens
    margins: Tensor


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    nll: float = 0.0,
    pairs: int = 0,
    tokens: int = 1,
) -> PreferenceLoss:
    """Return the loss of pairs, given each answer's summed log-probabilities, float32 [pairs].

    `pairs`, `tokens`: those of the whole batch and of its chosen answers, where this is a part of it; 0: these.
    """
    from torch.nn.functional import logsigmoid

    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    scaled = beta * margins
    preference = -((1 - smoothing) * logsigmoid(scaled) + smoothing * logsigmoid(-scaled)).sum()
    likelihood = -chosen.sum()
    loss = preference / (pairs or len(chosen)) + nll * likelihood / tokens
    return PreferenceLoss(loss, float(preference.detach()), float(likelihood.detach()), margins.detach())

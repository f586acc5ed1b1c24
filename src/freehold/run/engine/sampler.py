"""Chooses a token from one row of logits: a function of logits, history, parameters and seed alone.

Knows requests and their SamplingParams; knows no sequence and no text. Order: penalties, bias, the logits mask,
then native sampling (temperature, top-k, typical, top-p, min-p, Gumbel noise of seed, position and id).
Log-probabilities are of the unchanged row. Plain sampling the plan does itself, and computes few of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import NonFiniteLogits, UsageError
from freehold.base.options import options_of
from freehold.base.types import SamplingParams
from freehold.run.engine.sequence import Request, TokenOut

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAX_SEED = (1 << 64) - 1
MAX_BIAS = 1e6
MAX_TOP_LOGPROBS = 1000
FORBIDDEN = (
    -1e30
)  # a logit below any that penalties and biases can make, and finite, as native.sample requires

# The fields that are floats, with the ranges that SamplingParams declares.
_FLOATS = tuple(each for each in options_of(SamplingParams).values() if each.kind == "float")


def check_sampling(params: SamplingParams, tokens: int) -> SamplingParams:
    """Return `params` when every value is within its range; UsageError naming the first that does not."""
    for each in _FLOATS:
        value = getattr(params, each.field)
        if not (_is_number(value) and each.allows(value)):
            low = f"{each.least:g}" if each.above is None else f"more than {each.above:g}"
            raise UsageError(f"{each.field} is {value!r}; expected {low} to {each.most:g}")
    for name, high in (("top_k", 1 << 31), ("penalty_window", 1 << 31), ("seed", MAX_SEED + 1)):
        value = getattr(params, name)
        if value is None and name == "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < high:
            raise UsageError(f"{name} is {value!r}; expected an integer from 0 to {high - 1}")
    for token, bias in params.logit_bias.items():
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < tokens:
            raise UsageError(f"logit_bias names token {token!r}; the model has ids 0 to {tokens - 1}")
        if not _is_number(bias) or abs(bias) > MAX_BIAS:
            raise UsageError(
                f"logit_bias of token {token} is {bias!r}; expected -{MAX_BIAS:g} to {MAX_BIAS:g}"
            )
    return params


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_plain(request: Request) -> bool:
    """Tell whether the plan can sample: the greatest logit/temperature + noise, and nothing but the token requested."""
    params = request.sampling
    unfiltered = (params.top_k, params.typical_p, params.top_p, params.min_p) == (0, 1.0, 1.0, 0.0)
    return (
        request.sink is None
        and request.logprobs is None
        and (params.temperature == 0 or unfiltered)
        and not _is_penalised(params)
        and not params.logit_bias
    )


def choose(
    logits: F32 | np.int64,
    history: Sequence[int],
    params: SamplingParams,
    seed: int,
    tokens: int,
    logprobs: int | None,
    mask: Mask | None = None,
) -> TokenOut:
    """Choose the token at position len(history) from float32 logits [V], among ids below `tokens`.

    In the place of logits may be what the plan chose from them (is_plain), -1 if they were not finite.
    `logprobs` N: also report the choice's log-probability and the N likeliest. `mask`, bool [tokens]: which tokens may
    be chosen, one at least. Raises NonFiniteLogits.
    """
    position = len(history)
    if isinstance(logits, np.integer):
        if logits < 0:
            raise non_finite(position)
        return TokenOut(int(logits))
    adjusted = _adjusted(np.ascontiguousarray(logits[:tokens]), history, params)
    if mask is not None:
        adjusted = _masked(adjusted, mask, position)
    chosen = native.sample(
        adjusted,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.typical_p,
        seed,
        position,
    )
    if chosen < 0:
        raise non_finite(position)
    if logprobs is None:
        return TokenOut(chosen)
    total = log_sum_exp(logits, position)
    return TokenOut(chosen, float(logits[chosen]) - total, top_logprobs(logits[:tokens], logprobs, total))


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    return params.repetition_penalty, params.presence_penalty, params.frequency_penalty


def _is_penalised(params: SamplingParams) -> bool:
    return _penalties(params) != (1.0, 0.0, 0.0)


def _adjusted(logits: F32, history: Sequence[int], params: SamplingParams) -> F32:
    """Apply penalties over the last tokens, and the bias, to a copy of the row."""
    penalised = _is_penalised(params)
    if not penalised and not params.logit_bias:
        return logits
    logits = logits.copy()
    if penalised:
        window = history[-params.penalty_window :] if params.penalty_window else history
        ids, counts = np.unique(np.array(window, np.uint32), return_counts=True)
        inside = ids < len(logits)  # rows of pictures are beyond
        present, times = (each[inside].astype(np.int32) for each in (ids, counts))
        native.penalize(logits, present, times, *_penalties(params))
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    return logits


def _masked(logits: F32, mask: Mask, position: int) -> F32:
    """Return the row with every token outside the mask forbidden; NaN stays to be found."""
    if not mask.any():
        raise UsageError(f"format: no token of the model can continue the text at position {position}")
    if not math.isfinite(float(logits.sum())):
        raise non_finite(position)
    return np.where(mask, logits, np.float32(FORBIDDEN))


def top_logprobs(logits: F32, count: int, total: float) -> tuple[tuple[int, float], ...]:
    """Return the `count` likeliest ids with their log-probabilities, best first, lower id first on ties."""
    count = min(count, len(logits))
    if count == 0:
        return ()
    floor = np.partition(logits, len(logits) - count)[len(logits) - count]
    ids = np.flatnonzero(logits >= floor)
    best = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return tuple((int(i), float(logits[i]) - total) for i in best)


def log_sum_exp(logits: F32, position: int) -> float:
    """Return log(sum(exp(logits))) of one row; NonFiniteLogits when any is not finite."""
    total = native.log_sum_exp(np.ascontiguousarray(logits))
    if not math.isfinite(total):
        raise non_finite(position)
    return total


def non_finite(position: int) -> NonFiniteLogits:
    """Make the error for logits that are NaN or infinite."""
    return NonFiniteLogits(
        f"the model computed NaN or infinity for the token at position {position}",
        "its weights are damaged: remove the model and fetch it again",
    )

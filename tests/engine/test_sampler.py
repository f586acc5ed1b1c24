"""A token is a function of logits, history, parameters and seed, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.base.errors import NonFiniteLogits, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine.sampler import check_sampling, choose, top_logprobs

VOCAB = 64
LOGITS = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
BEST = int(LOGITS.argmax())


def pick(
    logits: np.ndarray = LOGITS, history: list[int] | None = None, tokens: int = VOCAB, **params: object
) -> int:
    sampling = SamplingParams(**{"temperature": 0.0, **params})  # type: ignore[arg-type]
    return choose(logits, history or [1, 2, 3], sampling, sampling.seed or 0, tokens, None).id


def draws(count: int = 2000, **params: object) -> np.ndarray:
    """Frequencies of tokens over many positions."""
    picked = [pick(history=[0] * n, temperature=1.0, seed=5, **params) for n in range(count)]
    return np.bincount(picked, minlength=VOCAB) / count


def test_temperature_zero_takes_the_greatest_and_the_lowest_id_on_ties():
    assert pick() == BEST
    tied = np.zeros(VOCAB, np.float32)
    assert pick(tied) == 0


def test_choice_is_a_function_of_seed_and_position():
    first = [pick(history=[0] * n, temperature=1.0, seed=1) for n in range(50)]
    assert first == [pick(history=[0] * n, temperature=1.0, seed=1) for n in range(50)]
    assert first != [pick(history=[0] * n, temperature=1.0, seed=2) for n in range(50)]
    assert len(set(first)) > 5


def test_draws_follow_the_softmax():
    p = np.exp(LOGITS - LOGITS.max())
    p /= p.sum()
    assert np.abs(draws() - p).sum() < 0.2


def test_top_k_keeps_the_k_greatest():
    assert set(np.flatnonzero(draws(300, top_k=3))) == set(np.argsort(-LOGITS)[:3].tolist())


def test_min_p_drops_what_is_far_below_the_best():
    p = np.exp(LOGITS - LOGITS.max())
    assert set(np.flatnonzero(draws(500, min_p=0.5))) == set(np.flatnonzero(p >= 0.5).tolist())


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    assert pick(history=[BEST], repetition_penalty=50.0) != BEST
    negative = -np.abs(LOGITS) - 1
    best = int(negative.argmax())
    assert pick(negative, history=[best], repetition_penalty=50.0) != best


def test_frequency_penalty_grows_with_the_count_and_presence_does_not():
    second = int(np.argsort(-LOGITS)[1])
    gap = float(LOGITS[BEST] - LOGITS[second])
    assert pick(history=[BEST] * 4, frequency_penalty=gap / 3) == second
    assert pick(history=[BEST] * 4, presence_penalty=gap / 3) == BEST


def test_penalties_look_at_the_last_tokens_only():
    history = [BEST] + [0] * 10
    assert pick(history=history, presence_penalty=50.0, penalty_window=5) == BEST
    assert pick(history=history, presence_penalty=50.0, penalty_window=11) != BEST
    assert pick(history=history, presence_penalty=50.0, penalty_window=0) != BEST


def test_logit_bias_moves_the_choice_and_leaves_the_row_alone():
    before = LOGITS.copy()
    assert pick(logit_bias={7: 100.0}) == 7
    assert pick(logit_bias={BEST: -100.0}) != BEST
    assert np.array_equal(LOGITS, before)


def test_rows_beyond_the_tokenizer_are_never_chosen():
    logits = LOGITS.copy()
    logits[50:] = 100.0
    assert pick(logits, tokens=50) == int(LOGITS[:50].argmax())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_with_the_position(value: float):
    logits = LOGITS.copy()
    logits[5] = value
    with pytest.raises(NonFiniteLogits, match="position 3"):
        pick(logits)


def test_top_logprobs_come_best_first_and_lower_id_first_on_ties():
    row = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert [i for i, _ in top_logprobs(row, 3, 0.0)] == [1, 2, 3]
    assert top_logprobs(row, 0, 0.0) == ()
    assert len(top_logprobs(row, 9, 0.0)) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("penalty_window", -1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("logit_bias", {VOCAB: 1.0}),
        ("logit_bias", {3: float("-inf")}),
    ],
)
def test_parameter_out_of_range_is_refused_by_name(name: str, value: object):
    with pytest.raises(UsageError, match=name):
        check_sampling(SamplingParams(**{name: value}), VOCAB)  # type: ignore[arg-type]

"""Paged attention of every table: near the dense oracle, the same bits whatever tile, start or pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from freehold import _native as native

from . import F32, ULP, normal, same_bits

every_isa = pytest.mark.parametrize("isa", native.isas())
every_type = pytest.mark.parametrize("kv_type", ["f16", "f32", "q8"])
attention = native.testing.attention


class Case(NamedTuple):
    heads: int
    kv_heads: int
    d: int
    dv: int
    positions: int
    softcap: float = 0.0
    window: int = 0


CASES = [
    Case(1, 1, 16, 16, 1),
    Case(4, 4, 16, 16, 40),
    Case(9, 3, 64, 64, 70),
    Case(14, 2, 64, 64, 300),
    Case(6, 1, 24, 24, 290, 30.0),
    Case(4, 1, 256, 256, 300, 0.0, 100),
    Case(12, 2, 128, 128, 600, 0.0, 256),
    Case(8, 8, 128, 80, 65, 50.0, 7),
    Case(40, 1, 40, 8, 270, 0.0, 1),
    Case(3, 3, 5, 3, 33, 0.0, 32),
    Case(24, 2, 192, 144, 100),
    Case(6, 1, 32, 48, 530, 20.0, 300),
]


def inputs(case: Case) -> tuple[F32, F32, F32]:
    q = normal(1, case.positions, case.heads, case.d) * 2
    keys = normal(2, case.positions, case.kv_heads, case.d)
    return q, keys, normal(3, case.positions, case.kv_heads, case.dv)


def attend(isa: str, case: Case, first: int = 0, rows: int | None = None, **how: object) -> F32:
    """Attend rows [first, first + rows) of the case; the cache holds NaN wherever none of them may look."""
    q, keys, values = inputs(case)
    q = q[first : None if rows is None else first + rows]
    return attention(isa, q, keys, values, first, case.d**-0.5, case.softcap, case.window, **how)


def by_tiles(isa: str, case: Case, kv_type: str) -> bool:
    """Whether queries and weights are two bf16 each: isa/amx_attention.inl."""
    return isa == "amx" and kv_type == "f16" and case.d % 32 == 0 and case.heads >= 6 * case.kv_heads


def tolerance(isa: str, case: Case, kv_type: str) -> float:
    """Bound the error: of a score (d products), of exp, of sums over a span, and of folding the spans.

    Over codes, queries and weights are rounded too, to 1 / (2 * 127 * 254) of their greatest; by tiles, products
    to 2^-14 of theirs.
    """
    q, keys, values = inputs(case)
    reach = float(np.abs(q).sum(-1).max() * np.abs(keys).max()) * case.d**-0.5
    score = (case.d + 8) * ULP / 2 * reach
    sums = (256 + 16 + 4 * (case.positions // 256 + 1)) * ULP / 2
    if kv_type == "q8":
        code = 1 / (2 * 127 * 254)
        score += code * float(np.abs(q).max() * np.abs(keys).sum(-1).max()) * case.d**-0.5
        sums += code * min(case.positions, case.window or case.positions)
    if by_tiles(isa, case, kv_type):
        score += 2**-14 * reach
        sums += 2**-14
    return float(np.abs(values).max()) * (2 * score + sums + 8 * ULP)


@every_isa
@every_type
@pytest.mark.parametrize("case", CASES)
def test_attention_agrees_with_reference(isa, case, kv_type):
    tail = max(0, case.positions - 40)  # the oracle is slow; the last rows see the most
    got, want = attend(isa, case, tail, kv_type=kv_type), attend("reference", case, tail, kv_type=kv_type)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(isa, case, kv_type))
    # what is seen in practice, far inside the bound
    usual = 2e-3 if kv_type == "q8" else 1e-4 if by_tiles(isa, case, kv_type) else 2e-5
    assert float(np.abs(got - want).max()) < usual


@every_isa
@every_type
@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_the_tile(isa, case, kv_type):
    whole = attend(isa, case, kv_type=kv_type)
    for tile in (1, 3, 7, 64):
        assert same_bits(attend(isa, case, tile_rows=tile, kv_type=kv_type), whole)


@every_isa
@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_where_a_chunk_starts(isa, case, kv_type):
    """A row alone (decode) equals the row in a prompt, even though everything it cannot see is NaN then."""
    whole = attend(isa, case, kv_type=kv_type)
    for first in {0, case.positions // 3, case.positions // 2 + 1, case.positions - 1} - {case.positions}:
        for rows in {1, min(5, case.positions - first), case.positions - first}:
            assert same_bits(attend(isa, case, first, rows, kv_type=kv_type), whole[first : first + rows])


@every_isa
@every_type
@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_pages_or_on_spans_left_out(isa, case, kv_type):
    whole = attend(isa, case, kv_type=kv_type)
    assert same_bits(attend(isa, case, shuffle=7, kv_type=kv_type), whole)
    assert same_bits(attend(isa, case, skip_spans=True, kv_type=kv_type), whole)


@every_isa
def test_window_sees_exactly_its_positions(isa):
    case = Case(2, 1, 16, 16, 80, window=9)
    q, keys, values = inputs(case)
    base = attend(isa, case)
    for j in (0, 30, 70):
        changed = values.copy()
        changed[j] += 1
        got = attention(isa, q, keys, changed, 0, 0.25, 0.0, 9)
        differs = np.flatnonzero((got != base).any((1, 2)))
        assert differs.tolist() == list(range(j, min(j + 9, 80)))


@every_isa
@every_type
def test_non_finite_query_gives_nan_in_its_own_row_only(isa, kv_type):
    case = Case(4, 2, 32, 32, 50)
    q, keys, values = inputs(case)
    clean = attend(isa, case, kv_type=kv_type)
    q[20, 1, 3] = np.nan
    got = attention(isa, q, keys, values, 0, case.d**-0.5, kv_type=kv_type)
    assert np.isnan(got[20, 1]).all()
    got[20, 1] = clean[20, 1]
    assert same_bits(got, clean)


@every_isa
@every_type
def test_a_nan_in_a_key_or_value_reaches_every_row_that_sees_it(isa, kv_type):
    case = Case(2, 1, 16, 16, 40)
    q, keys, values = inputs(case)
    clean = attend(isa, case, kv_type=kv_type)
    for harmed in (keys, values):
        kept, harmed[30, 0, 2] = harmed[30, 0, 2], np.nan
        got = attention(isa, q, keys, values, 0, case.d**-0.5, kv_type=kv_type)
        harmed[30, 0, 2] = kept
        assert same_bits(got[:30], clean[:30])
        assert np.isnan(got[30:]).any((1, 2)).all()


@every_isa
@every_type
def test_extreme_scores_neither_overflow_nor_vanish(isa, kv_type):
    case = Case(2, 1, 16, 16, 300)
    q, keys, values = inputs(case)
    got = attention(isa, q * 1000, keys, values, 0, 1.0, kv_type=kv_type)
    assert np.isfinite(got).all()
    assert (np.abs(got) <= np.abs(values).max() * (1 + 1e-3)).all()

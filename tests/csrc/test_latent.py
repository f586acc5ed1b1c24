"""Latent attention of every table: near the dense oracle, the same bits whatever tile, start or pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, ULP, normal, same_bits

every_isa = pytest.mark.parametrize("isa", native.isas())
every_type = pytest.mark.parametrize("kv_type", ["f16", "f32"])
attention = native.testing.latent_attention


class Case(NamedTuple):
    heads: int
    d: int
    latent: int
    positions: int


CASES = [
    Case(1, 16, 16, 1),
    Case(4, 48, 32, 40),
    Case(16, 576, 512, 70),
    Case(20, 40, 32, 300),
    Case(3, 24, 16, 530),
    Case(70, 96, 80, 65),
]


def inputs(case: Case) -> tuple[F32, F32]:
    return normal(1, case.positions, case.heads, case.d) * 2, normal(2, case.positions, case.d)


def attend(isa: str, case: Case, first: int = 0, rows: int | None = None, **how: object) -> F32:
    """Attend rows [first, first + rows) of the case; the cache holds NaN at all positions after them."""
    q, keys = inputs(case)
    q = q[first : None if rows is None else first + rows]
    return attention(isa, q, keys[: first + len(q)], case.latent, first, case.d**-0.5, **how)


@every_isa
@every_type
@pytest.mark.parametrize("case", CASES, ids=str)
def test_latent_attention_agrees_with_the_oracle(isa: str, kv_type: str, case: Case):
    q, keys = inputs(case)
    reach = float(np.abs(q).sum(-1).max() * np.abs(keys).max()) * case.d**-0.5
    sums = (256 + 16 + 4 * (case.positions // 256 + 1)) * ULP / 2
    bound = float(np.abs(keys).max()) * (2 * (case.d + 8) * ULP / 2 * reach + sums + 8 * ULP)
    expected = attend("reference", case, kv_type=kv_type)
    assert np.abs(attend(isa, case, kv_type=kv_type) - expected).max() <= bound


@every_isa
@every_type
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_bit_depends_on_tile_start_or_pages(isa: str, kv_type: str, case: Case):
    whole = attend(isa, case, kv_type=kv_type)
    for tile in (1, 17, 48):
        assert same_bits(whole, attend(isa, case, kv_type=kv_type, tile=tile, shuffle=tile))
    first = case.positions // 3
    assert same_bits(whole[first : first + 3], attend(isa, case, first, 3, kv_type=kv_type))
    assert same_bits(whole[-1:], attend(isa, case, case.positions - 1, kv_type=kv_type, shuffle=2))


@every_isa
def test_a_later_position_that_is_not_finite_does_not_reach_an_earlier_row(isa: str):
    case = Case(5, 48, 32, 40)
    q, keys = inputs(case)
    damaged = keys.copy()
    damaged[30:] = np.nan
    seen, all_of_them = (attention(isa, q, k, case.latent, 0, 0.1) for k in (keys, damaged))
    assert same_bits(seen[:30], all_of_them[:30])
    assert np.isnan(all_of_them[30:]).all()


def test_codes_are_refused_by_name():
    with pytest.raises(UsageError, match="latent attention does not fit q8"):
        native.KvCache([(1, 576, 0)], 1, "q8")


def test_a_page_holds_each_value_of_a_token_once():
    """576 halves a token and layer: keys that are values too are not stored twice."""
    assert native.KvCache([(1, 576, 0)], 1, "f16").bytes_per_block == native.BLOCK_TOKENS * 576 * 2

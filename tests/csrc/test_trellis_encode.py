"""The trellis encoder: what it returns is what its bytes stand for, the path it finds is near the best, and
threads change no bit.
"""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.adapt.quantize.encoding import TABLES
from freehold.base.errors import UsageError

from . import F32, normal

FACTORS = np.float32(
    np.float16([2 ** (-c / 5) for c in range(8)] + [0.32, 0.26, 0.2, 0.14, 0.09, 0.05, 0.022, 0.005])
)


def encoded(weights: F32, bits: int, threads: int = 1, feedback: F32 | None = None, **options: int):
    table = TABLES.get(bits, TABLES[3])
    one = np.ones(weights.shape[1], np.float32)
    return native.trellis_encode(
        weights, one, feedback, table.values, table.unit, bits, native.Threads(threads), **options
    )


def decoded(rows: np.ndarray, bits: int, n: int) -> F32:
    """What the bytes stand for, bit by bit as the format says."""
    out = np.empty((len(rows), n), np.float32)
    for r, row in enumerate(rows):
        word = int.from_bytes(row[:2].tobytes(), "little")
        free = 7 - bits
        scale = np.frombuffer((word >> free << free).to_bytes(2, "little"), np.float16)[0]
        nibbles = row[2 : 2 + -(-n // 64)]
        stream = int.from_bytes(row[2 + len(nibbles) :].tobytes(), "little") | (word % 2**free) << bits * n
        for i in range(n):
            code = nibbles[i // 64] >> 4 * (i // 32 % 2) & 15
            value = TABLES[bits].values[stream >> bits * i & 127]
            out[r, i] = np.float32(value) * (np.float32(scale) * FACTORS[code])
    return out


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("columns", [32, 96, 576])
def test_bytes_stand_for_the_values_that_are_returned(bits, columns):
    rows, values = encoded(normal(1, 5, columns) * 0.02, bits)
    assert rows.shape[1] == 2 + -(-columns // 64) + bits * columns // 8
    assert np.array_equal(decoded(rows, bits, columns), values)


@pytest.mark.parametrize("bits", [2, 3])
def test_threads_and_neighbours_change_no_bit(bits):
    weights, push = normal(1, 150, 256), np.triu(normal(2, 256, 256) * 0.02, 8)
    for first in range(0, 256, 8):
        push[first : first + 8, : first + 8] = 0
    rows, _ = encoded(weights, bits, 1, push)
    assert np.array_equal(encoded(weights, bits, 3, push)[0], rows)
    assert np.array_equal(encoded(weights[70:72].copy(), bits, 1, push)[0], rows[70:72])


@pytest.mark.parametrize(("bits", "bound"), [(2, 0.078), (3, 0.0205)])
def test_gaussian_rows_come_as_near_as_the_format_allows(bits, bound):
    weights = normal(3, 64, 1024)
    _, values = encoded(weights, bits, ahead=24)
    assert np.mean((values - weights) ** 2) < bound
    _, blind = encoded(weights, bits, ahead=0)
    assert (
        np.mean((blind - weights) ** 2) > 1.2 * bound
    )  # a path without a look ahead is no better than scalars


@pytest.mark.parametrize("isa", native.isas())
def test_every_table_finds_paths_as_good(isa, monkeypatch):
    """Near ties fall either way where a processor rounds twice, so bytes may differ; their error does not."""
    weights = normal(3, 16, 512)
    _, values = encoded(weights, 2)
    table = TABLES[2]
    _, other = native.testing.trellis_encode(isa, weights, table.values, table.unit, 2)
    assert abs(np.mean((other - weights) ** 2) / np.mean((values - weights) ** 2) - 1) < 0.01


def test_a_row_of_zeros_and_a_huge_row_are_finite():
    weights = normal(3, 3, 64)
    weights[0], weights[1] = 0, weights[1] * 1e6
    rows, values = encoded(weights, 3)
    assert not values[0].any() and np.isfinite(values).all()
    assert np.array_equal(decoded(rows, 3, 64), values)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block": 0}, "block"),
        ({"ahead": 33}, "ahead"),
        ({"spread": 16}, "scales"),
        ({"bits": 4}, "bits a weight"),
    ],
)
def test_a_setting_out_of_range_is_named(change, text):
    with pytest.raises(UsageError, match=text):
        encoded(normal(1, 2, 64), **({"bits": 2} | change))


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="groups of 32"):
        encoded(normal(1, 2, 80), 2)


def test_one_large_weight_costs_its_row_nothing_else():
    weights = normal(5, 64, 896) * 0.01
    plain = np.square(encoded(weights, 3)[1] - weights).mean()
    weights[:, 100] = 0.3  # thirty times its row's
    error = encoded(weights, 3)[1] - weights
    assert np.abs(error[:, 100]).max() < 0.06
    others = np.delete(error, slice(96, 128), axis=1)  # what shares its scale is lost
    assert np.square(others).mean() < 1.2 * plain

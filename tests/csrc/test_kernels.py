"""Row kernels of every table against the oracle: norm, gates, softcap, rope, pages, reductions, int8 rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, ULP, normal, same_bits

kernels = native.testing
LENGTHS = [1, 7, 16, 33, 64, 127, 576, 896, 4097]

every_isa = pytest.mark.parametrize("isa", native.isas())


def test_scalar_table_runs_everywhere_and_unknown_names_are_refused():
    assert native.isas()[-1] == "scalar"
    assert native.isa() in native.isas()
    with pytest.raises(UsageError, match="no kernels named 'sparc'") as refused:
        kernels.add("sparc", normal(0, 4), normal(1, 4))
    assert "scalar" in refused.value.hint


@every_isa
@pytest.mark.parametrize("n", [*LENGTHS, 16384])
def test_rms_norm_agrees_with_reference(isa, n):
    x, w = normal(1, n) * 3, normal(2, n)
    got, want = kernels.rms_norm(isa, x, w, 1e-6), kernels.rms_norm("reference", x, w, 1e-6)
    sums = math.ceil(n / 64) + 8  # additions a running sum sees, then the tree; the root halves their error
    np.testing.assert_allclose(got, want, rtol=(sums / 2 + 4) * ULP / 2, atol=0)


@every_isa
def test_rms_norm_of_zeros_is_zero_and_spreads_nan(isa):
    assert not kernels.rms_norm(isa, np.zeros(40, np.float32), normal(0, 40), 1e-6).any()
    x = normal(0, 40)
    x[33] = np.nan
    assert np.isnan(kernels.rms_norm(isa, x, normal(1, 40), 1e-6)).all()


@every_isa
@pytest.mark.parametrize("n", LENGTHS)
def test_add_and_scale_are_exact(isa, n):
    x, y = normal(1, n), normal(2, n)
    assert same_bits(kernels.add(isa, y, x), y + x)
    assert same_bits(kernels.scale(isa, y, 0.3), y * np.float32(0.3))


@every_isa
@pytest.mark.parametrize("width", [1, 16, 23, 80])
@pytest.mark.parametrize("rows", [1, 5])
def test_panels_sums_go_into_their_rows(isa, width, rows):
    sums, y, bias = panels(1, width, rows), normal(2, rows, width), normal(3, width)
    mine = in_rows(sums, width)
    assert same_bits(kernels.store_rows(isa, sums, y, None, False), mine)
    assert same_bits(kernels.store_rows(isa, sums, y, bias, False), mine + bias)
    assert same_bits(kernels.store_rows(isa, sums, y, None, True), y + mine)
    assert same_bits(kernels.store_rows(isa, sums, y, bias, True), y + (mine + bias))


@every_isa
@pytest.mark.parametrize("width", [1, 16, 23, 80])
def test_panels_scaled_sums_are_added_to_the_rows_named(isa, width):
    sums, y, scale = panels(1, width, 5), normal(2, 9, width), normal(3, 5)
    rows = np.array([7, 0, 3, 8, 2], np.int32)
    want = y.astype(np.float64)
    want[rows] += scale[:, None].astype(np.float64) * in_rows(sums, width)
    got = kernels.add_scaled_rows(isa, sums, y, rows, scale)
    # Two roundings where there is no FMA.
    np.testing.assert_allclose(got, want, rtol=ULP, atol=ULP * np.abs(y).max())
    assert same_bits(got[[1, 4, 5, 6]], y[[1, 4, 5, 6]])
    plain = kernels.add_scaled_rows(isa, sums, y[rows], None, scale)
    assert same_bits(plain, got[rows])


@every_isa
@pytest.mark.parametrize("name", ["silu_rows", "gelu_rows"])
@pytest.mark.parametrize("width", LENGTHS)
def test_gates_agree_with_reference(isa, name, width):
    """exp errs by 2 ulp and by its argument's rounding (|z| half-ulps, z to 50 here); then five roundings."""
    gate = getattr(kernels, name)
    g, u = panels(1, width, 3), panels(2, width, 3)
    g *= 3
    np.testing.assert_allclose(
        gate(isa, g, u, width), gate("reference", g, u, width), rtol=60 * ULP, atol=1e-38
    )


@every_isa
def test_gates_survive_huge_inputs(isa):
    g = np.zeros((1, 1, 16), np.float32)
    g[0, 0, :7] = [1e30, -1e30, 200, -200, 88.9, -88.9, 0.0]
    for gate in (kernels.silu_rows, kernels.gelu_rows):
        got = gate(isa, g, np.ones_like(g), 7)
        np.testing.assert_allclose(got[0], np.maximum(g[0, 0, :7], 0), rtol=ULP, atol=1e-30)
        assert np.isnan(gate(isa, np.full_like(g, np.nan), np.ones_like(g), 16)).all()


def panels(seed, width, rows):
    """Sums of random panels, [panels, rows, 16]; what lies behind `width` is garbage."""
    return normal(seed, -(-width // 16), rows, 16)


def in_rows(sums, width):
    return np.ascontiguousarray(sums.transpose(1, 0, 2).reshape(sums.shape[1], -1)[:, :width])


@every_isa
@pytest.mark.parametrize("n", [1, 17, 4096])
def test_softcap_agrees_with_reference_relatively(isa, n):
    y = np.concatenate([np.linspace(-300, 300, n), np.linspace(-1e-3, 1e-3, n)]).astype(np.float32)
    got, want = kernels.softcap(isa, y, 30.0), kernels.softcap("reference", y, 30.0)
    np.testing.assert_allclose(got, want, rtol=4 * ULP, atol=0)
    assert np.abs(got).max() <= 30


@every_isa
@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize(
    ("d", "rot"), [(16, 16), (24, 24), (64, 64), (80, 20), (128, 128), (256, 64), (10, 6), (8, 0)]
)
def test_rope_agrees_with_reference_and_leaves_the_rest(isa, d, rot, adjacent):
    x = normal(d, 3, d)
    angle = np.random.default_rng(rot).uniform(0, 100, rot // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got, want = kernels.rope(isa, x, cos, sin, adjacent), kernels.rope("reference", x, cos, sin, adjacent)
    np.testing.assert_allclose(got, want, rtol=0, atol=3 * ULP * float(np.abs(x).max()))
    assert same_bits(got[:, rot:], x[:, rot:])


@every_isa
@pytest.mark.parametrize(("heads", "d", "dv"), [(1, 16, 16), (3, 24, 40), (2, 128, 64), (2, 7, 9)])
@pytest.mark.parametrize("slot", [0, 31, 13])
def test_kv_store_writes_the_page_layout(isa, heads, d, dv, slot):
    keys, values = normal(1, heads, d) * 100, normal(2, heads, dv)
    page = kernels.kv_store(isa, keys, values, slot).view(np.float16).reshape(heads, 32 * (d + dv))
    want = np.zeros_like(page)
    want[:, : 32 * d].reshape(heads, d, 32)[:, :, slot] = keys
    want[:, 32 * d :].reshape(heads, 32, dv)[:, slot] = values
    assert same_bits(page, want)


def codes_of(x: F32) -> tuple[npt.NDArray[np.uint8], F32]:
    """Return round(x / scale) + 128 and the scales max|x| / 127 of rows."""
    most = np.abs(x).max(-1)
    codes = np.rint(x * (np.float32(127) / most)[:, None]) + 128
    return codes.astype(np.uint8), most / np.float32(127)


@every_isa
@pytest.mark.parametrize(
    ("heads", "d", "dv", "slot"), [(2, 64, 64, 0), (3, 20, 24, 31), (1, 5, 3, 7), (1, 256, 512, 18)]
)
def test_kv_store_writes_the_page_layout_of_codes(isa, heads, d, dv, slot):
    keys, values = normal(1, heads, d) * 100, normal(2, heads, dv)
    wide_d, wide_dv = -(-d // 4) * 4, -(-dv // 16) * 16
    page = kernels.kv_store(isa, keys, values, slot, "q8").reshape(heads, 32 * (wide_d + wide_dv) + 256)
    want = np.zeros_like(page)
    (key_codes, key_scales), (value_codes, value_scales) = codes_of(keys), codes_of(values)
    padded = np.zeros((heads, wide_d), np.uint8)
    padded[:, :d] = key_codes
    want[:, : 32 * wide_d].reshape(heads, wide_d // 4, 32, 4)[:, :, slot] = padded.reshape(heads, -1, 4)
    want[:, 32 * wide_d : -256].reshape(heads, 8, wide_dv, 4)[:, slot // 4, :dv, slot % 4] = value_codes
    scales = want[:, -256:].view(np.float32)
    scales[:, slot], scales[:, 32 + slot] = key_scales, value_scales
    assert same_bits(page, want)


@every_isa
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("n", [1, 5, 64, 1000, 1024, 1025, 32000, 151936])
def test_log_sum_exp_agrees_with_reference(isa, n, spread):
    x = normal(n, n) * np.float32(spread)
    got, want = kernels.log_sum_exp(isa, x), kernels.log_sum_exp("reference", x)
    # A block's sum errs by some 24 roundings, exp by 2 ulp; the answer is rounded once more.
    assert abs(got - want) <= 30 * ULP / 2 + abs(want) * ULP / 2


@every_isa
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 700, 2000])
def test_log_sum_exp_of_a_non_finite_row_is_nan(isa, poison, at):
    x = normal(0, 2001)
    x[at] = poison
    assert math.isnan(kernels.log_sum_exp(isa, x))
    assert math.isnan(kernels.log_sum_exp("reference", x))


@every_isa
@pytest.mark.parametrize("n", [1, 15, 17, 1024, 1025, 50_000])
def test_argmax_takes_the_lowest_of_equals(isa, n):
    x = np.round(normal(n, n) * 2)
    assert kernels.argmax(isa, x) == int(np.argmax(x))


@every_isa
def test_argmax_passes_over_nan(isa):
    x = normal(3, 3000)
    x[::7] = np.nan
    assert kernels.argmax(isa, x) == int(np.nanargmax(x))
    assert kernels.argmax(isa, np.full(40, np.nan, np.float32)) == 0


@every_isa
@pytest.mark.parametrize("block", [32, 256])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_int8_rows_equal_the_reference(isa, block, scale):
    x = normal(block, 768 if block == 256 else 864) * np.float32(scale)
    x[:block] = 0
    q, s, sum16, fsum32 = kernels.quantize(isa, x, block)
    want_q, want_s, _, _ = kernels.quantize("reference", x, block)
    assert same_bits(q, want_q)
    assert same_bits(s, want_s)
    assert (sum16 == q.reshape(-1, 16).astype(np.int32).sum(1)).all()
    if block == 32:
        assert same_bits(fsum32, s * q.reshape(-1, 32).astype(np.int32).sum(1).astype(np.float32))
    near = np.abs(x.reshape(-1, block) - s[:, None] * q.reshape(-1, block))
    assert (near <= s[:, None] * (0.5 + 1e-4)).all()


@every_isa
@pytest.mark.parametrize("block", [32, 256])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_int8_rows_mark_a_non_finite_block(isa, block, poison):
    x = normal(block, 512)
    x[block + 5] = poison
    _, s, _, _ = kernels.quantize(isa, x, block)
    assert np.isnan(s[1])
    assert np.isfinite(np.delete(s, 1)).all()

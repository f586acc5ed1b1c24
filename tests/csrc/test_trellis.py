"""Panels of T2 and T3: rows decode to the file's floats, and every table multiplies them to the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile
from freehold.run.formats import QuantType

from ..formats.trellis_rows import draw
from . import normal, same_bits
from .test_matmul import tolerance

POOL = native.Threads(2)
TYPES = [QuantType.T2, QuantType.T3]
every_isa = pytest.mark.parametrize("isa", native.isas())
every_type = pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
# Odd numbers of groups and of runs; rows of models that no block of 256 fits; one input more than a unit.
SHAPES = [(1, 32), (17, 96), (16, 256), (5, 288), (33, 576), (40, 640), (16, 896), (20, 1536)]


def matrix(type: QuantType, n: int, k: int, expand: bool = False) -> native.Matrix:
    return native.Matrix.pack_trellis(draw(type, n, k).raw, type.name, n, k, POOL, expand)


@every_type
@pytest.mark.parametrize("expand", [False, True], ids=["windows", "expanded"])
def test_rows_decode_to_the_files_own_floats(type, expand):
    for n, k in SHAPES:
        w = matrix(type, n, k, expand)
        assert w.weight_type == ("T8" if expand else type.name)
        assert same_bits(np.stack([w.row(i) for i in range(n)]), draw(type, n, k).weights)


@every_isa
@every_type
@pytest.mark.parametrize("expand", [False, True], ids=["windows", "expanded"])
def test_products_agree_with_reference(isa, type, expand):
    for n, k in SHAPES:
        w, x = matrix(type, n, k, expand), normal(k, 5, k)
        got, want = native.testing.matmul(isa, w, x), native.testing.matmul("reference", w, x)
        assert (np.abs(got - want) <= tolerance(w, x)).all(), (n, k, np.abs(got - want).max())


@every_type
def test_every_table_and_both_layouts_give_the_same_bits(type):
    """Integer dots are exact, and the sum of groups is rounded at each step, with or without a multiply-add."""
    for n, k in SHAPES:
        x = normal(k, 9, k)
        want = native.testing.matmul("scalar", matrix(type, n, k), x)
        for isa in native.isas():
            for expand in (False, True):
                w = matrix(type, n, k, expand)
                assert same_bits(native.testing.matmul(isa, w, x), want), (isa, n, k, expand)
                assert same_bits(native.testing.gemm(isa, w, x), want), (isa, n, k, expand)


@every_isa
@every_type
def test_no_bit_depends_on_the_tile_or_the_batch(isa, type):
    for n, k in ((17, 288), (16, 896)):
        w, x = matrix(type, n, k), normal(k, 64, k)
        alone = np.concatenate([native.testing.matmul(isa, w, x[i : i + 1]) for i in range(64)])
        for rows in (*range(1, 18), 31, 64):
            assert same_bits(native.testing.matmul(isa, w, x[:rows], tile=17), alone[:rows])
            assert same_bits(native.testing.gemm(isa, w, x[:rows], tokens=rows), alone[:rows])
        for tile in (2, 3, 5, 8):
            assert same_bits(native.testing.matmul(isa, w, x, tile=tile), alone)


@every_isa
@every_type
def test_rows_of_no_scale_are_zero_and_infinite_ones_show(isa, type):
    drawn = draw(type, 3, 96)
    drawn.rows[1, :2] = 0
    drawn.rows[2, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    w = native.Matrix.pack_trellis(drawn.raw, type.name, 3, 96, POOL, False)
    got = native.testing.matmul(isa, w, normal(1, 2, 96))
    assert (got[:, 1] == 0).all() and not np.isfinite(got[:, 2]).any() and np.isfinite(got[:, 0]).all()


@every_type
def test_rows_unpack_to_the_files_own_floats(type):
    """For training, which reads weights without panels; odd numbers of groups end in the row's tail byte."""
    for n, k in SHAPES:
        drawn, out = draw(type, n, k), np.empty((n, k), np.float32)
        native.unpack(drawn.raw, type.name, out, POOL)
        assert same_bits(out, drawn.weights), (n, k)
    with pytest.raises(BadModelFile, match=f"{type.name} rows, 4 of 64, do not take"):
        native.unpack(draw(type, 4, 64).raw[128:], type.name, np.empty((4, 64), np.float32), POOL)
    with pytest.raises(BadModelFile, match=f"{type.name} rows, 4 of 48, do not take"):
        native.unpack(draw(type, 4, 64).raw, type.name, np.empty((4, 48), np.float32), POOL)


@every_type
def test_a_view_of_the_panels_is_the_matrix(type):
    w = matrix(type, 21, 160)
    room = np.zeros(w.nbytes + 64, np.uint8)
    at = -room.ctypes.data % 64
    panels = room[at : at + w.nbytes]
    panels[:] = w.panels()
    seen = native.Matrix.view(panels, type.name, 21, 160)
    assert same_bits(seen.row(20), w.row(20))
    with pytest.raises(BadModelFile, match="does not take"):
        native.Matrix.view(panels[: w.nbytes - 128], type.name, 21, 160)


@every_type
def test_a_panel_takes_the_files_bits(type):
    """3.13 and 2.13 bits per weight, a line of 64 bytes for a panel's sixteen rows, and the table."""
    w = matrix(type, 64, 1536)
    assert 8 * (w.nbytes - 128) / (64 * 1536) == {QuantType.T2: 2, QuantType.T3: 3}[type] + 1 / 8 + 32 / 1536


@every_type
def test_what_does_not_fit_is_refused_by_name(type):
    raw = draw(type, 4, 64).raw
    with pytest.raises(
        BadModelFile, match=f"{type.name} matrix of 4 x 64 does not take {raw.size - 128} bytes"
    ):
        native.Matrix.pack(raw[128:], type.name, 4, 64, POOL)
    with pytest.raises(BadModelFile, match=f"{type.name} rows must hold a multiple of 32 inputs, got 48"):
        native.Matrix.pack(raw, type.name, 4, 48, POOL)
    with pytest.raises(BadModelFile, match=f"{type.name} rows must hold"):
        native.Matrix.pack_trellis(raw, type.name, 4, 48, POOL, True)
    bad = raw.copy()
    bad[5] = 0x80
    with pytest.raises(BadModelFile, match=f"the table of a {type.name} matrix holds -128"):
        native.Matrix.pack(bad, type.name, 4, 64, POOL)


def test_packing_decodes_where_the_kernels_in_use_do():
    routes = {name: (packed, route) for name, packed, route, _, _ in native.type_routes()}
    decodes = native.isa() in ("vbmi", "amx")
    for type in TYPES:
        packed = native.Matrix.pack(draw(type, 4, 64).raw, type.name, 4, 64, POOL).weight_type
        assert packed == (type.name if decodes else "T8")
        assert routes[type.name] == (packed, "own" if decodes else "expanded to int8")

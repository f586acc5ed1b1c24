"""Types T2 and T3: a row's bits mean what the format says, and files that hold damaged ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import (
    QuantType,
    dequantize,
    open_gguf,
    quantization_of,
    row_bytes,
    split_codes,
    trellis,
)

from .gguf_writer import ARCHITECTURE, STRING, Entry, Value, write_gguf
from .trellis_rows import draw, nearest, read_slowly

TYPES = [QuantType.T2, QuantType.T3]
every_type = pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
REQUIRES = ARCHITECTURE | {"freehold.requires": Value(STRING, trellis.REQUIRES)}


@every_type
@pytest.mark.parametrize("k", [32, 64, 96, 576, 640, 896])
def test_a_row_holds_the_whole_path_with_a_free_start_and_end(type, k):
    drawn = draw(type, 5, k)
    assert drawn.rows.shape == (5, row_bytes(type, k))
    found = dequantize(drawn.rows, type, k, drawn.table)
    assert np.array_equal(found.view(np.uint32), drawn.weights.view(np.uint32))


@every_type
@pytest.mark.parametrize("k", [32, 160])
def test_any_bytes_read_as_the_format_is_written_down(type, k):
    rng = np.random.default_rng(k)
    rows = rng.integers(0, 256, (4, row_bytes(type, k)), np.uint8)
    rows[:, 1] &= 0x3F  # finite scales
    table = rng.integers(-127, 128, 128).astype(np.int8)
    slow = [read_slowly(row.tobytes(), type, k, table) for row in rows]
    assert np.array_equal(dequantize(rows, type, k, table), np.array(slow, np.float32))


GOLDEN = {  # a row of 32 weights: scale 2^-8 with all of the stream's last bits set, then nibble 5, then the stream
    QuantType.T2: ("1f1c" "05" "0123456789abcdef", [1, 64, 48, 12, 35, 72], [126, 127]),
    QuantType.T3: ("0f1c" "05" "0123456789abcdef01234567", [1, 96, 12, 17, 82, 10], [89, 123]),
}  # fmt: skip


@every_type
def test_golden_rows(type):
    """Windows worked out by hand from the bytes: the table is the identity, so weights are windows times a scale."""
    text, first, last = GOLDEN[type]
    row = np.frombuffer(bytes.fromhex(text), np.uint8)[None]
    table = np.arange(128).astype(np.int8)
    windows = dequantize(row, type, 32, table)[0] / np.float32(2.0**-8 * 0.5)
    assert windows[: len(first)].tolist() == first
    assert windows[-2:].tolist() == last


@every_type
def test_bits_a_weight(type):
    """Three and two bits, four for each 32 weights, sixteen for a row."""
    for k in (576, 1536, 8960):
        assert 8 * row_bytes(type, k) / k == trellis.BITS[type] + 4 / 32 + 16 / k


@every_type
def test_rows_that_do_not_fit_are_refused(type):
    for k in (0, 16, 33, 100):
        with pytest.raises(BadModelFile, match=f"a row of {k} weights cannot be {type.name}"):
            row_bytes(type, k)
    with pytest.raises(BadModelFile, match="need the table of 128 values"):
        dequantize(draw(type, 1, 64).rows, type, 64)


@every_type
def test_codes_are_the_tables_values(type):
    drawn = draw(type, 3, 96)
    codes, scales = split_codes(drawn.rows, type, 96, drawn.table)
    assert np.array_equal(codes, drawn.table[drawn.states])
    assert np.array_equal(scales, np.repeat(drawn.d[:, None] * trellis.FACTORS[drawn.scales], 2, axis=1))


@every_type
def test_row_scales_round_to_what_a_row_holds(type):
    values = np.array([0, 1e-9, 3e-4, 0.01, 1.0, 1.03, 70000], np.float32)
    found = trellis.round_scales(values, type)
    assert np.isfinite(found).all() and found[0] == 0 and found[4] == 1
    low = found.astype("<f2").view("<u2") & ((1 << trellis.tail_bits(type)) - 1)
    assert not low.any()
    assert np.abs(found[2:6] / values[2:6] - 1).max() < 2.0 ** -(11 - trellis.tail_bits(type))


@every_type
def test_a_path_that_breaks_is_refused(type):
    drawn = draw(type, 2, 64)
    states = drawn.states.copy()
    states[1, 40] ^= 1
    with pytest.raises(ValueError, match="high bits of the one before"):
        trellis.pack_rows(type, drawn.d, drawn.scales, states)
    with pytest.raises(ValueError, match="round_scales"):
        trellis.pack_rows(type, drawn.d * np.float32(1.0001), drawn.scales, drawn.states)


@every_type
def test_a_greedy_encoders_weights_are_near(type):
    weights = np.random.default_rng(1).standard_normal((8, 576)).astype(np.float32)
    found = nearest(type, weights).weights
    assert ((found - weights) ** 2).mean() < {QuantType.T2: 0.5, QuantType.T3: 0.15}[type]


@every_type
def test_a_file_of_ours_opens(tmp_path: Path, type):
    drawn = draw(type, 6, 96)
    keys = REQUIRES | {"general.file_type": Value(4, type.value)}
    entries = [
        Entry("experts", type, (96, 2, 3), data=drawn.raw.tobytes()),
        Entry("norm", QuantType.F32, (4,)),
    ]
    with open_gguf(write_gguf(tmp_path / "m.gguf", keys, entries)) as opened:
        tensor = opened.tensors["experts"]
        assert tensor.nbytes == 128 + 6 * row_bytes(type, 96)
        assert np.array_equal(tensor.numpy(), drawn.weights.reshape(3, 2, 96))
        assert opened.tensors["norm"].table is None
        assert quantization_of(opened, {}) == type.name


@every_type
def test_a_table_out_of_range_is_refused_by_name(tmp_path: Path, type):
    raw = bytearray(draw(type, 2, 64).raw.tobytes())
    raw[77] = 0x80
    path = write_gguf(tmp_path / "m.gguf", REQUIRES, [Entry("blk.0.w", type, (64, 2), data=bytes(raw))])
    with open_gguf(path) as opened, pytest.raises(BadModelFile, match=r"blk.0.w: its table .* holds -128"):
        opened.tensors["blk.0.w"].numpy()


@every_type
def test_a_tensor_without_its_table_is_refused(tmp_path: Path, type):
    raw = draw(type, 2, 64).rows.tobytes()
    path = write_gguf(tmp_path / "m.gguf", REQUIRES, [Entry("blk.0.w", type, (64, 2), data=raw)])
    with pytest.raises(BadModelFile, match=r"'blk.0.w' ends at byte"):
        open_gguf(path)


def test_a_file_that_requires_more_is_refused(tmp_path: Path):
    keys = ARCHITECTURE | {"freehold.requires": Value(STRING, "trellis-2")}
    with pytest.raises(
        UnsupportedModel, match="requires 'trellis-2' of Freehold; this version has trellis-1"
    ):
        open_gguf(write_gguf(tmp_path / "m.gguf", keys, [Entry("norm", QuantType.F32, (4,))]))

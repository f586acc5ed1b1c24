"""Rows of T2 and T3 for tests: paths that a seed draws, and a plain reading of a row's bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from freehold.run.formats import QuantType, trellis

SMALL = (0.32, 0.26, 0.2, 0.14, 0.09, 0.05, 0.022, 0.005)  # factors of nibbles 8 to 15


class Drawn(NamedTuple):
    """A tensor's parts, and the weights that they stand for."""

    table: np.ndarray  # int8 [128]
    rows: np.ndarray  # uint8 [N, row bytes]
    d: np.ndarray  # float32 [N]
    scales: np.ndarray  # nibbles [N, n / 32]
    states: np.ndarray  # uint8 [N, n]

    @property
    def raw(self) -> np.ndarray:
        """The tensor's bytes."""
        return np.concatenate([self.table.view(np.uint8), self.rows.reshape(-1)])

    @property
    def weights(self) -> np.ndarray:
        """Float32 [N, n]."""
        scales = self.d[:, None] * trellis.FACTORS[self.scales]
        return np.repeat(scales, trellis.GROUP, axis=1) * self.table[self.states]


def draw(type: QuantType, n: int, k: int, seed: int = 0) -> Drawn:
    """Draw a tensor of n rows of k weights: any path, any scale, row scales of a few thousandths."""
    rng = np.random.default_rng([seed, type, n, k])
    bits = trellis.BITS[type]
    table = rng.integers(-127, 128, 128).astype(np.int8)
    d = trellis.round_scales(rng.uniform(1e-3, 5e-3, n), type)
    scales = rng.integers(0, 16, (n, k // trellis.GROUP))
    states = np.empty((n, k), np.uint8)
    states[:, 0] = rng.integers(0, 128, n)
    for i in range(1, k):
        states[:, i] = states[:, i - 1] >> bits | rng.integers(0, 1 << bits, n) << trellis.tail_bits(type)
    return Drawn(table, trellis.pack_rows(type, d, scales, states), d, scales, states)


def nearest(type: QuantType, weights: np.ndarray, seed: int = 0) -> Drawn:
    """Encode greedily: each window the one of its successors whose value is nearest. No file should be made so."""
    bits, groups = trellis.BITS[type], weights.reshape(len(weights), -1, trellis.GROUP)
    table = np.clip(np.random.default_rng(seed).permutation(np.linspace(-127, 127, 128)), -127, 127)
    table = np.rint(table).astype(np.int8)
    most = np.abs(groups).max(2)
    d = trellis.round_scales(most.max(1) / 127, type)
    ratio = most / np.maximum(d[:, None] * 127, 1e-30)
    scales = np.abs(trellis.FACTORS - np.minimum(ratio, 1)[..., None]).argmin(2)
    wanted = groups / np.maximum(d[:, None] * trellis.FACTORS[scales], 1e-30)[..., None]
    wanted = wanted.reshape(weights.shape)
    states = np.empty(weights.shape, np.uint8)
    states[:, 0] = np.abs(table - wanted[:, :1]).argmin(1)
    for i in range(1, weights.shape[1]):
        open_to = (states[:, i - 1] >> bits)[:, None] | np.arange(1 << bits) << trellis.tail_bits(type)
        best = np.abs(table[open_to].astype(np.float32) - wanted[:, i : i + 1]).argmin(1)
        states[:, i] = open_to[np.arange(len(states)), best]
    return Drawn(table, trellis.pack_rows(type, d, scales, states), d, scales, states)


def read_slowly(row: bytes, type: QuantType, k: int, table: np.ndarray) -> list[float]:
    """Read a row bit by bit, as the format is written down."""
    bits = trellis.BITS[type]
    word = int.from_bytes(row[:2], "little")
    low = word % (1 << (7 - bits))
    d = np.uint16(word - low).view(np.float16).astype(np.float32)
    at = 2 + -(-k // 64)
    stream = int.from_bytes(row[at:], "little") | low << bits * k
    weights = []
    for i in range(k):
        nibble = row[2 + i // 64] >> 4 * (i // 32 % 2) & 15
        scale = d * np.float32(np.float16(2 ** (-nibble / 5) if nibble < 8 else SMALL[nibble - 8]))
        weights.append(scale * np.float32(table[stream >> bits * i & 127]))
    return weights

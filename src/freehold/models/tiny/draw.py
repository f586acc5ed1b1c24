"""Draws the weights of tiny models: the same bits on every machine, by seed, tensor name and shape.

Knows what a name says of a tensor's values; knows no family and no file. A matrix element is an integer in
[-127, 127] times a power of two, and the largest of each 32 along a row is exactly 127, so the same values survive F32,
F16, BF16 and Q8_0 without rounding; other elements have eight bits. Only PCG64's raw words are drawn, whose
stream NumPy guarantees across versions; the rest is integer arithmetic.
Path: make.write_safetensors -> draw.tensor
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
LOGIT_STD = 1.5  # of a head's rows times a normed vector

# What a name's end says of its values: mean and standard deviation. Without them a bug can hide: router biases that are
# zero choose nothing, and steps of softplus(0) forget a state at once.
_CENTRES = (
    (("e_score_correction_bias", "expert_bias"), 0.0, 0.1),
    (("dt_bias",), -2.0, 0.5),
    (("sinks",), 0.0, 1.0),
    (("bias",), 0.0, 0.3),
)
_ONES = 1.0, 0.15  # norms, and factors of channels


def tensor(
    seed: int, name: str, shape: tuple[int, ...], *, zero_centred: bool = False
) -> NDArray[np.float32]:
    """Draw the tensor that a safetensors model calls `name`; `zero_centred`: a norm to which one is added."""
    noise = noise_of(seed, name, math.prod(shape)).reshape(shape)
    if name.endswith("A_log"):
        return _on_grid(np.clip(0.5 + 0.25 * noise, 0.0, 1.0))
    for ends, mean, deviation in _CENTRES:
        if name.endswith(ends):
            return _on_grid(deviation * noise + mean)
    if len(shape) == 1 or "norm" in name:
        mean, deviation = _ONES
        return _on_grid(deviation * noise + (0.0 if zero_centred else mean))
    return _matrix(noise)


def noise_of(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Draw `count` nearly normal values of unit variance: the sum of four 16-bit words."""
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    lanes = sum(((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48))
    return (np.asarray(lanes) - 2 * 65535) / (65536 * math.sqrt(4 / 12))


def _matrix(noise: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scale rows to a standard deviation near 1.5/sqrt(columns), on a grid that Q8_0, F16 and BF16 share."""
    target = LOGIT_STD / math.sqrt(noise.shape[-1])
    step = 2.0 ** math.floor(math.log2(target / 32))  # a deviation of 32 to 64 steps: few reach 127
    steps = np.clip(np.rint(noise * (target / step)), -126, 126)
    if noise.shape[-1] % BLOCK == 0:
        blocks = steps.reshape(-1, BLOCK)
        top, rows = np.abs(blocks).argmax(axis=1), np.arange(len(blocks))
        blocks[rows, top] = np.where(blocks[rows, top] < 0, -127.0, 127.0)
    return (steps * step).astype(np.float32)


def _on_grid(values: NDArray[np.float64]) -> NDArray[np.float32]:
    step = np.where(np.abs(values) < 2, 1 / 128, 1 / 64)  # eight bits, as BF16 has
    return (np.rint(values / step) * step).astype(np.float32)

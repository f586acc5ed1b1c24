"""Where there is speech: the Silero detector's network, computed in NumPy.

    s = |STFT of 576 samples|;  four convolutions with ReLU;  an LSTM from chunk to chunk;  p = sigmoid(w * relu(h))

A chunk is 512 samples at 16 kHz with the 64 before it, mirrored by 64 at its end. All but the LSTM is computed for
many chunks at once. Knows samples and probabilities; knows no segments.
Read from whisper.cpp's ggml file of it: magic, name, three numbers of the version, sizes, then tensors as rank, length
of the name, type (0 float32, 1 float16), dimensions innermost first, name, data.
Source: snakers4/silero-vad, version 6 (MIT).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.stopping import check_stopped
from freehold.run.formats.filemap import FETCH_AGAIN, read_small_file

F32 = NDArray[np.float32]

CHUNK, CONTEXT, MIRRORED = 512, 64, 64  # samples
KERNEL, HOP = 256, 128  # of the transform
STRIDES = (1, 2, 2, 1)  # of the convolutions
BATCH = 2048  # chunks whose convolutions are computed at once
MAX_BYTES = 16 << 20
_MAGIC, _NAME = b"lmgg", b"silero-16k"
_SIZES = (512, 64, 4, 129, 128, 3, 128, 64, 3, 64, 64, 3, 64, 128, 3, 128, 128, 128, 1)
_SHAPES: Mapping[str, tuple[int, ...]] = {
    "_model.stft.forward_basis_buffer": (258, 1, 256),
    "_model.encoder.0.reparam_conv.weight": (128, 129, 3),
    "_model.encoder.1.reparam_conv.weight": (64, 128, 3),
    "_model.encoder.2.reparam_conv.weight": (64, 64, 3),
    "_model.encoder.3.reparam_conv.weight": (128, 64, 3),
    **{f"_model.encoder.{i}.reparam_conv.bias": (n,) for i, n in enumerate((128, 64, 64, 128))},
    **{f"_model.decoder.rnn.weight_{side}h": (512, 128) for side in "ih"},
    **{f"_model.decoder.rnn.bias_{side}h": (512,) for side in "ih"},
    "_model.decoder.decoder.2.weight": (128,),
    "_model.decoder.decoder.2.bias": (),
}


class SpeechDetector:
    """The network with its weights. One recording at a time."""

    def __init__(self, path: Path) -> None:
        """Read a file. Raises BadModelFile, UnsupportedModel, ModelNotFound."""
        self._weights = _read(path)

    def probabilities(self, samples: F32) -> F32:
        """Return how likely speech is in each chunk of a recording at 16 kHz, float32 [ceil(n / CHUNK)].

        The last chunk is filled up with zeros.
        """
        count = math.ceil(len(samples) / CHUNK)
        if not count:
            return np.zeros(0, np.float32)
        padded = np.zeros(CONTEXT + count * CHUNK, np.float32)
        padded[CONTEXT : CONTEXT + len(samples)] = samples
        views = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK]
        hidden: F32 = np.zeros(128, np.float32)
        cell: F32 = np.zeros(128, np.float32)
        out = np.empty(count, np.float32)
        for first in range(0, count, BATCH):
            check_stopped()
            gates = self._gates(views[first : first + BATCH])
            for i, row in enumerate(gates, first):
                hidden, cell = self._recurrent(row, hidden, cell)
                out[i] = self._ended(hidden)
        return out

    def _gates(self, chunks: F32) -> F32:
        """Return what the LSTM reads of each chunk: float32 [n, 512]."""
        w = self._weights
        mirrored = np.concatenate([chunks, chunks[:, -2 : -2 - MIRRORED : -1]], axis=1)
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, KERNEL, axis=1)[:, ::HOP]
        spectrum = frames @ w["_model.stft.forward_basis_buffer"].reshape(258, KERNEL).T
        x: F32 = np.asarray(np.sqrt(spectrum[..., :129] ** 2 + spectrum[..., 129:] ** 2), np.float32)
        for i, stride in enumerate(STRIDES):
            kernel = w[f"_model.encoder.{i}.reparam_conv.weight"]
            taps = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (0, 0))), 3, axis=1)[
                :, ::stride
            ]
            rows = taps.reshape(*taps.shape[:2], -1) @ kernel.reshape(len(kernel), -1).T
            x = np.asarray(np.maximum(rows + w[f"_model.encoder.{i}.reparam_conv.bias"], 0), np.float32)
        read = x[:, 0] @ w["_model.decoder.rnn.weight_ih"].T
        return read + w["_model.decoder.rnn.bias_ih"] + w["_model.decoder.rnn.bias_hh"]

    def _recurrent(self, row: F32, hidden: F32, cell: F32) -> tuple[F32, F32]:
        row = np.asarray(row + self._weights["_model.decoder.rnn.weight_hh"] @ hidden, np.float32)
        entering, kept, shown = (_sigmoid(row[a:b]) for a, b in ((0, 128), (128, 256), (384, 512)))
        cell = np.asarray(kept * cell + entering * np.tanh(row[256:384]), np.float32)
        return np.asarray(shown * np.tanh(cell), np.float32), cell

    def _ended(self, hidden: F32) -> float:
        w = self._weights
        logit = (
            np.maximum(hidden, 0) @ w["_model.decoder.decoder.2.weight"] + w["_model.decoder.decoder.2.bias"]
        )
        return float(_sigmoid(logit))


def _sigmoid(x: F32) -> F32:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _read(path: Path) -> dict[str, F32]:
    data = read_small_file(path, MAX_BYTES)
    sizes = struct.calcsize(f"<{len(_SIZES)}i")
    start = len(_MAGIC) + 4 + len(_NAME) + 12
    if data[: len(_MAGIC)] != _MAGIC or data[8 : 8 + len(_NAME)] != _NAME or len(data) < start + sizes:
        raise BadModelFile(f"{path} is not a Silero detector in whisper.cpp's form", FETCH_AGAIN)
    if struct.unpack_from(f"<{len(_SIZES)}i", data, start) != _SIZES:
        raise UnsupportedModel(f"{path} is a Silero detector of other sizes than versions 5 and 6 have")
    weights: dict[str, F32] = {}
    at = start + sizes
    while at < len(data):
        name, values, at = _tensor(path, data, at)
        weights[name] = values
    if weights.keys() != _SHAPES.keys():
        raise BadModelFile(
            f"{path} lacks {', '.join(sorted(_SHAPES.keys() - weights.keys()))[:200]}", FETCH_AGAIN
        )
    return weights


def _tensor(path: Path, data: bytes, at: int) -> tuple[str, F32, int]:
    """Return a tensor's name and values, and where the next begins."""
    try:
        rank, length, kind = struct.unpack_from("<3i", data, at)
        at += 12 + 4 * max(min(rank, 4), 0)
        name = data[at : at + max(min(length, 256), 0)].decode("ascii")
    except (struct.error, UnicodeDecodeError):
        raise BadModelFile(f"{path} is damaged at byte {at:,}", FETCH_AGAIN) from None
    shape = _SHAPES.get(name)
    if shape is None or kind not in (0, 1):
        raise BadModelFile(
            f"{path} holds the tensor {name[:60]!r} of type {kind}, which no detector has", FETCH_AGAIN
        )
    dtype, at = np.dtype(("<f4", "<f2")[kind]), at + length
    values = np.frombuffer(data[at : at + math.prod(shape) * dtype.itemsize], dtype)
    if values.size != math.prod(shape) or not np.isfinite(values).all():
        raise BadModelFile(f"{path}: {name} is cut short, or has values that are not finite", FETCH_AGAIN)
    return name, values.astype(np.float32).reshape(shape), at + values.nbytes

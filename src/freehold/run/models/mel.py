"""A recording as Whisper hears it: the logarithm of its energy in bands of pitch, a hundred times a second.

    spectrum = |FFT of 400 samples under a periodic Hann window|^2, every 160 samples, samples mirrored at both ends
    bands = filters x spectrum;  x = log10(max(bands, 1e-10));  x = (max(x, most - 8) + 4) / 4

`most` is the largest x of all that is heard together. Filters are triangles on Slaney's scale of pitch, of unit area.
Knows samples and frames; knows no model.
Sources: arXiv 2212.04356 (the sizes); M. Slaney, Auditory Toolbox (1998) for the scale.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

RATE = 16_000  # samples a second
HOP, FRAME = 160, 400  # samples between frames, and of one
WINDOW_FRAMES = 3000  # 30 s
BINS = FRAME // 2 + 1
LEAST, RANGE = 1e-10, 8.0  # of energy, and decades below the loudest that are heard
BLOCK = 4096  # frames whose spectra are in memory at a time


@cache
def filters(bands: int) -> F64:
    """Return triangles over the bins of a spectrum, float64 [bands, BINS]: those of published files to 2e-9."""
    edges = _hertz(np.linspace(_mel(np.array(0.0)), _mel(np.array(RATE / 2)), bands + 2))
    bins = np.linspace(0, RATE / 2, BINS)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    heights = 2 / (edges[2:] - edges[:-2])
    return np.maximum(np.minimum(rising, falling), 0) * heights[:, None]


# Slaney's scale: straight up to 1 kHz, then logarithmic, 27 steps to 6.4 kHz.
_STEP, _KNEE = 200 / 3, 1000.0
_LOG_STEP = np.log(6.4) / 27


def _mel(hertz: F64) -> F64:
    return np.where(
        hertz < _KNEE, hertz / _STEP, _KNEE / _STEP + np.log(np.maximum(hertz, 1e-9) / _KNEE) / _LOG_STEP
    )


def _hertz(mel: F64) -> F64:
    knee = _KNEE / _STEP
    return np.where(mel < knee, mel * _STEP, _KNEE * np.exp(_LOG_STEP * (mel - knee)))


def energies(samples: F32, bands: int) -> F32:
    """Return the decades of energy of a recording, a frame for each HOP samples: float32 [bands, frames]."""
    frames = len(samples) // HOP
    out = np.empty((bands, frames), np.float32)
    if not frames:
        return out
    padded = np.pad(
        samples.astype(np.float64), FRAME // 2, mode="reflect" if len(samples) > FRAME // 2 else "edge"
    )
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    views = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    triangles = filters(bands)
    for first in range(0, frames, BLOCK):
        spectrum = np.fft.rfft(views[first : min(first + BLOCK, frames)] * hann, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        out[:, first : first + len(power)] = np.log10(np.maximum(triangles @ power.T, LEAST))
    return out


def scaled(decades: F32, most: float) -> F32:
    """Return frames as the encoder reads them; `most`: the largest of the whole recording."""
    return np.asarray((np.maximum(decades, np.float32(most - RANGE)) + 4) / 4, np.float32)


def window(frames: F32) -> F32:
    """Return frames, [bands, n], as a window of 30 s: zeros after the last, as the reference fills it."""
    out = np.zeros((len(frames), WINDOW_FRAMES), np.float32)
    out[:, : frames.shape[1]] = frames[:, :WINDOW_FRAMES]
    return out

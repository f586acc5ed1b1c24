"""Log-mel frames are those of openai/whisper's reference, computed in float64 from its formula."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.run.models.mel import FRAME, HOP, RATE, WINDOW_FRAMES, energies, filters, scaled, window


def signal(samples: int) -> np.ndarray:
    """A rising tone, noise and silence."""
    t = np.arange(samples) / RATE
    noise = np.random.default_rng(3).normal(0, 0.01, samples)
    tone = 0.3 * np.sin(2 * np.pi * (200 + 900 * t) * t) + noise
    tone[samples // 2 : samples // 2 + 4000] = 0
    return tone.astype(np.float32)


def by_hand(samples: np.ndarray, bands: int) -> np.ndarray:
    """Each frame by itself, by a sum over its samples."""
    half = FRAME // 2
    mirrored = np.concatenate([samples[half:0:-1], samples, samples[-2 : -2 - half : -1]]).astype(np.float64)
    turns = np.outer(np.arange(half + 1), np.arange(FRAME)) / FRAME
    basis = np.exp(-2j * np.pi * turns) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME))
    frames = [mirrored[i * HOP : i * HOP + FRAME] for i in range(len(samples) // HOP)]
    power = np.abs(basis @ np.array(frames).T) ** 2
    return np.log10(np.maximum(filters(bands) @ power, 1e-10))


@pytest.mark.parametrize("bands", [80, 128])
def test_frames_are_the_formula_s(bands: int):
    samples = signal(5000)
    decades = energies(samples, bands)
    expected = by_hand(samples, bands)
    assert decades.shape == (bands, 31) and np.abs(decades - expected).max() < 1e-6
    frames = scaled(decades, float(decades.max()))
    assert np.allclose(frames, (np.maximum(expected, expected.max() - 8) + 4) / 4, atol=1e-6)


def test_filters_are_triangles_of_unit_area_with_slaney_s_knee():
    triangles = filters(80)
    assert triangles.shape == (80, 201) and (triangles >= 0).all()
    # As published for 80 bands: the first filter's peak, and where the last one ends.
    assert abs(triangles[0, 1] - 0.02486259490251541) < 2e-9 and triangles[-1, 200] == 0
    peaks = triangles.argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()


def test_a_window_is_filled_up_with_zeros():
    frames = np.ones((80, 100), np.float32)
    filled = window(frames)
    assert filled.shape == (80, WINDOW_FRAMES) and filled[:, :100].all() and not filled[:, 100:].any()


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 200, 201, 400])
def test_short_recordings_have_a_frame_for_each_hop(samples: int):
    decades = energies(signal(16_000)[:samples], 80)
    assert decades.shape == (80, samples // HOP) and np.isfinite(decades).all()

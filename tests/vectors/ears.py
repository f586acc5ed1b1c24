"""Sounds and chats by which towers of sound are judged; computes nothing of a model.

Path: make_ears.py runs them through transformers; tests/models/test_ears_golden.py runs them through us.
"""

from __future__ import annotations

import io
import wave

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
NAMES = ("gemma4-ears", "gemma4_unified-ears", "voxtral")
# Samples: rows and frames that end in the middle, whole seconds, the least that has a frame, two chunks of Voxtral's.
LENGTHS = (5000, 12_345, 16_000, 161, 40_000)
GREEDY = 6  # tokens of an answer
KEPT = 24  # last rows of a chat's logits that are kept
# Chats: messages, each a role and its parts; a number is a sound.
CHATS: tuple[tuple[tuple[str, tuple[int | str, ...]], ...], ...] = (
    (("user", ("no sound",)),),
    (("user", (0, "hi")),),
    (("user", ("hear ", 1, " and\n\n", 2, "?")),),
    (("user", (3, "one")), ("assistant", ("two",)), ("user", (0, "three"))),
)


def codes(number: int) -> NDArray[np.int16]:
    """Draw one of the sounds: a rising tone, steps of loudness, and noise."""
    count = LENGTHS[number]
    t = np.arange(count) / RATE
    tone = np.sin(2 * np.pi * (200 + 900 * t * (1 + number)) * t)
    loud = 0.1 + 0.3 * (np.arange(count) * 5 // count % 2)
    noise = np.random.PCG64([97, number]).random_raw(count).astype(np.float64) / 2**64 - 0.5
    return np.rint((tone * loud + noise * 0.1) * 20_000).astype(np.int16)


def samples(number: int) -> NDArray[np.float32]:
    """Return one of the sounds as models take it: float32 [n]."""
    return codes(number).astype(np.float32) / np.float32(32_768)


def recording(number: int) -> bytes:
    """Return one of the sounds as the bytes of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(codes(number).astype("<i2").tobytes())
    return file.getvalue()

"""FLAC to samples: our decoder beside FFmpeg's through PyAV, and what checks and resampling add.

`python benches/ears/reading.py [--seconds 120] [--rounds 5]`. The recording is two channels of tones and noise at
44.1 kHz, encoded by FFmpeg. One thread each, in turns; MB are those of the decoded 16-bit samples. `checked` adds the
MD5 of all samples, `sound` the resampler as well: what open_sound takes. A table goes to stdout, then one JSON line.
Path: reading.py -> freehold.run.sounds
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benches.lib.machine import describe
from freehold import _native as native
from freehold.run.sounds import open_sound
from freehold.run.sounds.pcm import open_flac

RATE = 44_100


def encoded(seconds: float) -> bytes:
    """Return the recording."""
    import av

    rng = np.random.default_rng(1)
    t = np.arange(int(seconds * RATE)) / RATE
    voices = np.stack([np.sin(2 * np.pi * hz * t) * (1 + np.sin(3 * t)) for hz in (220, 277)]) * 0.2
    values = np.rint((voices + rng.normal(size=voices.shape) * 0.005) * 32767).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="stereo", format="s16")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(values.T).reshape(1, -1), format="s16", layout="stereo"
        )
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        fifo.write(frame)
        while part := fifo.read(4096, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def by_ours(data: bytes) -> None:
    """Decode alone."""
    file = native.FlacFile(data)
    while len(file.read(1 << 18)[0]):
        pass


def by_pyav(data: bytes) -> None:
    """Decode alone, with one thread."""
    import av

    with av.open(io.BytesIO(data), "r", format="flac") as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frame.to_ndarray()


def main() -> None:
    """Time each, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    data = encoded(args.seconds)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: by_ours(data),
        "PyAV": lambda: by_pyav(data),
        "checked": lambda: list(open_flac(data).pieces),
        "sound": lambda: open_sound(data),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            taken[name].append(time.process_time() - begin)
    decoded = args.seconds * RATE * 4 / 1e6
    print(f"{args.seconds:g} s, {len(data) / 1e6:.1f} MB of FLAC, {decoded:.1f} MB decoded")
    for name, times in taken.items():
        print(f"{name:8} {decoded / statistics.median(times):8.0f} MB/s  (best {decoded / min(times):.0f})")
    print(json.dumps({"bench": "reading", **describe(Path("flac")), "decoded_mb": decoded, "cpu_s": taken}))


if __name__ == "__main__":
    main()

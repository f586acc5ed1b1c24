"""Decoding in a process apart beside Pillow in this one: milliseconds of a picture, and their ratio.

    python benches/eyes/decode.py [--rounds 15]

Both decode the same bytes, turn them into RGB, resize them and end with an array. They take turns, in an order that
changes from round to round; a ratio is the median of the rounds' ratios. Budget: 1.2 for a JPEG of 12 megapixels. Also
what the first picture waits for (the process that stays starts), and what its size alone takes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from freehold.run.pictures.decoders import shared
from freehold.run.pictures.opening import Resize, header, open_picture

BUDGET = 1.2
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# What a size becomes: Gemma 3's square, a grid of Qwen3-VL's, and the picture as it is.
PLANS: dict[str, Sequence[Resize]] = {
    "896 x 896": [Resize(896, 896, "bilinear")],
    "2048 x 1536": [Resize(2048, 1536, "bicubic")],
    "as it is": [],
}


def photo(width: int, height: int) -> Image.Image:
    """Return a picture with soft and fine structure, as a camera's."""
    random_pixels = np.random.default_rng(7).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    soft = Image.fromarray(random_pixels).resize((width, height), Image.Resampling.BICUBIC)
    fine = Image.effect_noise((width, height), 12).convert("RGB")
    return Image.blend(soft, fine, 0.15)


def files() -> dict[str, bytes]:
    """Return pictures by name."""
    large, small = photo(4000, 3000), photo(1920, 1080)
    kinds = {
        "JPEG of 12 Mpx": (large, "JPEG", {"quality": 88}),
        "JPEG of 2 Mpx": (small, "JPEG", {"quality": 88}),
        "JPEG of 0.3 Mpx": (photo(640, 480), "JPEG", {"quality": 88}),
        "PNG of 2 Mpx": (small, "PNG", {"compress_level": 3}),
        "WebP of 2 Mpx": (small, "WEBP", {"quality": 80, "method": 2}),
    }
    out: dict[str, bytes] = {}
    for name, (image, format, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, format, **options)
        out[name] = file.getvalue()
    return out


def here(data: bytes, resizes: Sequence[Resize]) -> np.ndarray:
    """Decode by Pillow in this process."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode != "RGB":
        image = image.convert("RGB")
    for each in resizes:
        image = image.resize((each.width, each.height), FILTERS[each.filter])
    return np.asarray(image)


def apart(data: bytes, resizes: Sequence[Resize]) -> np.ndarray:
    """Decode by the process that stays, in a fork of it."""
    return open_picture(data, lambda width, height: [resizes])[1][0]


def timed_ms(act: Callable[[], object]) -> float:
    before = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - before)


def compared(data: bytes, resizes: Sequence[Resize], rounds: int) -> dict[str, float]:
    """Return the medians of both, and of the rounds' ratios."""
    ways = [lambda: here(data, resizes), lambda: apart(data, resizes)]
    assert np.array_equal(ways[0](), ways[1]())
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for way in (0, 1) if number % 2 else (1, 0):
            times[way].append(timed_ms(ways[way]))
    ratios = [other / own for own, other in zip(*times, strict=True)]
    return {
        "here_ms": statistics.median(times[0]),
        "apart_ms": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}")
    pictures = files()
    least = pictures["JPEG of 0.3 Mpx"]
    first_ms = timed_ms(lambda: header(least))
    header_ms = statistics.median(timed_ms(lambda: header(pictures["JPEG of 12 Mpx"])) for _ in range(rounds))
    print(f"first picture {first_ms:.0f} ms, size alone of the JPEG of 12 Mpx {header_ms:.1f} ms")
    measured: dict[str, dict[str, float]] = {}
    for name, data in pictures.items():
        for plan, resizes in PLANS.items():
            got = measured[f"{name}, {plan}"] = compared(data, resizes, rounds)
            print(
                f"{name:16} {len(data) / 1e6:5.1f} MB  {plan:12} here {got['here_ms']:6.1f} ms, apart"
                f" {got['apart_ms']:6.1f} ms, ratio {got['ratio']:.2f}"
            )
    shared.close()
    worst = max(row["ratio"] for name, row in measured.items() if name.startswith("JPEG of 12"))
    print(f"JPEG of 12 Mpx: at most {worst:.2f} of Pillow in this process; the budget is {BUDGET}")
    print(json.dumps({"decode": measured, "first_ms": first_ms, "header_ms": header_ms, "worst": worst}))


if __name__ == "__main__":
    main()

"""The pictures and the prompts by which tiny models that see are judged; draws and counts, computes nothing.

Path: SEEING[name] (weights.py) -> make_towers.py runs it through transformers; tests/models/test_tower_golden.py
runs it through us.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.tiny.make import MARKS, SPECIAL, VOCAB, TinyConfig

U8 = NDArray[np.uint8]

# (width, height): one that is taken as it is, one that is and is not square, one that is enlarged with sides turned
# about the nearest multiple, one that is shrunk.
SIZES = ((64, 64), (96, 160), (47, 33), (200, 90))
CRC32 = 1019891173  # of all of them, one after another
GREEDY = 8  # tokens of an answer


@dataclass(frozen=True)
class PixelSettings:
    """How pixels of a model enter, as its image processor has it."""

    patch: int  # pixels of a patch's side
    mean: NDArray[np.float64]  # of each colour
    deviation: NDArray[np.float64]
    frames: int  # that a picture becomes; of one, the reference's rows are row by row, else block by block

    @classmethod
    def of(cls, tiny: TinyConfig) -> PixelSettings:
        """Take them out of a tiny model."""
        stated = tiny.preprocessor
        colours = np.array(stated["image_mean"]), np.array(stated["image_std"])
        return cls(stated["patch_size"], *colours, stated["temporal_patch_size"])

    def in_blocks(self, rows: NDArray[Any], grid: NDArray[Any], *, back: bool = False) -> NDArray[Any]:
        """Lay the reference's rows of a grid [time, rows, columns] block by block, or back."""
        if self.frames > 1:
            return rows
        high, wide = int(grid[-2]) // 2, int(grid[-1]) // 2
        shape = (high, wide, 2, 2) if back else (high, 2, wide, 2)
        return rows.reshape(*shape, -1).swapaxes(1, 2).reshape(rows.shape)

    @property
    def block(self) -> int:
        """Pixels of a block's side."""
        return 2 * self.patch

    def values(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return what bytes [patches, 3 * patch²] stand for."""
        colours = rows.astype(np.float64).reshape(len(rows), 3, -1) / 255
        return ((colours - self.mean[:, None]) / self.deviation[:, None]).reshape(len(rows), -1)


@dataclass(frozen=True)
class Prompt:
    """Counts of words, and numbers of pictures between them: a picture p is written as -1 - p."""

    name: str
    parts: tuple[int, ...]

    @property
    def pictures(self) -> tuple[int, ...]:
        """Which of SIZES it shows, in order."""
        return tuple(-1 - part for part in self.parts if part < 0)


PROMPTS = (
    Prompt("text", (32,)),
    Prompt("one", (6, -2, 9)),
    Prompt("two", (4, -4, 3, -1, 7)),
)


def picture(number: int) -> U8:
    """Draw one of the pictures, [height, width, 3]: a slope of each colour, stripes and a disc, in whole numbers."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    red = x * 255 // (width - 1)
    green = y * 255 // (height - 1)
    stripes = (x // 5 + y // (3 + number)) % 2 * 160
    disc = (2 * x - width) ** 2 + (2 * y - height) ** 2 < min(width, height) ** 2 // 2
    blue = np.where(disc, 235, stripes)
    return np.stack([np.where(disc, 255 - red, red), green, blue], axis=-1).astype(np.uint8)


def prompt_ids(tiny: TinyConfig, prompt: Prompt, rows: dict[int, int]) -> NDArray[np.int64]:
    """Draw a prompt's ids, with the marks of its pictures around `rows[p]` placeholders of each."""
    start, end, pad, _ = (VOCAB - len(MARKS) + i for i in range(len(MARKS)))
    words = np.random.PCG64([tiny.seed, zlib.crc32(prompt.name.encode())]).random_raw(
        sum(map(abs, prompt.parts))
    )
    drawn = (words % np.uint64(VOCAB - len(MARKS) - len(SPECIAL))).astype(np.int64) + len(SPECIAL)
    ids: list[int] = []
    for part in prompt.parts:
        if part < 0:
            ids += [start, *[pad] * rows[-1 - part], end]
        else:
            ids += drawn[:part].tolist()
            drawn = drawn[part:]
    return np.array(ids, np.int64)


def placeholder(tiny: TinyConfig) -> int:
    """Return the id that stands for a row of a picture."""
    return tiny.hf["image_token_id"]

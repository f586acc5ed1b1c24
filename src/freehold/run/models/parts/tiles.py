"""Pictures that are cut into square tiles of one side: which grid of tiles is nearest to a picture, tiles and patches.

Knows sides and counts; knows no tower, no resize and no mark.
"""

from __future__ import annotations

from collections.abc import Iterator

from freehold.run.models.parts.vision import CHANNELS
from freehold.run.models.tower import F32, U8, in_blocks


def nearest_grid(width: int, height: int, tile: int, least: int, most: int) -> tuple[int, int]:
    """Return columns and rows of the grid of `least` to `most` tiles whose shape is nearest to a picture's.

    Of equally near grids the larger wins, while the picture has more than half of its pixels.
    """
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most // w + 1) if w * h >= least]
    shape, best, nearest = width / height, (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        far = abs(shape - columns / rows)
        tied = far == nearest and width * height > 0.5 * tile * tile * columns * rows
        if far < nearest or tied:
            best, nearest = (columns, rows), far
    return best


def tiles_of(picture: U8, tile: int) -> Iterator[U8]:
    """Yield a picture's tiles row by row."""
    high, wide = picture.shape[:2]
    for top in range(0, high, tile):
        for left in range(0, wide, tile):
            yield picture[top : top + tile, left : left + tile]


def block_patches(values: F32, patch: int, merge: int) -> F32:
    """Return patches block by block of `merge` x `merge`, their columns by colour, row and column.

    `values`: [height, width, 3]; pixels that fill no patch are left out.
    """
    high, wide = (side // patch for side in values.shape[:2])
    whole = values[: high * patch, : wide * patch]
    patches = whole.reshape(high, patch, wide, patch, CHANNELS).transpose(0, 2, 4, 1, 3)
    return in_blocks(patches, merge).reshape(high * wide, -1)

"""LFM2-VL's tower in transformers: a picture in its own aspect, and tiles of a large one before it.

There is no Pillow form of the image processor. Pixels are those of Pillow's own resizes to its sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from PIL import Image
from transformers.models.lfm2_vl.image_processing_lfm2_vl import (  # pyright: ignore[reportMissingImports]
    Lfm2VlImageProcessor,
)
from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor  # pyright: ignore

from tests.vectors.eyes import U8
from tests.vectors.towers.reference import Pixels, TowerReference, whole
from tests.vectors.towers.smolvlm import cut

SIDES = (1, 2, 7, 8, 9, 15, 23, 24, 25, 31, 33, 47, 52, 64, 79, 130, 300, 1001)
PUBLISHED = (1, 15, 16, 17, 100, 255, 256, 257, 448, 512, 513, 720, 724, 1000, 1080, 1920, 3000, 4032)
SETTINGS = {
    "max_image_tokens": 256, "min_image_tokens": 64, "encoder_patch_size": 16, "downsample_factor": 2,
    "max_pixels_tolerance": 2.0, "min_tiles": 2, "max_tiles": 10, "tile_size": 512,
}  # fmt: skip


class Reference(TowerReference):
    """An LFM2-VL."""

    pil = None  # our own resizes
    torchvision = Lfm2VlImageProcessor

    @property
    def processor(self) -> Any:
        """Return the image processor."""
        return Lfm2VlImageProcessor(**self.settings)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return self.settings["encoder_patch_size"]

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the tiles as one array if there are some, and the whole."""
        high, wide = picture.shape[:2]
        sizes = self._resizes(wide, high, self.settings)
        if kind is None:
            image = Image.fromarray(picture)
            return [np.array(image.resize(size, Image.Resampling.BILINEAR)) for size in sizes]
        out = kind(**self.settings)([Image.fromarray(picture)], return_tensors="pt")
        tiles = [
            self._picture(values.numpy(), *shape.tolist())
            for values, shape in zip(out["pixel_values"], out["spatial_shapes"], strict=True)
        ]
        columns = sizes[0][0] // self.settings["tile_size"]
        return [whole(np.stack(tiles[:-1]), columns), tiles[-1]] if len(tiles) > 1 else tiles

    def _picture(self, values: NDArray[Any], high: int, wide: int) -> U8:
        """Return the bytes of a processor's rows: each is a patch by row, column and colour."""
        patches = values[: high * wide].reshape(high, wide, self.patch, self.patch, 3)
        return self.codes(patches.transpose(4, 0, 2, 1, 3).reshape(3, high * self.patch, wide * self.patch))

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return the rows of all tiles and of all wholes, filled up with zeros, and which are filled."""
        most, rows, shapes = self.processor.max_num_patches, [], []
        for array in (part for each in pictures for part in self._parts(each)):
            high, wide = (side // self.patch for side in array.shape[:2])
            values = self.values(array).reshape(3, high, self.patch, wide, self.patch)
            patches = values.permute(1, 3, 2, 4, 0).reshape(high * wide, -1)
            rows.append(torch.nn.functional.pad(patches, (0, 0, 0, most - len(patches))))
            shapes.append((high, wide))
        counts = torch.tensor([high * wide for high, wide in shapes])
        mask = (torch.arange(most) < counts[:, None]).to(torch.int32)
        return {
            "pixel_values": torch.stack(rows),
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor(shapes),
        }

    def _parts(self, pixels: Pixels) -> Pixels:
        return [*cut(pixels[0], self.settings["tile_size"]), pixels[1]] if len(pixels) > 1 else pixels

    def written(self, pixels: Pixels) -> str:
        """Return marks of rows and columns, and of the whole, between two marks."""
        about: Any = Lfm2VlProcessor.__new__(Lfm2VlProcessor)
        about.image_processor, about.image_token = self.processor, "<image>"
        about.image_start_token, about.image_end_token = "<|image_start|>", "<|image_end|>"
        about.image_thumbnail_token = "<|img_thumbnail|>"
        tile, grid = self.settings["tile_size"], (1, 1)
        if len(pixels) > 1:
            grid = pixels[0].shape[0] // tile, pixels[0].shape[1] // tile
        inputs = {"image_rows": [grid[0]], "image_cols": [grid[1]], "image_sizes": [pixels[-1].shape[:2]]}
        return about.replace_image_token(inputs, 0, use_image_special_tokens=True)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes of grids of tiles, or of wholes."""
        return self._sizes(SIDES, self.settings)

    def further(self) -> dict[str, NDArray[Any]]:
        """Return `published`, the same by the settings of published files."""
        return {"published": np.array(self._sizes(PUBLISHED, SETTINGS), np.int32)}

    def _resizes(self, width: int, height: int, settings: dict[str, Any]) -> list[tuple[int, int]]:
        """Return width and height of the grid of tiles if there is one, and of the whole."""
        processor = self.processor
        names = ("max_image_tokens", "encoder_patch_size", "downsample_factor")
        shared = {key: settings[key] for key in names}
        large = processor._is_image_too_large(
            height, width, max_pixels_tolerance=settings["max_pixels_tolerance"], **shared
        )
        one = processor.smart_resize(height, width, min_image_tokens=settings["min_image_tokens"], **shared)
        if not large:
            return [one]
        limits = settings["min_tiles"], settings["max_tiles"], settings["tile_size"]
        return [processor._get_grid_layout(height, width, *limits)[2:4], one]

    def _sizes(self, sides: Sequence[int], settings: dict[str, Any]) -> list[tuple[int, ...]]:
        block = settings["encoder_patch_size"] * settings["downsample_factor"]
        out = []
        for width in sides:
            for height in sides:
                resizes = self._resizes(width, height, settings)
                rows = sum(wide * high for wide, high in resizes) // block**2
                out.append((width, height, rows, *resizes[0]))
        return out

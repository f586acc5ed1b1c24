"""InternVL's tower in transformers: tiles of a picture, and the whole of it as a tile."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import (  # pyright: ignore[reportMissingImports]
    GotOcr2ImageProcessor,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (  # pyright: ignore[reportMissingImports]
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor  # pyright: ignore

from tests.vectors.eyes import U8
from tests.vectors.towers.reference import Pixels, TowerReference, whole
from tests.vectors.towers.smolvlm import cut

SIDES = (1, 2, 7, 23, 24, 25, 36, 47, 48, 49, 71, 80, 97, 130, 199, 300, 640, 1001)
PUBLISHED = (1, 3, 100, 447, 448, 449, 640, 896, 897, 1080, 1344, 1500, 1920, 2240, 3000, 4032, 5376, 5377)


class Reference(TowerReference):
    """An InternVL."""

    pil = GotOcr2ImageProcessorPil
    torchvision = GotOcr2ImageProcessor
    besides = ("image_processor_type", "crop_to_patches")  # the second is the processor's to say

    @property
    def tile(self) -> int:
        """Pixels of a tile's side."""
        return self.settings["size"]["height"]

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the tiles as one array, and the whole as a tile."""
        defaults: Any = InternVLProcessor.images_kwargs
        options = {"crop_to_patches": defaults["crop_to_patches"], "return_tensors": "pt"}
        out = kind(**self.settings)([Image.fromarray(picture)], **options)
        tiles = self.codes(out["pixel_values"].numpy())
        high, wide = picture.shape[:2]
        columns, _ = self._grid(wide, high, self.tile, self.settings)
        return [whole(tiles[:-1], columns), tiles[-1]] if len(tiles) > 1 else [tiles[0]]

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return all tiles' values."""
        tiles = [tile for each in pictures for array in each for tile in cut(array, self.tile)]
        return {"pixel_values": torch.stack([self.values(tile) for tile in tiles])}

    def written(self, pixels: Pixels) -> str:
        """Return rows of all tiles between two marks."""
        about: Any = SimpleNamespace(start_image_token="<img>", end_image_token="</img>")
        about.image_token, about.image_seq_length = "<IMG_CONTEXT>", self.tiny.hf["image_seq_length"]
        tiles = sum(len(cut(array, self.tile)) for array in pixels)
        written = InternVLProcessor.replace_image_token(about, {"num_patches": [tiles]}, 0)
        return written + self.tiny.picture.removeprefix(about.image_token)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes of grids."""
        return self._sizes(SIDES, self.tile, self.settings, self.tiny.hf["image_seq_length"])

    def further(self) -> dict[str, NDArray[Any]]:
        """Return `published`, the same for 12 tiles of 448."""
        settings = {"min_patches": 1, "max_patches": 12}
        return {"published": np.array(self._sizes(PUBLISHED, 448, settings, 256), np.int32)}

    def _grid(self, width: int, height: int, tile: int, settings: dict[str, Any]) -> tuple[int, int]:
        limits = settings["min_patches"], settings["max_patches"]
        return get_optimal_tiled_canvas((height, width), (tile, tile), *limits)

    def _sizes(
        self, sides: Sequence[int], tile: int, settings: dict[str, Any], rows: int
    ) -> list[tuple[int, ...]]:
        out = []
        for width in sides:
            for height in sides:
                columns, lines = self._grid(width, height, tile, settings)
                tiles = columns * lines
                out.append((width, height, (tiles + (tiles > 1)) * rows, columns * tile, lines * tile))
        return out

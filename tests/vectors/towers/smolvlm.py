"""SmolVLM's tower in transformers: tiles of a picture, and the whole of it as a tile; positions in buckets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from transformers.image_utils import SizeDict  # pyright: ignore[reportMissingImports]
from transformers.models.idefics3.processing_idefics3 import (  # pyright: ignore[reportMissingImports]
    Idefics3Processor,
)
from transformers.models.smolvlm import image_processing_pil_smolvlm as pil  # pyright: ignore
from transformers.models.smolvlm.configuration_smolvlm import (  # pyright: ignore[reportMissingImports]
    SmolVLMVisionConfig,
)
from transformers.models.smolvlm.modeling_smolvlm import (  # pyright: ignore[reportMissingImports]
    SmolVLMVisionEmbeddings,
)

from tests.vectors.eyes import U8
from tests.vectors.towers.reference import Pixels, TowerReference, whole

SIDES = (1, 2, 3, 7, 35, 36, 37, 71, 72, 73, 90, 107, 108, 109, 150, 217, 400, 999)
GRIDS = 32
COUNTS = (
    (4, 4),
    (26, 26),
    (27, 27),
    (32, 32),
    (2, 4),
    (16, 32),
    (8, 32),
)  # patches of a side, learned positions


class Sizing(pil.SmolVLMImageProcessorPil):
    """The image processor with resizes that only note their sizes."""

    noted: list[tuple[int, int]]

    def resize(self, image: Any, size: Any, *others: Any, **options: Any) -> Any:
        """Return an array of the new size."""
        high, wide = size.height, size.width
        if size.longest_edge:
            high, wide = pil.get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        self.noted.append((wide, high))
        return np.empty((3, high, wide), np.uint8)


class Reference(TowerReference):
    """A SmolVLM."""

    pil = pil.SmolVLMImageProcessorPil

    @property
    def tile(self) -> int:
        """Pixels of a tile's side."""
        return self.settings["max_image_size"]["longest_edge"]

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the tiles as one array, and the whole as a tile."""
        image = np.ascontiguousarray(picture.transpose(2, 0, 1))
        options = {"return_row_col_info": True, "input_data_format": "channels_first", "return_tensors": "np"}
        out = kind(**self.settings)([[image]], **options)
        assert out["pixel_attention_mask"].all(), "all tiles are whole"
        tiles = self.codes(out["pixel_values"][0])
        return [whole(tiles[:-1], out["cols"][0][0]), tiles[-1]] if len(tiles) > 1 else [tiles[0]]

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return all tiles' values."""
        tiles = [tile for each in pictures for array in each for tile in cut(array, self.tile)]
        return {"pixel_values": torch.stack([self.values(tile) for tile in tiles])[None]}

    def written(self, pixels: Pixels) -> str:
        """Return marks of rows and columns, and of the whole."""
        grid, join = self.tile // self.tiny.hf["vision_config"]["patch_size"], self.tiny.hf["scale_factor"]
        about: Any = SimpleNamespace(image_token="<image>", image_seq_len=(grid // join) ** 2)
        about.fake_image_token, about.global_image_tag = "<fake_token_around_image>", "<global-img>"
        high, wide = (side // self.tile for side in pixels[0].shape[:2]) if len(pixels) > 1 else (0, 0)
        return Idefics3Processor.replace_image_token(about, {"rows": [[high]], "cols": [[wide]]}, 0)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return both resizes of the tiles."""
        processor, out = Sizing(**self.settings), []
        grid, join = self.tile // self.tiny.hf["vision_config"]["patch_size"], self.tiny.hf["scale_factor"]
        for width in SIDES:
            for height in SIDES:
                processor.noted = []
                edge = SizeDict(longest_edge=self.settings["size"]["longest_edge"])
                first = processor.resize(np.empty((3, height, width), np.uint8), edge)
                processor.resize_for_vision_encoder(first, self.tile)
                wide, high = processor.noted[1]
                tiles = wide * high // self.tile**2
                rows = (tiles + (tiles > 1)) * (grid // join) ** 2
                out.append((width, height, rows, *processor.noted[0], wide, high))
        return out

    def further(self) -> dict[str, NDArray[Any]]:
        """Return `buckets`, int16 [n, 34]: patches of a side, learned positions, which each patch has; then -1."""
        out = np.full((len(COUNTS), 2 + GRIDS), -1, np.int16)
        for row, (grid, side) in zip(out, COUNTS, strict=True):
            module: Any = SmolVLMVisionEmbeddings(
                SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1)
            )
            with torch.no_grad():
                module.patch_embedding.weight.zero_()
                module.patch_embedding.bias.zero_()
                module.position_embedding.weight.copy_(
                    torch.arange(side * side, dtype=torch.float32)[:, None]
                )
                mask = torch.ones(1, grid, grid, dtype=torch.bool)
                ids = module(torch.zeros(1, 3, grid, grid), mask)[0, :, 0]
            row[:2] = grid, side
            row[2 : 2 + grid] = ids.reshape(grid, grid)[0].numpy()
        return {"buckets": out}


def cut(array: U8, tile: int) -> list[U8]:
    """Return an array's tiles row by row."""
    tops, lefts = (range(0, side, tile) for side in array.shape[:2])
    return [array[top : top + tile, left : left + tile] for top in tops for left in lefts]

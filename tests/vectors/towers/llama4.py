"""Llama 4's tower in transformers: tiles of a picture on a black canvas, and the whole of it as a tile.

The forward pass of 5.24 reads a field that its text half's answer lacks, `image_outputs`; it is added here. There is no
Pillow form of the image processor, so its resizes are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import SizeDict  # pyright: ignore[reportMissingImports]
from transformers.models.llama4 import modeling_llama4  # pyright: ignore[reportMissingImports]
from transformers.models.llama4.image_processing_llama4 import (  # pyright: ignore[reportMissingImports]
    Llama4ImageProcessor,
    find_supported_resolutions,
    get_best_fit,
    get_max_res_without_distortion,
)
from transformers.models.llama4.processing_llama4 import Llama4Processor  # pyright: ignore

from freehold.run.models.tiny import make
from tests.vectors.eyes import U8, Eyes
from tests.vectors.towers.reference import Pixels, TowerReference, with_resizes

SIDES = (1, 2, 7, 16, 31, 32, 33, 47, 63, 64, 65, 90, 96, 97, 131, 200, 321, 640, 1001)

PUBLISHED = (1, 3, 100, 335, 336, 337, 500, 671, 672, 673, 768, 1080, 1344, 1345, 1920, 3000, 5376, 5377)


class Reference(TowerReference):
    """A Llama 4 that sees."""

    pil = with_resizes(Llama4ImageProcessor, by_pillow=True)
    torchvision = with_resizes(Llama4ImageProcessor, by_pillow=False)

    def __init__(self, tiny: make.TinyConfig, eyes: Eyes, folder: Path) -> None:
        self._kept: dict[bytes, Any] = {}  # what the processor returns, by what its resizes gave
        super().__init__(tiny, eyes, folder)

    def prepare(self, folder: Path) -> None:
        """Write the names of published files: the class has no other."""
        data = make.safetensors_bytes(self.eyes.hub_tensors(self.tiny), "F32")
        (folder / "model.safetensors").write_bytes(data)
        outputs: Any = modeling_llama4
        outputs.MoeCausalLMOutputWithPast.image_outputs = None

    @property
    def tile(self) -> int:
        """Pixels of a tile's side."""
        return self.settings["size"]["height"]

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the picture without its canvas, and the whole as a tile; keep what else the processor returns."""
        processor = kind(**self.settings)
        processor.resized = []
        out = processor([Image.fromarray(picture)], return_tensors="pt")
        self._kept[_key(processor.resized)] = out
        return processor.resized

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return all tiles' values."""
        tiles = [self._kept[_key(each)]["pixel_values"] for each in pictures]
        return {"pixel_values": torch.cat(tiles).to(torch.float32)}

    def features(self, pixels: Pixels) -> torch.Tensor:
        """Return the projector's rows."""
        rows = self.model.get_image_features(**self.shown([pixels])).last_hidden_state
        return self.model.multi_modal_projector(rows.reshape(-1, rows.shape[-1]))

    def written(self, pixels: Pixels) -> str:
        """Return tiles with marks between them, and the whole."""
        about: Any = SimpleNamespace(
            patch_size=self.tiny.hf["vision_config"]["patch_size"], downsample_ratio=4
        )
        about._prompt_split_image = lambda *parts: Llama4Processor._prompt_split_image(about, *parts)
        return Llama4Processor.replace_image_token(about, self._kept[_key(pixels)], 0)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes on canvases."""
        return self._sizes(SIDES, self.tile, self.settings["max_patches"])

    def further(self) -> dict[str, NDArray[Any]]:
        """Return `published`, the same for 16 tiles of 336."""
        return {"published": np.array(self._sizes(PUBLISHED, 336, 16), np.int32)}

    def _sizes(self, sides: Sequence[int], side: int, most: int) -> list[tuple[int, ...]]:
        out, tile = [], SizeDict(height=side, width=side)
        canvases = torch.tensor(find_supported_resolutions(max_num_chunks=most, patch_size=tile))
        rows = 4 if side == self.tile else 144
        for width in sides:
            for height in sides:
                high, wide = (int(each) for each in get_best_fit((height, width), canvases))
                room = min(max(height, side), high), min(max(width, side), wide)
                fitted = [max(each, 1) for each in get_max_res_without_distortion((height, width), room)]
                tiles = high * wide // side**2
                out.append((width, height, (tiles + (tiles > 1)) * rows, *fitted[::-1]))
        return out


def _key(pixels: Pixels) -> bytes:
    return b"".join(each.tobytes() for each in pixels)

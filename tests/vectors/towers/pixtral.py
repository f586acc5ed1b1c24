"""Pixtral's tower in transformers: one picture of its own aspect, and a mark after each row of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import (  # pyright: ignore[reportMissingImports]
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.pixtral.image_processing_pixtral import (  # pyright: ignore[reportMissingImports]
    PixtralImageProcessor,
)
from transformers.models.pixtral.processing_pixtral import (  # pyright: ignore[reportMissingImports]
    PixtralProcessor,
)

from tests.vectors.eyes import U8
from tests.vectors.towers.reference import Pixels, TowerReference

SIDES = (1, 2, 13, 27, 28, 29, 55, 56, 57, 79, 80, 81, 139, 140, 141, 150, 199, 217, 333, 1000)


class Reference(TowerReference):
    """A Mistral 3, or a Pixtral 12B."""

    pil, torchvision = PixtralImageProcessorPil, PixtralImageProcessor
    besides = ("image_processor_type", "patch_size")

    @property
    def merge(self) -> int:
        """Patches of a block's side."""
        return self.tiny.hf.get("spatial_merge_size", 1)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return self.tiny.hf["vision_config"]["patch_size"]

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the picture as a processor resizes it."""
        processor = kind(**self.settings)
        out = processor([Image.fromarray(picture)], patch_size=self.patch * self.merge, return_tensors="pt")
        codes = self.codes(out["pixel_values"][0].numpy())
        assert codes.shape[:2] == tuple(out["image_sizes"][0].tolist())
        return [codes]

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return values filled up to one size, and the sizes."""
        sizes = [each.shape[:2] for (each,) in pictures]
        values = torch.zeros(len(pictures), 3, *(max(side) for side in zip(*sizes, strict=True)))
        for room, (each,) in zip(values, pictures, strict=True):
            room[:, : each.shape[0], : each.shape[1]] = self.values(each)
        return {"pixel_values": values, "image_sizes": torch.tensor(sizes)}

    def written(self, pixels: Pixels) -> str:
        """Return a mark for each token, each row's end, and the picture's."""
        about: Any = SimpleNamespace(patch_size=self.patch, spatial_merge_size=self.merge)
        about.image_token, about.image_break_token = "[IMG]", "[IMG_BREAK]"
        about.image_end_token = "[IMG_END]"
        return PixtralProcessor.replace_image_token(about, {"image_sizes": [pixels[0].shape[:2]]}, 0)

    def sizes(self) -> list[tuple[int, ...]]:
        """Return them without those that are left without a pixel."""
        longest, block, out = self.settings["size"]["longest_edge"], self.patch * self.merge, []
        for width in SIDES:
            for height in SIDES:
                room = np.empty((3, height, width), np.uint8)
                high, wide = get_resize_output_image_size(room, longest, block, "channels_first")
                if high and wide:
                    out.append((width, height, wide * high // block**2, wide, high))
        return out

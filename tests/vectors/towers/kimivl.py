"""Kimi K2.5's tower in transformers: a picture in its own size, black at two edges. Kimi-VL's has the same arithmetic.

transformers has no class for Kimi-VL, so its tiny model is loaded as a K2.5. There is no Pillow form of the image
processor, so its resizes are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from PIL import Image
from transformers.models.kimi_k25.image_processing_kimi_k25 import (  # pyright: ignore[reportMissingImports]
    Kimi_K25ImageProcessor,
    navit_resize,
)

from freehold.run.models.tiny import make
from tests.vectors.eyes import U8, Eyes
from tests.vectors.towers.reference import Pixels, TowerReference, with_resizes

SIDES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 47, 48, 63, 79, 80, 81, 96, 97, 111)
LONGER, NARROW = (112, 113, 130, 200, 333, 1000), 14
_BESIDE = ("image_processor_type", "in_token_limit", "merge_kernel_size", "num_pooled_tokens", "pad_input")


class Reference(TowerReference):
    """A Kimi K2.5, or a Kimi-VL's tensors as one."""

    pil = with_resizes(Kimi_K25ImageProcessor, by_pillow=True)
    torchvision = with_resizes(Kimi_K25ImageProcessor, by_pillow=False)
    besides = _BESIDE

    def __init__(self, tiny: make.TinyConfig, eyes: Eyes, folder: Path) -> None:
        self._kept: dict[bytes, Any] = {}  # what the processor returns, by what its resize gave
        super().__init__(tiny, eyes, folder)
        if not self.newer:
            stated = tiny.preprocessor
            self.settings |= {"max_patches": stated["in_token_limit"], "merge_size": 2}
            self.settings |= {"size": {"max_height": 512, "max_width": 512}}

    @property
    def newer(self) -> bool:
        """Whether it is a K2.5."""
        return self.tiny.hf["model_type"] == "kimi_k25"

    def kind(self) -> Any:
        """Return the class of K2.5."""
        return transformers.Kimi_K25ForConditionalGeneration

    def prepare(self, folder: Path) -> None:
        """Write a K2.5's tensors as published, and a Kimi-VL's config.json as a K2.5's."""
        if self.newer:
            data = make.safetensors_bytes(self.eyes.hub_tensors(self.tiny), "F32")
            (folder / "model.safetensors").write_bytes(data)
            return
        config, vision = dict(self.tiny.hf), dict(self.tiny.hf["vision_config"])
        vision |= {"model_type": "kimi_k25_vision", "pos_emb_time": 4}
        vision |= {f"pos_emb_{key}": vision.pop(f"init_pos_emb_{key}") for key in ("height", "width")}
        config |= {"model_type": "kimi_k25", "image_token_id": self.placeholder, "video_token_id": 256}
        config |= {"architectures": ["Kimi_K25ForConditionalGeneration"], "vision_config": vision}
        config |= {"projection_hidden_size": vision["hidden_size"]}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the picture without what fills it up; keep what else the processor returns."""
        processor = kind(**self.settings)
        processor.resized = []
        out = processor([Image.fromarray(picture)], return_tensors="pt")
        self._kept[processor.resized[0].tobytes()] = out
        return processor.resized

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return all patches' values and grids."""
        kept = [self._kept[each.tobytes()] for (each,) in pictures]
        return {key: torch.cat([each[key] for each in kept]) for key in ("pixel_values", "image_grid_thw")}

    def written(self, pixels: Pixels) -> str:
        """Return a mark for each token, in what the template writes."""
        grid = self._kept[pixels[0].tobytes()]["image_grid_thw"]
        pad = self.tiny.marks[2]
        return self.tiny.picture.replace(pad, pad * int(grid[0].prod() // 4))

    def sizes(self) -> list[tuple[int, ...]]:
        """Return them by the model's limits."""
        return self._sizes(SIDES, self.settings["size"]["max_height"])

    def further(self) -> dict[str, NDArray[Any]]:
        """Return `narrow`, the same where a side may have NARROW patches."""
        return {"narrow": np.array(self._sizes((*SIDES[::3], *LONGER), NARROW), np.int32)}

    def _sizes(self, sides: Sequence[int], across: int) -> list[tuple[int, ...]]:
        out, patch = [], self.settings["patch_size"]
        for width in sides:
            for height in sides:
                limits = patch, 2, self.settings["max_patches"], across
                (high, wide), (tall, broad) = navit_resize(height, width, *limits)
                out.append((width, height, tall * broad // (2 * patch) ** 2, wide, high))
        return out

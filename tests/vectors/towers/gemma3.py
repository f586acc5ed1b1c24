"""Gemma 3's tower in transformers: every picture as one square, whose rows see each other."""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from PIL import Image
from transformers.models.gemma3.image_processing_gemma3 import (  # pyright: ignore[reportMissingImports]
    Gemma3ImageProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import (  # pyright: ignore[reportMissingImports]
    Gemma3ImageProcessorPil,
)

from tests.vectors.eyes import U8
from tests.vectors.towers.reference import Pixels, TowerReference

SIZES = ((1, 1), (64, 64), (1, 32_768), (97, 160))


class Reference(TowerReference):
    """A Gemma 3 that sees, with its processor, which writes line ends around a picture."""

    pil, torchvision = Gemma3ImageProcessorPil, Gemma3ImageProcessor

    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the square."""
        out = kind(**self.settings)([Image.fromarray(picture)], return_tensors="pt")
        return [self.codes(out["pixel_values"][0].numpy())]

    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return the squares' values."""
        return {"pixel_values": torch.stack([self.values(each) for (each,) in pictures])}

    def forward(self, ids: list[int], pictures: list[Pixels], **options: Any) -> Any:
        """Run the model; `token_type_ids` say which rows see each other."""
        kinds = torch.tensor([[int(id == self.placeholder) for id in ids]])
        return super().forward(ids, pictures, token_type_ids=kinds, **options)

    def written(self, pixels: Pixels) -> str:
        """Return what a Gemma3Processor puts in place of `<start_of_image>`."""
        count = self.tiny.hf["mm_tokens_per_image"]
        begin, row, end = self.tiny.marks
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer,
            extra_special_tokens={"boi_token": begin, "image_token": row, "eoi_token": end},
        )
        processor = transformers.Gemma3Processor(
            image_processor=self.pil(**self.settings), tokenizer=tokenizer, image_seq_length=count
        )
        return processor.full_image_sequence

    def sizes(self) -> list[tuple[int, ...]]:
        """Return one square for all."""
        size, count = self.settings["size"], self.tiny.hf["mm_tokens_per_image"]
        return [(*each, count, size["width"], size["height"]) for each in SIZES]

"""A tiny model that sees as transformers loads it, and what is asked of it; a tower's file says how.

Knows no tower's numbers. Path: make_eyes.py -> TowerReference
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from PIL import Image

from freehold.run.models.tiny import make
from tests.vectors.eyes import U8, Chat, Eyes, lines_join

Pixels = list[U8]  # arrays that a picture becomes by its resizes, [height, width, 3] each


class TowerReference(ABC):
    """A model with its image processors."""

    pil: Any  # class of the image processor whose pixels are taken
    torchvision: Any = None  # and of the one whose pixels are stored beside, if it can be compared
    besides: tuple[str, ...] = ("image_processor_type",)  # settings that it is not given

    def __init__(self, tiny: make.TinyConfig, eyes: Eyes, folder: Path) -> None:
        self.tiny, self.eyes = tiny, eyes
        make.write_safetensors(tiny, folder)
        if eyes.lines_join:
            lines_join(folder)
        self.prepare(folder)
        self.model, report = self.kind().from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.settings = {key: value for key, value in tiny.preprocessor.items() if key not in self.besides}
        self.mean, self.deviation = (
            np.array(self.settings.get(key, (0.5, 0.5, 0.5))) for key in ("image_mean", "image_std")
        )

    def kind(self) -> Any:
        """Return the model's class."""
        return getattr(transformers, self.tiny.hf["architectures"][0])

    # --- what a tower's file says ---

    def prepare(self, folder: Path) -> None:  # noqa: B027
        """Change the written files before they are loaded."""

    @abstractmethod
    def pixels(self, kind: Any, picture: U8) -> Pixels:
        """Return the arrays that an image processor of this kind makes of a picture by its resizes."""

    @abstractmethod
    def shown(self, pictures: list[Pixels]) -> dict[str, Any]:
        """Return what the model takes of resized pictures, for features and in a forward pass."""

    @abstractmethod
    def written(self, pixels: Pixels) -> str:
        """Return what the processor writes in a prompt in place of a picture's mark."""

    @abstractmethod
    def sizes(self) -> list[tuple[int, ...]]:
        """Return what pictures of some 200 sizes become.

        Width, height, rows of features, and width and height after each resize of the first array.
        """

    def further(self) -> dict[str, NDArray[Any]]:
        """Return further arrays for the golden file."""
        return {}

    def features(self, pixels: Pixels) -> torch.Tensor:
        """Return a picture's features, [rows, width]."""
        rows = self.model.model.get_image_features(**self.shown([pixels])).pooler_output
        rows = rows if isinstance(rows, torch.Tensor) else torch.cat(tuple(rows))
        return rows.reshape(-1, rows.shape[-1])

    def forward(self, ids: list[int], pictures: list[Pixels], **options: Any) -> Any:
        """Run the model over tokens, which hold all rows of the pictures."""
        shown = self.shown(pictures) if pictures else {}
        return self.model(input_ids=torch.tensor([ids]), **shown, **options)

    @property
    def placeholder(self) -> int:
        """The token that stands for a row of a picture."""
        config = self.tiny.hf
        keys = ("image_token_id", "image_token_index", "media_placeholder_token_id")
        return next(config[key] for key in keys if key in config)

    def continued(self, out: Any) -> dict[str, Any]:
        """Return what a step takes of the one before."""
        kept = next(key for key in ("cache", "past_key_values") if out.get(key) is not None)
        return {kept: out[kept]}

    def ids(self, chat: Chat, pixels: list[Pixels]) -> list[int]:
        """Return a chat's tokens; `pixels`: of its pictures in order."""
        mark = self.tiny.picture
        messages = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in chat]
        template = jinja2.Template(make.chat_template(self.tiny.picture_marks), keep_trailing_newline=True)
        text, *others = template.render(messages=messages, add_generation_prompt=True).split(mark)
        for each, after in zip(pixels, others, strict=True):
            text += self.written(each) + after
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    # --- for the files of towers ---

    def values(self, pixels: NDArray[Any]) -> torch.Tensor:
        """Return bytes [..., height, width, 3] as float32 [..., 3, height, width]."""
        values = (pixels / 255 - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3).astype(np.float32)))

    def codes(self, values: NDArray[Any]) -> U8:
        """Return the bytes that values [..., 3, height, width] stand for: uint8 [..., height, width, 3]."""
        colours = np.moveaxis(values.astype(np.float64), -3, -1)
        codes = np.rint((colours * self.deviation + self.mean) * 255)
        assert np.abs((codes / 255 - self.mean) / self.deviation - colours).max() < 2e-6
        return codes.astype(np.uint8)


def _part(part: int | str) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def with_resizes(kind: Any, by_pillow: bool) -> Any:
    """Return a subclass of an image processor of torchvision that keeps what its resizes give, in `resized`.

    `by_pillow`: the resizes are Pillow's, where transformers has no such form.
    """

    class Noting(kind):
        resized: Pixels

        def resize(
            self, images: torch.Tensor, size: Any, resample: Any = None, **others: Any
        ) -> torch.Tensor:
            out = images
            if not by_pillow:
                out = super().resize(images, size, resample=resample, **others)
            else:
                (one,) = images.permute(0, 2, 3, 1).numpy()
                new = Image.fromarray(one).resize((size.width, size.height), int(resample))
                out = torch.from_numpy(np.array(new)).permute(2, 0, 1)[None]
            self.resized.append(np.ascontiguousarray(out[0].permute(1, 2, 0).numpy()))
            return out

    return Noting


def whole(tiles: U8, columns: int) -> U8:
    """Lay tiles, [tiles, side, side, 3], row by row into one array."""
    count, side = tiles.shape[:2]
    grid = tiles.reshape(count // columns, columns, side, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid).reshape(count // columns * side, columns * side, 3)

"""Makes golden/NAME.npz of NAMES: what `transformers` computes of pictures in Pixtral's tower, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_pixtral`. Models are loaded from the folders that make-tiny writes, so the writer is
checked too. Pixels are those of the image processor's Pillow form. torchvision's are stored beside: Pillow 13 shrinks
the height of high pictures first, torchvision and older versions the width of all, and sharp stripes come out otherwise
by up to 15 of 255. Never reads our own engine's output.

A file has, for each picture i of SIZES: `picture_i` uint8 [height, width, 3]; `pixels_i`, the same after its resize;
`torchvision_i`, the other form; `features_i` float32 [tokens, width]. For each prompt p of PROMPTS: `ids_p`, a chat
with its pictures; `full_p` float32 [tokens, 256]; `greedy_p` and `margins_p`, what follows. `sizes` int32 [n, 4]: width
and height before and after.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
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

from freehold.models.tiny import make
from freehold.models.tiny.make import TinyConfig
from tests.vectors.make import GOLDEN
from tests.vectors.weights import checksum

NAMES = ("mistral3-eyes", "pixtral")
# One that Mistral 3 takes as it is (of a single block transformers fails), one that is stretched, two shrunk, a line.
SIZES = ((56, 28), (47, 33), (150, 97), (60, 300), (139, 2))
PROMPTS = ((0,), (1,), (2,), (3,), (4,), (1, 2, 0))
SIDES = (1, 2, 13, 27, 28, 29, 55, 56, 57, 79, 80, 81, 139, 140, 141, 150, 199, 217, 333, 1000)
TEXT = "hi"
GREEDY = 6


def picture(number: int) -> np.ndarray:
    """Draw one of the pictures, [height, width, 3]: slopes of two colours and stripes of the third."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    stripes = (x // 5 + y // (3 + number)) % 2 * 200
    return np.stack([stripes, x * 255 // (width - 1), y * 255 // (height - 1)], -1).astype(np.uint8)


class Reference:
    """A model with its image processors, as transformers loads them."""

    def __init__(self, tiny: TinyConfig, folder: Path) -> None:
        make.write_safetensors(tiny, folder)
        kind = getattr(transformers, tiny.hf["architectures"][0])
        self.model, report = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.settings = {
            key: value
            for key, value in tiny.preprocessor.items()
            if key not in ("image_processor_type", "patch_size")
        }
        self.merge = tiny.hf.get("spatial_merge_size", 1)
        self.patch = tiny.hf["vision_config"]["patch_size"]
        self.block = self.patch * self.merge

    def pixels(self, kind: Any, pixels: np.ndarray) -> np.ndarray:
        """Return a picture as a processor resizes it: uint8 [height, width, 3]."""
        processor = kind(**self.settings)
        out = processor([Image.fromarray(pixels)], patch_size=self.block, return_tensors="pt")
        values = out["pixel_values"][0].numpy().transpose(1, 2, 0).astype(np.float64)
        assert values.shape[:2] == tuple(out["image_sizes"][0].tolist())
        mean, deviation = (np.array(self.settings[key]) for key in ("image_mean", "image_std"))
        codes = np.rint((values * deviation + mean) * 255)
        assert np.abs((codes / 255 - mean) / deviation - values).max() < 1e-6
        return codes.astype(np.uint8)

    def shown(self, pictures: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return what the model takes of resized pictures: values filled up to one size, and the sizes."""
        mean, deviation = (np.array(self.settings[key]) for key in ("image_mean", "image_std"))
        high, wide = (max(each.shape[axis] for each in pictures) for axis in (0, 1))
        values = np.zeros((len(pictures), 3, high, wide), np.float32)
        for i, each in enumerate(pictures):
            scaled = (each / 255 - mean) / deviation
            values[i, :, : each.shape[0], : each.shape[1]] = scaled.transpose(2, 0, 1)
        sizes = torch.tensor([each.shape[:2] for each in pictures])
        return {"pixel_values": torch.from_numpy(values), "image_sizes": sizes}

    def chat(self, pictures: list[np.ndarray]) -> list[int]:
        """Return the ids of a chat, with what the processor writes for pictures of these sizes."""
        about = SimpleNamespace(patch_size=self.patch, spatial_merge_size=self.merge)
        about.image_token, about.image_break_token, about.image_end_token = (
            "[IMG]",
            "[IMG_BREAK]",
            "[IMG_END]",
        )
        sizes = {"image_sizes": [each.shape[:2] for each in pictures]}
        marks = "".join(PixtralProcessor.replace_image_token(about, sizes, i) for i in range(len(pictures)))
        text = f"<|im_start|>user\n{marks}{TEXT}<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def sizes(self) -> np.ndarray:
        """Return what pictures of many sizes become, without those that are left without a pixel."""
        longest, out = self.settings["size"]["longest_edge"], []
        for width in SIDES:
            for height in SIDES:
                high, wide = get_resize_output_image_size(
                    np.empty((3, height, width), np.uint8), longest, self.block, "channels_first"
                )
                if high and wide:
                    out.append((width, height, wide, high))
        return np.array(out, np.int32)


@torch.no_grad()
def of_prompt(reference: Reference, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return a prompt's arrays."""
    ids, shown = reference.chat(pictures), reference.shown(pictures)

    def logits(ids: list[int]) -> torch.Tensor:
        return reference.model(input_ids=torch.tensor([ids]), use_cache=False, **shown).logits[0]

    full, answer, margins = logits(ids), list(ids), []
    for _ in range(GREEDY):
        best = torch.sort(last := logits(answer)[-1]).values
        answer.append(int(last.argmax()))
        margins.append(float(best[-1] - best[-2]))
    print(f"  {len(ids)} tokens, std {full.std():.2f}, margins from {min(margins):.2f}", flush=True)
    return {
        "ids": np.array(ids),
        "full": full.numpy(),
        "greedy": np.array(answer[len(ids) :]),
        "margins": np.array(margins),
    }


@torch.no_grad()
def make_golden(name: str) -> None:
    """Compute and store one model's golden file."""
    print(name, flush=True)
    tiny = make.config(name)
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(tiny, Path(folder))
    arrays: dict[str, np.ndarray] = {"sizes": reference.sizes()}
    resized = []
    for i in range(len(SIZES)):
        pixels = reference.pixels(PixtralImageProcessorPil, picture(i))
        other = reference.pixels(PixtralImageProcessor, picture(i))
        (features,) = reference.model.model.get_image_features(**reference.shown([pixels])).pooler_output
        print(f"  {SIZES[i]} to {pixels.shape}  std {features.std():.2f}", flush=True)
        each = {"picture": picture(i), "pixels": pixels, "torchvision": other, "features": features.numpy()}
        arrays |= {f"{key}_{i}": value for key, value in each.items()}
        resized.append(pixels)
    for p, prompt in enumerate(PROMPTS):
        of_one = of_prompt(reference, [resized[i] for i in prompt])
        arrays |= {f"{key}_{p}": value for key, value in of_one.items()}
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(tiny.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(tiny))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,
    )
    print(f"  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in NAMES:
        make_golden(each)

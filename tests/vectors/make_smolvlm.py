"""Makes golden/smolvlm.npz: what `transformers` computes of pictures cut into tiles, in float32 on the CPU.

Run from the repository's root in an environment with torch and transformers: `python -m tests.vectors.make_smolvlm`.
The model is loaded from the folder that make-tiny writes, so the writer is checked too. Pixels are those of the image
processor's Pillow form. Never reads our own engine's output.

The file has, for each picture i of SIZES: `picture_i` uint8 [height, width, 3]; `tiles_i` uint8 [tiles, side, side, 3];
`features_i` float32 [rows, width]; `ids_i`, a chat with the picture; `full_i` float32 [tokens, 256]; `greedy_i` and
`margins_i`, what follows. `sizes` int32 [n, 6]: width and height of a picture, after its first resize, and as tiles.
`buckets` int16 [n, 34]: patches of a side, learned positions, and which of them each patch has; -1 after them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from transformers.image_utils import SizeDict  # pyright: ignore[reportMissingImports]
from transformers.models.idefics3.processing_idefics3 import (  # pyright: ignore[reportMissingImports]
    Idefics3Processor,
)
from transformers.models.smolvlm.configuration_smolvlm import (  # pyright: ignore[reportMissingImports]
    SmolVLMVisionConfig,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import (  # pyright: ignore[reportMissingImports]
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.modeling_smolvlm import (  # pyright: ignore[reportMissingImports]
    SmolVLMVisionEmbeddings,
)

from freehold.models.tiny import make
from tests.vectors.make import GOLDEN
from tests.vectors.weights import checksum

NAME = "smolvlm"
SIZES = ((70, 70), (97, 40), (2, 90))  # a square, one that is wide, and a line
SIDES = (1, 2, 3, 7, 35, 36, 37, 71, 72, 73, 90, 107, 108, 109, 150, 217, 400, 999)
TEXT = "hi"
GREEDY = 6
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


def picture(number: int) -> np.ndarray:
    """Draw one of the pictures, [height, width, 3]: slopes of two colours and stripes of the third."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    stripes = (x // 4 + y // (3 + number)) % 2 * 200
    return np.stack([x * 255 // max(width - 1, 1), stripes, y * 255 // max(height - 1, 1)], -1).astype(
        np.uint8
    )


class Sizing(SmolVLMImageProcessorPil):
    """The image processor with resizes that only note their sizes."""

    noted: list[tuple[int, int]]

    def resize(self, image: Any, size: Any, *others: Any, **options: Any) -> Any:
        if size.longest_edge:
            module = transformers.models.smolvlm.image_processing_pil_smolvlm
            high, wide = module.get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        else:
            high, wide = size.height, size.width
        self.noted.append((wide, high))
        return np.empty((3, high, wide), np.uint8)


def sizes(settings: dict[str, Any]) -> np.ndarray:
    """Return what pictures of many sizes become."""
    processor, out = Sizing(**settings), []
    edge, tile = (settings[key]["longest_edge"] for key in ("size", "max_image_size"))
    for width in SIDES:
        for height in SIDES:
            processor.noted = []
            first = processor.resize(np.empty((3, height, width), np.uint8), SizeDict(longest_edge=edge))
            processor.resize_for_vision_encoder(first, tile)
            out.append((width, height, *processor.noted[0], *processor.noted[1]))
    return np.array(out, np.int32)


def buckets() -> np.ndarray:
    """Return the positions that the tower gives a square of `grid` patches a side: int16 [n, 2 + GRIDS]."""
    out = np.full((len(COUNTS), 2 + GRIDS), -1, np.int16)
    for row, (grid, side) in zip(out, COUNTS, strict=True):
        module = SmolVLMVisionEmbeddings(SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1))
        with torch.no_grad():
            module.patch_embedding.weight.zero_()
            module.patch_embedding.bias.zero_()
            module.position_embedding.weight.copy_(torch.arange(side * side, dtype=torch.float32)[:, None])
            ids = module(torch.zeros(1, 3, grid, grid), torch.ones(1, grid, grid, dtype=torch.bool))[0, :, 0]
        row[:2] = grid, side
        row[2 : 2 + grid] = ids.reshape(grid, grid)[0].numpy()
    return out


def tiles_of(processor: Any, pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return a picture's tiles as bytes, uint8 [tiles, side, side, 3], and how many rows and columns they make."""
    image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    out = processor(
        [[image]], return_row_col_info=True, input_data_format="channels_first", return_tensors="np"
    )
    values = out["pixel_values"][0]
    assert out["pixel_attention_mask"].all(), "all tiles are whole"
    codes = np.rint((values.astype(np.float64) * 0.5 + 0.5) * 255)
    assert np.abs((codes / 255 - 0.5) / 0.5 - values).max() < 1e-6
    return codes.astype(np.uint8).transpose(0, 2, 3, 1), out["rows"][0][0], out["cols"][0][0]


def text_of(rows: int, columns: int, count: int) -> str:
    """Return what the processor writes for a picture of so many tiles."""
    about = type("About", (), {})()
    about.fake_image_token, about.global_image_tag = "<fake_token_around_image>", "<global-img>"
    about.image_token, about.image_seq_len = "<image>", count
    return Idefics3Processor.replace_image_token(about, {"rows": [[rows]], "cols": [[columns]]}, 0)


@torch.no_grad()
def main() -> None:
    """Compute and store the golden file."""
    torch.set_num_threads(1)
    tiny = make.config(NAME)
    settings = {key: value for key, value in tiny.preprocessor.items() if key != "image_processor_type"}
    arrays: dict[str, np.ndarray] = {"sizes": sizes(settings), "buckets": buckets()}
    with tempfile.TemporaryDirectory() as folder:
        make.write_safetensors(tiny, Path(folder))
        model, report = transformers.SmolVLMForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    processor = SmolVLMImageProcessorPil(**settings)
    for i in range(len(SIZES)):
        tiles, rows, columns = tiles_of(processor, picture(i))
        values = (tiles.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        shown = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))[None]
        features = torch.cat(model.model.get_image_features(shown).pooler_output).numpy()
        count = len(features) // len(tiles)
        chat = f"<|im_start|>user\n{text_of(rows, columns, count)}{TEXT}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(chat, add_special_tokens=False).ids
        logits = model(input_ids=torch.tensor([ids]), pixel_values=shown, use_cache=False).logits[0]
        answer, margins = list(ids), []
        for _ in range(GREEDY):
            last = model(input_ids=torch.tensor([answer]), pixel_values=shown, use_cache=False).logits[0, -1]
            best = torch.sort(last).values
            answer.append(int(last.argmax()))
            margins.append(float(best[-1] - best[-2]))
        each = {
            "picture": picture(i), "tiles": tiles, "features": features, "ids": np.array(ids),
            "full": logits.numpy(), "greedy": np.array(answer[len(ids) :]), "margins": np.array(margins),
        }  # fmt: skip
        print(
            f"{SIZES[i]}: {rows} x {columns} tiles, {len(ids)} tokens, std {features.std():.2f}, {logits.std():.2f}"
        )
        arrays |= {f"{key}_{i}": value for key, value in each.items()}
    path = GOLDEN / f"{NAME}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(tiny.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(tiny))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,
    )
    print(f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Makes golden/gemma4-eyes.npz: what `transformers` computes of pictures in Gemma 4, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_gemma4_eyes`. The model is loaded from the folder that make-tiny writes, so the writer is
checked too. Pixels are those of the image processor's Pillow form; torchvision's are stored beside. Never reads our own
engine's output.

The file has, for each picture i of SIZES: `picture_i` uint8 [height, width, 3]; `pixels_i`, the same after its resize;
`torchvision_i`, the other form; `features_i` float32 [rows, width]. For each chat c of CHATS: `ids_c`; `full_c` float32
[tokens, 256]; `greedy_c` and `margins_c`, what follows. `sizes` int32 [n, 5]: rows at most, width and height before and
after.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from PIL import Image
from transformers.models.gemma4.image_processing_gemma4 import (  # pyright: ignore[reportMissingImports]
    Gemma4ImageProcessor,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import (  # pyright: ignore[reportMissingImports]
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.processing_gemma4 import (  # pyright: ignore[reportMissingImports]
    Gemma4Processor,
)

from freehold.models.tiny import make
from tests.vectors.gemma4_eyes import BUDGETS, CHATS, GREEDY, NAME, SIDES, SIZES, picture
from tests.vectors.make import AGREEMENT, GOLDEN
from tests.vectors.weights import checksum

MARGIN = 0.02  # of a greedy token's logit above the next: far more than any two orders of summing differ
TINY = make.config(NAME)
PATCH, POOL = (TINY.preprocessor[key] for key in ("patch_size", "pooling_kernel_size"))


class Reference:
    """The model with its processors, as transformers loads them."""

    def __init__(self, folder: Path) -> None:
        make.write_safetensors(TINY, folder)
        kind: Any = transformers.Gemma4ForConditionalGeneration
        self.model, report = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = {key: value for key, value in TINY.preprocessor.items() if key != "image_processor_type"}
        self.pil, self.torchvision = Gemma4ImageProcessorPil(**settings), Gemma4ImageProcessor(**settings)

    def opened(self, processor: Any, pixels: np.ndarray) -> dict[str, Any]:
        """Return what a processor makes of a picture."""
        return processor([Image.fromarray(pixels)], return_tensors="pt")

    @torch.no_grad()
    def features(self, opened: dict[str, Any]) -> np.ndarray:
        """Return the features of a picture: float32 [rows, width]."""
        out = self.model.model.get_image_features(opened["pixel_values"], opened["image_position_ids"])
        return out.pooler_output[0].numpy()

    def chat(self, messages: Any) -> dict[str, torch.Tensor]:
        """Return ids, kinds and pixels of a chat, with what the processor writes for its pictures."""
        mark, begin, end = TINY.marks
        about: Any = SimpleNamespace(image_token=mark, boi_token=begin, eoi_token=end)
        shown = [
            self.opened(self.pil, picture(p)) for _, parts in messages for p in parts if isinstance(p, int)
        ]
        written = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in messages]
        template = jinja2.Template(make.chat_template(TINY.picture_marks), keep_trailing_newline=True)
        first, *texts = template.render(messages=written, add_generation_prompt=True).split(mark)
        for each, text in zip(shown, texts, strict=True):
            counts = {"num_soft_tokens_per_image": [int(each["num_soft_tokens_per_image"][0])]}
            first += Gemma4Processor.replace_image_token(about, counts, 0) + text
        ids = torch.tensor([self.tokenizer.encode(first, add_special_tokens=False).ids])
        kinds = (ids == TINY.hf["image_token_id"]).int()
        keys = ("pixel_values", "image_position_ids") if shown else ()
        pictures = {key: torch.cat([each[key] for each in shown]) for key in keys}
        return {"input_ids": ids, "mm_token_type_ids": kinds, **pictures}


def codes_of(opened: dict[str, Any]) -> np.ndarray:
    """Return a processor's patches as the picture that they are of: uint8 [height, width, 3]."""
    places = opened["image_position_ids"][0].numpy()
    wide, high = places.max(axis=0) + 1
    values = opened["pixel_values"][0].numpy()[: wide * high]
    codes = np.rint(values.astype(np.float64) * 255)
    assert np.abs(codes / 255 - values).max() < 1e-6
    grid = codes.reshape(high, wide, PATCH, PATCH, 3).swapaxes(1, 2)
    return grid.reshape(high * PATCH, wide * PATCH, 3).astype(np.uint8)


def _part(part: int | str) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def sizes() -> np.ndarray:
    """Return what pictures of many sizes become: int32 [n, 5]."""
    out = []
    for most in BUDGETS:
        for width in SIDES:
            for height in SIDES:
                high, wide = get_aspect_ratio_preserving_size(height, width, PATCH, most * POOL**2, POOL)
                out.append((most, width, height, wide, high))
    return np.array(out, np.int32)


@torch.no_grad()
def of_chat(reference: Reference, messages: Any) -> dict[str, np.ndarray]:
    """Return a chat's arrays, after two paths were seen to agree: all at once, and token by token after a picture."""
    written = reference.chat(messages)
    ids, kinds = written["input_ids"], written["mm_token_type_ids"]
    pictures = {key: value for key, value in written.items() if key not in ("input_ids", "mm_token_type_ids")}
    full = reference.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **pictures).logits[0]
    shown = np.flatnonzero(kinds[0].numpy())
    first = int(shown.max()) + 1 if len(shown) else ids.shape[1] // 2
    out = reference.model(
        input_ids=ids[:, :first], mm_token_type_ids=kinds[:, :first], use_cache=True, **pictures
    )
    rows, chosen, margins = [out.logits[0]], [], []
    for t in range(first, ids.shape[1] + GREEDY):
        if t >= ids.shape[1]:
            best = torch.sort(rows[-1][-1]).values
            chosen.append(int(rows[-1][-1].argmax()))
            margins.append(float(best[-1] - best[-2]))
        token = ids[:, t : t + 1] if t < ids.shape[1] else torch.tensor([chosen[-1:]])
        out = reference.model(input_ids=token, cache=out.cache, use_cache=True)
        rows.append(out.logits[0])
    apart = float((full - torch.cat(rows)[: len(full)]).abs().max() / full.std())
    print(
        f"  {len(full)} tokens, std {full.std():.2f}, apart {apart:.1e}, margins {min(margins):.2f}",
        flush=True,
    )
    assert apart < AGREEMENT and min(margins) > MARGIN, (apart, margins)
    return {
        "ids": ids[0].numpy(),
        "full": full.numpy(),
        "greedy": np.array(chosen),
        "margins": np.array(margins),
    }


def main() -> None:
    """Compute and store the golden file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(Path(folder))
    arrays: dict[str, np.ndarray] = {"sizes": sizes()}
    for i in range(len(SIZES)):
        opened = reference.opened(reference.pil, picture(i))
        other = codes_of(reference.opened(reference.torchvision, picture(i)))
        features, pixels = reference.features(opened), codes_of(opened)
        print(f"  {SIZES[i]} to {pixels.shape}, {features.shape}  std {features.std():.2f}", flush=True)
        each = {"picture": picture(i), "pixels": pixels, "torchvision": other, "features": features}
        arrays |= {f"{key}_{i}": value for key, value in each.items()}
    for c, messages in enumerate(CHATS):
        arrays |= {f"{key}_{c}": value for key, value in of_chat(reference, messages).items()}
    path = GOLDEN / f"{NAME}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(TINY.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(TINY))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    print(f"  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()

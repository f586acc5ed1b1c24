"""Makes golden/NAME.npz of gemma3_eyes.NAMES: what `transformers` computes of pictures, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_gemma3_eyes`. Models are loaded from the folders that make-tiny writes, so the writer is
checked too. Pixels are those of the image processor's Pillow form; how far torchvision's are is stored beside. Chats
are written by transformers' processor, with a tokenizer that joins line ends. Never reads our own engine's output.

A file has, for each picture i of SIZES: `picture_i` uint8 [height, width, 3]; `pixels_i`, the same after its resize;
`torchvision_i` int8, what to add for the other form; `features_i` float32 [rows, width]. For each chat c of CHATS:
`ids_c`; `full_c` float32 [tokens, 256]; `greedy_c` and `margins_c`, what follows.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from PIL import Image
from transformers.models.gemma3.image_processing_gemma3 import (  # pyright: ignore[reportMissingImports]
    Gemma3ImageProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import (  # pyright: ignore[reportMissingImports]
    Gemma3ImageProcessorPil,
)

from freehold.models.tiny import make
from tests.vectors.gemma3_eyes import CHATS, GREEDY, NAMES, SIZES, lines_join, picture
from tests.vectors.make import AGREEMENT, GOLDEN
from tests.vectors.weights import checksum

MARGIN = 0.02  # of a greedy token's logit above the next: far more than any two orders of summing differ


class Reference:
    """A model with its processors, as transformers loads them."""

    def __init__(self, tiny: make.TinyConfig, folder: Path) -> None:
        make.write_safetensors(tiny, folder)
        lines_join(folder)
        kind: Any = transformers.Gemma3ForConditionalGeneration
        self.model, report = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        boi, image, eoi = tiny.marks
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, extra_special_tokens={"boi_token": boi, "image_token": image, "eoi_token": eoi}
        )
        settings = {key: value for key, value in tiny.preprocessor.items() if key != "image_processor_type"}
        self.pil, self.torchvision = Gemma3ImageProcessorPil(**settings), Gemma3ImageProcessor(**settings)
        self.processor = transformers.Gemma3Processor(
            image_processor=self.pil,
            tokenizer=tokenizer,
            chat_template=tokenizer.chat_template,
            image_seq_length=tiny.hf["mm_tokens_per_image"],
        )

    def pixels(self, processor: Any, pixels: np.ndarray) -> np.ndarray:
        """Return a picture as a processor resizes it: uint8 [height, width, 3]."""
        values = processor([Image.fromarray(pixels)], return_tensors="pt")["pixel_values"][0].numpy()
        codes = np.rint((values.astype(np.float64) * 0.5 + 0.5) * 255)
        assert np.abs((codes / 255 - 0.5) / 0.5 - values).max() < 1e-6
        return codes.astype(np.uint8).transpose(1, 2, 0)

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return the features of a resized picture: float32 [rows, width]."""
        values = torch.from_numpy((pixels / 255 - 0.5) / 0.5).to(torch.float32).permute(2, 0, 1)[None]
        return self.model.get_image_features(values).pooler_output[0].numpy()

    def chat(self, messages: Any) -> Any:
        """Return what the processor writes for a chat."""
        written = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in messages]
        options = {
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            "add_generation_prompt": True,
        }
        return self.processor.apply_chat_template(written, **options)


def _part(part: int | str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": Image.fromarray(picture(part))}


@torch.no_grad()
def of_chat(reference: Reference, messages: Any) -> dict[str, np.ndarray]:
    """Return a chat's arrays, after two paths were seen to agree: all at once, and token by token after a picture."""
    written = reference.chat(messages)
    ids, kinds = written["input_ids"], written["token_type_ids"]
    pictures = {key: value for key, value in written.items() if key == "pixel_values"}
    full = reference.model(input_ids=ids, token_type_ids=kinds, use_cache=False, **pictures).logits[0]
    shown = np.flatnonzero(kinds[0].numpy())
    first = int(shown.max()) + 1 if len(shown) else ids.shape[1] // 2
    out = reference.model(
        input_ids=ids[:, :first], token_type_ids=kinds[:, :first], use_cache=True, **pictures
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
    stepped = torch.cat(rows)[: len(full)]
    apart = float((full - stepped).abs().max() / full.std())
    assert apart < AGREEMENT and min(margins) > MARGIN, (apart, margins)
    print(
        f"  {len(full)} tokens, std {full.std():.2f}, apart {apart:.1e}, margins from {min(margins):.2f}",
        flush=True,
    )
    return {
        "ids": ids[0].numpy(),
        "full": full.numpy(),
        "greedy": np.array(chosen),
        "margins": np.array(margins),
    }


def make_golden(name: str) -> None:
    """Compute and store one model's golden file."""
    print(name, flush=True)
    tiny = make.config(name)
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(tiny, Path(folder))
    arrays: dict[str, np.ndarray] = {}
    for i in range(len(SIZES)):
        pixels = reference.pixels(reference.pil, picture(i))
        apart = reference.pixels(reference.torchvision, picture(i)).astype(np.int16) - pixels
        assert np.abs(apart).max() <= 1, "torchvision rounds within one step"
        features = reference.features(pixels)
        print(f"  {SIZES[i]} to {pixels.shape}  std {features.std():.2f}", flush=True)
        each = {
            "picture": picture(i),
            "pixels": pixels,
            "torchvision": apart.astype(np.int8),
            "features": features,
        }
        arrays |= {f"{key}_{i}": value for key, value in each.items()}
    for c, messages in enumerate(CHATS):
        arrays |= {f"{key}_{c}": value for key, value in of_chat(reference, messages).items()}
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(tiny.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(tiny))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    print(f"  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in NAMES:
        make_golden(each)

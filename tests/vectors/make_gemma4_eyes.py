"""Makes golden/NAME.npz of Gemma 4's towers: what `transformers` computes of pictures, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_gemma4_eyes [NAME ...]`. The model is loaded from the folder that make-tiny writes, so the
writer is checked too. Pixels are those of the image processor's Pillow form. Never reads our own engine's output.

A file has, for each picture i of SIZES, `features_i` float32 [rows, width], see kept_features; for each chat c of CHATS
`ids_c`, `full_c` float32 [rows, columns], see kept_logits and COLUMNS, `greedy_c` and `margins_c`, what follows. The
file of the first name has of small pictures also `pixels_i` uint8 [height, width, 3] after their resize and
`torchvision_i` int16, by how much the processor's other form differs, and `sizes` int32 [n, 5]: rows at most, width and
height before and after.
"""

from __future__ import annotations

import json
import sys
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
from transformers.models.gemma4_unified import image_processing_gemma4_unified as unified  # pyright: ignore

from freehold.run.models.tiny import make
from tests.vectors.gemma4_eyes import (
    ALLOWED,
    BUDGETS,
    CHATS,
    COLUMNS,
    GREEDY,
    NAMES,
    SIDES,
    SIZES,
    SMALL,
    kept_features,
    kept_logits,
    picture,
)
from tests.vectors.make import AGREEMENT, GOLDEN
from tests.vectors.weights import checksum

MARGIN = 0.02  # of a greedy token's logit above the next: far more than any two orders of summing differ
Opened = dict[str, Any]


class Reference:
    """A model with its processors, as transformers loads them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tiny = tiny = make.config(name)
        make.write_safetensors(tiny, folder)
        kind: Any = getattr(transformers, tiny.hf["architectures"][0])
        self.model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            # A picture of 1,120 rows has 10,080 patches, whose scores would be 1.6 GB a layer.
            attn_implementation={"text_config": "eager", "vision_config": "sdpa", "": "eager"},
            output_loading_info=True,
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        self.has_tower = tiny.hf["model_type"] == "gemma4"
        self.patch, self.pool = (tiny.preprocessor[key] for key in ("patch_size", "pooling_kernel_size"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = {key: value for key, value in tiny.preprocessor.items() if key != "image_processor_type"}
        self.pil, self.torchvision = Gemma4ImageProcessorPil(**settings), Gemma4ImageProcessor(**settings)
        self.joining = unified.Gemma4UnifiedImageProcessor(**settings)

    def patches(self, processor: Any, number: int) -> Opened:
        """Return the patches that a processor makes of a picture."""
        image = [Image.fromarray(picture(number))]
        return processor(image, return_tensors="pt", max_soft_tokens=ALLOWED[number])

    def opened(self, number: int) -> Opened:
        """Return what the model reads of a picture; of the 12B its own processor's blocks of the same pixels."""
        patches = self.patches(self.pil, number)
        if self.has_tower:
            return patches
        codes = codes_of(patches, self.patch)
        whole = torch.from_numpy(codes).permute(2, 0, 1) * torch.tensor(1 / 255)
        count = codes.shape[0] * codes.shape[1] // (self.patch * self.pool) ** 2
        places = patches["image_position_ids"][:, : count * self.pool**2]
        rows = unified.convert_image_to_patches(whole, self.patch)[None]
        values, places = unified.patches_merge(rows, places, count)
        other = codes_of(self.patches(self.joining, number), self.patch * self.pool)
        assert np.array_equal(other, codes_of(self.patches(self.torchvision, number), self.patch)), number
        key = "num_soft_tokens_per_image"
        return {"pixel_values": values, "image_position_ids": places, key: patches[key]}

    @torch.no_grad()
    def features(self, opened: Opened) -> np.ndarray:
        """Return the features of a picture: float32 [rows, width]."""
        out = self.model.model.get_image_features(opened["pixel_values"], opened["image_position_ids"])
        return out.pooler_output[0].numpy()

    def chat(self, messages: Any) -> dict[str, Any]:
        """Return ids, kinds, pictures and masks of a chat, with what the processor writes for its pictures."""
        mark, begin, end = self.tiny.marks
        about: Any = SimpleNamespace(image_token=mark, boi_token=begin, eoi_token=end)
        shown = [self.opened(p) for _, parts in messages for p in parts if isinstance(p, int)]
        written = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in messages]
        template = jinja2.Template(make.chat_template(self.tiny.picture_marks), keep_trailing_newline=True)
        first, *texts = template.render(messages=written, add_generation_prompt=True).split(mark)
        for each, text in zip(shown, texts, strict=True):
            counts = {"num_soft_tokens_per_image": [int(each["num_soft_tokens_per_image"][0])]}
            first += Gemma4Processor.replace_image_token(about, counts, 0) + text
        ids = torch.tensor([self.tokenizer.encode(first, add_special_tokens=False).ids])
        return {"ids": ids, "kinds": (ids == self.tiny.hf["image_token_id"]).int(), "pictures": shown}

    def step(self, ids: torch.Tensor, kinds: torch.Tensor, pictures: list[Opened], **options: Any) -> Any:
        """Run a prompt's first tokens, with the masks that the model makes for generation.

        Those are Google's. In the 12B's plain forward pass rows of a picture see each other in full layers too.
        """
        features = [
            self.model.model.get_image_features(p["pixel_values"], p["image_position_ids"]) for p in pictures
        ]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": self.masks(ids, kinds)}
        if features:
            rows = tuple(row for each in features for row in each.pooler_output)
            inputs["mm_encoder_outputs"] = {"image": SimpleNamespace(pooler_output=rows)}
        return self.model(**inputs, **options)

    def masks(self, ids: torch.Tensor, kinds: torch.Tensor) -> Any:
        """Return the masks of a prompt's first tokens."""
        positions = torch.arange(ids.shape[1])[None]
        embeds = torch.empty((1, ids.shape[1], 0))
        none = {"attention_mask": None, "cache": None, "position_ids": positions}
        return self.model.create_masks_for_generate(
            self.model.config, inputs_embeds=embeds, mm_token_type_ids=kinds, **none
        )


def codes_of(opened: Opened, side: int) -> np.ndarray:
    """Return patches of `side` pixels a side as the picture that they are of: uint8 [height, width, 3]."""
    places = opened["image_position_ids"][0].numpy()
    wide, high = places.max(axis=0) + 1
    values = opened["pixel_values"][0].numpy()[: wide * high]
    codes = np.rint(values.astype(np.float64) * 255)
    assert np.abs(codes / 255 - values).max() < 1e-6
    grid = codes.reshape(high, wide, side, side, 3).swapaxes(1, 2)
    return grid.reshape(high * side, wide * side, 3).astype(np.uint8)


def _part(part: int | str) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def sizes(patch: int, pool: int) -> np.ndarray:
    """Return what pictures of many sizes become: int32 [n, 5]."""
    out = []
    for most in BUDGETS:
        for width in SIDES:
            for height in SIDES:
                high, wide = get_aspect_ratio_preserving_size(height, width, patch, most * pool**2, pool)
                out.append((most, width, height, wide, high))
    return np.array(out, np.int32)


@torch.no_grad()
def of_chat(reference: Reference, messages: Any) -> dict[str, np.ndarray]:
    """Return a chat's arrays, after two paths were seen to agree: all at once, and token by token after a picture."""
    chat = reference.chat(messages)
    ids, kinds, pictures = chat["ids"], chat["kinds"], chat["pictures"]
    full = reference.step(ids, kinds, pictures, use_cache=False).logits[0]
    shown = np.flatnonzero(kinds[0].numpy())
    first = int(shown.max()) + 1 if len(shown) else ids.shape[1] // 2
    out = reference.step(ids[:, :first], kinds[:, :first], pictures, use_cache=True)
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
    kept = kept_logits(ids[0].numpy(), reference.tiny.hf["image_token_id"])
    return {
        "ids": ids[0].numpy(),
        "full": full.numpy()[kept][:, ::COLUMNS],
        "greedy": np.array(chosen),
        "margins": np.array(margins),
    }


def of_model(name: str) -> None:
    """Compute and store one golden file."""
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(name, Path(folder))
    arrays: dict[str, np.ndarray] = {}
    if name == NAMES[0]:
        arrays["sizes"] = sizes(reference.patch, reference.pool)
    for i in range(len(SIZES)):
        patches = reference.patches(reference.pil, i)
        pixels, features = codes_of(patches, reference.patch), reference.features(reference.opened(i))
        print(f"  {SIZES[i]} to {pixels.shape}, {features.shape}  std {features.std():.2f}", flush=True)
        arrays[f"features_{i}"] = features[kept_features(i)]
        if i >= SMALL:
            assert np.array_equal(pixels, picture(i)), "large pictures are taken as they are"
        elif name == NAMES[0]:
            other = codes_of(reference.patches(reference.torchvision, i), reference.patch)
            arrays |= {f"pixels_{i}": pixels, f"torchvision_{i}": other - pixels.astype(np.int16)}
    for c, messages in enumerate(CHATS):
        arrays |= {f"{key}_{c}": value for key, value in of_chat(reference, messages).items()}
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(reference.tiny.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(reference.tiny))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    print(f"  {path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Make the files that are named, or all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or NAMES:
        print(name, flush=True)
        of_model(name)


if __name__ == "__main__":
    main()

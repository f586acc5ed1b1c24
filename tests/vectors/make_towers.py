"""Makes golden/<name>.npz of the tiny models that see: what `transformers` computes of pictures, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_towers [NAME ...]`. Each model is loaded from the folder that make-tiny writes, so the
writer is checked too. Pixels are those of the image processor's Pillow form; how far torchvision's are from them is
stored beside. Never reads our own engine's output.

A golden file has, for each picture i of pictures.py: `rows_i` uint8 [patches,
3 * patch²], the resized pixels of one frame, block by block; `torchvision_i` int8, what to add to them for the other
form; `features_i` float32 [rows of the prompt, width]. For each prompt p: `ids_p`, `places_p` int16 [tokens, 3],
`full_p` float32 [tokens, 256], `greedy_p` and `margins_p`, what follows; of a mixture `experts_p` and `routes_p`, its
routers' margins. `sizes` int32 [n, 4]: width and height before and after. Of a model that make.py would judge too, its
arrays.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from PIL import Image
from transformers.models.glm4v.image_processing_glm4v import (  # pyright: ignore[reportMissingImports]
    Glm4vImageProcessor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import (  # pyright: ignore[reportMissingImports]
    Glm4vImageProcessorPil,
)
from transformers.models.glm4v.image_processing_pil_glm4v import (  # pyright: ignore[reportMissingImports]
    smart_resize as two_frames_resize,
)
from transformers.models.paddleocr_vl.image_processing_paddleocr_vl import (  # pyright: ignore[reportMissingImports]
    PaddleOCRVLImageProcessor,
)
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (  # pyright: ignore[reportMissingImports]
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (  # pyright: ignore[reportMissingImports]
    smart_resize as paddle_resize,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (  # pyright: ignore[reportMissingImports]
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (  # pyright: ignore[reportMissingImports]
    Qwen2VLImageProcessor,
)

from freehold.run.models.tiny import make
from tests.vectors.make import AGREEMENT, GOLDEN, computed
from tests.vectors.pictures import (
    GREEDY,
    PROMPTS,
    SIZES,
    PixelSettings,
    Prompt,
    picture,
    placeholder,
    prompt_ids,
)
from tests.vectors.routing import chosen_experts
from tests.vectors.weights import FAMILIES, SEEING, VOCAB, checksum

# Sides about the halves between two multiples of 32, and about both limits; and narrow ones.
SIDES = (1, 15, 16, 31, 32, 33, 47, 48, 49, 79, 80, 81, 96, 111, 112, 113, 128, 144, 160, 250, 1000)
SIDES_OF_28 = (1, 2, 13, 14, 27, 28, 29, 41, 42, 43, 69, 70, 71, 84, 98, 126, 140, 168, 182, 250, 1000, 1999)
NARROWEST = 200  # the longer side in shorter ones, at most
MARGIN = 0.02  # of a greedy token's logit above the next: far more than any two orders of summing differ


def load(name: str, folder: Path) -> Any:
    """Write the model into `folder` and load it eagerly in float32."""
    make.write_safetensors(SEEING[name], folder)
    kind = getattr(transformers, SEEING[name].hf["architectures"][0])
    model, report = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def pixels_of(processor: Any, form: PixelSettings, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the processor's rows as the bytes that they stand for, uint8 [patches, 3 * patch²], and the grid."""
    out = processor(images=[image], return_tensors="pt")
    values = out["pixel_values"].numpy().reshape(-1, 3, form.frames, form.patch**2)
    assert np.array_equal(values[:, :, 0], values[:, :, -1]), "both frames are the picture"
    frame = values[:, :, 0].astype(np.float64)
    codes = np.rint((frame * form.deviation[:, None] + form.mean[:, None]) * 255).reshape(len(frame), -1)
    apart = np.abs(form.values(codes) - frame.reshape(len(frame), -1)).max()
    assert apart < 2e-6, "mean and deviation are the file's"
    grid = out["image_grid_thw"].numpy()
    return form.in_blocks(codes.astype(np.uint8), grid[0]), grid


@torch.no_grad()
def features_of(model: Any, form: PixelSettings, rows: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return a picture's features, those that are added after further layers beside them: float32 [rows, width]."""
    out = model.model.get_image_features(_values(form, rows, grid[0]), torch.from_numpy(grid))
    deep = [each[0] for each in getattr(out, "deepstack_features", None) or ()]
    return torch.cat([out.pooler_output[0], *deep], dim=1).numpy()


def _values(form: PixelSettings, rows: np.ndarray, grid: np.ndarray) -> torch.Tensor:
    """Return the processor's rows for these bytes: each channel as often as there are frames."""
    values = form.values(form.in_blocks(rows, grid, back=True)).astype(np.float32)
    frames = np.repeat(values.reshape(len(rows), 3, 1, -1), form.frames, axis=2)
    flat = form.frames > 1  # else a convolution takes them
    return torch.from_numpy(
        frames.reshape(len(rows), -1) if flat else frames.reshape(len(rows), 3, form.patch, -1)
    )


class Shown:
    """A prompt with its pictures, as the model's forward pass takes it."""

    def __init__(self, name: str, prompt: Prompt, rows: list[np.ndarray], grids: list[np.ndarray]) -> None:
        tiny = SEEING[name]
        form = PixelSettings.of(tiny)
        counts = {i: len(each) // 4 for i, each in enumerate(rows)}
        self.ids = prompt_ids(tiny, prompt, counts)
        self.marked = self.ids == placeholder(tiny)
        self._pictures: dict[str, torch.Tensor] = {}
        if prompt.pictures:
            self._pictures = {
                "pixel_values": torch.cat([_values(form, rows[p], grids[p][0]) for p in prompt.pictures]),
                "image_grid_thw": torch.from_numpy(np.concatenate([grids[p] for p in prompt.pictures])),
            }

    def __call__(self, model: Any, ids: np.ndarray, **options: Any) -> Any:
        """Run the model over `ids` from the first on; they hold all placeholders."""
        kinds = (ids == model.config.image_token_id).astype(np.int32)
        named = self._pictures | (
            {"mm_token_type_ids": torch.from_numpy(kinds)[None]} if self._pictures else {}
        )
        model.model.rope_deltas = None  # else those of another prompt count
        return model(input_ids=torch.from_numpy(ids)[None], **named, **options)

    def places(self, model: Any) -> np.ndarray:
        """Return each token's time, row and column: int16 [T, 3]."""
        if not self._pictures:
            return np.repeat(np.arange(len(self.ids), dtype=np.int16)[:, None], 3, axis=1)
        kinds = torch.from_numpy(self.marked.astype(np.int32))[None]
        grid = self._pictures["image_grid_thw"]
        places, _ = model.model.get_rope_index(torch.from_numpy(self.ids)[None], kinds, image_grid_thw=grid)
        return places[:, 0].T.numpy().astype(np.int16)


@torch.no_grad()
def full_logits(model: Any, shown: Shown) -> np.ndarray:
    """Logits of one forward over the whole prompt: float32 [T, V]."""
    return shown(model, shown.ids, use_cache=False).logits[0].numpy()


@torch.no_grad()
def stepped_logits(model: Any, shown: Shown, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prefill to the end of the last picture, of one call for each token after, and of `count` more.

    Return float32 [T + count - 1, V], and the tokens that were chosen greedily, int64 [count].
    """
    ids = shown.ids
    first = int(np.flatnonzero(shown.marked).max()) + 1 if shown.marked.any() else len(ids) // 2
    out = shown(model, ids[:first], use_cache=True)
    rows, chosen = [out.logits[0]], []
    for t in range(first, len(ids) + count):
        if t >= len(ids):
            chosen.append(int(rows[-1][-1].argmax()))
            if len(chosen) == count:
                break
        token = torch.tensor([[ids[t] if t < len(ids) else chosen[-1]]])
        out = model(input_ids=token, cache=out.cache, use_cache=True)
        rows.append(out.logits[0])
    return torch.cat(rows).numpy(), np.array(chosen, np.int64)


def of_prompt(model: Any, prompt: Prompt, shown: Shown) -> dict[str, np.ndarray]:
    """Return a prompt's arrays, after both paths were found to agree."""
    with chosen_experts(model) as routes:
        full = full_logits(model, shown)
    steps, greedy = stepped_logits(model, shown, GREEDY)
    apart = float(np.abs(full - steps[: len(full)]).max() / full.std())
    assert np.isfinite(full).all() and apart < AGREEMENT, (prompt.name, apart)
    best = np.sort(steps[len(full) - 1 :], axis=1)
    print(
        f"  {prompt.name:6} {len(full):3} tokens  std {full.std():.2f}  paths apart {apart:.1e}", flush=True
    )
    arrays = {"ids": shown.ids, "places": shown.places(model), "full": full, "greedy": greedy}
    arrays["margins"] = best[:, -1] - best[:, -2]
    assert arrays["margins"].min() > MARGIN, "another seed decides its answer more clearly"
    if routes:
        arrays |= {"experts": routes["experts"], "routes": routes["margins"]}
    return {f"{key}_{prompt.name}": value for key, value in arrays.items()}


def sizes(name: str) -> np.ndarray:
    """Return what pictures of many sizes become: int32 [n, 4], width and height before and after."""
    stated, factor = SEEING[name].preprocessor, PixelSettings.of(SEEING[name]).block
    limits = stated.get("size") or {
        "shortest_edge": stated["min_pixels"],
        "longest_edge": stated["max_pixels"],
    }
    resize = _reference(name).resize
    sides = SIDES if factor == 32 else SIDES_OF_28
    out = []
    for width in sides:
        for height in sides:
            if max(width, height) <= NARROWEST * min(width, height):
                least, most = limits["shortest_edge"], limits["longest_edge"]
                resized = resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
                out.append((width, height, *resized[::-1]))
    return np.array(out, np.int32)


class Reference(NamedTuple):
    """What transformers has for a kind of models."""

    pil: Any  # image processor whose pixels are taken
    torchvision: Any  # and the one whose pixels are stored beside
    resize: Any  # height and width -> those after the resize


REFERENCES = {
    "Qwen": Reference(Qwen2VLImageProcessorPil, Qwen2VLImageProcessor, smart_resize),
    "Glm4": Reference(Glm4vImageProcessorPil, Glm4vImageProcessor, partial(two_frames_resize, 2)),
    "Padd": Reference(PaddleOCRVLImageProcessorPil, PaddleOCRVLImageProcessor, paddle_resize),
}


def _reference(name: str) -> Reference:
    return REFERENCES[SEEING[name].preprocessor["image_processor_type"][:4]]


def make_golden(name: str) -> None:
    """Compute and store one model's golden file."""
    print(name, flush=True)
    form = PixelSettings.of(SEEING[name])
    settings = {
        key: value for key, value in SEEING[name].preprocessor.items() if key != "image_processor_type"
    }
    reference = _reference(name)
    arrays: dict[str, np.ndarray] = {"sizes": sizes(name)}
    rows, grids = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = load(name, Path(folder))
    for i in range(len(SIZES)):
        pixels = picture(i)
        image = Image.fromarray(pixels)
        codes, grid = pixels_of(reference.pil(**settings), form, image)
        others, _ = pixels_of(reference.torchvision(**settings), form, image)
        apart = others.astype(np.int16) - codes
        assert np.abs(apart).max() <= 2, "torchvision rounds within one step of each side's resize"
        features = features_of(model, form, codes, grid)
        print(f"  {pixels.shape} to grid {grid[0]}  std {features.std():.2f}", flush=True)
        each = {"rows": codes, "torchvision": apart.astype(np.int8), "features": features}
        arrays |= {f"{key}_{i}": value for key, value in each.items()}
        rows.append(codes)
        grids.append(grid)
    for prompt in PROMPTS:
        arrays |= of_prompt(model, prompt, Shown(name, prompt, rows, grids))
    path = GOLDEN / f"{name}.npz"
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    arrays |= computed(name) if name in FAMILIES else {}
    arrays |= {
        "config": np.array(json.dumps(SEEING[name].hf)),
        "weights_crc32": np.array(checksum(make.hf_tensors(SEEING[name]))),
        "made_by": np.array(versions),
    }
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    assert all(arrays[f"full_{p.name}"].shape[1] == VOCAB for p in PROMPTS)
    print(f"  {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or SEEING:
        make_golden(each)

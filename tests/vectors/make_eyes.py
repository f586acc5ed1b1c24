"""Makes golden/NAME.npz of eyes.EYES: what `transformers` computes of pictures, in float32 on the CPU.

Run from the repository's root in an environment with torch, torchvision and transformers:
`python -m tests.vectors.make_eyes [NAME ...]`. Models are loaded from the folders that make-tiny writes, so the writer
is checked too. Pixels are those of the image processor's Pillow form; how far torchvision's are from them is stored
beside: Pillow 13 shrinks the height of high pictures first, torchvision and older versions the width of all, and sharp
stripes come out otherwise by up to 15 of 255. Never reads our own engine's output.

A file has, for each picture i: `pixels_i_k` uint8 [height, width, 3], its k-th array after the resizes;
`torchvision_i_k` int16, what to add for the other form; `features_i` float32 [rows, width]. For each chat c: `ids_c`;
`full_c` float32 [tokens, 64], every COLUMNS-th logit; `greedy_c` and `margins_c`, what follows. `sizes` int32 [n, 5 and
more]: width and height of a picture, rows of features, width and height after each resize.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from freehold.run.models.tiny import make
from tests.vectors.eyes import CLEAR, COLUMNS, EYES, GREEDY, Chat
from tests.vectors.make import AGREEMENT, GOLDEN
from tests.vectors.routing import chosen_experts
from tests.vectors.towers.reference import Pixels, TowerReference
from tests.vectors.weights import checksum

ROUTED = 2e-4  # of a router's choice above the next: far more than two orders of summing differ
APART = 20  # steps of 255 between the two forms of pixels, at most


@torch.no_grad()
def of_chat(reference: TowerReference, chat: Chat, pixels: list[Pixels]) -> dict[str, np.ndarray]:
    """Return a chat's arrays, after two paths were seen to agree: all at once, and token by token after a picture."""
    shown = [pixels[part] for _, parts in chat for part in parts if isinstance(part, int)]
    ids = reference.ids(chat, shown)
    with chosen_experts(reference.model) as routes:
        full = reference.forward(ids, shown, use_cache=False).logits[0]
    assert not routes or not np.nanmin(routes["margins"]) < ROUTED, "another seed routes more clearly"
    last = max((t for t, id in enumerate(ids) if id == reference.placeholder), default=len(ids) // 2)
    out = reference.forward(ids[: last + 1], shown, use_cache=True)
    rows, chosen, margins = [out.logits[0]], [], []
    for t in range(last + 1, len(ids) + GREEDY):
        if t >= len(ids):
            best = torch.sort(rows[-1][-1]).values
            chosen.append(int(rows[-1][-1].argmax()))
            margins.append(float(best[-1] - best[-2]))
        out = reference.model(
            input_ids=torch.tensor([[ids[t] if t < len(ids) else chosen[-1]]]),
            **reference.continued(out),
            use_cache=True,
        )
        rows.append(out.logits[0])
    apart = float((full - torch.cat(rows)[: len(full)]).abs().max() / full.std())
    print(
        f"  {len(full)} tokens, std {full.std():.2f}, apart {apart:.1e}, margins {min(margins):.2f}",
        flush=True,
    )
    assert apart < AGREEMENT and (margins[0] > CLEAR or not shown), "another seed decides it more clearly"
    return {
        "ids": np.array(ids),
        "full": full.numpy()[:, ::COLUMNS],
        "greedy": np.array(chosen),
        "margins": np.array(margins),
    }


@torch.no_grad()
def make_golden(name: str) -> None:
    """Compute and store one model's golden file."""
    print(name, flush=True)
    tiny, eyes = make.config(name), EYES[name]
    kind = import_module(f"tests.vectors.towers.{eyes.module}").Reference
    with tempfile.TemporaryDirectory() as folder:
        reference: TowerReference = kind(tiny, eyes, Path(folder))
    arrays = {"sizes": np.array(reference.sizes(), np.int32), **reference.further()}
    pixels: list[Pixels] = []
    for i, size in enumerate(eyes.sizes):
        pixels.append(reference.pixels(reference.pil, eyes.picture(i)))
        features = reference.features(pixels[-1]).numpy()
        print(f"  {size} to {[each.shape for each in pixels[-1]]}  std {features.std():.2f}", flush=True)
        arrays |= {f"pixels_{i}_{k}": each for k, each in enumerate(pixels[-1])} | {f"features_{i}": features}
        others = reference.pixels(reference.torchvision, eyes.picture(i)) if reference.torchvision else ()
        for k, other in enumerate(others):
            apart = other.astype(np.int16) - pixels[-1][k]
            assert np.abs(apart).max() <= APART
            arrays[f"torchvision_{i}_{k}"] = apart
    for c, chat in enumerate(eyes.chats):
        arrays |= {f"{key}_{c}": value for key, value in of_chat(reference, chat, pixels).items()}
    arrays |= {
        "config": np.array(json.dumps(tiny.hf)),
        "weights_crc32": np.array(checksum(make.hf_tensors(tiny))),
        "pictures_crc32": np.array(eyes.pictures_crc32()),
        "made_by": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    }
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    print(f"  {path.stat().st_size:,} bytes, {len(arrays['sizes'])} sizes", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or EYES:
        make_golden(each)

"""A tower that reads digits, made in seconds: random layers, and a last matrix fitted in closed form; no test.

Digits are drawn by Pillow. A SigLIP of random weights turns a picture into one joined row, and ridge regression maps
joined rows to the embedding of the digit's token, so a text model that was never trained on pictures reads the digit as
a word. It proves the way of a picture from its file to an answer, and says nothing of how well published models see.
Path: test_digits.py -> make_seeing -> an mmproj beside the text model's file
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from freehold.run.formats import QuantType, open_model_file
from freehold.run.models.binding.bind import read_source
from freehold.run.models.load import load_model
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny.make import gguf_bytes
from freehold.run.tokenizer import tokenizer_from_gguf

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SIDE = 64  # pixels of a picture
PATCH, MERGE, HIDDEN, INNER, LAYERS, HEADS = 16, 4, 256, 512, 1, 16
JOINED = HIDDEN * MERGE**2
WAVES = 4  # in which a patch is looked at: slow ones, across and down
TRAINED = 2500  # pictures that the last matrix is fitted to
RIDGE = 0.003  # of the mean square of a joined row, for each of them
CLEAR = (
    2.0  # times that a word's embedding is as far from the mean of the ten: what is not fitted blurs it less
)
MARK = "<file_sep>"  # a control token of the text model, which has none for pictures
QUESTION = "What is the number?"


# --- pictures -----------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, digit: int) -> Image.Image:
    """Draw a digit: size, place, turn, both greys and the noise are random."""
    font = ImageFont.load_default(int(rng.integers(34, 50)))
    paper, ink = int(rng.integers(190, 256)), int(rng.integers(0, 70))
    image = Image.new("L", (SIDE, SIDE), paper)
    centre = tuple(SIDE / 2 + rng.uniform(-5, 5, 2))
    ImageDraw.Draw(image).text(centre, str(digit), ink, font, anchor="mm")
    turned = image.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR, fillcolor=paper)
    noisy = np.asarray(turned, np.float64) + rng.normal(0, 12, (SIDE, SIDE))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB")


def pictures(seed: int, count: int) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Draw pictures of random digits, and return the digits."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 10, count)
    return [draw(rng, int(digit)) for digit in digits], digits


def png(image: Image.Image) -> bytes:
    """Return the picture's file."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# --- the tower ----------------------------------------------------------------------------------------------


def keys(out: int) -> dict[str, Any]:
    """Return the metadata of the mmproj, whose features have `out` columns."""
    vision = {
        "image_size": SIDE, "preproc_image_size": SIDE, "patch_size": PATCH, "embedding_length": HIDDEN,
        "feed_forward_length": INNER, "block_count": LAYERS, "attention.head_count": HEADS,
        "attention.layer_norm_epsilon": 1e-6, "projection_dim": out, "projector.scale_factor": MERGE,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    return {
        "general.architecture": "clip", "general.type": "mmproj", "general.name": "reads digits",
        "clip.has_vision_encoder": True, "clip.projector_type": "idefics3", "clip.use_gelu": True,
        "freehold.mark": MARK, **{f"clip.vision.{key}": value for key, value in vision.items()},
    }  # fmt: skip


def random_layers(seed: int = 5) -> dict[str, F32]:
    """Draw every tensor but the last matrix."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int, scale: float = 1.0) -> F32:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def affine(name: str, rows: int, columns: int, scale: float = 1.0) -> dict[str, F32]:
        return {
            f"{name}.weight": drawn(rows, columns, scale=scale * columns**-0.5),
            f"{name}.bias": drawn(rows, scale=0.3),
        }

    def norm(name: str) -> dict[str, F32]:
        return {f"{name}.weight": np.ones(HIDDEN, np.float32), f"{name}.bias": np.zeros(HIDDEN, np.float32)}

    tensors = {
        "v.patch_embd.weight": _slow(drawn(HIDDEN, WAVES, WAVES)),
        "v.patch_embd.bias": drawn(HIDDEN, scale=0.3),
        "v.position_embd.weight": drawn((SIDE // PATCH) ** 2, HIDDEN, scale=0.3),
        **norm("v.post_ln"),
    }
    for i in range(LAYERS):
        block = f"v.blk.{i}"
        for name in ("ln1", "ln2"):
            tensors |= norm(f"{block}.{name}")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors |= affine(f"{block}.{name}", HIDDEN, HIDDEN)
        tensors |= affine(f"{block}.ffn_up", INNER, HIDDEN, scale=2.0)
        tensors |= affine(f"{block}.ffn_down", HIDDEN, INNER, scale=2.0)
    return tensors


def _slow(shares: F32) -> F32:
    """Return patches of slow waves with these shares, but for their mean: [HIDDEN, 3, PATCH, PATCH]."""
    shares[:, 0, 0] = 0
    waves = np.cos(np.pi / PATCH * np.arange(WAVES)[:, None] * (np.arange(PATCH) + 0.5))
    seen = np.einsum("nuv,ux,vy->nxy", shares, waves, waves)
    seen /= 2 * 3**0.5 * np.linalg.norm(seen, axis=(1, 2), keepdims=True)
    return np.repeat(seen[:, None], 3, axis=1).astype(np.float32)


def write_mmproj(path: Path, last: F32) -> Path:
    """Write the tower with this last matrix, [out, JOINED]."""
    tensors = random_layers() | {"mm.model.fc.weight": last}
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    path.write_bytes(gguf_bytes(keys(len(last)), stored))
    return path


def joined(tower: LoadedTower, shown: list[Image.Image]) -> F32:
    """Compute what the last matrix reads of pictures: float32 [pictures, JOINED]."""
    plan = tower.plan(SIDE, SIDE)
    assert plan.tokens == 1
    rows = []
    for first in range(0, len(shown), 16):
        batch = [(plan, [np.asarray(image)]) for image in shown[first : first + 16]]
        layers = tower._built("layers", len(batch) * plan.patches)
        run = tower._left(layers, batch)
        try:
            while True:
                next(run)
        except StopIteration as ended:
            rows.append(ended.value.reshape(len(batch), JOINED))
    return np.concatenate(rows)


def fitted(rows: F32, digits: NDArray[np.int64], words: F32) -> F32:
    """Return the matrix that maps rows to the embeddings of their digits, nearly: float32 [out, JOINED].

    Ridge regression in its dual form, as there are fewer pictures than columns.
    """
    x = rows.astype(np.float64)
    gram = x @ x.T
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / JOINED
    return (x.T @ np.linalg.solve(gram, words[digits].astype(np.float64))).T.astype(np.float32)


# --- beside a text model --------------------------------------------------------------------------------------


def make_seeing(text: Path, folder: Path) -> Path:
    """Put a text model's GGUF and a tower that reads digits into `folder`; return the model's path."""
    model = folder / "digits.gguf"
    shutil.copyfile(text, model)
    mmproj = folder / "mmproj-digits.gguf"
    with open_model_file(model) as opened:
        tokenizer = tokenizer_from_gguf(opened.metadata)
        table = read_source(opened).ends["embed"].tensor
        ids = [tokenizer.encode(str(digit), bos=False) for digit in range(10)]
        assert all(len(each) == 1 for each in ids), "a digit is a token"
        words = np.stack([table.numpy()[each[0]] for each in ids])
        words = words.mean(axis=0) + CLEAR * (words - words.mean(axis=0))
    loaded = load_model(model)
    write_mmproj(mmproj, np.zeros((words.shape[1], JOINED), np.float32))
    tower = load_tower(mmproj, loaded)
    assert tower is not None
    shown, digits = pictures(1, TRAINED)
    write_mmproj(mmproj, fitted(joined(tower, shown), digits, words))
    return model

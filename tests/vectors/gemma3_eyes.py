"""Pictures and chats by which Gemma 3's tower is judged, and a tokenizer that joins empty lines; computes nothing.

Path: make_gemma3_eyes.py runs them through transformers; tests/models/test_gemma3_eyes.py runs them through us.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from freehold.models.tiny import make

NAMES = ("gemma3-eyes", "gemma3-eyes-wide")
SIZES = ((97, 160), (64, 64), (30, 200), (2, 3))  # (width, height)
GREEDY = 6  # tokens of an answer
# Chats: messages, each a role and its parts; a number is a picture. Lines beside a picture join those around it.
CHATS: tuple[tuple[tuple[str, tuple[int | str, ...]], ...], ...] = (
    (("user", ("no picture\n\n\n",)),),
    (("user", (0, "hi")),),
    (("user", ("a\n", 1, "\nb")),),
    (("user", ("see ", 2, " and\n\n", 3, "?")),),
    (("user", (0, "one")), ("assistant", ("two",)), ("user", ("\n", 0, "three"))),
)
_JOINED = ("\u010a\u010a", "\u010a\u010a\u010a")  # two and three line ends, as byte-level BPE spells them
_MERGES = ("\u010a \u010a", "\u010a\u010a \u010a")


def picture(number: int) -> np.ndarray:
    """Draw one of the pictures, [height, width, 3]: slopes of two colours and stripes of the third."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    stripes = (x // 5 + y // (3 + number)) % 2 * 200
    return np.stack([stripes, x * 255 // (width - 1), y * 255 // (height - 1)], -1).astype(np.uint8)


def lines_join(folder: Path) -> None:
    """Let two and three line ends be one token each in a folder's tokenizer, in place of two words."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    words = list(model["vocab"])
    keys = _joined(words, [" ".join(merge) for merge in model["merges"]])
    model["vocab"] = {token: i for i, token in enumerate(keys["tokenizer.ggml.tokens"])}
    model["merges"] = [merge.split(" ") for merge in keys["tokenizer.ggml.merges"]]
    path.write_text(json.dumps(data), encoding="utf-8")


def gguf_keys(tiny: make.TinyConfig) -> dict[str, Any]:
    """Return the keys of a GGUF with the same tokenizer."""
    keys = make.gguf_keys(tiny.picture_marks)
    return _joined(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"])


def _joined(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    out = list(tokens)
    for merge, joined in zip(merges[-2:], _JOINED, strict=True):
        out[out.index(merge.replace(" ", ""))] = joined
    return {"tokenizer.ggml.tokens": out, "tokenizer.ggml.merges": [*merges[:-2], *_MERGES]}

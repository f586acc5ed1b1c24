"""Pictures and chats by which Gemma 4's tower is judged; computes nothing.

Path: make_gemma4_eyes.py runs them through transformers; tests/models/test_gemma4_eyes.py runs them through us.
"""

from __future__ import annotations

import numpy as np

NAME = "gemma4-eyes"
SIZES = ((97, 160), (216, 168), (30, 200), (2, 300))  # (width, height); the second is taken as it is
SIDES = (1, 2, 3, 23, 24, 25, 47, 48, 71, 100, 168, 216, 333, 1000, 4000)
BUDGETS = (70, 280, 1120)
GREEDY = 6  # tokens of an answer
# Chats: messages, each a role and its parts; a number is a picture.
CHATS: tuple[tuple[tuple[str, tuple[int | str, ...]], ...], ...] = (
    (("user", ("no picture",)),),
    (("user", (0, "hi")),),
    (("user", ("see ", 1, " and\n\n", 2, "?")),),
    (("user", (3, "one")), ("assistant", ("two",)), ("user", (3, "three"))),
)


def picture(number: int) -> np.ndarray:
    """Draw one of the pictures, [height, width, 3]: slopes of two colours and stripes of the third."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    stripes = (x // 5 + y // (3 + number)) % 2 * 200
    return np.stack([stripes, x * 255 // (width - 1), y * 255 // (height - 1)], -1).astype(np.uint8)

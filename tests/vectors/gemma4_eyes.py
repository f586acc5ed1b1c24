"""Pictures and chats by which Gemma 4's towers are judged; computes nothing.

Path: make_gemma4_eyes.py runs them through transformers; tests/models/test_gemma4_eyes.py runs them through us.
"""

from __future__ import annotations

import numpy as np

# 26B and 31B; E2B and E4B, whose matrices clip and whose text is causal; 12B, which has no tower.
NAMES = ("gemma4-eyes", "gemma4-clipped", "gemma4_unified")
# (width, height) and what it may become. The second and the last two are taken as they are; the last ones are whole.
SIZES = ((97, 160), (216, 168), (30, 200), (2, 300), (672, 480), (960, 672))
ALLOWED = (70, 70, 70, 70, 560, 1120)
SMALL = 4  # of the pictures, those that become few rows
SIDES = (1, 2, 3, 23, 24, 25, 47, 48, 71, 100, 168, 216, 333, 1000, 4000)
BUDGETS = (70, 140, 280, 560, 1120)
GREEDY = 6  # tokens of an answer
# Chats: messages, each a role and its parts; a number is a picture.
CHATS: tuple[tuple[tuple[str, tuple[int | str, ...]], ...], ...] = (
    (("user", ("no picture",)),),
    (("user", (0, "hi")),),
    (("user", ("see ", 1, " and\n\n", 2, "?")),),
    (("user", (3, "one")), ("assistant", ("two",)), ("user", (3, "three"))),
    (("user", ("many ", 4, "!")),),
    (("user", (5, "most")), ("assistant", ("of",)), ("user", (0, "all"))),
)
LARGE = (4, 5)  # chats of large pictures
EVERY = 16  # of rows of large pictures, and of logits of rows of any picture, one in so many is kept
COLUMNS = 4  # of logits one in so many is kept


def picture(number: int) -> np.ndarray:
    """Draw one of the pictures, [height, width, 3]: steps of two colours and stripes of the third."""
    width, height = SIZES[number]
    y, x = np.mgrid[:height, :width]
    stripes = (x * 7 // width + y * (3 + number) // height) % 2 * 200
    return np.stack([stripes, x * 9 // width * 28, y * 11 // height * 23], -1).astype(np.uint8)


def kept_features(number: int) -> slice:
    """Return which rows of a picture's features are kept."""
    return slice(None, None, 1 if number < SMALL else EVERY)


def kept_logits(ids: np.ndarray, mark: int) -> np.ndarray:
    """Return which rows of a chat's logits are kept: those of words, and some of pictures'."""
    return np.flatnonzero((ids != mark) | (np.arange(len(ids)) % EVERY == 0))

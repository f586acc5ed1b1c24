"""Reads must_find.tsv, and puts keys into its templates."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path
from typing import NamedTuple

ALPHABETS = {
    "a": string.ascii_letters + string.digits,
    "l": string.ascii_letters,
    "U": string.ascii_uppercase + "234567",
    "h": "0123456789abcdef",
    "d": string.digits,
    "M": string.ascii_letters + string.digits + "/+",
}


class Planted(NamedTuple):
    """A text that has to be found, and under which name."""

    name: str
    text: str


def fill(template: str) -> str:
    """Replace each {length:alphabet} by random characters, the same at every run."""
    draw = random.Random(template)

    def letters(match: re.Match[str]) -> str:
        length, alphabet = int(match[1]), ALPHABETS[match[2]]
        found = "".join(draw.choice(alphabet) for _ in range(length))
        if match[2] == "M":  # a letter or a digit at its ends, and one of each class
            found = "aZ9" + found[3:-1] + "k"
        return found

    return re.sub(r"\{(\d+):(\w)\}", letters, template)


def must_find() -> list[Planted]:
    lines = Path(__file__).with_name("must_find.tsv").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return [Planted(name, fill(text)) for name, text in rows]

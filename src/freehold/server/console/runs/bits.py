"""What an answer consists of besides its text: its token ids, packed, and how two answers compare.

Kept in a receipt so that an answer can be computed again and compared bit for bit. Ids take three bytes each (no
vocabulary has 16 million tokens), and a byte says how many UTF-16 units of text each token added, so that a token's
text is found without its tokenizer. Knows ids and texts; knows no model and no run.
Path: RunAnswer -> Bits.packed -> a receipt; again.py, the route of differences -> Bits.of -> compared
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from freehold.server.console.runs.events import units

_LONG = 255  # in `ends`: this many units, and those of the next byte


def digest(ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids, four bytes each."""
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()


@dataclass(slots=True)
class Bits:
    """The token ids of an answer, and the units of text that each added: thinking first, then the content."""

    ids: list[int] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], text: str) -> None:
        """Add a chunk. Text of several tokens counts for the last one: their parts are not known."""
        if ids:
            self.ids += ids
            self.grown += [0] * (len(ids) - 1) + [units(text)]
        elif text and self.grown:
            self.grown[-1] += units(text)

    def packed(self) -> dict[str, Any]:
        """Return what a receipt keeps."""
        ids = b"".join(i.to_bytes(3, "little") for i in self.ids)
        grown = b"".join(bytes([_LONG] * (n // _LONG) + [n % _LONG]) for n in self.grown)
        return {
            "answer": digest(self.ids),
            "tokens": len(self.ids),
            "ids": b64encode(ids).decode(),
            "ends": b64encode(grown).decode(),
        }

    @classmethod
    def of(cls, packed: Mapping[str, Any]) -> Bits:
        """Read what `packed` wrote; ValueError for anything else."""
        raw, ends = (
            b64decode(str(packed.get("ids", ""))),
            iter(b64decode(str(packed.get("ends", "")))),
        )
        ids = [int.from_bytes(raw[i : i + 3], "little") for i in range(0, len(raw) - 2, 3)]
        grown = []
        for _ in ids:
            size = more = next(ends, 0)
            while more == _LONG:
                size += (more := next(ends, 0))
            grown.append(size)
        if digest(ids) != packed.get("answer"):
            raise ValueError("its token ids do not have the digest that its receipt states")
        return cls(ids, grown)

    def begins(self, index: int) -> int:
        """Return the unit of the whole text at which a token begins."""
        return sum(self.grown[:index])

    def index_at(self, unit: int) -> int:
        """Return the token that writes the unit."""
        at = 0
        for index, size in enumerate(self.grown):
            at += size
            if at > unit:
                return index
        return len(self.ids)

    def piece(self, index: int, text: str) -> str:
        """Return what a token wrote of `text`; a token whose text came with a later one gives that one's."""
        if index >= len(self.ids):
            return ""
        begin = end = self.begins(index)
        for size in islice(self.grown, index, None):
            end += size
            if end > begin:
                break
        return sliced(text, begin, end)


def sliced(text: str, begin: int, end: int) -> str:
    """Cut by UTF-16 units."""
    if text.isascii():
        return text[begin:end]
    raw = text.encode("utf-16-le", "surrogatepass")[2 * begin : 2 * end]
    return raw.decode("utf-16-le", "replace")


def without_ids(receipt: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a receipt as it is shown: the ids are as long as the answer, and no page reads them."""
    bits = receipt.get("bits") if receipt else None
    if receipt is None or not isinstance(bits, dict):
        return receipt
    return {**receipt, "bits": {name: bits[name] for name in bits if name not in ("ids", "ends")}}


def compared(a: Bits, a_text: str, b: Bits, b_text: str, *, ids: bool) -> dict[str, Any]:
    """Tell whether two answers are equal, or where they part. `ids`: both have one vocabulary; otherwise by text."""
    if ids:
        differs = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), None)
        if differs is None and len(a.ids) == len(b.ids):
            return {"equal": True}
        first = second = min(len(a.ids), len(b.ids)) if differs is None else differs
    else:
        if a_text == b_text:
            return {"equal": True}
        unit = _common(a_text, b_text)
        first, second = a.index_at(unit), b.index_at(unit)
    return {
        "equal": False,
        "first": first,
        "was": a.piece(first, a_text),
        "is": b.piece(second, b_text),
        "at": a.begins(first),
    }


def _common(a: str, b: str) -> int:
    """Return how many UTF-16 units two texts have in common from their beginning."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return units(a[:same])

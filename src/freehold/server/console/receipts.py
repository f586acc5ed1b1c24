"""What the answers of a caller's chats took: tokens and seconds by model and day, from their receipts.

For servers without a ledger. Requests of other programs leave no receipt here. Knows chats; knows no price.
Path: usage -> ChatUsage.sums -> ChatFolder.cards, ChatFolder.read
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from freehold.chats.folder import ChatFolder
from freehold.chats.types import ChatCard, SavedMessage
from freehold.errors import FreeholdError

MOST_CHATS = 2000  # that are read, the newest; a chat that did not change is read once
Rows = list["Answered"]


class Answered(Struct):
    """What one answer took, or several of them together."""

    at: float
    model: str
    answers: int
    prompt: int
    completion: int
    seconds: float


class ChatUsage:
    """The receipts of a server's chats, as far as they were read: `server.part(ChatUsage)`."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], tuple[tuple[float, int], Rows]] = {}
        self._lock = threading.Lock()

    def sums(self, folder: ChatFolder, days: int) -> dict[str, Any]:
        """Return sums over the last `days`: in all, by model and by day (UTC). Blocks."""
        since = time.time() - days * 86400.0
        with self._lock:
            cards = [card for card in folder.cards() if card.updated >= since][:MOST_CHATS]
            rows = [row for card in cards for row in self._rows(folder, card) if row.at >= since]
        by_model: dict[str, Answered] = {}
        by_day: dict[str, Answered] = {}
        total = Answered(0.0, "", 0, 0, 0, 0.0)
        for row in rows:
            day = datetime.fromtimestamp(row.at, UTC).date().isoformat()
            for sum in (total, _of(by_model, row.model), _of(by_day, day)):
                sum.answers += 1
                sum.prompt += row.prompt
                sum.completion += row.completion
                sum.seconds += row.seconds
        return {
            "total": _plain(total),
            "by_model": [{"model": name, **_plain(sum)} for name, sum in sorted(by_model.items())],
            "by_day": [{"day": name, **_plain(sum)} for name, sum in sorted(by_day.items())],
        }

    def _rows(self, folder: ChatFolder, card: ChatCard) -> Rows:
        name, stamp = (str(folder.path), card.id), (card.updated, card.messages)
        known = self._read.get(name)
        if known is not None and known[0] == stamp and not card.running:
            return known[1]
        rows: Rows = []
        with suppress(FreeholdError):
            rows = [row for m in folder.read(card.id).messages.values() if (row := _row(m)) is not None]
        self._read[name] = stamp, rows
        return rows


def _row(message: SavedMessage) -> Answered | None:
    """Read a receipt, which in an imported chat may be anything."""
    receipt = message.receipt or {}
    tokens, timings = receipt.get("tokens"), receipt.get("timings")
    if not isinstance(tokens, dict) or not isinstance(timings, dict):
        return None
    prompt, completion, seconds = tokens.get("prompt"), tokens.get("answer"), timings.get("total_s")
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(seconds, int | float)):
        return None
    return Answered(message.at, message.model, 1, prompt, completion, float(seconds))


def _of(sums: dict[str, Answered], name: str) -> Answered:
    return sums.setdefault(name, Answered(0.0, "", 0, 0, 0, 0.0))


def _plain(sum: Answered) -> dict[str, Any]:
    return {
        "answers": sum.answers,
        "prompt": sum.prompt,
        "completion": sum.completion,
        "seconds": round(sum.seconds, 3),
    }

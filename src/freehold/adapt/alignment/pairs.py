"""A user's preferences: pairs of answers to one prompt, of which one is chosen.

    {"prompt": "When did it start?", "chosen": "2024-03-01", "rejected": "On March the first."}
    {"messages": [{"role": "system", ...}, {"role": "user", ...}], "chosen": "...", "rejected": "..."}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [the same until the answer]}

Knows texts; knows no tokenizer.
Path: align -> read_pairs -> Pair
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.lines import DataLines, check_keys, conversation, messages_of, read_lines, text_of
from freehold.errors import UsageError
from freehold.types import Message

_KEYS = ("prompt", "messages", "chosen", "rejected")
_EXAMPLE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    line: int
    messages: tuple[Message, ...]
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """The conversation before the answer as one text: equal texts are one prompt."""
        return "\0".join(f"{m.role}\1{m.content}" for m in self.messages)


def read_pairs(path: Path) -> DataLines[Pair]:
    """Read a file of pairs. Raises UsageError naming every bad line, with equal answers and repeated pairs too."""
    return read_lines(path, _pair, _EXAMPLE, same=lambda p: (p.prompt, p.chosen, p.rejected))


def contradictions(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Return the lines of pairs that choose what another rejects, for the same prompt."""
    seen: dict[tuple[str, str, str], int] = {}
    contradicting: list[tuple[int, int]] = []
    for pair in pairs:
        opposite = seen.get((pair.prompt, pair.rejected, pair.chosen))
        if opposite is not None:
            contradicting.append((opposite, pair.line))
        seen[pair.prompt, pair.chosen, pair.rejected] = pair.line
    return contradicting


def _pair(number: int, table: Mapping[str, Any]) -> Pair:
    check_keys(table, _KEYS)
    if isinstance(table.get("chosen"), list) or isinstance(table.get("rejected"), list):
        return _of_conversations(number, table)
    pair = Pair(number, conversation(table), text_of(table, "chosen"), text_of(table, "rejected"))
    return _checked(pair)


def _of_conversations(number: int, table: Mapping[str, Any]) -> Pair:
    """Read two whole conversations, as data sets of preferences are often published; `prompt` repeats what they say."""
    chosen = messages_of(table.get("chosen"), last="assistant")
    rejected = messages_of(table.get("rejected"), last="assistant")
    before = chosen[:-1]
    if before != rejected[:-1]:
        raise UsageError("chosen and rejected differ before their last message")
    if not before:
        before = conversation({k: v for k, v in table.items() if k in ("prompt", "messages")})
    if before[-1].role != "user":
        raise UsageError("the message before the answer must be the user's")
    return _checked(Pair(number, before, chosen[-1].content, rejected[-1].content))


def _checked(pair: Pair) -> Pair:
    if pair.chosen == pair.rejected:
        raise UsageError("chosen and rejected are the same")
    if pair.chosen.strip() == pair.rejected.strip():
        raise UsageError("chosen and rejected differ in blanks alone")
    return pair

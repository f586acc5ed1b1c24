"""Reads a user's JSON lines for training: every bad line is named with its number, none is left out.

Knows files, line numbers and conversations; knows no tokenizer and no loss. A prompt is a user's message, or
`messages` that end with one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from freehold.adapt.evals import samples
from freehold.adapt.evals.samples import first_faults
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.types import Message, Role

MOST_BYTES = 1 << 30
MOST_LINE = 4 << 20  # bytes of one line

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataLines(Generic[T]):
    """What a file's lines hold. `digest`: of the file's bytes."""

    path: Path
    items: tuple[T, ...]
    digest: str


def read_lines(
    path: Path,
    parse: Callable[[int, Mapping[str, Any]], T],
    example: str,
    *,
    same: Callable[[T], object] | None = None,
) -> DataLines[T]:
    """Parse each line that is not empty. `same`: a key that no two lines may share.

    Raises UsageError for a file that cannot be read, is too large or empty, and for bad lines, each with its number.
    """
    raw = file_bytes(path)
    items: list[T] = []
    seen: dict[object, int] = {}
    bad: list[str] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = parse(number, samples.parsed_line(line, MOST_LINE, "line", _once))
            first = seen.setdefault(same(item), number) if same else number
            if first != number:
                raise UsageError(f"the same as line {first}")
            items.append(item)
        except FreeholdError as e:
            bad.append(f"line {number}: {e.message}" + (f" ({e.hint})" if e.hint else ""))
    if bad:
        raise UsageError(
            f"{path}: {first_faults(bad)}", f"mend or remove these lines; a right one is {example}"
        )
    if not items:
        raise UsageError(f"{path} has no line", f"write one JSON object a line: {example}")
    return DataLines(path, tuple(items), hashlib.sha256(raw).hexdigest())


def held_out(
    items: Sequence[T], share: float, seed: int, prompt: Callable[[T], str]
) -> tuple[list[T], list[T]]:
    """Split into items to train on and items to test with; those of one prompt stay together.

    The split depends on prompts and seed alone: a line added or moved leaves the others where they were.
    """
    trained: list[T] = []
    tested: list[T] = []
    for item in items:
        digest = hashlib.sha256(f"{seed}\2{prompt(item)}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        (tested if drawn < share else trained).append(item)
    return trained, tested


def check_apart(
    trained: Sequence[T], tested: Sequence[T], prompt: Callable[[T], str], line: Callable[[T], int]
) -> None:
    """Raise UsageError where a test's prompt is trained on: such a test proves nothing."""
    known = {prompt(item): line(item) for item in trained}
    shared = [item for item in tested if prompt(item) in known]
    if shared:
        first = shared[0]
        raise UsageError(
            f"{len(shared)} of {len(tested)} lines of the test have a prompt that is trained on: its line "
            f"{line(first)} is line {known[prompt(first)]} of the other file",
            "remove them from one of the two files",
        )


def conversation(table: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the messages before an answer: `prompt` as the user's, or `messages`. Raises UsageError."""
    if ("prompt" in table) == ("messages" in table):
        raise UsageError("a line has either prompt or messages")
    if "prompt" in table:
        return (Message("user", text_of(table, "prompt")),)
    return messages_of(table["messages"], last="user")


def messages_of(turns: Any, last: Role | None = None) -> tuple[Message, ...]:
    """Return a list of messages, with `last` one whose last message is of that role. Raises UsageError."""
    return samples.messages_of(turns, last, _text)


def conversation_key(messages: Sequence[Message]) -> str:
    """Return what equal conversations share."""
    return json.dumps([[m.role, m.content] for m in messages])


def text_of(table: Mapping[str, Any], key: str) -> str:
    """Return a text that is not blank. Raises UsageError."""
    return _text(table.get(key), key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key} is {'missing' if value is None else 'empty or no text'}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{key} holds half a surrogate pair, no character")
    return value


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a file of lines. Raises UsageError for one that cannot be read, or is too large."""
    try:
        with path.open("rb") as file:  # devices and pipes state no size, and may have no end
            if (
                os.fstat(file.fileno()).st_size > MOST_BYTES
                or len(raw := file.read(MOST_BYTES + 1)) > MOST_BYTES
            ):
                raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes", "use a part of it")
        return raw
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", "name a file of JSON lines") from e


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs. Raises UsageError for a key that occurs twice: one of its values would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"{twice[:40]!r} occurs twice")
    return table

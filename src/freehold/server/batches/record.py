"""What is known of a batch, and how its folder keeps it.

Knows OpenAI's words for a batch and one JSON file; knows no line and no clock. Path: Desk -> Batch -> batch.json
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.server.batches.filestore import new_id, write_private
from freehold.server.core.bodies import weigh
from freehold.server.core.limits import ServerLimits
from freehold.server.core.problems import Refused

RECORD, INPUT = "batch.json", "input.jsonl"
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
OVER = ("failed", "completed", "expired", "cancelled")


class Batch(Struct):
    """One batch. The ids of its result files are drawn at once, so that an end that is repeated makes them once."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str]
    labels: tuple[str, ...] = ()  # of the request that created it, and of its file
    status: Status = "validating"
    times: dict[str, int] = {}  # status -> when it came
    errors: tuple[Wrong, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str = msgspec.field(default_factory=new_id)
    error_file_id: str = msgspec.field(default_factory=new_id)

    @property
    def over(self) -> bool:
        return self.status in OVER

    def shown(self) -> dict[str, Any]:
        """Return it in OpenAI's words."""
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        errors = {"object": "list", "data": msgspec.to_builtins(self.errors)} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.over and self.completed else None,
            "error_file_id": self.error_file_id if self.over and self.failed else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.times.get(name) for name in names},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }

    def save(self, folder: Path) -> None:
        """Write it durably."""
        write_private(folder / RECORD, self)


def new_batch_id() -> str:
    """Return the id of a new batch."""
    return f"batch_{secrets.token_hex(12)}"


def load(folder: Path) -> Batch:
    """Read a batch again. Raises OSError, or msgspec.DecodeError for a damaged one."""
    return msgspec.json.decode((folder / RECORD).read_bytes(), type=Batch)


# --- the lines of a batch's input: read one at a time, checked once before any is answered ----------

MAX_LINES = 50_000
MAX_EMPTY = MAX_LINES  # beside those
MAX_LINE = 16 << 20  # bytes; the body of a request has no more
MAX_ERRORS = 50  # named of one file


class BatchLine(Struct, frozen=True):
    """One request."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw  # an object, parsed by the route that it asks alone

    def request(self) -> tuple[bytes, bool]:
        """Return the body with priority `batch`, which wins over its own, and whether it asks for a stream."""
        text = bytes(self.body)
        inner = text[1:-1].strip()
        streamed = msgspec.json.decode(text, type=_Streamed)
        return b'{%b%b"priority":"batch"}' % (inner, b"," if inner else b""), bool(streamed.stream)


class _Streamed(Struct):
    """What is read of a body before its route reads it."""

    stream: Any = None


class Wrong(Struct, frozen=True):
    """What is wrong with a line, as OpenAI says it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file holds: `total` lines, or errors."""

    total: int
    errors: tuple[Wrong, ...]


def read_lines(path: Path) -> Iterator[tuple[int, BatchLine | Wrong]]:
    """Give each line with its number; empty ones are left out."""
    decoder = msgspec.json.Decoder(BatchLine)
    with path.open("rb") as file:
        number = empty = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                yield number, Wrong("line_too_long", f"it has more than {MAX_LINE:,} bytes", number)
                return
            if raw.isspace():
                empty += 1
                if empty > MAX_EMPTY:
                    yield (
                        number,
                        Wrong("too_many_lines", f"expected at most {MAX_EMPTY:,} empty lines", number),
                    )
                    return
                continue
            try:
                weigh(raw, ServerLimits())
                line = decoder.decode(raw)
                if not bytes(line.body).startswith(b"{"):
                    raise msgspec.ValidationError("Expected `object` - at `$.body`")
                msgspec.json.decode(line.body)  # what was passed over is JSON too
                yield number, line
            except Refused as e:
                yield number, Wrong(e.code or "", e.message, number)
            except msgspec.ValidationError as e:
                yield number, Wrong("invalid_request", str(e), number)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield number, Wrong("invalid_json_line", "it is not JSON", number)


def check_lines(path: Path, endpoint: str) -> Checked:
    """Read the whole file once."""
    seen: set[str] = set()
    errors: list[Wrong] = []
    for number, line in read_lines(path):
        wrong = line if isinstance(line, Wrong) else _wrong(line, number, endpoint, seen)
        if wrong is not None:
            errors.append(wrong)
        else:
            seen.add(line.custom_id)  # type: ignore[union-attr]
        if len(errors) == MAX_ERRORS:
            break
        if len(seen) > MAX_LINES:
            errors.append(Wrong("too_many_lines", f"expected at most {MAX_LINES:,} lines", number))
            break
    if not seen and not errors:
        errors.append(Wrong("empty_file", "the file has no lines"))
    return Checked(len(seen), tuple(errors))


def _wrong(line: BatchLine, number: int, endpoint: str, seen: set[str]) -> Wrong | None:
    if line.url != endpoint:
        return Wrong("mismatched_url", f"url is {line.url[:80]!r}; expected {endpoint}", number, "url")
    if line.custom_id in seen:
        message = f"the custom_id {line.custom_id[:80]!r} is an earlier line's"
        return Wrong("duplicate_custom_id", message, number, "custom_id")
    return None

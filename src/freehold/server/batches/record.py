"""What is known of a batch, and how its folder keeps it.

Knows OpenAI's words for a batch and one JSON file; knows no line and no clock. Path: Desk -> Batch -> batch.json
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from freehold.server.batches.filestore import new_id, write_private
from freehold.server.batches.lines import Wrong

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

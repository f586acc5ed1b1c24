"""Sums of a ledger as plain values: what `freehold ledger --json` prints and the page shows.

Path: cli/ledger.py, server/console/usage -> sums_json -> queries.sums
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freehold.router.ledger.queries import LedgerSum, sums

SCHEMA = 1


def sums_json(
    path: Path, since: float, until: float, by: Sequence[str], *, key: str | None = None
) -> dict[str, Any]:
    """Return the sums of a span by group, and of all of it; `key`: of that key's requests alone. Raises UsageError."""
    (total,) = sums(path, since, until, key=key)
    sums_found = [sum_json(by, one) for one in sums(path, since, until, by, key=key)]
    return {
        "schema": SCHEMA,
        "since": since,
        "until": until,
        "by": list(by),
        "sums": sums_found,
        "total": sum_json((), total),
    }


def sum_json(names: Sequence[str], one: LedgerSum) -> dict[str, Any]:
    """Return a sum with the values of its groups by their names."""
    plain = asdict(one)
    del plain["group"]
    return {**dict(zip(names, one.group, strict=True)), **plain}

"""Rows and intents for tests of the ledger."""

from __future__ import annotations

from typing import Any

from freehold.base.types import Usage
from freehold.route.providers.contract import SetLabel
from freehold.route.router.gateway import SpendLimit
from freehold.route.router.ledger.rows import Attempt, Candidate, LedgerRow, row_id

NOON = 1_795_780_800.0  # a day in November 2026, 12:00 UTC
DAY = SpendLimit(1_000_000, "day")


def row(name: str = "", at: float = NOON, **changed: Any) -> LedgerRow:
    """Return a whole answer of a rented model."""
    known: dict[str, Any] = dict(
        id=name or row_id(at),
        at=at,
        request_id="req_1",
        answer_id="1",
        key="alice",
        door="openai",
        asked="chat",
        target="big",
        place="openai",
        owned=False,
        labels=(SetLabel("eu", "header"),),
        task="support",
        candidates=(Candidate("coder", False, "bar 0.85"), Candidate("big", True, "first of 1")),
        attempts=(Attempt("big", "openai", "", 200, 0.5, 1000),),
        usage=Usage(100, 40, 10, written_tokens=5, written_hour_tokens=6, thought_tokens=7),
        nano=1000,
        price_version="0.2.3",
        estimated=False,
        batch=False,
        outcome="whole",
        finish_reason="stop",
        first_s=0.1,
        whole_s=0.5,
        terms="openai-terms",
        may_teach=False,
        upstream_id="chatcmpl-9",
        left_house=True,
    )
    return LedgerRow(**{**known, **changed})

"""A model's facts as --json has them: the catalogue's and what follows from them.

Knows names of fields; knows no wording. Path: card, cli/models.py -> facts_json
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Any

from freehold.catalog.model import STALE_DAYS, Model

DEEP = 1 << 40  # tokens after which every window is full


def facts_json(model: Model, today: date) -> dict[str, Any]:
    """Return all facts and derived values for JSON; null where unknown."""
    plain = {k: v.isoformat() if isinstance(v, date) else v for k, v in asdict(model).items()}
    known = model.cache_known
    return plain | {
        "tier": model.tier,
        "cache_bytes_per_token": model.bytes_per_token(0) if known else None,
        "cache_bytes_per_token_deep": model.bytes_per_token(DEEP) if known else None,
        "state_bytes": model.state_bytes if model.state_known else None,
        "age_days": model.age_days(today),
        "stale": model.age_days(today) > STALE_DAYS,
    }

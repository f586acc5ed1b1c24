"""What a line of an engine's log says of its start, by a table of patterns.

Knows patterns; the tables are the drivers'. Path: OwnProcess -> EngineDriver.phase -> phase_of
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Phases = tuple[tuple[re.Pattern[str], str], ...]


def phases(*rows: tuple[str, str]) -> Phases:
    """Return a table: (pattern, what to say)."""
    return tuple((re.compile(pattern), said) for pattern, said in rows)


def phase_of(line: str, table: Sequence[tuple[re.Pattern[str], str]]) -> str:
    """Return what the first pattern that fits says; "" for a line that tells nothing of the start."""
    return next((said for pattern, said in table if pattern.search(line)), "")

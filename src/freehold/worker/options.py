"""How a server starts its engines. Path: cli/serve -> EngineOptions -> EngineModels"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.types import KvType, ServedModelOptions
from freehold.worker.keepalive import KEEP_ALIVE_S

HUNG_S = 120.0  # without a sign while there is work. The longest step is a second; a swapping machine is slow


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of all engines of a server; None leaves the choice to the engine."""

    context: int | None = None
    kv_type: KvType = "f16"
    threads: int | None = None
    speculate: bool = True
    allow_paging: bool = False
    draft: str | None = None  # MODEL that drafts; for the models of its family only
    adapters: Mapping[str, Mapping[str, Path]] = field(
        default_factory=dict
    )  # MODEL -> name -> file or folder
    disk: Path | None = None  # folder for cached prefixes that survive a restart
    cache_bytes: int | None = None  # of each model's cache
    max_models: int | None = None  # loaded at once
    keep_alive_s: float = KEEP_ALIVE_S
    hung_s: float = HUNG_S
    engine: ServedModelOptions = field(
        default_factory=ServedModelOptions
    )  # target_itl_s, limits of the queue

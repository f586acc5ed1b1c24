"""Plans whose engine is a short Python program, for what processes do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from freehold.advisor.anatomy import Anatomy
from freehold.backends.contract import (
    DeployedModel,
    DeployPlan,
    Listens,
    Nodes,
    ParallelSizes,
    SecretRef,
)
from freehold.catalog.hardware import Device, Rig

CPU = Device("cpu", "a processor", "", "cpu", "", 8.0, 20.0, 0.0, "made for tests", date(2026, 11, 28))
TINY = DeployedModel("tiny", "/models/tiny", "safetensors", Anatomy("tiny", "bf16", "qwen2", (), (), 8192))


def plan_of(
    program: str,
    *,
    environment: Mapping[str, str] | None = None,
    socket: Path | None = None,
    secret: str = "ENGINE_KEY",
    command: tuple[str, ...] = (),
) -> DeployPlan:
    """Return a plan that runs `program` in place of an engine."""
    return DeployPlan(
        engine="vllm",
        version="0.32.0",
        schema="vllm 0.32.0",
        model=TINY,
        nodes=Nodes(Rig(CPU)),
        command=command or (sys.executable, "-I", "-S", "-c", program),
        flags=(),
        environment=environment or {},
        secrets=(SecretRef(secret),) if secret else (),
        listens=Listens(socket=socket),
        sizes=ParallelSizes(),
        context=8192,
        streams=4,
        replicas=1,
    )

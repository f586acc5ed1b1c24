"""Plans made by hand: of vLLM on two devices, for tests that start nothing; and of a short Python program."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from freehold.base import catalog
from freehold.base.catalog.hardware import Device, Rig, rig
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue
from freehold.choose.advisor.interval import Interval
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    Listens,
    Nodes,
    ParallelSizes,
    PlannedFlag,
    SecretRef,
)

CPU = Device("cpu", "a processor", "", "cpu", "", 8.0, 20.0, 0.0, "made for tests", date(2026, 11, 28))
TINY = DeployedModel("tiny", "/models/tiny", "safetensors", Anatomy("tiny", "bf16", "qwen2", (), (), 8192))


def plan() -> DeployPlan:
    """Return two replicas of a model in vLLM on two devices."""
    model = DeployedModel(
        "qwen3:8b", "/models/qwen3", "safetensors", from_catalogue(catalog.model("qwen3:8b"), "BF16")
    )
    return DeployPlan(
        engine="vllm",
        version="0.32.0",
        schema="vllm 0.32.0",
        model=model,
        nodes=Nodes(rig("2xh100"), 1),
        command=("/opt/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        flags=(
            PlannedFlag("--max-model-len", "4096", "asked for"),
            PlannedFlag("--no-enable-log-requests", None, "private"),
        ),
        environment={"HF_HUB_OFFLINE": "1"},
        secrets=(SecretRef("VLLM_API_KEY"),),
        listens=Listens(Path("/run/user/1/s.sock")),
        sizes=ParallelSizes(tensor=2),
        context=4096,
        streams=64,
        replicas=2,
        decode=Interval(50.0, 60.0, 70.0),
    )


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

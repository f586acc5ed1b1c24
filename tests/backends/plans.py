"""A plan for tests that start nothing."""

from __future__ import annotations

from pathlib import Path

from freehold import catalog
from freehold.advisor.anatomy import from_catalogue
from freehold.advisor.interval import Interval
from freehold.backends.contract import (
    DeployedModel,
    DeployPlan,
    Listens,
    Nodes,
    ParallelSizes,
    PlannedFlag,
    SecretRef,
)
from freehold.catalog.hardware import rig


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

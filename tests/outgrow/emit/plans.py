"""Plans made by hand, as drivers make them: each names what holds for this machine alone, which files must not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from freehold.base.catalog import hardware
from freehold.choose.advisor.anatomy import Anatomy
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    Listens,
    Nodes,
    ParallelSizes,
    PlannedFlag,
    SecretRef,
)
from freehold.outgrow.emit import EmitOptions

DIGEST = "sha256:" + "0123456789abcdef" * 4
OPTIONS = EmitOptions(
    image=f"registry.example/engine@{DIGEST}", server_image=f"registry.example/freehold@{DIGEST}"
)
SOURCE = "/srv/models/Llama-3.1-405B"
SIZES = {
    "vllm": ("--tensor-parallel-size", "--pipeline-parallel-size"),
    "sglang": ("--tp-size", "--pp-size"),
    "trtllm": ("--tp_size", "--pp_size"),
}
HERE = {
    "vllm": [("--model", SOURCE), ("--uds", "/run/user/0/engines/x/0/s.sock"), ("--shutdown-timeout", "30")],
    "sglang": [
        ("--model-path", SOURCE),
        ("--host", "127.0.0.1"),
        ("--port", "30000"),
        ("--enable-metrics", None),
    ],
    "trtllm": [("--host", "127.0.0.1"), ("--port", "8000"), ("--no-telemetry", None)],
    "llamacpp": [("-m", SOURCE), ("--host", "127.0.0.1"), ("--port", "9931")],
}


def plan(
    engine: str, rig: str = "8xh100", nodes: int = 2, tensor: int = 8, pipeline: int = 2, **more
) -> DeployPlan:
    """Return a plan of one replica over `nodes` boxes."""
    name = more.pop("name", "meta/Llama-3.1-405B")
    flags = [PlannedFlag(name_, value, "") for name_, value in HERE[engine]]
    if engine in SIZES:
        flags += [PlannedFlag(n, str(v), "") for n, v in zip(SIZES[engine], (tensor, pipeline), strict=True)]
    model = DeployedModel(
        name, SOURCE, "safetensors", Anatomy(name, "BF16", "llama", (), (), 131072), heads=128
    )
    made = DeployPlan(
        engine=engine,  # type: ignore[arg-type]
        version="0.32.0",
        schema=f"{engine} 0.32.0",
        model=model,
        nodes=Nodes(hardware.rig(rig), nodes, here=False),
        command=("/home/me/env/bin/python", "-m", "engine"),
        flags=tuple(flags),
        environment={
            "VLLM_HOST_IP": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": "/home/me/.cache",
            "OMP_NUM_THREADS": "1",
        },
        secrets=(SecretRef("VLLM_API_KEY"),),
        listens=Listens(Path("/run/user/0/engines/x/0/s.sock")),
        sizes=ParallelSizes(tensor, pipeline),
        context=32768,
        streams=64,
        across=nodes,
        replicas=1,
    )
    return replace(made, **more)

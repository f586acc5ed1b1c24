"""Drivers of engines that cannot run where the tests do, with stand-ins in their place."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from freehold.base.catalog.hardware import rig
from freehold.base.layers import LayerSpec
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployedModel, DeployPlan, EngineFacts, Nodes, PlanRequest
from freehold.outgrow.replicas.replica import Replica
from tests.outgrow import standin
from tests.outgrow.engines import QUICK, operated

GGUF = ("llamacpp", "ollama")
ALL = ("sglang", "trtllm", "llamacpp", "ollama", "mlx")
VERSIONS = {"sglang": "0.5.23", "trtllm": "1.3.0", "llamacpp": "10434", "ollama": "0.35.0", "mlx": "0.32.2"}


def model(engine: str, source: str = "/models/tiny") -> DeployedModel:
    """Return a small model in the files that the engine loads."""
    parts = (WeightGroup("body", "BF16", 1e8, 2e8), WeightGroup("embed", "BF16", 1e7, 2e7))
    layers = tuple(LayerSpec(kind="full", kv_heads=4, head_dim=64) for _ in range(4))
    anatomy = Anatomy("tiny", "BF16", "qwen2", parts, layers, 8192, hidden=512, vocab=1000, queries=512)
    files = "gguf" if engine in GGUF else "safetensors"
    return DeployedModel("m", source, files, anatomy, heads=8, kv_heads=4, head_size=64)


def request(engine: str, folder: Path | None = None, **options: object) -> PlanRequest:
    """Return a request whose engine is the stand-in, with its `options`."""
    source = "/models/tiny"
    if engine == "ollama" and folder is not None:
        file = folder / "tiny.gguf"
        file.write_bytes(b"GGUF" + bytes(1000))
        source = str(file)
    return PlanRequest(
        model=model(engine, source),
        nodes=Nodes(rig("m4-max:64gb" if engine == "mlx" else "h100")),
        engine=EngineFacts(VERSIONS[engine], standin.command(engine, **options)),
        socket=folder / "e.sock" if folder is not None and engine == "llamacpp" else None,
        replicas=1,
    )


def plan(engine: str, folder: Path, **options: object) -> DeployPlan:
    """Return the driver's plan of a stand-in."""
    return drivers.driver(engine).plan(request(engine, folder, **options))


def replica(engine: str, folder: Path, **options: object) -> AbstractAsyncContextManager[Replica]:
    """Run one replica of the engine."""
    made = plan(engine, folder, **options)
    life = folder / "life"
    life.mkdir(mode=0o700)
    return operated(made, drivers.driver_of(made), life, replace(QUICK, hung_s=1.0, busy_s=1.0))

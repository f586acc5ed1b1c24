"""The engines by name; a driver's file is read when it is first asked for.

    driver = drivers.driver("vllm")
    driver = drivers.driver_of(plan)

Knows names and files; knows nothing of what an engine is.
"""

from __future__ import annotations

from importlib import import_module

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, EngineDriver

# name -> the file of engines/ that has its DRIVER
_FILES = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "llamacpp": "llamacpp",
    "ollama": "ollama",
    "mlx": "mlx",
    "freehold": "own",
}
_ATTACHED = {"compatible": "attach"}  # not started here
_ALSO = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "llama.cpp": "llamacpp", "llama-server": "llamacpp"}


def names() -> tuple[str, ...]:
    """Return every engine that a deployment may take."""
    return tuple(_FILES)


def driver(name: str) -> EngineDriver:
    """Return an engine's driver; raise UsageError with the nearest name."""
    wanted = name.strip().lower()
    wanted = _ALSO.get(wanted, wanted)
    files = _FILES | _ATTACHED
    if wanted not in files:
        hint = suggestion(wanted, names())
        raise UsageError(f"no engine named {name!r}", hint)
    return import_module(f"freehold.outgrow.engines.{files[wanted]}").DRIVER


def driver_of(plan: DeployPlan) -> EngineDriver:
    """Return the driver of a plan.

    That of a Ray Serve app speaks as the engine of its replicas does; that of an engine of another owner is the
    engine's own, but for its life.
    """
    if plan.attached:
        from freehold.outgrow.engines.attach import AttachDriver

        return AttachDriver(driver(plan.engine))
    if plan.inner is None:
        return driver(plan.engine)
    from freehold.outgrow.ray.plan import RayDriver

    return RayDriver(driver(plan.inner.engine))

"""The engines by name; a driver's file is read when it is first asked for.

    driver = drivers.driver("vllm")

Knows names and files; knows nothing of what an engine is.
Path: cli, deployments -> driver -> EngineDriver
"""

from __future__ import annotations

from importlib import import_module

from freehold.backends.contract import EngineDriver
from freehold.config import nearest
from freehold.errors import UsageError

# name -> the file of this room that has its DRIVER
_FILES = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm",
}
_ALSO = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "llama.cpp": "llamacpp", "llama-server": "llamacpp"}


def names() -> tuple[str, ...]:
    """Return every engine that a deployment may take."""
    return tuple(_FILES)


def driver(name: str) -> EngineDriver:
    """Return an engine's driver; raise UsageError with the nearest name."""
    wanted = name.strip().lower()
    wanted = _ALSO.get(wanted, wanted)
    if wanted not in _FILES:
        near = nearest(wanted, names())
        hint = f"did you mean {near}?" if near else f"known: {', '.join(names())}"
        raise UsageError(f"no engine is called {name!r}", hint)
    return import_module(f"freehold.backends.{_FILES[wanted]}").DRIVER

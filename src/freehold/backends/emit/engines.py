"""How each engine starts in its own image: program, model, key, what its plan says for this machine alone.

Read in the engines' sources: vLLM 0.32.0 (`--headless` is read by `vllm serve` only, not by the module that starts one
server), SGLang 0.5.23, TensorRT-LLM's main branch of 2026, llama.cpp. Knows no file format.
Path: command.engine_words -> container_engine -> ContainerEngine
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.backends.process.surroundings import PRIVATE
from freehold.errors import UsageError

PORT = 8000  # of an engine in its container
# Sizes of a plan by the names under which engines take them.
TENSOR = ("--tensor-parallel-size", "-tp", "--tp-size", "--tp", "--tensor_parallel_size", "--tp_size")
PIPELINE = ("--pipeline-parallel-size", "-pp", "--pp-size", "--pp", "--pipeline_parallel_size", "--pp_size")
DATA = ("--data-parallel-size", "-dp", "--dp-size", "--dp")


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """One engine in a container."""

    title: str
    program: tuple[str, ...]
    example: str  # of an image, without its digest
    model: str = ""  # flag that names the model; "": it is the word after the program
    key: str = ""  # environment variable with its key; "": the engine has none
    local: tuple[str, ...] = ()  # flags that hold for one machine: never taken from a plan
    several: bool = False  # one server can span nodes
    python: str = "python3"  # of its image; "": it has none, so probes are HTTP
    counts: str = ""  # prefix of its counters at /metrics; "": none that may be read twice
    served: str = "--served-model-name"  # flag of the name that requests use
    shutdown: str = ""  # flag of the time for running answers at the end
    quiet: tuple[str, ...] = ()  # words without which its log holds its keys
    environment: Mapping[str, str] = field(default_factory=lambda: PRIVATE)


_ENGINES: Mapping[str, ContainerEngine] = {
    "vllm": ContainerEngine(
        "vLLM",
        ("vllm", "serve"),
        "vllm/vllm-openai",
        key="VLLM_API_KEY",
        local=(
            *("--model", "--host", "--port", "--uds", "--nnodes", "-n", "--node-rank", "-r", "--headless"),
            *("--master-addr", "--master-port"),
        ),
        several=True,
        counts="vllm:",
        shutdown="--shutdown-timeout",
        environment={**PRIVATE, "VLLM_NO_USAGE_STATS": "1"},
    ),
    "sglang": ContainerEngine(
        "SGLang",
        ("python3", "-m", "sglang.launch_server"),
        "lmsysorg/sglang",
        model="--model-path",
        key="ENGINE_KEY",
        local=(
            *("--model-path", "--model", "--host", "--port", "--nnodes", "--node-rank", "--config"),
            *("--dist-init-addr", "--nccl-init-addr", "--nccl-port", "--log-level"),
        ),
        quiet=("--log-level", "warning"),  # at info it prints every argument, both keys among them
        several=True,
        counts="sglang:",
    ),
    "trtllm": ContainerEngine(
        "TensorRT-LLM",
        ("trtllm-serve",),
        "nvcr.io/nvidia/tensorrt-llm/release",
        local=("--host", "--port"),
        served="--served_model_name",
        several=True,
        environment={**PRIVATE, "TRTLLM_NO_USAGE_STATS": "1"},
    ),
    "llamacpp": ContainerEngine(
        "llama.cpp",
        ("/app/llama-server",),
        "ghcr.io/ggml-org/llama.cpp",
        model="--model",
        key="LLAMA_API_KEY",
        local=("-m", "--model", "--host", "--port", "--api-key-file"),
        served="--alias",
        python="",
    ),
}


def container_engine(name: str, kind: str) -> ContainerEngine:
    """Return the engine's facts. Raises UsageError for one that no file of this kind starts."""
    engine = _ENGINES.get(name)
    if engine is None:
        raise UsageError(
            f"{kind} files are written for {', '.join(_ENGINES)}, not for {name}",
            "--emit systemd starts any local engine",
        )
    return engine

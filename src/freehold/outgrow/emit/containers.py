"""How each engine starts in its own image, and our server in front of it: programs, models, keys, command lines.

Read in the engines' sources: vLLM 0.32.0 (`--headless` is read by `vllm serve` only, not by the module that starts one
server), SGLang 0.5.23, TensorRT-LLM's main branch of 2026, llama.cpp. Knows no file format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, PlannedFlag
from freehold.outgrow.emit.emit import SERVER_PORT, EmitOptions
from freehold.outgrow.process.surroundings import PRIVATE

PORT = 8000  # of an engine in its container
# SGLang reads keys from its command line or from --config FILE. Command lines are public, so a file is written first.
SGLANG_START = (
    'umask 077; printf "api-key: %s\\nadmin-api-key: %s\\n" "$ENGINE_KEY" "$ADMIN_KEY" >"$HOME/keys.yaml"; '
    'exec "$0" "$@" --config "$HOME/keys.yaml"'
)


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
    start: str = ""  # a script for `sh -c` that runs its command after what has to be done first; "": none
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
        start=SGLANG_START,
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


# --- a plan's command line as a container has it: the model at /model, its own port, one node of several ------------

MODEL = "/model"  # where the model's folder is mounted
MASTER_PORT = 29501  # rendezvous of vLLM's nodes
INIT_PORT = 20000  # and of SGLang's


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node of several, in words of what starts it: a variable of a pod, or of a task."""

    nodes: str
    rank: str
    leader: str  # address of rank 0
    leads: bool


def devices_of_node(plan: DeployPlan) -> int:
    """Return a replica's devices on each of its nodes. Raises UsageError for vLLM's data parallel over several."""
    if plan.engine == "vllm" and plan.across > 1 and plan.sizes.data > 1:
        raise UsageError(
            f"vLLM's data parallel {plan.sizes.data} over {plan.across} nodes is one failure domain",
            f"plan --replicas {plan.sizes.data} of tensor and pipeline parallel instead",
        )
    return plan.sizes.devices // plan.across


def model_folder(plan: DeployPlan) -> str:
    """Return the folder of the model's files on this machine; "" where the plan names a model of the hub."""
    source = PurePath(plan.model.source)
    if not source.is_absolute():
        return ""
    return str(source.parent if source.suffix == ".gguf" else source)


def carried(plan: DeployPlan, *, address: bool = False) -> dict[str, str]:
    """Return the plan's variables that mean the same elsewhere: no path, no secret. `address`: also its host's."""
    held = {s.variable for s in plan.secrets}
    kept = {k: v for k, v in plan.environment.items() if not v.startswith("/") and k not in held}
    return kept if address else {k: v for k, v in kept.items() if not k.endswith("_HOST_IP")}


def engine_words(
    plan: DeployPlan, engine: ContainerEngine, drain_s: int, place: NodePlace | None = None
) -> tuple[str, ...]:
    """Return the command line in a container. `place`: of several nodes; None: the only one."""
    model, source = MODEL, PurePath(plan.model.source)
    if plan.model.files == "gguf" and source.suffix == ".gguf":
        model += f"/{source.name}"
    named = (engine.model, model) if engine.model else (model,)
    flags = [_inside(flag, plan) for flag in plan.flags if flag.name not in engine.local]
    leads = place is None or place.leads
    listens = ("--host", "0.0.0.0", "--port", str(PORT)) if leads else ()
    names = {flag.name for flag in flags}
    if engine.served not in names:  # else requests would have to name the model's folder
        listens += (engine.served, plan.model.name)
    if engine.shutdown and engine.shutdown not in names:
        listens += (engine.shutdown, str(drain_s))  # without it running answers are cut at SIGTERM
    words = (*engine.program, *named, *(w for flag in flags for w in flag.words()), *listens, *engine.quiet)
    return (*words, *_node_words(plan.engine, place))


def started(engine: ContainerEngine, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line that runs `words`, after what the engine needs done first."""
    return ("sh", "-c", engine.start, *words) if engine.start else words


def _node_words(engine: str, place: NodePlace | None) -> tuple[str, ...]:
    if place is None:
        return ()
    if engine == "vllm":
        words = ("--nnodes", place.nodes, "--node-rank", place.rank)
        words += ("--master-addr", place.leader, "--master-port", str(MASTER_PORT))
        return words if place.leads else (*words, "--headless")
    if engine == "sglang":
        words = ("--nnodes", place.nodes, "--node-rank", place.rank)
        return (*words, "--dist-init-addr", f"{place.leader}:{INIT_PORT}")
    return ()  # TensorRT-LLM's nodes are MPI's


def _inside(flag: PlannedFlag, plan: DeployPlan) -> PlannedFlag:
    """Return a flag as the container has it. Raises UsageError for a file that it would not find."""
    value, source = flag.value, plan.model.source.rstrip("/")
    if value is None or not value.startswith("/"):
        return flag
    if value == source or value.startswith(f"{source}/"):
        return PlannedFlag(flag.name, MODEL + value[len(source) :], flag.reason)
    raise UsageError(
        f"{flag.name} names {value}, which a container does not have",
        f"copy it into the model's folder, {source}, and name it there",
        field=flag.name,
    )


# --- our server in front of an engine of a cluster: its gateway.toml, its command, its probe --------

FOLDER = "/etc/freehold"  # of gateway.toml and the probe, in containers
PROBE = f"{FOLDER}/probe.py"
KEY = "ENGINE_KEY"  # variable of our server that holds the engine's key


def gateway_toml(plan: DeployPlan, engine: ContainerEngine, url: str) -> str:
    """Return the gateway's file: one owned provider, and a route that has the model's name."""
    key = f'key = "env:{KEY}"\n' if engine.key else ""
    return (
        "[providers.engine]\n"
        'kind = "openai-compatible"\n'
        f"url = {_text(url)}\n{key}"
        "owned = true\n"
        "plain_http = true\n"
        "\n[models.engine]\n"
        'provider = "engine"\n'
        f"model = {_text(plan.model.name)}\n"
        f"{f'context = {plan.context}' if plan.context else '# context: as the engine has it'}\n"
        f"\n[routes.{_text(plan.model.name)}]\n"
        'targets = ["engine"]\n'
        'timeout = "60m"\n'
        'first_token = "5m"  # a request may wait in the queue of a full engine\n'
    )


def server_words(options: EmitOptions) -> tuple[str, ...]:
    """Return the command line of our server in a container: beyond loopback only with a key of FREEHOLD_API_KEY."""
    return (
        *("freehold", "serve", "--host", "0.0.0.0", "--port", str(SERVER_PORT), "--offline"),
        *("--gateway", f"{FOLDER}/gateway.toml", "--drain", f"{options.drain_s}s", "--log-format", "json"),
    )


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # a basic string of TOML has JSON's escapes

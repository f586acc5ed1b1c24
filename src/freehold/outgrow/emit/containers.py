"""How each engine starts in its own image, and our server in front of it: programs, models, keys, command lines.

Read in the engines' sources: vLLM 0.32.0 (`--headless` is read by `vllm serve` only, not by the module that starts one
server), SGLang 0.5.23, TensorRT-LLM's main branch of 2026, llama.cpp. Knows no file format.

Then the pod templates of a cluster, with what every container of ours has, whatever it runs: non-root, no capability,
no token of the cluster's API, no host network; secrets by reference; /dev/shm in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, PlannedFlag
from freehold.outgrow.emit import SERVER_PORT, Doc, EmitOptions, label
from freehold.outgrow.process.process import PRIVATE

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


# --- pod templates of a cluster --------------------------------------------------------------------

ENGINE_USER, SERVER_USER = 1000, 11435  # the second is that of packaging/Containerfile
HOME = "/home/engine"
# Libraries ask for the user's name, which a user id without an entry in /etc/passwd does not have.
NAMED = {"HOME": HOME, "USER": "engine", "LOGNAME": "engine"}
STARTUP_S, PERIOD_S = 3600, 10  # a start may compile, and read a terabyte from a network disk
AWAY_S = 10  # between leaving the Service and being asked to end: an engine that drains says it is healthy
GRACE_S = 30  # above the engine's own time for running answers: it then still ends its processes
GPU = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu"}
# Arithmetic of a request, not of a limit: a worker a device, one more core for each; weights pass through host memory.
CORES, GIB = 2, 16
SHM = "16Gi"  # of /dev/shm: queues between workers, some 250 MB a worker, and NCCL's buffers inside a node
# A word that is a variable of the group is Kubernetes' to fill in; one that only begins like it, as a name may, is not.
_OF_GROUP = re.compile(r"\$\(LWS_[A-Z_]+\)(?::\d+)?")


def labels(plan: DeployPlan, part: str) -> dict[str, str]:
    """Return the labels of a part of the deployment: engine or server."""
    return {
        "app.kubernetes.io/name": label(plan.model.name),
        "app.kubernetes.io/component": part,
        "app.kubernetes.io/managed-by": "freehold",
    }


def secret(variable: str, name: str, key: str) -> Doc:
    """Return an environment variable whose value a Secret has."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def engine_pod(
    plan: DeployPlan,
    engine: ContainerEngine,
    options: EmitOptions,
    words: Sequence[str],
    devices: int,
    *,
    leads: bool,
) -> Doc:
    """Return the template of a pod that runs `words` on `devices` devices. `leads`: it answers requests."""
    name = label(plan.model.name)
    container = {
        "name": "engine",
        "image": options.image,
        "command": [w if _OF_GROUP.fullmatch(w) else w.replace("$(", "$$(") for w in words],
        "env": engine_environment(plan, engine),
        "resources": _resources(plan, devices),
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "home", "mountPath": HOME},
            {"name": "files", "mountPath": FOLDER, "readOnly": True},
        ],
        "securityContext": _confined(),
    }
    if leads:
        container |= {"ports": [{"name": "api", "containerPort": PORT}], **engine_probes(plan, engine)}
    # Pods of a group are asked to end together; a worker waits until its leader has drained.
    container["lifecycle"] = _waits(AWAY_S if leads else AWAY_S + options.drain_s)
    volumes = [
        {
            "name": "model",
            "persistentVolumeClaim": {"claimName": options.claim or f"{name}-model", "readOnly": True},
        },
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM}},
        {"name": "home", "emptyDir": {}},
        {"name": "files", "configMap": {"name": f"{name}-files"}},
    ]
    pod = _pod(container, volumes, ENGINE_USER, options)
    if devices and plan.nodes.rig.device.kind == "gpu":
        gpu = _gpu(plan)
        pod["tolerations"] = [{"key": gpu, "operator": "Exists", "effect": "NoSchedule"}]
        pod |= affinity(plan)
    return {"metadata": {"labels": labels(plan, "engine")}, "spec": pod}


def engine_environment(plan: DeployPlan, engine: ContainerEngine) -> list[Doc]:
    """Return the variables: the plan's that mean the same elsewhere, the engine's own, its key by reference."""
    fixed = {**carried(plan), **engine.environment, **NAMED}
    variables: list[Doc] = [
        {"name": name, "value": value.replace("$(", "$$(")} for name, value in fixed.items()
    ]
    keys = f"{label(plan.model.name)}-keys"
    if engine.key:
        variables.append(secret(engine.key, keys, "engine"))
    if plan.engine == "sglang":
        variables.append(secret("ADMIN_KEY", keys, "admin"))
    if plan.engine == "vllm":  # where its nodes meet: the pod's own address
        variables.append({"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    return variables


def engine_probes(plan: DeployPlan, engine: ContainerEngine) -> Doc:
    """Return the three probes: a start of up to an hour, ready by a token, alive by counters that move."""
    health: Doc = {"httpGet": {"path": "/health", "port": "api"}, "timeoutSeconds": 5}
    start = {**health, "periodSeconds": PERIOD_S, "failureThreshold": STARTUP_S // PERIOD_S}
    if not engine.python:
        slow = {**health, "periodSeconds": 15, "failureThreshold": 8}
        return {
            "startupProbe": start,
            "readinessProbe": {**health, "periodSeconds": 10},
            "livenessProbe": slow,
        }
    common = [f"http://127.0.0.1:{PORT}", plan.model.name, engine.key, engine.counts]
    common = [word for word in common if word] if not engine.key else common
    return {
        "startupProbe": start,
        "readinessProbe": probe([engine.python, PROBE, "ready", *common], period=15, timeout=30, failures=2),
        "livenessProbe": probe([engine.python, PROBE, "alive", *common], period=30, timeout=15, failures=4),
    }


def probe(words: Sequence[str], *, period: int, timeout: int, failures: int) -> Doc:
    """Return a probe that runs a command."""
    return {
        "exec": {"command": list(words)},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def server_pod(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions) -> Doc:
    """Return the template of our server: ready by one real token or vector through its own road."""
    name = label(plan.model.name)
    env: list[Doc] = [{"name": "FREEHOLD_HOME", "value": "/var/lib/freehold"}]
    env.append(secret("FREEHOLD_API_KEY", f"{name}-keys", "server"))
    if engine.key:
        env.append(secret(KEY, f"{name}-keys", "engine"))
    arguments = [f"http://127.0.0.1:{SERVER_PORT}", plan.model.name, "FREEHOLD_API_KEY"]
    container = {
        "name": "server",
        "image": options.server_image,
        "command": list(server_words(options)),
        "env": env,
        "ports": [{"name": "http", "containerPort": SERVER_PORT}],
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 2,
            "failureThreshold": 60,
        },
        "readinessProbe": probe(["python", PROBE, "ready", *arguments], period=10, timeout=30, failures=2),
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 15,
            "timeoutSeconds": 5,
            "failureThreshold": 8,
        },
        "lifecycle": _waits(AWAY_S),
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "volumeMounts": [
            {"name": "files", "mountPath": FOLDER, "readOnly": True},
            {"name": "home", "mountPath": "/var/lib/freehold"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {**_confined(), "readOnlyRootFilesystem": True},
    }
    volumes = [
        {"name": "files", "configMap": {"name": f"{name}-files"}},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    pod = _pod(container, volumes, SERVER_USER, options)
    return {"metadata": {"labels": labels(plan, "server")}, "spec": pod}


def _pod(container: Doc, volumes: list[Doc], user: int, options: EmitOptions) -> Doc:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # they would name every Service in the environment
        "terminationGracePeriodSeconds": AWAY_S + options.drain_s + GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",  # a model's files are not visited one by one
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _waits(seconds: int) -> Doc:
    return {"preStop": {"sleep": {"seconds": seconds}}}


def _confined() -> Doc:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(plan: DeployPlan, devices: int) -> Doc:
    gpus = {_gpu(plan): str(devices)} if plan.nodes.rig.device.kind == "gpu" else {}
    requests = {"cpu": str(CORES * max(devices, 1)), "memory": f"{GIB * max(devices, 1)}Gi", **gpus}
    return {"requests": requests, **({"limits": dict(gpus)} if gpus else {})}


def _gpu(plan: DeployPlan) -> str:
    device = plan.nodes.rig.device
    resource = next((name for vendor, name in GPU.items() if vendor.lower() == device.vendor.lower()), "")
    if not resource:
        raise UsageError(
            f"there is no device plugin of Kubernetes for {device.title}",
            f"known: {', '.join(GPU)} and processors",
        )
    return resource


# --- the labels by which a cluster's nodes tell their GPUs: a plan for H100 must not start on an L4 -

# What NVIDIA's feature discovery labels nodes with, by our names; spaces are dashes there. Several: as boards differ.
PRODUCT = "nvidia.com/gpu.product"
_PRODUCTS = {
    "h100": ("NVIDIA-H100-80GB-HBM3",),
    "h100-pcie": ("NVIDIA-H100-PCIe",),
    "h200": ("NVIDIA-H200",),
    "b200": ("NVIDIA-B200",),
    "gb200": ("NVIDIA-GB200",),
    "a100": ("NVIDIA-A100-SXM4-80GB",),
    "a100-pcie": ("NVIDIA-A100-80GB-PCIe",),
    "a100-40gb": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    "l40s": ("NVIDIA-L40S",),
    "l4": ("NVIDIA-L4",),
    "t4": ("Tesla-T4",),
    "rtx-4090": ("NVIDIA-GeForce-RTX-4090",),
    "rtx-5090": ("NVIDIA-GeForce-RTX-5090",),
}


def affinity(plan: DeployPlan) -> Doc:
    """Return a pod's affinity to nodes with the GPU that the plan is for; {} where its label is not known."""
    products = _PRODUCTS.get(plan.nodes.rig.device.name, ())
    if not products:
        return {}
    wanted = {"matchExpressions": [{"key": PRODUCT, "operator": "In", "values": list(products)}]}
    needed = {"nodeSelectorTerms": [wanted]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": needed}}}

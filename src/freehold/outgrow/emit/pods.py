"""Pod templates of a cluster: what every container of ours has, whatever it runs.

Non-root, no capability, no token of the cluster's API, no host network; secrets by reference; /dev/shm in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit.containers import (
    FOLDER,
    KEY,
    MODEL,
    PORT,
    PROBE,
    ContainerEngine,
    carried,
    server_words,
)
from freehold.outgrow.emit.emit import SERVER_PORT, Doc, EmitOptions, label

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

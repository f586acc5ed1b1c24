"""A plan as objects of Kubernetes: the engine over one node or several, our server before it, and who may reach whom.

A replica on one node is a Deployment's pod, one over several a group of a LeaderWorkerSet. What must hold of them
beyond their schema is in tests/backends/emit/manifest_rules.py. Path: emit.emit -> kubernetes_files -> documents
"""

from __future__ import annotations

from freehold.backends.contract import DeployPlan
from freehold.backends.emit import gateway, mpi, network, pods
from freehold.backends.emit.command import SGLANG_START, NodeGroup, NodePlace, engine_words, group
from freehold.backends.emit.contract import (
    Doc,
    EmitOptions,
    EmittedFile,
    check_objects,
    heading,
    label,
    pinned,
)
from freehold.backends.emit.engines import ContainerEngine, container_engine
from freehold.backends.emit.extras import extras
from freehold.backends.emit.yaml_text import yaml_text

# Variables that the controller of LeaderWorkerSet adds to each container, as Kubernetes expands them in a command.
SIZE, INDEX, ADDRESS = "$(LWS_GROUP_SIZE)", "$(LWS_WORKER_INDEX)", "$(LWS_LEADER_ADDRESS)"


def kubernetes_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return the manifests as one file. Raises UsageError."""
    return [EmittedFile("kubernetes.yaml", yaml_text(documents(plan, options), _head(plan, options)))]


def documents(plan: DeployPlan, options: EmitOptions) -> list[Doc]:
    """Return the objects. Raises UsageError for images without a digest, names, and what clusters cannot run."""
    engine = container_engine(plan.engine, "Kubernetes")
    check_objects(options)
    pinned("--image", options.image, engine.example)
    pinned("--server-image", options.server_image, "registry.example/freehold")
    nodes = group(plan)
    several = nodes.nodes > 1
    if several and not engine.several:
        raise ValueError(f"{engine.title} does not span nodes")  # its driver plans one node
    make = _groups if several else _one_node
    files = {
        "gateway.toml": gateway.gateway_toml(plan, engine, network.engine_url(plan, options)),
        "probe.py": gateway.probe_text(),
        **(mpi.mpi_files() if several and plan.engine == "trtllm" else {}),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{label(plan.model.name)}-files", "labels": pods.labels(plan, "engine")},
            "data": files,
        },
        *network.policies(plan, options),
        *network.services(plan, leaders=several),
        make(plan, engine, options, nodes),
        _deployment(plan, "server", pods.server_pod(plan, engine, options), 1),
        *extras(plan, engine, options, several=several),
    ]


def _one_node(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, nodes: NodeGroup) -> Doc:
    words = _started(plan, engine_words(plan, engine, options.drain_s))
    pod = pods.engine_pod(plan, engine, options, words, nodes.devices, leads=True)
    return _deployment(plan, "engine", pod, plan.replicas)


def _groups(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, nodes: NodeGroup) -> Doc:
    """Return the LeaderWorkerSet: a pod that ends ends its group, which starts again as a whole."""
    templates = []
    for leads in (True, False):
        words = _started(
            plan, engine_words(plan, engine, options.drain_s, NodePlace(SIZE, INDEX, ADDRESS, leads))
        )
        if plan.engine == "trtllm":
            passed = [v["name"] for v in pods.engine_environment(plan, engine)]
            words = mpi.mpi_words(words, nodes.devices, passed, leads=leads)
        template = pods.engine_pod(plan, engine, options, words, nodes.devices, leads=leads)
        if plan.engine == "trtllm":
            mpi.add_keys(template, f"{label(plan.model.name)}-mpi")
        templates.append(template)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": network.name_of(plan, "engine"), "labels": pods.labels(plan, "engine")},
        "spec": {
            "replicas": plan.replicas,
            "startupPolicy": "LeaderCreated",  # the leader is ready only with its workers
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0},
            },
            "leaderWorkerTemplate": {
                "size": nodes.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": templates[0],
                "workerTemplate": templates[1],
            },
        },
    }


def _started(plan: DeployPlan, words: tuple[str, ...]) -> tuple[str, ...]:
    return ("sh", "-c", SGLANG_START, *words) if plan.engine == "sglang" else words


def _deployment(plan: DeployPlan, part: str, template: Doc, replicas: int) -> Doc:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": network.name_of(plan, part), "labels": pods.labels(plan, part)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": pods.labels(plan, part)},
            # Devices are scarce: an engine's pod ends before its successor starts; our server overlaps.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}
                if part == "engine"
                else {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": template,
        },
    }


def _head(plan: DeployPlan, options: EmitOptions) -> str:
    """Return what has to be there before `kubectl apply`, as comments."""
    name, nodes = label(plan.model.name), group(plan)
    random = '<(printf %s "$(openssl rand -hex 24)")'
    keys = [k for k in ("engine", "server", "admin") if k != "admin" or plan.engine == "sglang"]
    lines = [
        f"It needs what follows, then: kubectl apply --namespace {options.namespace} --filename kubernetes.yaml",
        "1. Keys, never in a file or a command line (bash):",
        f"     kubectl create secret generic {name}-keys --namespace {options.namespace}"
        + "".join(f" --from-file={key}={random}" for key in keys),
        f"2. The model's folder as the root of the PersistentVolumeClaim {options.claim or f'{name}-model'}.",
        "3. A network plugin that enforces NetworkPolicy, and a DNS whose pods are labelled k8s-app=kube-dns.",
    ]
    if nodes.nodes > 1:
        lines.append("4. The controller of LeaderWorkerSet (https://lws.sigs.k8s.io).")
    if nodes.nodes > 1 and plan.engine == "trtllm":
        lines += [
            "5. A key pair for MPI, and an image with sshd, ssh, mpirun and a user with id 1000:",
            f"     ssh-keygen -q -t ed25519 -N '' -f mpi && kubectl create secret generic {name}-mpi "
            f"--namespace {options.namespace} --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey=mpi; "
            "rm mpi mpi.pub",
            "TensorRT-LLM over several pods has not run on a cluster of ours: freehold/backends/emit/mpi.py.",
        ]
    if options.monitoring:
        lines.append(
            f"Prometheus' operator in {options.monitoring}" + (", and KEDA." if options.scale else ".")
        )
    if options.pool:
        lines += [
            f"The Gateway {options.pool} with a Service of its name, and the pool's picker {name}-epp:",
            "     helm install of oci://registry.k8s.io/gateway-api-inference-extension/charts/inferencepool",
        ]
    if plan.engine == "trtllm":
        lines.append("TensorRT-LLM has no key: the network policy alone guards its port.")
    size = f", {plan.replicas} x {nodes.nodes} x {nodes.devices} {plan.nodes.rig.device.title}"
    return heading(plan, "k8s", lines, size)

"""A plan as objects of Kubernetes: the engine over one node or several, our server before it, and who may reach whom.

A replica on one node is a Deployment's pod, one over several a group of a LeaderWorkerSet. What must hold of them
beyond their schema is in tests/outgrow/emit/manifest_rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import (
    SERVER_PORT,
    Doc,
    EmitOptions,
    EmittedFile,
    check_objects,
    file_text,
    heading,
    label,
    pinned,
    yaml_text,
)
from freehold.outgrow.emit.containers import (
    FOLDER,
    PORT,
    ContainerEngine,
    NodePlace,
    container_engine,
    devices_of_node,
    engine_environment,
    engine_pod,
    engine_words,
    gateway_toml,
    labels,
    server_pod,
    started,
)

# Variables that the controller of LeaderWorkerSet adds to each container, as Kubernetes expands them in a command.
SIZE, INDEX, ADDRESS = "$(LWS_GROUP_SIZE)", "$(LWS_WORKER_INDEX)", "$(LWS_LEADER_ADDRESS)"
LEADER = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}


def kubernetes_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return the manifests as one file. Raises UsageError."""
    return [EmittedFile("kubernetes.yaml", yaml_text(documents(plan, options), _head(plan, options)))]


def documents(plan: DeployPlan, options: EmitOptions) -> list[Doc]:
    """Return the objects. Raises UsageError for images without a digest, names, and what clusters cannot run."""
    engine = container_engine(plan.engine, "Kubernetes")
    check_objects(options)
    pinned("--image", options.image, engine.example)
    pinned("--server-image", options.server_image, "registry.example/freehold")
    devices, several = devices_of_node(plan), plan.across > 1
    assert engine.several or not several, "its driver plans one node"
    files = {
        "gateway.toml": gateway_toml(plan, engine, engine_url(plan, options)),
        "probe.py": file_text("probe.py"),
        **(mpi_files() if several and plan.engine == "trtllm" else {}),
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{label(plan.model.name)}-files", "labels": labels(plan, "engine")},
        "data": files,
    }
    return [
        config,
        *policies(plan, options),
        *services(plan, leaders=several),
        _groups(plan, engine, options, devices) if several else _one_node(plan, engine, options, devices),
        _deployment(plan, "server", server_pod(plan, engine, options), 1),
        *extras(plan, engine, options, several=several),
    ]


def name_of(plan: DeployPlan, part: str) -> str:
    """Return the name of a part's objects."""
    return f"{label(plan.model.name)}-{part}"


def _object(
    version: str, kind: str, plan: DeployPlan, spec: Doc, part: str = "engine", name: str = ""
) -> Doc:
    """Return an object of a part, engine or server, under its name unless it has another."""
    metadata = {"name": name or name_of(plan, part), "labels": labels(plan, part)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _one_node(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, devices: int) -> Doc:
    words = started(engine, engine_words(plan, engine, options.drain_s))
    pod = engine_pod(plan, engine, options, words, devices, leads=True)
    return _deployment(plan, "engine", pod, plan.replicas)


def _groups(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, devices: int) -> Doc:
    """Return the LeaderWorkerSet: a pod that ends ends its group, which starts again as a whole."""
    templates = []
    for leads in (True, False):
        place = NodePlace(SIZE, INDEX, ADDRESS, leads)
        words = started(engine, engine_words(plan, engine, options.drain_s, place))
        if plan.engine == "trtllm":
            passed = [v["name"] for v in engine_environment(plan, engine)]
            words = mpi_words(words, devices, passed, leads=leads)
        template = engine_pod(plan, engine, options, words, devices, leads=leads)
        if plan.engine == "trtllm":
            add_keys(template, name_of(plan, "mpi"))
        templates.append(template)
    rolling = {"maxUnavailable": 1, "maxSurge": 0}
    spec = {
        "replicas": plan.replicas,
        "startupPolicy": "LeaderCreated",  # the leader is ready only with its workers
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling},
        "leaderWorkerTemplate": {
            "size": plan.across,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": templates[0],
            "workerTemplate": templates[1],
        },
    }
    return _object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", plan, spec)


def _deployment(plan: DeployPlan, part: str, template: Doc, replicas: int) -> Doc:
    # Devices are scarce: an engine's pod ends before its successor starts; our server overlaps.
    surge = 0 if part == "engine" else 1
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels(plan, part)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge},
        },
        "template": template,
    }
    return _object("apps/v1", "Deployment", plan, spec, part)


def _head(plan: DeployPlan, options: EmitOptions) -> str:
    """Return what has to be there before `kubectl apply`, as comments."""
    name, several = label(plan.model.name), plan.across > 1
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
    if several:
        lines.append("4. The controller of LeaderWorkerSet (https://lws.sigs.k8s.io).")
    if several and plan.engine == "trtllm":
        lines += [
            "5. A key pair for MPI, and an image with sshd, ssh, mpirun and a user with id 1000:",
            f"     ssh-keygen -q -t ed25519 -N '' -f mpi && kubectl create secret generic {name}-mpi "
            f"--namespace {options.namespace} --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey=mpi; "
            "rm mpi mpi.pub",
            "TensorRT-LLM over several pods was not tested on a cluster: freehold/outgrow/emit/kubernetes.py.",
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
        lines.append("TensorRT-LLM has no key: only the network policy protects its port.")
    size = f", {plan.replicas} x {plan.across} x {devices_of_node(plan)} {plan.nodes.rig.device.title}"
    return heading(plan, "k8s", lines, size)


# --- what a cluster has beside an engine ------------------------------------------------------------
# How many of its pods may be away, who counts, scales and routes.
# KEDA scales by the requests that wait, as the engines' counters tell Prometheus; the processor of a pod tells nothing
# of its GPU. A Service spreads requests at random, so prefixes that begin alike meet other caches: an InferencePool's
# picker knows them (Gateway API Inference Extension).

WAITING = 8  # requests a replica, from which another one is started
SETTLE_S, LOOK_S = 300, 15  # without a queue before a replica is ended; between two looks
PICKER_PORT = 9002
_QUEUES = {"vllm": "vllm:num_requests_waiting", "sglang": "sglang:num_queue_reqs"}
_SCALE = re.compile(r"(\d{1,3})\.\.(\d{1,4})")


def extras(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, *, several: bool) -> list[Doc]:
    """Return the objects. Raises UsageError for options that do not go together, or with the engine."""
    engines = {"matchLabels": {**labels(plan, "engine"), **(LEADER if several else {})}}
    # How many replicas a drain of nodes may take at a time: one, which loads for minutes elsewhere.
    budget = {"maxUnavailable": 1, "selector": engines}
    extra = [_object("policy/v1", "PodDisruptionBudget", plan, budget)]
    if options.scale and not options.monitoring:
        raise UsageError(
            "--scale reads the engines' queues from Prometheus", "name its namespace: --monitoring NAME"
        )
    if options.monitoring:
        if not engine.counts or not engine.key:
            raise UsageError(
                f"--monitoring: {engine.title} has no counters that Prometheus may read, or no key for the rest",
                "leave it out, or plan another engine",
            )
        look = {"port": "api", "path": "/metrics", "interval": f"{LOOK_S}s"}
        monitored = {"selector": {"matchLabels": labels(plan, "engine")}, "endpoints": [look]}
        extra.append(_object("monitoring.coreos.com/v1", "ServiceMonitor", plan, monitored))
    if options.scale:
        extra.append(_scaled(plan, options, several))
    if options.pool:
        name, api = name_of(plan, "pool"), "inference.networking.k8s.io"
        pool = {
            "selector": engines,
            "targetPorts": [{"number": PORT}],
            "endpointPickerRef": {"name": picker(plan), "port": {"number": PICKER_PORT}},
        }
        route = {
            "parentRefs": [{"name": options.pool}],
            "rules": [{"backendRefs": [{"group": api, "kind": "InferencePool", "name": name}]}],
        }
        extra.append(_object(f"{api}/v1", "InferencePool", plan, pool, name=name))
        extra.append(_object("gateway.networking.k8s.io/v1", "HTTPRoute", plan, route, name=name))
    return extra


def _scaled(plan: DeployPlan, options: EmitOptions, several: bool) -> Doc:
    match = _SCALE.fullmatch(options.scale)
    least, most = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= least <= plan.replicas <= most:
        raise UsageError(
            f"--scale {options.scale[:40]!r} does not contain the plan's {plan.replicas} replicas",
            f"for example --scale {plan.replicas}..{2 * plan.replicas}",
        )
    version, kind = (
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet") if several else ("apps/v1", "Deployment")
    )
    queue = f'sum({_QUEUES[plan.engine]}{{namespace="{options.namespace}",service="{engine_service(plan)}"}})'
    trigger = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": f"http://prometheus-operated.{options.monitoring}.svc:9090",
            "query": queue,
            "threshold": str(WAITING),
        },
    }
    spec = {
        "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": name_of(plan, "engine")},
        "minReplicaCount": least,
        "maxReplicaCount": most,
        "pollingInterval": LOOK_S,
        "cooldownPeriod": SETTLE_S,
        "triggers": [trigger],
    }
    return _object("keda.sh/v1alpha1", "ScaledObject", plan, spec)


def picker(plan: DeployPlan) -> str:
    """Return the name of the pool's endpoint picker, which its chart installs."""
    return name_of(plan, "epp")


# --- TensorRT-LLM over several pods -----------------------------------------------------------------
# One MPI world, whose leader starts ranks on its workers through ssh.
# Its other launcher, Ray, is a prototype that its vendor gives no guarantee for; pods have no Slurm. So workers run
# sshd as the pod's own user on port 2222, with one key pair of a Secret for both directions: host keys are checked, no
# password is taken, and the network policy lets only pods of this deployment there. The image has to hold sshd, ssh
# and mpirun, and an entry for user id 1000 in /etc/passwd. The scripts, mpi-leader.sh and mpi-worker.sh, have not run
# on a cluster of ours.

KEYS = "/run/mpi"  # where the Secret is mounted
_TAKE_KEYS = f"""\
set -eu
umask 077
keys="$HOME/ssh"
mkdir -p "$keys"
install -m 600 {KEYS}/ssh-privatekey "$keys/key"
ssh-keygen -y -f "$keys/key" >"$keys/key.pub"
"""


def mpi_words(words: Sequence[str], devices: int, passed: Sequence[str], *, leads: bool) -> tuple[str, ...]:
    """Return what a pod runs: the leader mpirun with the server's words, a worker sshd. `passed`: variables."""
    if leads:
        return ("bash", f"{FOLDER}/mpi-leader.sh", str(devices), " ".join(passed), *words)
    return ("bash", f"{FOLDER}/mpi-worker.sh")


def mpi_files() -> dict[str, str]:
    """Return the scripts by name."""
    names = ("mpi-leader.sh", "mpi-worker.sh")
    return {name: file_text(name, take_keys=_TAKE_KEYS.rstrip()) for name in names}


def add_keys(template: Doc, secret: str) -> None:
    """Mount the key pair into a pod's template."""
    pod = template["spec"]
    pod["volumes"].append({"name": "mpi", "secret": {"secretName": secret, "defaultMode": 0o440}})
    pod["containers"][0]["volumeMounts"].append({"name": "mpi", "mountPath": KEYS, "readOnly": True})


# --- who may reach whom in a cluster ----------------------------------------------------------------
# Engines from our server alone, our server from its namespace, nothing beyond.
# An engine's pods also reach each other on every port: collectives choose theirs at random. Nothing leads out of the
# cluster, so telemetry and downloads fail even where a variable was forgotten. A network plugin has to enforce this.

GATEWAY = "gateway.networking.k8s.io/gateway-name"  # label of the pods of a Gateway (GEP-1762)


def policies(plan: DeployPlan, options: EmitOptions) -> list[Doc]:
    """Return the policy of the engine's pods and that of our server's."""
    engine, server = _pods_labelled(labels(plan, "engine")), _pods_labelled(labels(plan, "server"))
    dns = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    names = {"to": [dns], "ports": [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]}
    to_engine: list[Doc] = [{"from": [server], "ports": [_tcp(PORT)]}, {"from": [engine]}]
    from_server: list[Doc] = [{"to": [engine], "ports": [_tcp(PORT)]}, names]
    if options.monitoring:
        to_engine.append({"from": [monitor(options.monitoring)], "ports": [_tcp(PORT)]})
    if options.pool:
        front = _pods_labelled({GATEWAY: options.pool})
        to_engine.append({"from": [front, _pods_labelled({"app": picker(plan)})], "ports": [_tcp(PORT)]})
        from_server.append({"to": [front], "ports": [_tcp(80)]})
    to_server = [{"from": [{"podSelector": {}}], "ports": [_tcp(SERVER_PORT)]}]
    return [
        _policy(plan, "engine", to_engine, [{"to": [engine]}, names]),
        _policy(plan, "server", to_server, from_server),
    ]


def monitor(namespace: str) -> Doc:
    """Return Prometheus as a peer: its pods alone, in its own namespace."""
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }


def engine_url(plan: DeployPlan, options: EmitOptions) -> str:
    """Return where our server asks: the engine's Service, or the Gateway before a pool of them."""
    if options.pool:
        return f"http://{options.pool}.{options.namespace}.svc/v1"
    return f"http://{engine_service(plan)}:{PORT}/v1"


def services(plan: DeployPlan, *, leaders: bool) -> list[Doc]:
    """Return the Service of the engine and that of our server. `leaders`: pods are of groups, of which one answers."""
    engine = {**labels(plan, "engine"), **(LEADER if leaders else {})}
    return [
        _service(plan, "engine", engine_service(plan), engine, PORT, "api"),
        _service(plan, "server", label(plan.model.name), labels(plan, "server"), SERVER_PORT, "http"),
    ]


def engine_service(plan: DeployPlan) -> str:
    """Return the name of the engine's Service; a LeaderWorkerSet makes a headless one of its own name."""
    return name_of(plan, "api")


def _policy(plan: DeployPlan, part: str, ingress: list[Doc], egress: list[Doc]) -> Doc:
    types = {"policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}
    return _object(
        "networking.k8s.io/v1", "NetworkPolicy", plan, {**_pods_labelled(labels(plan, part)), **types}, part
    )


def _service(plan: DeployPlan, part: str, name: str, selector: dict[str, str], port: int, target: str) -> Doc:
    ports = [{"name": target, "protocol": "TCP", "port": port, "targetPort": target}]
    return _object(
        "v1", "Service", plan, {"type": "ClusterIP", "selector": selector, "ports": ports}, part, name
    )


def _pods_labelled(labels: dict[str, str]) -> Doc:
    return {"podSelector": {"matchLabels": labels}}


def _tcp(port: int) -> Doc:
    return {"protocol": "TCP", "port": port}

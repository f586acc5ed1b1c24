"""What a cluster has beside an engine: how many of its pods may be away, who counts, scales and routes.

KEDA scales by the requests that wait, as the engines' counters tell Prometheus; the processor of a pod tells nothing of
its GPU. A Service spreads requests at random, so prefixes that begin alike meet other caches: an InferencePool's picker
knows them (Gateway API Inference Extension). Path: kubernetes.documents -> extras
"""

from __future__ import annotations

import re

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import Doc, EmitOptions, label
from freehold.backends.emit.engines import PORT, ContainerEngine
from freehold.backends.emit.network import LEADER, name_of
from freehold.backends.emit.pods import labels
from freehold.errors import UsageError

WAITING = 8  # requests a replica, from which another one is started
SETTLE_S, LOOK_S = 300, 15  # without a queue before a replica is ended; between two looks
PICKER_PORT = 9002
_QUEUES = {"vllm": "vllm:num_requests_waiting", "sglang": "sglang:num_queue_reqs"}
_SCALE = re.compile(r"(\d{1,3})\.\.(\d{1,4})")


def extras(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, *, several: bool) -> list[Doc]:
    """Return the objects. Raises UsageError for options that do not go together, or with the engine."""
    extra = [_budget(plan, several)]
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
        extra.append(_monitor(plan, several))
    if options.scale:
        extra.append(_scaled(plan, options, several))
    return [*extra, *(_pool(plan, options, several) if options.pool else ())]


def _selected(plan: DeployPlan, several: bool) -> dict[str, str]:
    return {**labels(plan, "engine"), **(LEADER if several else {})}


def _object(version: str, kind: str, plan: DeployPlan, spec: Doc, name: str = "") -> Doc:
    metadata = {"name": name or name_of(plan, "engine"), "labels": labels(plan, "engine")}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _budget(plan: DeployPlan, several: bool) -> Doc:
    """Return how many replicas a drain of nodes may take at a time: one, which loads for minutes elsewhere."""
    selector = {"matchLabels": _selected(plan, several)}
    return _object("policy/v1", "PodDisruptionBudget", plan, {"maxUnavailable": 1, "selector": selector})


def _monitor(plan: DeployPlan, several: bool) -> Doc:
    chosen = {"matchLabels": labels(plan, "engine")}
    spec = {"selector": chosen, "endpoints": [{"port": "api", "path": "/metrics", "interval": f"{LOOK_S}s"}]}
    return _object("monitoring.coreos.com/v1", "ServiceMonitor", plan, spec)


def _scaled(plan: DeployPlan, options: EmitOptions, several: bool) -> Doc:
    match = _SCALE.fullmatch(options.scale)
    least, most = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= least <= plan.replicas <= most:
        raise UsageError(
            f"--scale {options.scale[:40]!r} does not contain the plan's {plan.replicas} replicas",
            f"for example --scale {plan.replicas}..{2 * plan.replicas}",
        )
    kind = ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet") if several else ("apps/v1", "Deployment")
    queue = f'sum({_QUEUES[plan.engine]}{{namespace="{options.namespace}",service="{label(plan.model.name)}-api"}})'
    trigger = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": f"http://prometheus-operated.{options.monitoring}.svc:9090",
            "query": queue,
            "threshold": str(WAITING),
        },
    }
    spec = {
        "scaleTargetRef": {"apiVersion": kind[0], "kind": kind[1], "name": name_of(plan, "engine")},
        "minReplicaCount": least,
        "maxReplicaCount": most,
        "pollingInterval": LOOK_S,
        "cooldownPeriod": SETTLE_S,
        "triggers": [trigger],
    }
    return _object("keda.sh/v1alpha1", "ScaledObject", plan, spec)


def _pool(plan: DeployPlan, options: EmitOptions, several: bool) -> list[Doc]:
    """Return the pool of engines and the route from a Gateway to it."""
    name = f"{label(plan.model.name)}-pool"
    pool = {
        "selector": {"matchLabels": _selected(plan, several)},
        "targetPorts": [{"number": PORT}],
        "endpointPickerRef": {"name": picker(plan), "port": {"number": PICKER_PORT}},
    }
    group = "inference.networking.k8s.io"
    route = {
        "parentRefs": [{"name": options.pool}],
        "rules": [{"backendRefs": [{"group": group, "kind": "InferencePool", "name": name}]}],
    }
    return [
        _object(f"{group}/v1", "InferencePool", plan, pool, name),
        _object("gateway.networking.k8s.io/v1", "HTTPRoute", plan, route, name),
    ]


def picker(plan: DeployPlan) -> str:
    """Return the name of the pool's endpoint picker, which its chart installs."""
    return f"{label(plan.model.name)}-epp"

"""Who may reach whom in a cluster: engines from our server alone, our server from its namespace, nothing beyond.

An engine's pods also reach each other on every port: collectives choose theirs at random. Nothing leads out of the
cluster, so telemetry and downloads fail even where a variable was forgotten. A network plugin has to enforce this.
Path: kubernetes.documents -> policies, services
"""

from __future__ import annotations

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import SERVER_PORT, Doc, EmitOptions, label
from freehold.backends.emit.engines import PORT
from freehold.backends.emit.pods import labels

GATEWAY = "gateway.networking.k8s.io/gateway-name"  # label of the pods of a Gateway (GEP-1762)
LEADER = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}


def policies(plan: DeployPlan, options: EmitOptions) -> list[Doc]:
    """Return the policy of the engine's pods and that of our server's."""
    more: list[Doc] = []
    beyond: list[Doc] = []
    if options.monitoring:
        more.append({"from": [monitor(options.monitoring)], "ports": [_tcp(PORT)]})
    if options.pool:
        front = [_selected({GATEWAY: options.pool})]
        more.append(
            {"from": [*front, _selected({"app": f"{label(plan.model.name)}-epp"})], "ports": [_tcp(PORT)]}
        )
        beyond.append({"to": front, "ports": [_tcp(80)]})
    engine, server = labels(plan, "engine"), labels(plan, "server")
    every = [_selected(engine)]
    names = {
        "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
        "ports": [{"protocol": p, "port": 53} for p in ("UDP", "TCP")],
    }
    return [
        _policy(
            plan,
            "engine",
            ingress=[{"from": [_selected(server)], "ports": [_tcp(PORT)]}, {"from": every}, *more],
            egress=[{"to": every}, names],
        ),
        _policy(
            plan,
            "server",
            ingress=[{"from": [{"podSelector": {}}], "ports": [_tcp(SERVER_PORT)]}],
            egress=[{"to": every, "ports": [_tcp(PORT)]}, names, *beyond],
        ),
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
    return f"{label(plan.model.name)}-api"


def name_of(plan: DeployPlan, part: str) -> str:
    """Return the name of a part's objects."""
    return f"{label(plan.model.name)}-{part}"


def _policy(plan: DeployPlan, part: str, *, ingress: list[Doc], egress: list[Doc]) -> Doc:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name_of(plan, part), "labels": labels(plan, part)},
        "spec": {
            "podSelector": {"matchLabels": labels(plan, part)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _service(plan: DeployPlan, part: str, name: str, selector: dict[str, str], port: int, target: str) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(plan, part)},
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [{"name": target, "protocol": "TCP", "port": port, "targetPort": target}],
        },
    }


def _selected(labels: dict[str, str]) -> Doc:
    return {"podSelector": {"matchLabels": labels}}


def _tcp(port: int) -> Doc:
    return {"protocol": "TCP", "port": port}

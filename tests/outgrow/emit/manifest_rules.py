"""What must hold of manifests beyond their schema, as they are emitted and after mutations.

It reads documents as a cluster does, so a file that was edited since is judged the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import DIGEST, Doc
from freehold.outgrow.emit.containers import ContainerEngine, container_engine

# Sizes of a plan by the names under which engines take them.
TENSOR = ("--tensor-parallel-size", "-tp", "--tp-size", "--tp", "--tensor_parallel_size", "--tp_size")
PIPELINE = ("--pipeline-parallel-size", "-pp", "--pp-size", "--pp", "--pipeline_parallel_size", "--pp_size")
DATA = ("--data-parallel-size", "-dp", "--dp-size", "--dp")
_SECRET = re.compile(r"(?:_KEY|TOKEN|PASSWORD|SECRET)$")
_DOORS = (
    "--trust-remote-code",
    "--trust_remote_code",
    "--api-key",
    "--admin-api-key",
    "--enable-log-requests",
)
_SHARED = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")


def faults(documents: Sequence[Doc], plan: DeployPlan) -> list[str]:
    """Return what is wrong, one sentence each; an empty list where nothing is."""
    faults_of_plan: list[str] = []
    for rule in _RULES:
        try:
            faults_of_plan += rule(documents, plan)
        except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as e:
            faults_of_plan.append(f"{rule.__name__.strip('_')}: a part is missing or has another form: {e!r}")
    return faults_of_plan


# --- reading ------------------------------------------------------------------------------------------


def _of(documents: Sequence[Doc], kind: str, part: str = "") -> list[Doc]:
    matches = [d for d in documents if d["kind"] == kind]
    return [d for d in matches if not part or d["metadata"]["labels"]["app.kubernetes.io/component"] == part]


def _one(documents: Sequence[Doc], kind: str, part: str) -> Doc:
    (document,) = _of(documents, kind, part)
    return document


def _workload(documents: Sequence[Doc]) -> Doc:
    (document,) = [*_of(documents, "LeaderWorkerSet", "engine"), *_of(documents, "Deployment", "engine")]
    return document


def _leader(documents: Sequence[Doc]) -> Doc:
    spec = _workload(documents)["spec"]
    return (
        spec["leaderWorkerTemplate"]["leaderTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]
    )


def _templates(documents: Sequence[Doc]) -> Iterator[tuple[str, Doc]]:
    spec = _workload(documents)["spec"]
    if "leaderWorkerTemplate" in spec:
        yield "leader", spec["leaderWorkerTemplate"]["leaderTemplate"]
        yield "worker", spec["leaderWorkerTemplate"]["workerTemplate"]
    else:
        yield "engine", spec["template"]
    yield "server", _one(documents, "Deployment", "server")["spec"]["template"]


def _containers(template: Doc) -> list[Doc]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def _fits(selector: Doc, template: Doc, worker: str = "") -> bool:
    carried = {
        **template["metadata"]["labels"],
        **({"leaderworkerset.sigs.k8s.io/worker-index": worker} if worker else {}),
    }
    return bool(selector) and all(carried.get(k) == v for k, v in selector.items())


def _command(container: Doc) -> list[str]:
    return [str(w) for w in (*container.get("command", ()), *container.get("args", ()))]


# --- rules --------------------------------------------------------------------------------------------


def _images(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    for where, template in _templates(documents):
        for container in _containers(template):
            if not DIGEST.fullmatch(container["image"]):
                yield f"{where}: image {container['image']} has no digest"


def _secrets(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    if _of(documents, "Secret"):
        yield "a Secret is written out; it belongs in the cluster alone"
    for where, template in _templates(documents):
        for container in _containers(template):
            for variable in container["env"]:
                inline = "value" in variable or "secretKeyRef" not in variable.get("valueFrom", {})
                if _SECRET.search(variable["name"]) and inline:
                    yield f"{where}: {variable['name']} is not taken from a Secret"
            for door in set(_command(container)) & set(_DOORS):
                yield f"{where}: {door} is on a command line"
    engine = container_engine(plan.engine, "Kubernetes")
    server = {
        v["name"] for v in _containers(_one(documents, "Deployment", "server")["spec"]["template"])[0]["env"]
    }
    if "FREEHOLD_API_KEY" not in server:
        yield "server: it would need no key"
    if engine.key and engine.key not in {v["name"] for v in _containers(_leader(documents))[0]["env"]}:
        yield f"leader: {engine.key} is missing, so the engine would need no key"


def _confinement(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    for where, template in _templates(documents):
        pod = template["spec"]
        yield from (f"{where}: {name}" for name in _SHARED if pod.get(name))
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: a token of the cluster's API is mounted"
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{where}: it may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: no seccomp profile"
        yield from (f"{where}: volume {v['name']} is of the host" for v in pod["volumes"] if "hostPath" in v)
        for container in _containers(template):
            held = container.get("securityContext", {})
            if held.get("privileged") or held.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: privileges can grow"
            if held.get("capabilities", {}).get("drop") != ["ALL"] or held["capabilities"].get("add"):
                yield f"{where}: it has capabilities"
            yield from (
                f"{where}: host port {p['hostPort']}" for p in container.get("ports", ()) if "hostPort" in p
            )


def _probes(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    for where, template in _templates(documents):
        container = template["spec"]["containers"][0]
        if where == "worker":
            continue
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            if name not in container:
                yield f"{where}: no {name}"
                return
        start = container["startupProbe"]
        if where != "server" and start["periodSeconds"] * start["failureThreshold"] < 1800:
            yield f"{where}: a start may take longer than its probe waits"
        command = container["readinessProbe"].get("exec", {}).get("command", [])
        token = (
            any(w.endswith("probe.py") for w in command) and "ready" in command and plan.model.name in command
        )
        if not token and (where == "server" or container_engine(plan.engine, "").python):
            yield f"{where}: ready without a token of {plan.model.name}"


def _endings(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    engine = container_engine(plan.engine, "Kubernetes")
    leader_s = 0.0
    for where, template in _templates(documents):
        container, flag = (
            template["spec"]["containers"][0],
            "--drain" if where == "server" else engine.shutdown,
        )
        words, grace = _command(container), template["spec"].get("terminationGracePeriodSeconds", 30)
        away = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = float(words[words.index(flag) + 1].rstrip("s")) if flag in words else 0.0
        if where == "worker":
            if away < leader_s or grace <= away:
                yield f"worker: it ends after {min(away, grace)} s, while its leader drains for {leader_s:g} s"
            continue
        leader_s = away + drain
        if flag and not drain:
            yield f"{where}: running answers are cut at the end ({flag})"
        if grace <= leader_s:
            yield f"{where}: killed after {grace} s, while it drains until {leader_s:g} s"


def _devices(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    """Devices asked for, the plan's sizes and the command line's have to agree."""
    spec = _workload(documents)["spec"]
    size = spec.get("leaderWorkerTemplate", {}).get("size", 1)
    if spec["replicas"] != plan.replicas:
        yield f"{spec['replicas']} replicas; the plan has {plan.replicas}"
    counts = []
    for where, template in _templates(documents):
        if where == "server":
            continue
        resources = template["spec"]["containers"][0]["resources"]
        requests, limit = (
            {k: v for k, v in resources.get(n, {}).items() if k.endswith("/gpu")}
            for n in ("requests", "limits")
        )
        if requests != limit:
            yield f"{where}: devices asked for and limited differ"
        counts.append(sum(int(v) for v in limit.values()))
    total = counts[0] + (size - 1) * (counts[1] if len(counts) > 1 else 0)
    if plan.nodes.rig.device.kind == "gpu" and total != plan.sizes.devices:
        yield f"{total} devices a replica; the plan spreads over {plan.sizes.devices}"
    words = _command(_leader(documents)["spec"]["containers"][0])
    tensor, pipeline, data = (_value(words, names) for names in (TENSOR, PIPELINE, DATA))
    if "--enable-dp-attention" in words:  # its tensor size counts every device
        data = 1
    planned = plan.sizes.tensor * plan.sizes.data
    if pipeline != plan.sizes.pipeline or tensor * data != planned:
        yield f"command line: tensor {tensor}, pipeline {pipeline}, data {data}; planned {plan.sizes}"
    engine = container_engine(plan.engine, "Kubernetes")
    if plan.model.name not in [words[at + 1] for at, w in enumerate(words[:-1]) if w == engine.served]:
        yield f"command line: {engine.served} is not {plan.model.name}"


def _value(words: Sequence[str], names: Sequence[str]) -> int:
    values = [words[at + 1] for at, word in enumerate(words[:-1]) if word in names]
    values += [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]
    return int(values[-1]) if values else 1


def _nodes(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    """Leader and workers of a group have to meet: one world, whose members differ in their index alone."""
    spec = _workload(documents)["spec"]
    if "leaderWorkerTemplate" not in spec:
        return
    if spec["leaderWorkerTemplate"].get("restartPolicy") != "RecreateGroupOnPodRestart":
        yield "a group would live on without one of its pods"
    leader, worker = (_command(t["spec"]["containers"][0]) for w, t in _templates(documents) if w != "server")
    if plan.engine == "trtllm":
        if not any(w.endswith("mpi-leader.sh") for w in leader) or not any(
            w.endswith("mpi-worker.sh") for w in worker
        ):
            yield "leader and worker do not make one MPI world"
        return
    for words in (leader, worker):
        for flag, variable in (("--nnodes", "LWS_GROUP_SIZE"), ("--node-rank", "LWS_WORKER_INDEX")):
            if flag not in words or words[words.index(flag) + 1] != f"$({variable})":
                yield f"{flag} is not $({variable})"
        if not any("$(LWS_LEADER_ADDRESS)" in word for word in words):
            yield "a node does not know its leader's address"
    if plan.engine == "vllm" and ("--headless" not in worker or "--headless" in leader):
        yield "vLLM's workers have to be headless, its leader not"


def _network(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    templates = dict(_templates(documents))
    engines = [t for where, t in templates.items() if where != "server"]
    port = _leader(documents)["spec"]["containers"][0]["ports"][0]["containerPort"]
    for part, covered in (("engine", engines), ("server", [templates["server"]])):
        spec = _one(documents, "NetworkPolicy", part)["spec"]
        if set(spec.get("policyTypes", ())) != {"Ingress", "Egress"}:
            yield f"{part}: the policy does not cover both directions"
        if not all(_fits(spec["podSelector"]["matchLabels"], t) for t in covered):
            yield f"{part}: the policy does not select its pods"
        for rule in (*spec["ingress"], *spec["egress"]):
            if not (rule.get("from") or rule.get("to")):
                yield f"{part}: a rule without a peer"
    yield from _reached(documents, templates["server"], engines[0], port)
    if not any(
        _fits(p.get("podSelector", {}).get("matchLabels", {}), templates["server"])
        for rule in _one(documents, "NetworkPolicy", "engine")["spec"]["ingress"]
        for p in rule["from"]
    ):
        yield "engine: our server may not reach it"


def _reached(documents: Sequence[Doc], server: Doc, engine: Doc, port: int) -> Iterator[str]:
    """Only our server, its own group, and what the files themselves add may reach an engine."""
    pools = _of(documents, "InferencePool")
    for rule in _one(documents, "NetworkPolicy", "engine")["spec"]["ingress"]:
        peers = [p.get("podSelector", {}).get("matchLabels", {}) for p in rule["from"]]
        to_port = [p.get("port") for p in rule.get("ports", ())] == [port]
        if _of(documents, "ServiceMonitor") and to_port and all(map(_counts, rule["from"])):
            continue
        if any("namespaceSelector" in p or "ipBlock" in p for p in rule["from"]):
            yield "engine: pods beyond the namespace may reach it"
        if all(_fits(peer, engine) for peer in peers):
            continue
        if pools and to_port and all(_routes(peer, pools[0]) for peer in peers):
            continue
        if not all(_fits(peer, server) for peer in peers):
            yield "engine: others than our server may reach it"
        if [p.get("port") for p in rule.get("ports", ())] != [port]:
            yield f"engine: our server may reach more, or less, than port {port}"


def _counts(peer: Doc) -> bool:
    """Say whether a peer is a Prometheus of a namespace that is named, and nothing else."""
    pods, space = (peer.get(k, {}).get("matchLabels", {}) for k in ("podSelector", "namespaceSelector"))
    return pods == {"app.kubernetes.io/name": "prometheus"} and [*space] == ["kubernetes.io/metadata.name"]


def _routes(peer: Doc, pool: Doc) -> bool:
    """Say whether a peer is the Gateway before a pool, or the pool's picker."""
    picker = pool["spec"]["endpointPickerRef"]["name"]
    return peer == {"app": picker} or [*peer] == ["gateway.networking.k8s.io/gateway-name"]


def _ways(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    """Our server has to find the engine, and its clients our server."""
    several = "leaderWorkerTemplate" in _workload(documents)["spec"]
    engine = _one(documents, "Service", "engine")
    selector = engine["spec"]["selector"]
    if not _fits(selector, _leader(documents), "0") or (several and _fits(selector, _leader(documents), "1")):
        yield "the engine's Service does not select its leaders, and them alone"
    if engine["metadata"]["name"] == _workload(documents)["metadata"]["name"]:
        yield "the engine's Service has the name of the headless one of its LeaderWorkerSet"
    for service in _of(documents, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP" or service["spec"].get("externalIPs"):
            yield f"Service {service['metadata']['name']} leads out of the cluster"
    files = _one(documents, "ConfigMap", "engine")["data"]
    port = engine["spec"]["ports"][0]["port"]
    route = _of(documents, "HTTPRoute")
    url = f"http://{engine['metadata']['name']}:{port}/v1"
    if route:
        url = f"http://{route[0]['spec']['parentRefs'][0]['name']}."
    if url not in files["gateway.toml"]:
        yield "gateway.toml names another address than the engine's Service, or the Gateway before its pool"
    server = _one(documents, "Deployment", "server")["spec"]["template"]
    if not _fits(_one(documents, "Service", "server")["spec"]["selector"], server):
        yield "our server's Service does not select it"
    if engine["spec"]["ports"][0]["targetPort"] not in ("api", port):
        yield "the engine's Service leads to another port"


def _quiet(documents: Sequence[Doc], plan: DeployPlan) -> Iterator[str]:
    engine: ContainerEngine = container_engine(plan.engine, "Kubernetes")
    for where, template in _templates(documents):
        if where == "server":
            continue
        container = template["spec"]["containers"][0]
        words = _command(container)
        if engine.quiet and " ".join(engine.quiet) not in " ".join(words):
            yield f"{where}: its log would hold its keys without {' '.join(engine.quiet)}"
        variables = {v["name"]: v.get("value") for v in container["env"]}
        yield from (
            f"{where}: {k} is not {v}" for k, v in engine.environment.items() if variables.get(k) != v
        )
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        if volumes[mounts["/dev/shm"]["name"]].get("emptyDir", {}).get("medium") != "Memory":
            yield f"{where}: /dev/shm is not in memory"
        claim = volumes[mounts["/model"]["name"]]["persistentVolumeClaim"]
        if not (mounts["/model"].get("readOnly") and claim.get("readOnly")):
            yield f"{where}: the model can be written"


_RULES: tuple[Callable[[Sequence[Doc], DeployPlan], Iterator[str]], ...] = (
    *(_images, _secrets, _confinement, _probes, _endings),
    *(_devices, _nodes, _network, _ways, _quiet),
)

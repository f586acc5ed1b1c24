"""Manifests: valid by schema, safe by rule, and a mutation of either kind is found."""

from __future__ import annotations

import copy
import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from freehold.base import catalog
from freehold.base.errors import UsageError
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan, PlannedFlag, PlanRequest
from freehold.outgrow.emit import EmitOptions
from freehold.outgrow.emit.containers import SGLANG_START
from freehold.outgrow.emit.kubernetes import documents, kubernetes_files
from freehold.outgrow.flags import nearest
from freehold.outgrow.planning import facts
from tests.outgrow.emit.manifest_rules import faults

from .plans import OPTIONS, plan

SCHEMAS = Path(__file__).parent.parent / "schemas"
LWS = jsonschema.Draft202012Validator(
    {
        **json.loads(gzip.decompress((SCHEMAS / "leaderworkerset-v1.schema.json.gz").read_bytes())),
        "required": ["apiVersion", "kind", "metadata", "spec"],
    }
)
ENGINES = ("vllm", "sglang", "trtllm")


BEYOND = ("monitoring.coreos.com", "keda.sh", "inference.networking.k8s.io", "gateway.networking.k8s.io")


def refused(found: list[dict]) -> Iterator[str]:
    """What a cluster's schemas refuse."""
    for document in found:
        if document.get("apiVersion", "").startswith("leaderworkerset"):
            yield from (e.message for e in LWS.iter_errors(document))
            continue
        if (
            document.get("apiVersion", "").partition("/")[0] in BEYOND
        ):  # definitions that a cluster gets besides
            continue
        try:
            kubernetes_validate.validate(document, "1.37", strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as e:
            yield str(e)


def problems(found: list[dict], made_from: DeployPlan) -> Iterator[str]:
    """What our rules find, then what schemas refuse."""
    yield from faults(found, made_from)
    yield from refused(found)


def emitted(engine: str, **more: Any) -> tuple[list[dict], DeployPlan]:
    made = plan(engine, **more)
    (file,) = kubernetes_files(made, OPTIONS)
    return list(yaml.safe_load_all(file.text)), made


def driven(engine: str, model: str, on: str) -> DeployPlan:
    """A plan as the engine's driver makes it."""
    known = facts.of_catalogue(catalog.model(model), "")
    return drivers.driver(engine).plan(PlanRequest(known, facts.nodes_on(on)))


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["llama-3.1-405b-instruct", "deepseek-r1:671b"])
@pytest.mark.parametrize("engine", ENGINES)
def test_manifests_of_two_nodes_of_eight_h100_are_valid(engine, model):
    made = driven(engine, model, "2x8xh100")
    assert (made.across, made.sizes.tensor, made.sizes.pipeline) == (2, 8, 2)
    (file,) = kubernetes_files(made, OPTIONS)
    found = list(yaml.safe_load_all(file.text))
    assert list(problems(found, made)) == []
    template = one(found, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    limits = [
        t["spec"]["containers"][0]["resources"]["limits"] for t in template.values() if isinstance(t, dict)
    ]
    assert (template["size"], limits) == (2, [{"nvidia.com/gpu": "8"}] * 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("on", ["8xh100", "4x8xh100", "8xmi300x", "2x4xl40s"])
def test_whatever_a_driver_plans_for_accelerators_makes_sound_manifests(engine, on):
    try:
        made = driven(engine, "glm-4.5-air:106b", on)
    except UsageError:  # an engine without that device, or a misfit
        return
    (file,) = kubernetes_files(made, OPTIONS)
    assert list(problems(list(yaml.safe_load_all(file.text)), made)) == []


@pytest.mark.parametrize("engine", (*ENGINES, "llamacpp"))
def test_manifests_of_one_node_are_a_deployment(engine):
    tensor = 1 if engine == "llamacpp" else 8
    found, made = emitted(engine, nodes=1, tensor=tensor, pipeline=1, replicas=3)
    assert list(problems(found, made)) == []
    assert [d["kind"] for d in found].count("Deployment") == 2


# --- mutations ----------------------------------------------------------------------------------------


def one(found: list[dict], kind: str, part: str = "engine") -> dict:
    (document,) = [
        d
        for d in found
        if d["kind"] == kind and d["metadata"]["labels"]["app.kubernetes.io/component"] == part
    ]
    return document


def group(found: list[dict]) -> dict:
    return one(found, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]


def pod(found: list[dict], role: str) -> dict:
    if role == "server":
        return one(found, "Deployment", "server")["spec"]["template"]["spec"]
    return group(found)[f"{role}Template"]["spec"]


def box(found: list[dict], role: str) -> dict:
    return pod(found, role)["containers"][0]


def variable(found: list[dict], role: str, name: str) -> dict:
    return next(v for v in box(found, role)["env"] if v["name"] == name)


def renamed(holder: dict, old: str, new: str) -> None:
    holder[new] = holder.pop(old)


def swapped(found: list[dict], role: str, old: str, new: str) -> None:
    words = box(found, role)["command"]
    words[words.index(old)] = new


def after(found: list[dict], role: str, flag: str, value: str) -> None:
    words = box(found, role)["command"]
    words[words.index(flag) + 1] = value


def rules(found: list[dict], part: str = "engine") -> dict:
    return one(found, "NetworkPolicy", part)["spec"]


def inline(found: list[dict], role: str, name: str) -> None:
    held = variable(found, role, name)
    held.clear()
    held.update(name=name, value="7f3a9c")


Mutation = Callable[[list[dict]], Any]
SPELLING: dict[str, Mutation] = {
    "replicaz": lambda d: renamed(one(d, "LeaderWorkerSet")["spec"], "replicas", "replicaz"),
    "leaderTemplates": lambda d: renamed(group(d), "leaderTemplate", "leaderTemplates"),
    "restartpolicy": lambda d: renamed(group(d), "restartPolicy", "restartpolicy"),
    "readynessProbe in a group": lambda d: renamed(box(d, "leader"), "readinessProbe", "readynessProbe"),
    "volumeMount": lambda d: renamed(box(d, "worker"), "volumeMounts", "volumeMount"),
    "terminationGracePeriod": lambda d: renamed(
        pod(d, "leader"), "terminationGracePeriodSeconds", "terminationGracePeriod"
    ),
    "livenesProbe of our server": lambda d: renamed(box(d, "server"), "livenessProbe", "livenesProbe"),
    "selectors of a Service": lambda d: renamed(one(d, "Service")["spec"], "selector", "selectors"),
    "ingres": lambda d: renamed(rules(d), "ingress", "ingres"),
    "datas of a ConfigMap": lambda d: renamed(one(d, "ConfigMap"), "data", "datas"),
}
TYPES: dict[str, Mutation] = {
    "size two": lambda d: group(d).update(size="two"),
    "replicas '1'": lambda d: one(d, "LeaderWorkerSet")["spec"].update(replicas="1"),
    "restartPolicy Always": lambda d: group(d).update(restartPolicy="Always"),
    "command a string": lambda d: box(d, "leader").update(command="vllm serve"),
    "port of a Service a word": lambda d: one(d, "Service")["spec"]["ports"][0].update(port="http"),
    "readOnly 'yes'": lambda d: box(d, "worker")["volumeMounts"][0].update(readOnly="yes"),
    "env value a number": lambda d: variable(d, "leader", "HF_HUB_OFFLINE").update(value=1),
    "grace '90s'": lambda d: pod(d, "server").update(terminationGracePeriodSeconds="90s"),
}
REMOVED: dict[str, Mutation] = {
    "no spec": lambda d: one(d, "LeaderWorkerSet").pop("spec"),
    "no worker template": lambda d: group(d).pop("workerTemplate"),
    "no containers": lambda d: pod(d, "leader").pop("containers"),
    "no selector of a Deployment": lambda d: one(d, "Deployment", "server")["spec"].pop("selector"),
    "no policy of the engine": lambda d: d.remove(one(d, "NetworkPolicy")),
    "no image": lambda d: box(d, "leader").pop("image"),
}
MEANING: dict[str, Mutation] = {
    "a policy rule without its port": lambda d: rules(d)["ingress"][0].pop("ports"),
    "a policy of another port": lambda d: rules(d)["ingress"][0]["ports"][0].update(port=8001),
    "a policy rule for everybody": lambda d: rules(d)["ingress"].append({}),
    "a policy that lets another namespace in": lambda d: rules(d)["ingress"][0]["from"].append(
        {"namespaceSelector": {}}
    ),
    "a policy that lets other pods in": lambda d: rules(d)["ingress"][0]["from"].append(
        {"podSelector": {"matchLabels": {"app": "other"}}}
    ),
    "a policy of one direction": lambda d: rules(d).update(policyTypes=["Ingress"]),
    "a policy without our server": lambda d: rules(d)["ingress"].pop(0),
    "a policy that selects nothing": lambda d: rules(d)["podSelector"]["matchLabels"].update(x="y"),
    "the engine's key inline": lambda d: inline(d, "leader", "VLLM_API_KEY"),
    "our server's key inline": lambda d: inline(d, "server", "FREEHOLD_API_KEY"),
    "the engine without a key": lambda d: box(d, "leader")["env"].remove(
        variable(d, "leader", "VLLM_API_KEY")
    ),
    "a Secret written out": lambda d: d.append(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"engine": "7f3a"}}
    ),
    "a key on the command line": lambda d: box(d, "leader")["command"].extend(["--api-key", "7f3a"]),
    "code of the model": lambda d: box(d, "leader")["command"].append("--trust-remote-code"),
    "no startup probe": lambda d: box(d, "leader").pop("startupProbe"),
    "no readiness probe of our server": lambda d: box(d, "server").pop("readinessProbe"),
    "a start of a minute": lambda d: box(d, "leader")["startupProbe"].update(failureThreshold=6),
    "ready by health alone": lambda d: box(d, "leader").update(
        readinessProbe={"httpGet": {"path": "/health", "port": "api"}}
    ),
    "our server ready by another model's token": lambda d: box(d, "server")["readinessProbe"]["exec"].update(
        command=["python", "/etc/freehold/probe.py", "ready", "http://127.0.0.1:11435", "other"]
    ),
    "grace below the shutdown time-out": lambda d: pod(d, "leader").update(terminationGracePeriodSeconds=30),
    "grace of our server below its drain": lambda d: pod(d, "server").update(
        terminationGracePeriodSeconds=60
    ),
    "a shutdown time-out of 0": lambda d: after(d, "leader", "--shutdown-timeout", "0"),
    "a worker that ends while its leader drains": lambda d: box(d, "worker")["lifecycle"]["preStop"][
        "sleep"
    ].update(seconds=1),
    "host network": lambda d: pod(d, "leader").update(hostNetwork=True),
    "host port": lambda d: box(d, "leader")["ports"][0].update(hostPort=8000),
    "a folder of the host": lambda d: pod(d, "worker")["volumes"].append(
        {"name": "x", "hostPath": {"path": "/"}}
    ),
    "root": lambda d: pod(d, "worker")["securityContext"].update(runAsNonRoot=False),
    "privileged": lambda d: box(d, "worker")["securityContext"].update(privileged=True),
    "a capability": lambda d: box(d, "worker")["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
    "no seccomp": lambda d: pod(d, "leader")["securityContext"].pop("seccompProfile"),
    "a token of the cluster's API": lambda d: pod(d, "server").pop("automountServiceAccountToken"),
    "four devices a node": lambda d: [
        box(d, r)["resources"][k].update({"nvidia.com/gpu": "4"})
        for r in ("leader", "worker")
        for k in ("requests", "limits")
    ],
    "a group of three": lambda d: group(d).update(size=3),
    "tensor parallel 4": lambda d: after(d, "leader", "--tensor-parallel-size", "4"),
    "one replica more": lambda d: one(d, "LeaderWorkerSet")["spec"].update(replicas=2),
    "a fixed node rank": lambda d: after(d, "worker", "--node-rank", "1"),
    "another leader": lambda d: after(d, "worker", "--master-addr", "10.0.0.1"),
    "a worker with an API": lambda d: box(d, "worker")["command"].remove("--headless"),
    "a group that lives on in part": lambda d: group(d).update(restartPolicy="None"),
    "a tag instead of a digest": lambda d: box(d, "worker").update(image="vllm/vllm-openai:v0.32.0"),
    "latest": lambda d: box(d, "server").update(image="freehold:latest"),
    "a Service of all pods": lambda d: one(d, "Service")["spec"]["selector"].pop(
        "leaderworkerset.sigs.k8s.io/worker-index"
    ),
    "a Service out of the cluster": lambda d: one(d, "Service", "server")["spec"].update(type="LoadBalancer"),
    "a Service with the group's name": lambda d: one(d, "Service")["metadata"].update(
        name=one(d, "LeaderWorkerSet")["metadata"]["name"]
    ),
    "another address in gateway.toml": lambda d: one(d, "ConfigMap")["data"].update(
        {"gateway.toml": "[providers.engine]\nurl = 'http://elsewhere/v1'\n"}
    ),
    "another served name": lambda d: after(d, "leader", "--served-model-name", "other"),
    "the hub on": lambda d: variable(d, "worker", "HF_HUB_OFFLINE").update(value="0"),
    "telemetry on": lambda d: box(d, "leader")["env"].remove(variable(d, "leader", "VLLM_NO_USAGE_STATS")),
    "shared memory on disk": lambda d: pod(d, "leader")["volumes"][1].update(emptyDir={}),
    "a model that can be written": lambda d: box(d, "leader")["volumeMounts"][0].pop("readOnly"),
}
MUTATIONS = {**SPELLING, **TYPES, **REMOVED, **MEANING}


@pytest.fixture(scope="module")
def sound() -> tuple[list[dict], DeployPlan]:
    return emitted("vllm")


def test_mutations_are_thirty_and_more():
    assert len(MUTATIONS) >= 30


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_caught(sound, name):
    found, made = copy.deepcopy(sound[0]), sound[1]
    MUTATIONS[name](found)
    assert next(problems(found, made), "")


@pytest.mark.parametrize("name", {**SPELLING, **TYPES})
def test_schemas_alone_find_what_is_misspelt_or_of_another_type(sound, name):
    found = copy.deepcopy(sound[0])
    MUTATIONS[name](found)
    changed = [d for d, was in zip(found, sound[0], strict=True) if d != was]
    assert next(refused(changed), "")


@pytest.mark.parametrize("name", MEANING)
def test_rules_alone_find_what_a_schema_allows(sound, name):
    found, made = copy.deepcopy(sound[0]), sound[1]
    MEANING[name](found)
    assert faults(found, made)


def test_log_of_sglang_that_would_hold_its_keys_is_found():
    """At its usual level it prints every argument at the start, both keys among them."""
    found, made = emitted("sglang")
    assert "--log-level" in box(found, "leader")["command"]
    after(found, "leader", "--log-level", "info")
    assert any("hold its keys" in fault for fault in faults(found, made))


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"namespace": "a b;reboot"},
        {"namespace": "A"},
        {"namespace": "a.b"},
        {"namespace": "a" * 64},
        {"claim": "../x"},
        {"claim": "-x"},
    ],
)
def test_names_that_no_cluster_has_are_refused(wrong):
    with pytest.raises(UsageError, match="is not a name of Kubernetes"):
        kubernetes_files(plan("vllm"), replace(OPTIONS, **wrong))
    assert kubernetes_files(plan("vllm"), replace(OPTIONS, namespace="team-a", claim="weights.v1"))


@pytest.mark.parametrize(
    "image", ["", "vllm/vllm-openai", "vllm/vllm-openai:latest", "vllm/vllm-openai:v0.32.0"]
)
def test_image_without_a_digest_is_refused(image):
    with pytest.raises(UsageError, match="--image"):
        documents(plan("vllm"), EmitOptions(image=image, server_image=OPTIONS.server_image))


def test_flag_that_names_a_file_of_this_machine_is_refused():
    made = plan("vllm")
    made = replace(made, flags=(*made.flags, PlannedFlag("--chat-template", "/home/me/x.jinja", "")))
    with pytest.raises(UsageError, match=r"--chat-template names /home/me/x\.jinja"):
        documents(made, OPTIONS)


def test_nothing_of_this_machine_is_in_a_file():
    for engine in ENGINES:
        (file,) = kubernetes_files(plan(engine), OPTIONS)
        for word in ("/srv/models", "/home/me", "/run/user", "127.0.0.1:8000/v1", "VLLM_HOST_IP: 127"):
            assert word not in file.text, (engine, word)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_flag_of_a_container_is_one_that_the_engine_has(engine):
    schema = nearest(engine, "")
    found = documents(driven(engine, "deepseek-r1:671b", "2x8xh100"), OPTIONS)
    for role in ("leader", "worker"):
        words = box(found, role)["command"]
        flags = [word for word in words if word.startswith("--")]
        assert flags or (engine, role) == ("trtllm", "worker")  # which runs sshd
        assert [flag for flag in flags if not schema.has(flag)] == []


def test_entry_of_sglang_writes_its_keys_for_its_user_alone(tmp_path: Path):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ENGINE_KEY": "k-1", "ADMIN_KEY": "k-2"}
    ran = subprocess.run(
        ["sh", "-c", SGLANG_START, "echo", "x"], env=env, capture_output=True, text=True, check=True
    )
    path = tmp_path / "keys.yaml"
    assert ran.stdout == f"x --config {path}\n"
    assert yaml.safe_load(path.read_text()) == {"api-key": "k-1", "admin-api-key": "k-2"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_pods_run_on_the_gpus_that_the_plan_is_for():
    found, _ = emitted("vllm", rig="h100", nodes=1, tensor=1, pipeline=1)
    pod = next(d for d in found if d["kind"] == "Deployment" and d["metadata"]["name"].endswith("-engine"))
    terms = pod["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["NVIDIA-H100-80GB-HBM3"]


def test_a_drain_takes_one_replica_at_a_time():
    found, made = emitted("vllm")
    (budget,) = [d for d in found if d["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert list(problems(found, made)) == []


def with_extras(engine: str = "vllm", **more: Any) -> tuple[list[dict], DeployPlan]:
    made = plan(engine, rig="h100", nodes=1, tensor=1, pipeline=1)
    (file,) = kubernetes_files(made, replace(OPTIONS, **more))
    return list(yaml.safe_load_all(file.text)), made


def test_replicas_follow_the_engines_queues_as_prometheus_has_them():
    found, made = with_extras(monitoring="observability", scale="1..4")
    assert list(problems(found, made)) == []
    by_kind = {d["kind"]: d for d in found}
    spec = by_kind["ScaledObject"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    assert spec["scaleTargetRef"]["name"].endswith("-engine")
    trigger = spec["triggers"][0]["metadata"]
    assert "vllm:num_requests_waiting" in trigger["query"] and ".observability." in trigger["serverAddress"]
    assert by_kind["ServiceMonitor"]["spec"]["endpoints"][0]["path"] == "/metrics"


@pytest.mark.heavy
def test_a_pool_keeps_prefixes_together_and_our_server_asks_its_gateway():
    found, made = with_extras(pool="inference")
    assert list(problems(found, made)) == []
    by_kind = {d["kind"]: d for d in found}
    assert by_kind["HTTPRoute"]["spec"]["rules"][0]["backendRefs"][0]["kind"] == "InferencePool"
    assert "http://inference.default.svc/v1" in by_kind["ConfigMap"]["data"]["gateway.toml"]


@pytest.mark.parametrize(
    "engine, more, told",
    [
        ("vllm", {"scale": "1..4"}, "--monitoring NAME"),
        ("vllm", {"scale": "3..4", "monitoring": "m"}, "does not contain the plan's 1 replicas"),
        ("trtllm", {"monitoring": "m"}, "no counters that Prometheus may read"),
    ],
)
def test_extras_that_cannot_be_are_refused(engine, more, told):
    with pytest.raises(UsageError) as refused:
        with_extras(engine, **more)
    assert told in f"{refused.value.message} {refused.value.hint}"


def test_whoever_else_reaches_an_engine_is_a_fault():
    found, made = with_extras(monitoring="observability")
    policy = next(
        d for d in found if d["kind"] == "NetworkPolicy" and d["metadata"]["name"].endswith("-engine")
    )
    rule = policy["spec"]["ingress"][2]
    rule["from"][0]["podSelector"] = {}
    assert any("beyond the namespace" in fault for fault in faults(found, made))


def test_attention_apart_counts_its_devices_once():
    made = driven("sglang", "deepseek-r1:671b", "8xh200")
    assert made.sizes.data == 8
    (file,) = kubernetes_files(made, OPTIONS)
    assert list(problems(list(yaml.safe_load_all(file.text)), made)) == []

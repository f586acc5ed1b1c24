"""A plan's command line as a container has it: the model at /model, its own port, one node of several.

A flag that names a file outside the model's folder is refused: the container would not find it. Knows no file format.
Path: kubernetes.documents, compose.compose_document -> group -> engine_words
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from freehold.backends.contract import DeployPlan, PlannedFlag
from freehold.backends.emit.engines import PORT, ContainerEngine
from freehold.errors import UsageError

MODEL = "/model"  # where the model's folder is mounted
MASTER_PORT = 29501  # rendezvous of vLLM's nodes
INIT_PORT = 20000  # and of SGLang's

# SGLang reads keys from its command line or from --config FILE. Command lines are public, so a file is written first.
SGLANG_START = (
    'umask 077; printf "api-key: %s\\nadmin-api-key: %s\\n" "$ENGINE_KEY" "$ADMIN_KEY" >"$HOME/keys.yaml"; '
    'exec "$0" "$@" --config "$HOME/keys.yaml"'
)


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """The nodes of one replica."""

    nodes: int
    devices: int  # of each node


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node of a group, in words of what starts it: a variable of a pod, or of a task."""

    nodes: str
    rank: str
    leader: str  # address of rank 0
    leads: bool


def group(plan: DeployPlan) -> NodeGroup:
    """Return the nodes of a replica. Raises UsageError for ranks of vLLM's data parallel on several of them."""
    if plan.engine == "vllm" and plan.across > 1 and plan.sizes.data > 1:
        raise UsageError(
            f"vLLM's data parallel {plan.sizes.data} over {plan.across} nodes is one failure domain",
            f"plan --replicas {plan.sizes.data} of tensor and pipeline parallel instead",
        )
    return NodeGroup(plan.across, plan.sizes.devices // plan.across)


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
    model = _model_path(plan)
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


def _node_words(engine: str, place: NodePlace | None) -> tuple[str, ...]:
    if place is None:
        return ()
    if engine == "vllm":
        words = ("--nnodes", place.nodes, "--node-rank", place.rank)
        words += ("--master-addr", place.leader, "--master-port", str(MASTER_PORT))
        return words if place.leads else (*words, "--headless")
    if engine == "sglang":
        return (
            *("--nnodes", place.nodes, "--node-rank", place.rank),
            *("--dist-init-addr", f"{place.leader}:{INIT_PORT}"),
        )
    return ()  # TensorRT-LLM's nodes are MPI's


def _model_path(plan: DeployPlan) -> str:
    if plan.model.files == "gguf" and PurePath(plan.model.source).suffix == ".gguf":
        return f"{MODEL}/{PurePath(plan.model.source).name}"
    return MODEL


def _inside(flag: PlannedFlag, plan: DeployPlan) -> PlannedFlag:
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

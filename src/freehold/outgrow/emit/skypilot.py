"""A plan as a task of SkyPilot: machines from its clouds, the engine across them, our server on the first.

Engines listen on loopback of the first machine, or meet on addresses of the task's own network; our server listens on
loopback too, so a client comes through `ssh -L`. Keys are made on the machine and stay there.
"""

from __future__ import annotations

import re
import shlex

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import (
    SERVER_PORT,
    Doc,
    EmitOptions,
    EmittedFile,
    heading,
    label,
    pinned,
    yaml_text,
)
from freehold.outgrow.emit.containers import (
    KEY,
    MODEL,
    PORT,
    ContainerEngine,
    NodePlace,
    carried,
    container_engine,
    devices_of_node,
    engine_words,
    gateway_toml,
    model_folder,
    started,
)

RANK, NODES, HEAD = "$SKYPILOT_NODE_RANK", "$SKYPILOT_NUM_NODES", "$HEAD"
# A word that is one of them is left to the shell; one that only holds one, as a name may, is not.
_OURS = re.compile("(?:" + "|".join(map(re.escape, (RANK, NODES, HEAD))) + r")(?::\d+)?")
FREEHOLD = "freehold[gateway]"
# SkyPilot's names of accelerators, where ours differ by more than case.
_NAMES = {"a100": "A100-80GB", "a100-40gb": "A100", "rtx-4090": "RTX4090", "rtx-6000-ada": "RTX6000-Ada"}

# Of a disk: an engine's image unpacked with what it compiles; shards that are downloaded beside whole ones.
_BESIDE_GB, _SPARE, _STEP_GB = 150, 1.2, 64
# Of its own, so that neither program changes the other's packages.
_SETUP = """\
python3 -m venv "$HOME/freehold" || { python3 -m pip install --user virtualenv && \\
  python3 -m virtualenv "$HOME/freehold"; }
"$HOME/freehold/bin/python" -m pip install "$FREEHOLD"
"""


def skypilot_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return the task. Raises UsageError for devices that no cloud rents, and for an engine that MPI has to start."""
    return [EmittedFile("skypilot.yaml", yaml_text([skypilot_task(plan, options)], _head(plan)))]


def skypilot_task(plan: DeployPlan, options: EmitOptions) -> Doc:
    """Return the task's content."""
    engine = container_engine(plan.engine, "SkyPilot")
    pinned("--image", options.image, engine.example)
    devices = devices_of_node(plan)
    if plan.across > 1 and plan.engine == "trtllm":
        raise UsageError(
            "TensorRT-LLM over several machines needs MPI, which a task of SkyPilot does not set up",
            "--emit k8s",
        )
    if plan.replicas > 1:
        raise UsageError(
            f"a task starts one replica, and this plan has {plan.replicas}",
            "plan --replicas 1, and launch the task once for each",
        )
    device = plan.nodes.rig.device
    if device.kind != "gpu":
        raise UsageError(
            f"SkyPilot rents GPUs, and this plan is for {device.title}", "--on 8xh100, for example"
        )
    accelerator = _NAMES.get(device.name, device.name.upper())
    return {
        "name": label(plan.model.name),
        "num_nodes": plan.across,
        "resources": {
            "accelerators": f"{accelerator}:{devices}",
            "image_id": f"docker:{options.image}",
            "disk_size": _disk_gb(plan),
        },
        "file_mounts": {MODEL: "${MODEL_FILES}"},
        "envs": {
            "MODEL_FILES": model_folder(plan) or None,
            "FREEHOLD": FREEHOLD,
            **carried(plan),
            **engine.environment,
        },
        "setup": _SETUP,
        "run": _run(plan, engine, options),
    }


def _disk_gb(plan: DeployPlan) -> int:
    """Return the gigabytes of each machine's disk: the weights, which every machine has, and what is beside them."""
    return -(-round(plan.model.anatomy.weight_bytes * _SPARE / 1e9 + _BESIDE_GB) // _STEP_GB) * _STEP_GB


def _run(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions) -> str:
    """Return what each machine runs: a key that both halves of the first one share, the engine, our server."""
    lead = _line(plan, engine, options, leads=True, several=plan.across > 1)
    lines = ["set -eu", 'HEAD="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"']
    if engine.key:
        lines.append(f'export {engine.key}="$(openssl rand -hex 24)" ADMIN_KEY="$(openssl rand -hex 24)"')
    if plan.across > 1:
        follow = _line(plan, engine, options, leads=False, several=True)
        lines += [f'if [ "{RANK}" != 0 ]; then exec {follow}; fi']
    lines += [
        "umask 077",
        "cat >gateway.toml <<'END'",
        gateway_toml(plan, engine, f"http://127.0.0.1:{PORT}/v1").rstrip(),
        "END",
        *([f'export {KEY}="${engine.key}"'] if engine.key and engine.key != KEY else []),
        f"{lead} & engine=$!",
        '"$HOME/freehold/bin/freehold" serve --offline --gateway gateway.toml --port '
        f"{SERVER_PORT} --drain {options.drain_s}s & server=$!",
        # Whichever ends first ends the other; the task then has its status, which SkyPilot shows.
        "status=0; wait -n || status=$?; kill $engine $server 2>/dev/null || true; wait || true; exit $status",
    ]
    return "\n".join(lines) + "\n"


def _line(
    plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, *, leads: bool, several: bool
) -> str:
    place = NodePlace(NODES, RANK, HEAD, leads) if several else None
    words = engine_words(plan, engine, options.drain_s, place)
    # On loopback: the engine and our server share the machine.
    words = tuple("127.0.0.1" if word == "0.0.0.0" else word for word in words)
    words = started(engine, words)
    return " ".join(f'"{w}"' if _OURS.fullmatch(w) else shlex.quote(w) for w in words)


def _head(plan: DeployPlan) -> str:
    lines = [
        f"sky launch -c {label(plan.model.name)} skypilot.yaml, then ssh -L {SERVER_PORT}:127.0.0.1:{SERVER_PORT} "
        f"{label(plan.model.name)}; FREEHOLD names the package, or a wheel among the task's files.",
        f"MODEL_FILES is what {MODEL} is filled from: --env MODEL_FILES=s3://..., or a local folder.",
    ]
    return heading(plan, "skypilot", lines)

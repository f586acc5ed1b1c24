"""A plan as a compose file: engines on a network that leads nowhere, our server as the one published port.

Keys are files; the engine's entry reads its own into its environment, where no command line and no inspection of the
container shows it. One machine: compose starts nothing elsewhere.
"""

from __future__ import annotations

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import (
    SERVER_PORT,
    Doc,
    EmitOptions,
    EmittedFile,
    file_text,
    heading,
    label,
    pinned,
    yaml_text,
)
from freehold.outgrow.emit.containers import (
    AWAY_S,
    ENGINE_USER,
    FOLDER,
    GRACE_S,
    HOME,
    KEY,
    MODEL,
    NAMED,
    PORT,
    PROBE,
    SERVER_USER,
    SHM,
    STARTUP_S,
    ContainerEngine,
    carried,
    container_engine,
    devices_of_node,
    engine_words,
    gateway_toml,
    model_folder,
    server_words,
)

SECRETS = "/run/secrets"


def compose_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return compose.yaml. Raises UsageError for more than one machine, and for images without a digest."""
    return [EmittedFile("compose.yaml", yaml_text([compose_document(plan, options)], _head(plan)))]


def compose_document(plan: DeployPlan, options: EmitOptions) -> Doc:
    """Return the file's content."""
    engine = container_engine(plan.engine, "compose")
    pinned("--image", options.image, engine.example)
    pinned("--server-image", options.server_image, "registry.example/freehold")
    devices = devices_of_node(plan)
    _check_machine(plan, devices)
    numbers = range(plan.replicas)
    engines = {f"engine-{number}": _engine(plan, engine, options, number, devices) for number in numbers}
    keys = _keys_of(plan, engine)
    return {
        "name": label(plan.model.name),
        "services": {**engines, "server": _server(plan, engine, options)},
        "networks": {"inside": {"internal": True}, "outside": {}},
        "secrets": {key: {"file": f"./secrets/{key}"} for key in ("server-key", *keys)},
        "configs": {
            "gateway": {"content": _literal(gateway_toml(plan, engine, f"http://engine:{PORT}/v1"))},
            "probe": {"content": _literal(file_text("probe.py"))},
        },
    }


def _check_machine(plan: DeployPlan, devices: int) -> None:
    """Raise UsageError for a plan that one machine cannot start: several nodes, more devices than it has, no NVIDIA."""
    rig = plan.nodes.rig
    if plan.across > 1:
        raise UsageError(
            f"compose starts one machine, and a replica of this plan takes {plan.across}",
            "--emit k8s or skypilot",
        )
    if rig.device.kind != "gpu":
        return
    if plan.replicas * devices > rig.count:
        raise UsageError(
            f"{plan.replicas} replicas of {devices} devices need {plan.replicas * devices}; "
            f"this machine has {rig.count}",
            "plan fewer replicas, or --emit k8s",
        )
    if rig.device.vendor != "NVIDIA":
        raise UsageError(
            f"compose files reserve NVIDIA's devices, and this plan is for {rig.device.title}",
            "--emit k8s or systemd",
        )


def _engine(
    plan: DeployPlan, engine: ContainerEngine, options: EmitOptions, number: int, devices: int
) -> Doc:
    folder = _literal(model_folder(plan)) or "${MODEL:?the folder with the model's files}"
    environment = {**carried(plan, address=True), **engine.environment, **NAMED}
    service: Doc = {
        "image": options.image,
        "entrypoint": ["/bin/sh", "-c", _literal(_start(plan, engine))],
        "command": [_literal(word) for word in engine_words(plan, engine, options.drain_s)],
        "environment": {k: _literal(v) for k, v in environment.items()},
        "user": f"{ENGINE_USER}:{ENGINE_USER}",
        "networks": {"inside": {"aliases": ["engine"]}},
        "volumes": [{"type": "bind", "source": folder, "target": MODEL, "read_only": True}],
        "configs": [{"source": "probe", "target": PROBE}],
        "shm_size": SHM.lower().replace("i", ""),
        "tmpfs": [f"{HOME}:uid={ENGINE_USER},gid={ENGINE_USER},mode=0700", "/tmp:mode=1777"],
        "stop_grace_period": f"{options.drain_s + GRACE_S}s",
        **_confined(),
    }
    if engine.key:
        service["secrets"] = _keys_of(plan, engine)
    if engine.python:
        probe = [engine.python, PROBE, "ready", f"http://127.0.0.1:{PORT}", plan.model.name]
        service["healthcheck"] = _health([*probe, *([f"{SECRETS}/engine-key"] if engine.key else [])])
    if plan.nodes.rig.device.kind == "gpu":
        held = [str(at) for at in range(number * devices, (number + 1) * devices)]
        device = {"driver": "nvidia", "device_ids": held, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _keys_of(plan: DeployPlan, engine: ContainerEngine) -> list[str]:
    return [*(["engine-key"] if engine.key else []), *(["admin-key"] if plan.engine == "sglang" else [])]


def _start(plan: DeployPlan, engine: ContainerEngine) -> str:
    """Return what an engine's entry does before its command: it takes keys from files."""
    taken = f'export {engine.key}="$(cat {SECRETS}/engine-key)"; ' if engine.key else ""
    if plan.engine == "sglang":
        taken += f'export ADMIN_KEY="$(cat {SECRETS}/admin-key)"; '
    return taken + (engine.start or 'exec "$0" "$@"')


def _server(plan: DeployPlan, engine: ContainerEngine, options: EmitOptions) -> Doc:
    taken = f'export FREEHOLD_API_KEY="$(cat {SECRETS}/server-key)"; '
    if engine.key:
        taken += f'export {KEY}="$(cat {SECRETS}/engine-key)"; '
    url = f"http://127.0.0.1:{SERVER_PORT}"
    probe = ["python", PROBE, "ready", url, plan.model.name, f"{SECRETS}/server-key"]
    return {
        "image": options.server_image,
        "entrypoint": ["/bin/sh", "-c", _literal(f'{taken}exec "$0" "$@"')],
        "command": list(server_words(options)),
        "environment": {"FREEHOLD_HOME": HOME},
        "user": f"{SERVER_USER}:{SERVER_USER}",
        "networks": ["inside", "outside"],
        "ports": [f"127.0.0.1:{SERVER_PORT}:{SERVER_PORT}"],
        "configs": [
            {"source": "gateway", "target": f"{FOLDER}/gateway.toml"},
            {"source": "probe", "target": PROBE},
        ],
        "secrets": ["server-key", *(["engine-key"] if engine.key else [])],
        "healthcheck": _health(probe),
        "read_only": True,
        "tmpfs": [f"{HOME}:uid={SERVER_USER},gid={SERVER_USER},mode=0700", "/tmp:mode=1777"],
        "stop_grace_period": f"{options.drain_s + AWAY_S}s",
        **_confined(),
    }


def _confined() -> Doc:
    # Any end that was not asked for is a death, whatever its status, so not on-failure.
    return {
        "restart": "unless-stopped",
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _health(words: list[str]) -> Doc:
    return {
        "test": ["CMD", *map(_literal, words)],
        "interval": "15s",
        "timeout": "30s",
        "retries": 3,
        "start_period": f"{STARTUP_S}s",
    }


def _literal(text: str) -> str:
    """Keep compose from replacing `$`."""
    return text.replace("$", "$$")


def _head(plan: DeployPlan) -> str:
    keys = "server-key engine-key admin-key" if plan.engine == "sglang" else "server-key engine-key"
    lines = [
        "Keys first, as files that are in no image and no command line:",
        "  install -d -m 700 secrets",
        f'  for key in {keys}; do printf %s "$(openssl rand -hex 24)" >secrets/$key; chmod 444 secrets/$key; done',
        "Then: docker compose --file compose.yaml up --detach; clients use http://127.0.0.1:11435 and server-key.",
    ]
    if plan.engine == "trtllm":
        lines.append("TensorRT-LLM has no key: only the internal network protects its port.")
    return heading(plan, "compose", lines)

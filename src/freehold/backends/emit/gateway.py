"""Our server in front of an engine of a cluster: its gateway.toml, its command, its probe.

Path: kubernetes.documents, compose.compose_document, skypilot.skypilot_task -> gateway_toml
"""

from __future__ import annotations

import json
from importlib import resources

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import SERVER_PORT, EmitOptions
from freehold.backends.emit.engines import ContainerEngine

FOLDER = "/etc/freehold"  # of gateway.toml and the probe, in containers
PROBE = f"{FOLDER}/probe.py"
KEY = "ENGINE_KEY"  # variable of our server that holds the engine's key


def gateway_toml(plan: DeployPlan, engine: ContainerEngine, url: str) -> str:
    """Return the gateway's file: one owned provider, and a route that has the model's name."""
    key = f'key = "env:{KEY}"\n' if engine.key else ""
    return (
        "[providers.engine]\n"
        'kind = "openai-compatible"\n'
        f"url = {_text(url)}\n{key}"
        "owned = true\n"
        "plain_http = true\n"
        "\n[models.engine]\n"
        'provider = "engine"\n'
        f"model = {_text(plan.model.name)}\n"
        f"{f'context = {plan.context}' if plan.context else '# context: as the engine has it'}\n"
        f"\n[routes.{_text(plan.model.name)}]\n"
        'targets = ["engine"]\n'
        'timeout = "60m"\n'
        'first_token = "5m"  # a request may wait in the queue of a full engine\n'
    )


def server_words(options: EmitOptions, *, program: str = "freehold") -> tuple[str, ...]:
    """Return the command line of our server in a container: beyond loopback only with a key of FREEHOLD_API_KEY."""
    return (
        *(program, "serve", "--host", "0.0.0.0", "--port", str(SERVER_PORT), "--offline"),
        *("--gateway", f"{FOLDER}/gateway.toml", "--drain", f"{options.drain_s}s", "--log-format", "json"),
    )


def probe_text() -> str:
    """Return the probe's program."""
    return resources.files("freehold.backends.emit").joinpath("probe.py").read_text(encoding="utf-8")


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # a basic string of TOML has JSON's escapes

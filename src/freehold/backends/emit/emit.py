"""Writes a plan as files of another system: text in, text out; nothing is started, nothing is written to disk.

    for file in emit(plan, "k8s", EmitOptions(image="vllm/vllm-openai@sha256:...", server_image="...")):
        (folder / file.name).write_text(file.text)

Path: emit -> kubernetes_files -> EmittedFile
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import EmitOptions, EmittedFile
from freehold.config import nearest
from freehold.errors import UsageError

# kind -> the file of this room that writes it, by its KIND_files
KINDS = {
    "systemd": "systemd",
    "compose": "compose",
    "k8s": "kubernetes",
    "skypilot": "skypilot",
    "ray": "ray",
}


def emit(plan: DeployPlan, kind: str, options: EmitOptions | None = None) -> Sequence[EmittedFile]:
    """Return the files. Raises UsageError: an unknown kind, an image that is missing, what the kind cannot run."""
    if kind not in KINDS:
        near = nearest(kind, tuple(KINDS))
        raise UsageError(
            f"{kind!r} is not a kind of files",
            f"did you mean {near}?" if near else f"one of {', '.join(KINDS)}",
            "emit",
        )
    if plan.attached and kind != "systemd":
        raise UsageError(
            f"the engine at {plan.attached} runs already: --emit {kind} would have nothing to start",
            "--emit systemd starts a server of ours in front of it",
        )
    file = KINDS[kind]
    write: Callable[[DeployPlan, EmitOptions], Sequence[EmittedFile]]
    write = getattr(import_module(f"freehold.backends.emit.{file}"), f"{file}_files")
    return write(plan, options or EmitOptions())

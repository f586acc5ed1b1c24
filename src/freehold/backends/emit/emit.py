"""Writes a plan as files of another system: text in, text out; nothing is started, nothing is written to disk.

    for file in emit(plan, "k8s", EmitOptions(image="vllm/vllm-openai@sha256:...", server_image="...")):
        (folder / file.name).write_text(file.text)

Path: emit -> kubernetes_files -> EmittedFile
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import EmitOptions, EmittedFile
from freehold.config import nearest
from freehold.errors import UsageError

EmitKind = Literal["systemd", "compose", "k8s", "skypilot", "ray"]
KINDS: tuple[str, ...] = get_args(EmitKind)


def emit(plan: DeployPlan, kind: str, options: EmitOptions | None = None) -> Sequence[EmittedFile]:
    """Return the files. Raises UsageError: an unknown kind, an image that is missing, what the kind cannot run."""
    options = options or EmitOptions()
    if kind == "systemd":
        from freehold.backends.emit.systemd import systemd_files

        return systemd_files(plan, options)
    if kind == "compose":
        from freehold.backends.emit.compose import compose_files

        return compose_files(plan, options)
    if kind == "k8s":
        from freehold.backends.emit.kubernetes import kubernetes_files

        return kubernetes_files(plan, options)
    if kind == "skypilot":
        from freehold.backends.emit.skypilot import skypilot_files

        return skypilot_files(plan, options)
    if kind == "ray":
        from freehold.backends.emit.ray import ray_files

        return ray_files(plan, options)
    near = nearest(kind, KINDS)
    raise UsageError(
        f"{kind!r} is not a kind of files",
        f"did you mean {near}?" if near else f"one of {', '.join(KINDS)}",
        "emit",
    )

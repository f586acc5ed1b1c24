"""GGUF files that are all header: a text model of some width, and the tower (mmproj) of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.run.formats.gguf_writer import TensorPlan, gguf_header
from freehold.run.formats.weight_types import QuantType


def text_model(width: int = 64, *, name: str = "", bases: Sequence[str] = ()) -> bytes:
    """Return a text model whose rows have `width` columns."""
    keys = {"general.architecture": "llama", "llama.embedding_length": width}
    return gguf_header(keys | _named(name, bases), [])


def tower(
    width: int = 64,
    *,
    projector: str = "gemma3",
    name: str = "",
    bases: Sequence[str] = (),
    sees: bool = True,
    last: int = 0,
    fill: int = 0,
) -> bytes:
    """Return a tower whose features have `width` columns, as it states.

    `last`: rows of the merger's last matrix, where it has one. `fill`: bytes of a tensor that makes the file longer.
    """
    keys: dict[str, Any] = {
        "general.architecture": "clip",
        f"clip.has_{'vision' if sees else 'audio'}_encoder": True,
    }
    if projector:
        keys["clip.projector_type"] = projector
    if sees:
        keys["clip.vision.projection_dim"] = width
    tensors = [TensorPlan("v.patch_embd.weight", QuantType.F32, (fill // 4,))] if fill else []
    tensors += [TensorPlan("mm.2.weight", QuantType.F32, (last, 8))] if last else []
    return gguf_header(keys | _named(name, bases), tensors) + bytes(
        sum(-(-t.nbytes // 32) * 32 for t in tensors)
    )


def _named(name: str, bases: Sequence[str]) -> dict[str, Any]:
    keys: dict[str, Any] = {"general.name": name} if name else {}
    if bases:
        keys["general.base_model.count"] = len(bases)
    for i, repo in enumerate(bases):
        keys[f"general.base_model.{i}.name"] = repo.rpartition("/")[2].replace("-", " ").title()
        keys[f"general.base_model.{i}.repo_url"] = f"https://huggingface.co/{repo}"
    return keys

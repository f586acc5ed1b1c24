"""Tensors of a model's own drafting head: found among a file's, named as a model of one layer, and bound.

Knows the three ways in which files name them: `mtp.` (Qwen), layers after the last (GLM, DeepSeek), and both as a
GGUF has them; knows no family. A head of which a file lacks a weight is left out with a note, as the model is whole
without it; so are further heads, and the copies of the target's embedding and output matrix that some files hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from freehold.base.errors import BadModelFile
from freehold.run.models.binding.binder import GGUF_LAYERS, Binder, Bound, Held
from freehold.run.models.family import Network, renamed

LEFT_OUT = "the layers that predict further tokens are left out"
_OWN = re.compile(r"(enorm|hnorm|eh_proj|shared_head|embed_tokens|nextn)\.")  # of a head, beside its layer's
_COPIES = re.compile(r"(shared_head\.head|embed_tokens|nextn\.shared_head_head|nextn\.embed_tokens)\.")
_QWEN = re.compile(r"(model\.)?mtp\.")
_LAYER = "model.layers"


@dataclass(frozen=True, slots=True)
class BoundHead:
    """A drafting head's network, and its weights but those that it shares with the target."""

    network: Network
    ends: Mapping[str, Bound]
    layer: Mapping[str, Bound]


def take_head(
    tensors: Mapping[str, Held], prefix: str, layers: int, drafts: int
) -> tuple[dict[str, Held], dict[str, Held]]:
    """Return a model's tensors, and the first drafting head's under names of a model of one layer.

    `prefix`: what layers' names begin with; `drafts`: how many heads lie after the last layer.
    """
    beyond = tuple(f"{prefix}.{layers + i}." for i in range(drafts))
    rest: dict[str, Held] = {}
    head: dict[str, Held] = {}
    place = GGUF_LAYERS if prefix == GGUF_LAYERS else _LAYER
    for name, tensor in tensors.items():
        if match := _QWEN.match(name):
            inner = name[match.end() :]
            own = f"{place}.0.{inner.removeprefix('layers.0.')}" if inner.startswith("layers.0.") else inner
        elif beyond and name.startswith(beyond[0]):
            inner = name.removeprefix(beyond[0])
            own = inner if _OWN.match(inner) else f"{place}.0.{inner}"
        elif beyond and name.startswith(beyond):
            continue
        else:
            rest[name] = tensor
            continue
        if not own.startswith("layers.") and not _COPIES.match(own):
            head[own] = tensor
    return rest, head


def bind_head(
    network: Network, tensors: Mapping[str, Held], gguf: bool, names: Mapping[str, str]
) -> BoundHead | str:
    """Bind a head's tensors; return why it is left out where one is missing. Raises for others than it declares."""
    binder = Binder(tensors, GGUF_LAYERS if gguf else _LAYER)
    try:
        ends = binder.take(renamed(network.ends.tensors(), names))
        layer = binder.take(network.layers[0].tensors(), 0)
    except BadModelFile as e:
        if "missing" not in e.message:
            raise
        return f"{LEFT_OUT}: {e.message}"
    binder.refuse_rest()
    return BoundHead(network, ends, layer)

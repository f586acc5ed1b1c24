"""The models on this machine, from Python: fetch one, list them.

Knows the store; loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from freehold.base.config import load_settings
from freehold.run.local.runnable import check_fetch
from freehold.run.store import Listed, ModelRef, Store
from freehold.run.store.progress import ProgressLike, watching


def pull(
    model: str,
    *,
    quant: Literal["q8", "q6", "q4", "none"] | None = None,
    eyes: bool | None = None,
    progress: ProgressLike = None,
) -> ModelRef:
    """Fetch a model, or reference it where another program keeps it; `path` of the result is what `load` opens.

    `quant`: what the float weights of safetensors are rounded to whenever they are packed; kept with the model.
    `eyes`: whether a GGUF comes with its vision tower (mmproj); None takes one that a fetched repository has.
    `progress`: None shows a bar in a terminal and a line in a notebook, and nothing where stderr is neither; True shows
    lines there too, False nothing anywhere; a function gets each event of the pull. An interrupted pull keeps its
    bytes, and the same call resumes it. Raises UnsupportedModel before anything is fetched,
    ModelNotFound, AccessDenied, DownloadFailed, CapacityExceeded, Offline.
    """
    rounding = "" if quant == "none" else quant
    store = Store(load_settings())
    check_fetch(store, model)
    with watching(progress) as on_event:
        return store.pull(model, on_event, rounding, eyes)


def list() -> Sequence[Listed]:
    """Return the models on this machine, sorted by name: pulled ones, unfinished pulls, and those of other programs."""
    return Store(load_settings()).list()

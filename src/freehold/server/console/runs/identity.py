"""What must be the same for the same bits: the model's files, and the engine that runs them.

Knows names and digests; knows no run. Path: start, again -> identity_of -> ModelDirectory.stamp_of
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.errors import FreeholdError
from freehold.serving import ModelDirectory
from freehold.version import __version__


async def identity_of(models: ModelDirectory, model: str) -> dict[str, Any]:
    """Return a model's name, the stamp of its files and the engine; an empty digest where its files are elsewhere."""
    try:
        stamp = await models.stamp_of(model)
    except FreeholdError as e:  # such as a file that was replaced: the answer itself needs none of this
        stamp = f"none: {e.message}"
    return {"model": model, "digest": stamp, "engine": f"freehold {__version__}"}


def changed(bits: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what is not as it was when an answer was made; "" where all is."""
    if bits.get("model") != now["model"]:
        return f"The answer was made by {bits.get('model')}, which is now {now['model']}."
    if bits.get("digest") != now["digest"]:
        return f"The files of {now['model']} are not those that made this answer."
    if bits.get("engine") != now["engine"]:
        return f"The answer was made by {bits.get('engine')}; this is {now['engine']}."
    return ""

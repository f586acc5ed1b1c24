"""What a model is at this moment, as bars record it: a stored file with its changed defaults, or a rented name.

Reads records, not weights: the digest of a stored file is in its manifest. Knows no result.
Path: Bars.passes, cli/bar -> Identities.of -> MeasuredModel
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from freehold.formats import open_model_file
from freehold.formats.filetype import quantization_of
from freehold.router.bar import MeasuredModel, text_digest
from freehold.router.gateway import GatewayModel
from freehold.store import Store
from freehold.store.overlays import Overlay


class Identities:
    """Identifies models of one store and of providers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, model: GatewayModel) -> MeasuredModel:
        """Return what a gateway's model is now. Raises ModelNotFound where the store has it no more."""
        if model.remote is None:
            return self.stored(model.local, model.name)
        provider = model.remote.provider
        weights = f"{provider.kind} {provider.url} {model.remote.model}"
        return MeasuredModel(model.name, weights, "as the provider serves it", rented=True)

    def stored(self, name: str, called: str = "") -> MeasuredModel:
        """Return what a stored model is now, under the name by which it was asked for."""
        listed, overlay = self._store.show(name), self._store.overlays.find(name)
        if listed.base:  # an overlay's digest is its record's
            listed = self._store.show(listed.base)
        return MeasuredModel(
            called or name,
            listed.digest or _unhashed(listed.path),
            listed.rounding or _quantization(listed.path, listed.digest),
            template=text_digest(overlay.template) if overlay else "",
            system=text_digest(overlay.system, *(t for m in overlay.messages for t in m)) if overlay else "",
            settings=_settings(overlay) if overlay else "",
        )


def _settings(overlay: Overlay) -> str:
    return text_digest(json.dumps(dict(overlay.parameters), sort_keys=True, default=str), overlay.adapter)


def _unhashed(path: Path) -> str:
    """Name a file that was never hashed by path, size and time."""
    status = path.stat()
    return hashlib.sha256(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()


@lru_cache(maxsize=64)
def _quantization(path: Path, digest: str) -> str:
    """Read the name of a file's quantisation, once for each digest."""
    with closing(open_model_file(path)) as opened:
        bytes_by_type: dict[str, int] = {}
        for tensor in opened.tensors.values():
            bytes_by_type[tensor.type.name] = bytes_by_type.get(tensor.type.name, 0) + tensor.nbytes
        most_first = dict(sorted(bytes_by_type.items(), key=lambda kv: -kv[1]))
        return quantization_of(opened, most_first)

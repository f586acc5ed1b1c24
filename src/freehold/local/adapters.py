"""The LoRA adapters of one loaded model, by name.

Knows names and their limit; knows no request and no arithmetic. Adding and removing is safe while answers are
made: a request holds its adapter, and keeps it to its end.
Path: local.opening or worker/process/intake.py -> Adapters.add -> load_adapter; LLM -> Adapters.find -> Request
"""

from __future__ import annotations

import threading
from pathlib import Path

from freehold.errors import UsageError
from freehold.formats.adapter_names import MAX_ADAPTERS, check_adapter_name, unknown_adapter
from freehold.models.load import LoadedModel
from freehold.models.lora import Adapter, load_adapter
from freehold.serving import AdapterInfo


class Adapters:
    """The adapters that `model+NAME` can name. `default`: for calls that name none ("": the model itself)."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._held: dict[str, Adapter] = {}
        self._lock = threading.Lock()  # one is loaded at a time
        self.default = ""

    def add(self, name: str, path: str | Path) -> None:
        """Load an adapter; it replaces one of the same name.

        Raises UsageError for an invalid name or one adapter too many, and what load_adapter raises.
        """
        check_adapter_name(name)
        with self._lock:
            if name not in self._held and len(self._held) >= MAX_ADAPTERS:
                raise UsageError(f"{self._model.name} has {MAX_ADAPTERS} adapters", "remove one first")
            self._held = {**self._held, name: load_adapter(path, self._model, name)}

    def remove(self, name: str) -> None:
        """Remove an adapter. Raises ModelNotFound."""
        with self._lock:
            self.find(name)
            self._held = {key: adapter for key, adapter in self._held.items() if key != name}

    def chosen(self, name: str | None) -> str:
        """Return the name, or the default for None."""
        return self.default if name is None else name

    def find(self, name: str) -> Adapter | None:
        """Return an adapter, None for the model itself. Raises ModelNotFound with the names there are."""
        if not name:
            return None
        held = self._held
        if name not in held:
            raise unknown_adapter(self._model.name, name, [*held])
        return held[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(adapter.nbytes for adapter in self._held.values())

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """What they are, by name."""
        return tuple(
            AdapterInfo(a.name, a.rank, a.modules, a.nbytes, a.digest) for _, a in sorted(self._held.items())
        )

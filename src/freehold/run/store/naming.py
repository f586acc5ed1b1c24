"""Names that a command line or a file gives: `base+adapter` split, where the store has no model of the whole name.

The plus means the same in every verb. After it comes an adapter's path, with a name of its own if the user wrote one
([NAME=]PATH), or the name of an adapter that a running server has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.base.errors import ModelNotFound, UnsupportedModel, UsageError

if TYPE_CHECKING:
    from freehold.run.store import ModelRef, Store


_MISSING, _HINT = "there is no adapter at {}", "name a PEFT folder or a GGUF adapter"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """MODEL[+ADAPTER] in parts. `path`: where the adapter lies; None beside a name: a running server has it."""

    model: str
    adapter: str = ""
    path: Path | None = None


def parted(store: Store, model: str) -> NamedModel:
    """Split `base+adapter`; the name of a stored model, or a file, has no adapter.

    Raises UsageError for an adapter whose name is not valid, and for a path without one.
    """
    from freehold.run.formats.lora import ADAPTER_NAME
    from freehold.run.store.refs import parse_ref

    if "+" not in model or _is_model(store, model):
        return NamedModel(model)
    for base, adapter in _pluses(model):
        name, path = adapter_of(adapter)
        if path is not None:
            return NamedModel(base, name, path)
    base, _, adapter = model.rpartition("+")
    if base and re.fullmatch(ADAPTER_NAME, adapter):
        return NamedModel(base, adapter)
    if adapter.startswith(("./", "../", "/", "~")) and (
        parse_ref(base).kind != "path" or Path(base).exists()
    ):
        raise UsageError(f"{model}: {_MISSING.format(Path(adapter))}", _HINT)
    return NamedModel(model)


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter that is on this disk."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """MODEL[+ADAPTER...], found: a model of the store, and the adapters that are applied to it, in order."""

    ref: ModelRef
    adapters: tuple[NamedAdapter, ...] = ()

    @property
    def adapter(self) -> Path | None:
        """The only adapter's path; None without one. For verbs that take one at most, as `adapted` checks."""
        return self.adapters[0].path if self.adapters else None


def adapters_of(store: Store, text: str) -> tuple[str, tuple[NamedAdapter, ...]]:
    """Split MODEL[+ADAPTER...] where each adapter is a path. Raises UsageError for one that is not there."""
    adapters: list[NamedAdapter] = []
    while (named := parted(store, text)).adapter:
        if named.path is None:
            raise UsageError(
                f"{text}: {_MISSING.format(named.adapter)}",
                "name a PEFT folder or a GGUF adapter after the +",
            )
        adapters.append(NamedAdapter(named.adapter, named.path))
        text = named.model
    return text, tuple(reversed(adapters))


def adapted(store: Store, text: str, *, most: int = 1) -> AdaptedModel:
    """Find MODEL[+ADAPTER...] for work on the files themselves, such as training. Nothing is fetched.

    A model that `freehold create` made of another by an adapter alone is that model with the adapter. Raises UsageError
    for more than `most` adapters and for one that is not there, and what Store.resolve raises.
    """
    model, adapters = adapters_of(store, text)
    ref = store.resolve(model)
    overlay = ref.overlay
    if overlay is not None and overlay.adapter and not overlay.changes_answers:
        own = NamedAdapter(overlay.adapter_name, Path(overlay.adapter))
        ref, adapters = replace(store.resolve(overlay.base), overlay=None), (own, *adapters)
    if len(adapters) > most:
        raise UsageError(
            f"{text} has {len(adapters)} adapters; this takes {most or 'none'}",
            "an adapter that was trained on top of another contains it: name the last one",
        )
    return AdaptedModel(ref, adapters)


def adapter_of(text: str) -> tuple[str, Path | None]:
    """Return the name and the path of [NAME=]PATH; for anything else the text and None.

    Raises UsageError for a name that no adapter can have, and for NAME=PATH without a file there.
    """
    from freehold.run.formats.lora import check_adapter_name

    name, equals, rest = text.rpartition("=")
    path = Path(rest).expanduser()
    if not rest or not path.exists():
        if equals:
            raise UsageError(_MISSING.format(path), _HINT)
        return text, None
    name = name or path.stem or path.resolve().name
    check_adapter_name(name)
    return name, path.absolute()


def speech_model(store: Store, text: str) -> ModelRef:
    """Find a model that writes down recordings: by name, or as a folder or file of the working directory.

    Raises what Store.resolve raises, UnsupportedModel for a model that hears nothing.
    """
    from freehold.run.store.eyes import hears

    try:
        ref = store.resolve(text)
    except (ModelNotFound, UsageError):
        if not text or not Path(text).exists():
            raise
        ref = store.resolve(f"./{text}")  # faster-whisper's users name folders so, whisper.cpp's files
    if not hears(ref):
        raise UnsupportedModel(
            f"{ref.name} does not write down recordings",
            "freehold models --role transcriber lists models that do",
        )
    return ref


def answering_model(store: Store, text: str) -> ModelRef:
    """Find a model that is not for recordings. Raises what Store.resolve raises, UnsupportedModel for one that is."""
    from freehold.run.store.eyes import check_answers

    ref = store.resolve(text)
    check_answers(ref)
    return ref


def _pluses(model: str) -> Iterator[tuple[str, str]]:
    """Yield the text before and after each plus, the last first."""
    for at in range(len(model) - 2, 0, -1):
        if model[at] == "+":
            yield model[:at], model[at + 1 :]


def _is_model(store: Store, model: str) -> bool:
    try:
        store.resolve(model)
    except (ModelNotFound, UsageError):
        return False
    return True

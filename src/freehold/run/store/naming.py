"""Names that a command line or a file gives: `base+adapter` split, where the store has no model of the whole name.

The plus means the same in every verb. After it comes an adapter's path, with a name of its own if the user wrote one
([NAME=]PATH), or the name of an adapter that a running server has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    from freehold.run.formats.adapter_names import ADAPTER_NAME
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


def adapter_of(text: str) -> tuple[str, Path | None]:
    """Return the name and the path of [NAME=]PATH; for anything else the text and None.

    Raises UsageError for a name that no adapter can have, and for NAME=PATH without a file there.
    """
    from freehold.run.formats.adapter_names import check_adapter_name

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

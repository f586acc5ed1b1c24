"""Makes a model from another one: checks the recipe against its base and writes a record.

Knows the store and recipes; knows no route and no terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.sandbox.rendering import shared
from freehold.run.store.contract import OnEvent
from freehold.run.store.modelfile import Recipe
from freehold.run.store.overlays import Overlay, canonical, checked, keep_adapter
from freehold.run.store.records import ModelRef
from freehold.run.store.store import Store

# Go's templates name fields with a dot, and close what they open with `end`.
_GO = re.compile(r"\{\{-?\s*(?:\.|\$|(?:if|range|with|else|end|template|block|define|json|slice)\b)")
Fetch = Callable[[str, OnEvent], ModelRef]


def make(store: Store, name: str, recipe: Recipe, on_event: OnEvent, fetch: Fetch | None = None) -> Overlay:
    """Keep `recipe` under `name`, in place of what was made under it before; return the record.

    A base that is not here is fetched by `fetch` (the store's own pull). Raises UsageError for a name that a model
    of its own has, and for what cannot be honoured; BadTemplate, ModelNotFound and what fetching raises.
    """
    _check_free(store, name)
    template, notes = _template(recipe.template)
    _made(name, recipe, template, Overlay(name="", base="x"))  # checked before a base is fetched for it
    try:
        base = store.resolve(recipe.base)
    except ModelNotFound:
        base = (fetch or store.pull)(recipe.base, on_event)
    overlay = _made(name, recipe, template, base.overlay or Overlay(name="", base=base.name))
    read, replaced = overlay.read, store.overlays.find(name)
    if read.context is not None:
        notes = (
            *notes,
            "num_ctx is stored but ignored: the context is what fits in memory, or what --context sets",
        )
    if recipe.adapter:
        overlay = replace(overlay, adapter=str(keep_adapter(store.settings.home, Path(recipe.adapter))))
    overlay = replace(overlay, notes=(*recipe.notes, *notes, *read.warnings))
    released = overlay.adapter  # where its record cannot be written
    try:
        overlay_written = store.overlays.write(overlay)
        released = replaced.adapter if replaced is not None else ""
    finally:
        store.overlays.release(released)
    return overlay_written


def _made(name: str, recipe: Recipe, template: str, before: Overlay) -> Overlay:
    """Return what a recipe makes of `before`, without an adapter of its own; raises UsageError as `checked` does."""
    return checked(
        replace(
            before,
            name=canonical(name),
            parameters={**before.parameters, **recipe.parameters},
            system=before.system if recipe.system is None else recipe.system,
            template=template or before.template,
            messages=recipe.messages or before.messages,
            licence=recipe.licence or before.licence,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )


def copy(store: Store, source: str, name: str) -> Overlay:
    """Give a model another name. Raises ModelNotFound, and UsageError as `make` does."""
    store.resolve(source)
    return make(store, name, Recipe(base=source), lambda _: None)


def _check_free(store: Store, name: str) -> None:
    """Refuse a name that belongs to a model of its own."""
    checked(Overlay(name, "x"))
    try:
        taken = store.show(name)
    except (ModelNotFound, UsageError):
        return
    if not taken.base:
        raise UsageError(
            f"{taken.name} is a model of its own", "choose another name, or freehold rm it first"
        )


def _template(source: str | None) -> tuple[str, tuple[str, ...]]:
    """Return a template that can be honoured, and the warning for one that cannot."""
    if not source:
        return "", ()
    if "{%" not in source and _GO.search(source):
        return "", ("TEMPLATE was ignored: it is in Go's language; the model's own chat template is used",)
    if "messages" not in source:
        raise UsageError(
            "TEMPLATE writes no messages", "it is in Jinja, as chat templates of model files are"
        )
    shared.check(source)
    return source, ()

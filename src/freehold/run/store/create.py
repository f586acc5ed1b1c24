"""Makes a model from another one: reads the recipe, checks it against its base and writes a record.

A recipe is a Modelfile: what a model is made from and its changed defaults, in Ollama's words. Instructions in any case
and order; a value ends with its line, or where the three quotes close that open it. Lines that begin with # are
comments. An unknown word is an error with its line. Knows the store and recipes; knows no route and no terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from freehold.base.config import suggestion
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.sandbox.rendering import shared
from freehold.run.store import parameters
from freehold.run.store.contract import OnEvent
from freehold.run.store.overlays import MAX_MESSAGES, Overlay, canonical, checked, keep_adapter
from freehold.run.store.records import ModelRef
from freehold.run.store.store import Store

# --- a Modelfile -----------------------------------------------------------------------------------

MAX_CHARS = 1 << 20
MAX_LINES = 20_000
MAX_LICENCES = 100
_TRIPLE = '"""'
WORDS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "MESSAGE", "LICENSE")
# Known there, and what it would have done.
_IDLE = {
    "RENDERER": "the model's own chat template is used",
    "PARSER": "tool calls and thinking are read as the model's template has them",
    "REQUIRES": "it names a version of another program",
    "DRAFT": "a draft model is named when the model is loaded",
}
_LINE = re.compile(r"[ \t]*([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
_ESCAPE = re.compile(r'\\(["\\n])')


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made from, and its changed defaults. Empty and None: not given."""

    base: str = ""
    parameters: dict[str, object] = field(default_factory=dict)
    system: str | None = None
    template: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    adapter: str = ""
    tower: str = (
        ""  # a second FROM: of two files, whose headers say which is the model's and which its tower's
    )
    licence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse(text: str) -> Recipe:
    """Read a Modelfile. Raises UsageError with the line's number."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"the Modelfile has {len(text):,} characters; expected at most {MAX_CHARS:,}")
    recipe = Recipe()
    for number, word, value in _instructions(text.removeprefix("\ufeff")):
        try:
            recipe = _READERS[word](recipe, value) if word in _READERS else _strange(recipe, word)
        except UsageError as e:
            raise UsageError(f"line {number}: {e.message}", e.hint) from None
    if not recipe.base:
        raise UsageError("the Modelfile has no FROM", "FROM MODEL names what the new one is made from")
    return recipe


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word in capitals, value with its quotes)."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise UsageError(f"the Modelfile has {len(lines):,} lines; expected at most {MAX_LINES:,}")
    at = 0
    while at < len(lines):
        first, line = at, lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(f"line {first + 1}: {line.strip()[:60]!r} is not an instruction", _known())
        value = match[2] or ""
        if value.count(_TRIPLE) == 1:
            block = [value]
            while at < len(lines) and _TRIPLE not in lines[at]:
                block.append(lines[at])
                at += 1
            if at == len(lines):
                raise UsageError(f'line {first + 1}: the """ that opens here is never closed')
            block.append(lines[at])
            at += 1
            value = "\n".join(block)
        yield first + 1, match[1].upper(), value


def _unquoted(value: str) -> str:
    value = value.strip()
    if value.startswith(_TRIPLE):
        inside, closing, after = value[3:].rpartition(_TRIPLE)
        if not closing or after.strip():
            raise UsageError(f'{after.strip()[:60]!r} follows the closing """')
        return inside
    if _TRIPLE in value:
        raise UsageError('""" is in the middle of a value', "begin the value with it")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], value[1:-1])
    return value


def _text(value: str, what: str) -> str:
    text = _unquoted(value)
    if not text.strip():
        raise UsageError(f"{what} says nothing", f"write {what} and a value")
    return text


def _head(value: str) -> tuple[str, str]:
    """Return a value's first word in small letters, and what follows it."""
    words = value.split(None, 1)
    return (words[0].lower() if words else ""), (words[1] if len(words) > 1 else "")


def _from(recipe: Recipe, value: str) -> Recipe:
    source = _text(value, "FROM").strip()
    if recipe.tower:
        raise UsageError("a third FROM", "a model is made from one, or from two files: a GGUF and its mmproj")
    return replace(recipe, tower=source) if recipe.base else replace(recipe, base=source)


def _parameter(recipe: Recipe, value: str) -> Recipe:
    name, rest = _head(value)
    parameter = parameters.from_text(name, _text(rest, f"PARAMETER {name[:60]}"))
    if name == "stop":
        before = recipe.parameters.get("stop", [])
        parameter = [*before, parameter] if isinstance(before, list) else [parameter]
    # The name is checked here too, so that the error has a line.
    parameters.read({name: parameter}, strict=True)
    return replace(recipe, parameters={**recipe.parameters, name: parameter})


def _message(recipe: Recipe, value: str) -> Recipe:
    role, rest = _head(value)
    if role not in ("system", "user", "assistant"):
        raise UsageError(f"a MESSAGE is of {role[:40]!r}", "write MESSAGE user TEXT, or system or assistant")
    if len(recipe.messages) == MAX_MESSAGES:
        raise UsageError(f"there are more than {MAX_MESSAGES:,} of MESSAGE", "leave some out")
    return replace(recipe, messages=(*recipe.messages, (role, _text(rest, "MESSAGE"))))


def _licence(recipe: Recipe, value: str) -> Recipe:
    if len(recipe.licence) == MAX_LICENCES:
        raise UsageError(f"there are more than {MAX_LICENCES} of LICENSE", "write them as one text")
    return replace(recipe, licence=(*recipe.licence, _text(value, "LICENSE")))


def _strange(recipe: Recipe, word: str) -> Recipe:
    if word in _IDLE:
        note = f"{word} was ignored: {_IDLE[word]}"
        return recipe if note in recipe.notes else replace(recipe, notes=(*recipe.notes, note))
    raise UsageError(
        f"there is not an instruction {word[:60]!r}", suggestion(word[:60], [*WORDS, *_IDLE], _known())
    )


def _known() -> str:
    return f"known: {', '.join(WORDS)}"


_READERS = {
    "FROM": _from,
    "PARAMETER": _parameter,
    "MESSAGE": _message,
    "TEMPLATE": lambda recipe, value: replace(recipe, template=_unquoted(value)),
    "SYSTEM": lambda recipe, value: replace(recipe, system=_unquoted(value)),
    "ADAPTER": lambda recipe, value: replace(recipe, adapter=_text(value, "ADAPTER").strip()),
    "LICENSE": _licence,
}


# --- a model of it ---------------------------------------------------------------------------------

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

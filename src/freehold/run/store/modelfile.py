"""Reads a Modelfile: what a model is made from and its changed defaults, in Ollama's words.

Instructions in any case and order; a value ends with its line, or where the three quotes close that open it.
Lines that begin with # are comments. Nothing is resolved or checked against a model here, and an unknown word is
an error with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.run.store import parameters
from freehold.run.store.overlays import MAX_MESSAGES

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

"""The registry of model families, one file each: an architecture's config from both formats, and its layers' parts.

A module of this room with a FAMILY, or FAMILIES where one file serves several, is registered by being here. Its names
are quoted strings in its source: a search of the text finds the modules of a name, and the others stay unimported.
Importing all of them takes some forty milliseconds.
Path: bind.gguf_family, bind.family_of, bind.refusal -> naming -> Family; registered for what is asked of all
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

from freehold.run.models.family import Family


def naming(name: str) -> tuple[Family, ...]:
    """Return the families of the modules that mention a name: those that register it, and at times a few more."""
    quoted = f'"{name}"'
    return tuple(
        family for module in _modules() if quoted in (_source(module) or quoted) for family in _of(module)
    )


@cache
def registered() -> tuple[Family, ...]:
    """Return every family."""
    return tuple(family for module in _modules() for family in _of(module))


def _of(module: str) -> tuple[Family, ...]:
    family_module = import_module(f"{__name__}.{module}")
    return tuple(getattr(family_module, "FAMILIES", None) or (family_module.FAMILY,))


@cache
def _modules() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(__path__)))


@cache
def _source(module: str) -> str | None:
    """Return a module's text; None where bytecode alone was installed. An editable install's loader gives no text."""
    spec = find_spec(f"{__name__}.{module}")
    path = Path(spec.origin or "") if spec is not None else Path()
    return path.read_text(encoding="utf-8") if path.suffix == ".py" and path.is_file() else None

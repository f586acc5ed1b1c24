"""The registry of model families, one file each: an architecture's config from both formats, and its layers' parts.

A module of this room with a FAMILY, or FAMILIES where one file serves several, is registered by being here. Its names
stand in its source as quoted strings, so that a name finds its modules by their text and the others stay unimported:
importing all of them takes some forty milliseconds.
Path: bind.gguf_family, bind.family_of, bind.refusal -> naming -> Family; registered for what is asked of all
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.util import find_spec
from pkgutil import iter_modules

from freehold.models.family import Family


def naming(name: str) -> tuple[Family, ...]:
    """Return the families of the modules that mention a name: those that register it, and at times a few more."""
    quoted = f'"{name}"'
    return tuple(family for module in _modules() if quoted in _source(module) for family in _of(module))


@cache
def registered() -> tuple[Family, ...]:
    """Return every family."""
    return tuple(family for module in _modules() for family in _of(module))


def _of(module: str) -> tuple[Family, ...]:
    found = import_module(f"{__name__}.{module}")
    return tuple(getattr(found, "FAMILIES", None) or (found.FAMILY,))


@cache
def _modules() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(__path__)))


@cache
def _source(module: str) -> str:
    """Return a module's text."""
    spec = find_spec(f"{__name__}.{module}")
    loader = spec.loader if spec is not None else None
    assert isinstance(loader, InspectLoader), f"{module} was installed without its source"
    return loader.get_source(f"{__name__}.{module}") or ""
